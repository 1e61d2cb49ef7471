"""Patching: who is paired with whom, and what arrives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from gatelens.model import HookedVLM
from intervention_helpers import prompts


def test_the_pictures_stream_brings_the_picture(tiny: Any, batch: Any, real: Any) -> None:
    """All image positions of the first block from another run: as if the other picture had been shown."""
    other = prompts(tiny, seed=5)
    expected, cache = tiny.run_with_cache(other, lambda name: name.endswith("0.hook_resid_pre"))
    assert (expected - tiny(batch))[:, -1].abs().max() > 1e-2
    got = run(tiny, batch, gi.patch(cache, "image", layers=0))
    assert torch.equal(got[real], expected[real])


def test_positions_pair_by_role_between_prompts_of_different_length(
    tiny: Any, batch: Any, one_image: Any
) -> None:
    name = "blocks.1.hook_resid_pre"
    _, cache = tiny.run_with_cache(one_image, name)
    spec = gi.patch(cache, "image | last", layers=1)
    pairs = spec.pairs(batch.tokens)
    assert len(pairs) == 3 * 17
    for example in range(3):
        mine = [pair for pair in pairs if pair.example == example]
        assert [p.position for p in mine] == batch.tokens.positions("image | last", example)
        assert [p.source_position for p in mine] == one_image.tokens.positions("image | last")
        assert {p.source_example for p in mine} == {0}
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=spec.hooks(batch.tokens))
    for p in pairs:
        assert torch.equal(after[name][p.example, p.position], cache[name][0, p.source_position])
        assert p.string == batch.tokens.strings[p.example][p.position]
        assert p.source_string == one_image.tokens.strings[0][p.source_position]
    table = str(pairs)
    assert (
        table.splitlines()[0].split()[:3] == ["example", "position", "string"]
        and len(table.splitlines()) == 52
    )


def test_equal_batches_pair_row_by_row(tiny: Any, batch: Any) -> None:
    other = prompts(tiny, seed=5).select([2, 0, 1])
    name = "blocks.1.attn.hook_z"
    _, cache = tiny.run_with_cache(other, name)
    spec = gi.patch(cache, "image", "z", layers=1, heads=[1, 3])
    _, before = tiny.run_with_cache(batch, name)
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=spec.hooks(batch.tokens, tiny.cfg))
    for b in range(3):
        here, there = batch.tokens.positions("image", b), other.tokens.positions("image", b)
        assert torch.equal(after[name][b, here][:, [1, 3]], cache[name][b, there][:, [1, 3]])
        assert torch.equal(after[name][b, here][:, [0, 2]], before[name][b, here][:, [0, 2]])


def test_another_source_selector_and_broadcast(tiny: Any, batch: Any, one_image: Any) -> None:
    name = "blocks.2.hook_mlp_out"
    _, cache = tiny.run_with_cache(one_image, name)
    moved = gi.patch(cache, "last", "mlp_out", 2, source="first_image")
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=moved.hooks(batch.tokens))
    first = one_image.tokens.positions("first_image")[0]
    assert torch.equal(after[name][:, -1], cache[name][0, first].expand(3, -1))
    spread = gi.patch(cache, "image", "mlp_out", 2, source="last", broadcast=True)
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=spread.hooks(batch.tokens))
    image = batch.tokens.mask("image")
    assert torch.equal(after[name][image], cache[name][0, -1].expand(int(image.sum()), -1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": "image", "source": "last"}, ["16 positions", "selects 1", "broadcast=True"]),
        ({"at": "image", "source": "first_image | last"}, ["16 positions", "selects 2"]),
        ({"at": "query"}, ["example", "'query'", "selects"]),
        ({"at": "last", "layers": 0}, ["'blocks.0.hook_resid_pre'", "names_filter"]),
        ({"at": "last", "site": "mlp_out"}, ["'blocks.1.hook_mlp_out'", "names_filter"]),
        ({"at": "generated"}, ["at='generated'"]),
    ],
)
def test_what_does_not_pair_says_so(
    tiny: Any, batch: Any, one_image: Any, arguments: dict[str, Any], words: list[str]
) -> None:
    _, cache = tiny.run_with_cache(one_image, "blocks.1.hook_resid_pre")
    with pytest.raises(InterventionError) as error:
        run(tiny, batch, gi.patch(cache, **{"layers": 1, **arguments}))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_batches_that_do_not_fit(tiny: Any, batch: Any) -> None:
    _, cache = tiny.run_with_cache(batch.select([0, 1]), "blocks.1.hook_resid_pre")
    with pytest.raises(InterventionError, match="2 examples and the inputs 3"):
        run(tiny, batch, gi.patch(cache, "image", layers=1))
    with pytest.raises(InterventionError, match="run_with_cache"):
        gi.patch({"blocks.1.hook_resid_pre": torch.zeros(1)}, "image")


def test_a_cache_under_the_bridges_own_names_will_do(tiny: Any, batch: Any) -> None:
    clean, cache = tiny.run_with_cache(batch, "blocks.1.hook_in")
    assert torch.equal(run(tiny, batch, gi.patch(cache, "image", layers=1)), clean)


def test_another_model_is_patched_from_only_when_that_is_said(tiny: Any, batch: Any, oracle: Any) -> None:
    """Equal shapes do not make a cache fit; said, its activations arrive as they are."""
    hf = copy.deepcopy(oracle)
    for weight in hf.parameters():
        weight.data *= 1.1
    other = HookedVLM.from_module(hf, tiny.processor)
    name = "blocks.1.hook_resid_pre"
    _, cache = other.run_with_cache(batch, name)
    with pytest.raises(
        InterventionError, match=r"the cache is of another model, HookedVLM.*other_model=True"
    ):
        run(tiny, batch, gi.patch(cache, "image", layers=1))
    meant = gi.patch(cache, "image", layers=1, other_model=True)
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=meant.hooks(batch.tokens, tiny.cfg))
    image = batch.tokens.mask("image")
    assert torch.equal(after[name][image], cache[name][image])
    assert (after[name][image] - tiny.run_with_cache(batch, name)[1][name][image]).abs().max() > 0.01


def test_from_one_layer_into_another(tiny: Any, batch: Any) -> None:
    names = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 2)]
    _, cache = tiny.run_with_cache(prompts(tiny, seed=5), names)
    spec = gi.patch(cache, "image", layers=2, source_layer=0)
    _, after = tiny.run_with_cache(batch, names, fwd_hooks=spec.hooks(batch.tokens, tiny.cfg))
    image = batch.tokens.mask("image")
    assert torch.equal(after[names[1]][image], cache[names[0]][image])
    assert (cache[names[0]] - cache[names[1]])[image].abs().max() > 0.1
    with pytest.raises(InterventionError, match="source_layer=-1: give a whole number, 0 or more"):
        gi.patch(cache, "image", source_layer=-1)
    with pytest.raises(InterventionError, match=r"the cache has no 'blocks.1.hook_resid_pre'"):
        run(tiny, batch, gi.patch(cache, "image", layers=2, source_layer=1))


def test_rows_of_a_pattern(tiny: Any, batch: Any, one_image: Any) -> None:
    """Its rows arrive in the chosen heads; a prompt of other length has other columns and is refused."""
    name = "blocks.1.attn.hook_pattern"
    _, before = tiny.run_with_cache(batch, name)
    _, cache = tiny.run_with_cache(prompts(tiny, seed=5), name)
    spec = gi.patch(cache, "last", "pattern", layers=1, heads=[2])
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=spec.hooks(batch.tokens, tiny.cfg))
    assert torch.equal(after[name][:, 2, -1], cache[name][:, 2, -1])
    assert torch.equal(after[name][:, [0, 1, 3]], before[name][:, [0, 1, 3]])
    assert torch.equal(after[name][:, 2, :-1], before[name][:, 2, :-1])
    assert (cache[name] - before[name])[:, 2, -1].abs().max() > 0.01
    same = tiny.generate(batch, max_new_tokens=4)
    own = gi.patch(before, "last", "pattern", layers=1)
    assert tiny.generate(batch, own, max_new_tokens=4) == same
    _, short = tiny.run_with_cache(one_image, name)
    with pytest.raises(InterventionError, match="a row of a pattern weighs every position"):
        run(tiny, batch, gi.patch(short, "last", "pattern", layers=1))
