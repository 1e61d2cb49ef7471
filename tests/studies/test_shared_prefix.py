"""A shared prefix is exact: the same logits and texts as plain hooked runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatelens.interventions import knockout, patch
from gatelens.studies.common import prepare
from gatelens.studies.shared_prefix import SharedPrefix, exact
from study_helpers import TinyData

QUERIES = "text - gate"


@pytest.mark.parametrize("task", ["class", "vqa"])
@pytest.mark.parametrize("how", ["zero", "mask"])
def test_equals_plain_runs(tiny: Any, task: str, how: Any) -> None:
    inputs = prepare(tiny, TinyData().examples(task)[:4])  # vqa prompts differ in length: padding on the left
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
