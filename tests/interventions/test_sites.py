"""Every site: hooks fire, edits take effect, and are the edit plain transformers would make there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from gatelens.interventions.compile import compile_hooks
from intervention_helpers import site_hooks, torch_hooks

LAYERS = range(3)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("site", gi.SITES)
def test_zero_is_what_plain_transformers_gives(
    tiny: Any, oracle: Any, blocks: Any, batch: Any, real: Tensor, site: str, layer: int
) -> None:
    at = "gate | last | random_image:4"
    places = batch.tokens.mask(at)[..., None]
    zero = {site: lambda x: x.masked_fill(places, 0)}
    with torch.no_grad(), torch_hooks(site_hooks(blocks[layer], zero)):
        expected = oracle(**batch.tensors).logits
    got = run(tiny, batch, gi.ablate(at, site, layers=layer))
    torch.testing.assert_close(got[real], expected[real], atol=5e-5, rtol=1e-4)
    assert (got - tiny(batch))[:, -1].abs().max() > 1e-4


@pytest.mark.parametrize("site", gi.SITES)
def test_own_activations_change_nothing(tiny: Any, batch: Any, site: str) -> None:
    clean, cache = tiny.run_with_cache(batch)
    for layer in LAYERS:
        assert torch.equal(run(tiny, batch, gi.patch(cache, "all", site, layers=layer)), clean)
    assert torch.equal(run(tiny, batch, gi.patch(cache, "text", site)), clean)


@pytest.mark.parametrize(("site", "n"), [("q", 4), ("z", 4), ("k", 2), ("v", 2)])
def test_heads_of_a_site(tiny: Any, batch: Any, site: str, n: int) -> None:
    name = gi.hook_name(site, 1)
    _, before = tiny.run_with_cache(batch, name)
    for head in range(n):
        spec = gi.ablate("text", site, layers=1, heads=head)
        _, after = tiny.run_with_cache(batch, name, fwd_hooks=spec.hooks(batch.tokens, tiny.cfg))
        text = batch.tokens.mask("text")
        assert not after[name][text][:, head].any()
        others = [h for h in range(n) if h != head]
        assert torch.equal(after[name][:, :, others], before[name][:, :, others])
        assert torch.equal(after[name][~text], before[name][~text])
    whole, parts = gi.ablate("text", site, 1), [gi.ablate("text", site, 1, heads=h) for h in range(n)]
    assert torch.equal(run(tiny, batch, whole), run(tiny, batch, parts))
    with pytest.raises(InterventionError, match=f"head {n} does not exist, the model has {n} heads"):
        run(tiny, batch, gi.ablate("text", site, 1, heads=n))


def test_key_value_heads_serve_their_query_heads(tiny: Any, batch: Any) -> None:
    """Zero values of key-value head g leave nothing in the query heads of its group."""
    name = gi.hook_name("z", 0)
    _, cache = tiny.run_with_cache(
        batch, name, fwd_hooks=gi.ablate("all", "v", 0, heads=1).hooks(batch.tokens, tiny.cfg)
    )
    z = cache[name][batch.tokens.mask("all")]
    assert not z[:, 2:].any() and z[:, :2].abs().min() > 0


def test_resid_mid_is_the_stream_not_only_what_the_mlp_reads(tiny: Any, batch: Any) -> None:
    names = ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    _, cache = tiny.run_with_cache(
        batch, names, fwd_hooks=gi.ablate("last", "resid_mid", 1).hooks(batch.tokens, tiny.cfg)
    )
    torch.testing.assert_close(cache[names[1]][:, -1], cache[names[0]][:, -1], atol=1e-5, rtol=1e-5)


def test_an_edit_of_resid_post_follows_the_one_of_resid_mid(tiny: Any, batch: Any) -> None:
    for order in ([0, 1], [1, 0]):
        specs = [gi.ablate("last", "resid_post", 1), gi.steer(torch.ones(32), "last", "resid_mid", 1)]
        pairs = compile_hooks([specs[i] for i in order], batch.tokens, tiny.cfg).pairs
        _, cache = tiny.run_with_cache(batch, "blocks.1.hook_resid_post", fwd_hooks=pairs)
        assert not cache["blocks.1.hook_resid_post"][:, -1].any()


def test_edits_do_not_reach_into_what_was_cached_before(tiny: Any, batch: Any) -> None:
    """The block's output and the next block's input are one tensor; only the second is edited."""
    seen: dict[str, Tensor] = {}
    look = ("blocks.0.hook_resid_post", lambda tensor, hook: seen.update(post=tensor))
    tiny.run_with_hooks(batch, [look, *gi.ablate("all", layers=1).hooks(batch.tokens)])
    assert seen["post"].abs().min() > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gi.ablate("last", "resid"), ["'resid'", "resid_pre, resid_mid"]),
        (lambda: gi.ablate("last", "pattern", with_="mean"), ["knockout", "edit"]),
        (lambda: gi.steer(torch.ones(32), "last", "scores"), ["knockout"]),
    ],
)
def test_unknown_sites(make: Any, words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        make()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (lambda: gi.ablate("generated"), ["at='generated'", "no position"]),
        (lambda: gi.ablate("last", heads=1), ["resid_pre has no heads"]),
        (lambda: gi.ablate("last", layers=[5]), ["layer 5", "3 layers (0 to 2)"]),
    ],
)
def test_what_cannot_act_says_so(tiny: Any, batch: Any, spec: Any, words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        run(tiny, batch, spec())
    assert all(word in str(error.value) for word in words), str(error.value)
