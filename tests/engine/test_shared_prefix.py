"""A shared prefix is exact: the same logits and texts as plain hooked runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatelens.engine.shared_prefix import SharedPrefix, exact
from gatelens.interventions import knockout, patch
from gatelens.studies.common import chunks_by_length, prepare
from study_helpers import TinyData

QUERIES = "text - gate"


@pytest.mark.parametrize("how", ["zero", "mask"])
def test_equals_plain_runs(tiny: Any, how: Any) -> None:
    inputs = prepare(tiny, TinyData().examples("class")[:4])
    shared = SharedPrefix(tiny, inputs, QUERIES)
    assert shared.start > 16
    for keys in ("gate", "image", "random_image:5@3"):
        specs = [knockout(queries=QUERIES, keys=keys, how=how)]
        torch.testing.assert_close(shared.run(specs), tiny.run(inputs, specs)[:, -1], atol=1e-4, rtol=1e-4)
        assert shared.generate(specs, 6) == tiny.generate(inputs, specs, max_new_tokens=6)
    torch.testing.assert_close(shared.run([]), tiny(inputs)[:, -1], atol=1e-4, rtol=1e-4)


def test_equals_plain_patching(tiny: Any) -> None:
    examples = TinyData().examples("class")
    inputs, other = prepare(tiny, examples[:3]), prepare(tiny, examples[5:8])
    _, cache = tiny.run_with_cache(other, names_filter="blocks.1.hook_resid_pre")
    specs = [patch(cache, at="gate", site="resid_pre", layers=[1])]
    shared = SharedPrefix(tiny, inputs, "gate | text")
    assert shared.start > 0
    torch.testing.assert_close(shared.run(specs), tiny.run(inputs, specs)[:, -1], atol=1e-4, rtol=1e-4)


def test_it_checks_itself_and_gives_way(tiny: Any) -> None:
    inputs = prepare(tiny, TinyData().examples("class")[:2])
    assert exact(tiny, inputs, QUERIES)
    assert SharedPrefix(tiny, inputs, "image").start == 0  # the pictures' own positions change
    assert SharedPrefix(tiny, inputs, QUERIES, use=False).start == 0
    plain = SharedPrefix(tiny, inputs, QUERIES, use=False)
    torch.testing.assert_close(plain.run([]), tiny(inputs)[:, -1])


def test_batches_are_of_one_length_and_number_examples_alike(tiny_llava: Any) -> None:
    examples = TinyData().examples("vqa")
    found = {}
    for size in (4, 5, 100):
        parts = chunks_by_length(tiny_llava, examples, size)
        assert all(len({e.prompt for e in part}) == 1 and len(part) <= size for _, _, part in parts)
        found[size] = {e.id: start + i for _, start, part in parts for i, e in enumerate(part)}
    assert found[4] == found[5] == found[100]
    assert sorted(found[4].values()) == list(range(12))


def test_prompts_of_two_lengths_run_plainly(tiny: Any) -> None:
    inputs = prepare(tiny, TinyData().examples("vqa")[:4])
    shared = SharedPrefix(tiny, inputs, QUERIES)
    assert shared.start == 0  # one prompt's text stands where another's picture does
    torch.testing.assert_close(shared.run([]), tiny(inputs)[:, -1])
