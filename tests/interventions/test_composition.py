"""Properties of lists of interventions, with random selectors, layers, heads and kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gatelens as gl
import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from gatelens.interventions import knockouts as knockouts_module
from gatelens.interventions.compile import compile_hooks

quick = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
subsets = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)
heads = st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)
hows = st.sampled_from(["mask", "zero"])
queries = st.sampled_from(["text", "last", "gate", "text - gate", "image", "query & ~last", "image | text"])
keys = st.sampled_from(
    ["image", "gate", "first_image", "random_image:5", "system", "image - last_image", "~system"]
)
knockouts = st.builds(gi.knockout, queries, keys, subsets, heads, hows)


def attempt(model: Any, inputs: Any, specs: Any) -> torch.Tensor:
    try:
        return run(model, inputs, specs)
    except InterventionError:
        assume(False)
        raise


@quick
@given(specs=st.lists(knockouts, min_size=2, max_size=4), data=st.data())
def test_order_does_not_matter(tiny: Any, batch: Any, specs: list[Any], data: Any) -> None:
    expected = attempt(tiny, batch, specs)
    shuffled = data.draw(st.permutations(specs))
    assert torch.equal(run(tiny, batch, shuffled), expected)
    assert torch.equal(run(tiny, batch, [shuffled[0], [None, shuffled[1:]]]), expected)


@quick
@given(spec=knockouts, seed=st.integers(0, 10**6), data=st.data())
def test_disjoint_parts_make_their_union(tiny: Any, batch: Any, spec: Any, seed: int, data: Any) -> None:
    """A knockout cut in two, by keys, queries, layers or heads, is the knockout."""
    expected = attempt(tiny, batch, spec)
    tokens = batch.tokens
    coin = torch.rand(tokens.roles.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    q, k = tokens.mask(spec.queries), tokens.mask(spec.keys)
    along = data.draw(st.sampled_from(["keys", "queries", "layers", "heads"]))
    if along == "keys":
        parts = [gi.knockout(q, part, spec.layers, spec.heads, spec.how) for part in (k & coin, k & ~coin)]
    elif along == "queries":
        parts = [gi.knockout(part, k, spec.layers, spec.heads, spec.how) for part in (q & coin, q & ~coin)]
    elif along == "layers":
        parts = [gi.knockout(q, k, layer, spec.heads, spec.how) for layer in spec.layers]
    else:
        parts = [gi.knockout(q, k, spec.layers, h, spec.how) for h in spec.heads or range(4)]
    if along in ("keys", "queries"):
        assume(
            all(
                p.queries.any() and p.keys.any() and (p.keys.cumsum(1).bool() & p.queries).any()
                for p in parts
            )
        )
    assert torch.equal(run(tiny, batch, parts), expected)


@quick
@given(spec=knockouts)
def test_twice_is_once(tiny: Any, batch: Any, spec: Any) -> None:
    assert torch.equal(run(tiny, batch, [spec, spec]), attempt(tiny, batch, spec))


@quick
@given(spec=knockouts)
def test_only_rows_from_the_first_query_on_can_change(tiny: Any, batch: Any, spec: Any) -> None:
    changed = (attempt(tiny, batch, spec) != run(tiny, batch)).any(-1)
    named = batch.tokens.mask(spec.queries)
    # padding rows read everything, and nobody reads them
    assert not (changed & (named.cumsum(1) == 0) & (batch.tokens.roles != 0)).any()


@pytest.mark.parametrize("nothing", [[], (), None, [None], [[], [None]]])
def test_nothing_is_the_clean_run(tiny: Any, batch: Any, nothing: Any) -> None:
    assert torch.equal(run(tiny, batch, nothing), tiny(batch))


def test_layers_that_cut_the_same_share_one_block_and_others_have_no_hook(
    tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    original = knockouts_module.blocked_entries

    def counting(*args: Any) -> Any:
        built.append(original(*args))
        return built[-1]

    monkeypatch.setattr(knockouts_module, "blocked_entries", counting)
    run(tiny, batch, gi.knockout("text", "image", layers=[0, 1, 2]))
    assert sum(entries is not None for entries in built) == 1
    pairs = gi.knockout("text", "image", layers=[1]).hooks(batch.tokens)
    assert [name for name, _ in pairs] == ["blocks.1.attn.hook_attn_scores"]


def test_edits_of_one_site_act_in_the_order_of_the_list(tiny: Any, batch: Any) -> None:
    ones = torch.ones(tiny.cfg.d_model)
    zero, add = gi.ablate("last", layers=1), gi.steer(ones, "last", layers=1)
    _, cache = tiny.run_with_cache(
        batch,
        "blocks.1.hook_resid_pre",
        fwd_hooks=compile_hooks([zero, add], batch.tokens, tiny.cfg).pairs,
    )
    assert torch.equal(cache["blocks.1.hook_resid_pre"][:, -1], ones.expand(3, -1))
    _, cache = tiny.run_with_cache(
        batch,
        "blocks.1.hook_resid_pre",
        fwd_hooks=compile_hooks([add, zero], batch.tokens, tiny.cfg).pairs,
    )
    assert not cache["blocks.1.hook_resid_pre"][:, -1].any()


@pytest.mark.parametrize("wrong", ["knockout", 3, [gi.knockout], {"a": gi.knockout("text", "image")}])
def test_what_is_no_intervention_is_refused(tiny: Any, batch: Any, wrong: Any) -> None:
    with pytest.raises(InterventionError, match="not an intervention"):
        run(tiny, batch, wrong)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_hooks_of_a_list_are_the_run(tiny: Any, batch: Any, order: list[int]) -> None:
    ones = torch.ones(tiny.cfg.d_model)
    specs = [
        gi.ablate("last", "resid_post", layers=1),
        gi.steer(ones, "last", "resid_mid", layers=1),
        gi.knockout("text", "image", layers=1),
        gi.knockout("last", "system", layers=1, how="zero"),
    ]
    pairs = gl.hooks([specs[order[0]], [specs[i] for i in order[1:]]], batch.tokens, tiny.cfg)
    expected = run(tiny, batch, specs)
    torch.testing.assert_close(tiny.run_with_hooks(batch, pairs), expected, atol=1e-5, rtol=1e-5)
    rest = {name: value for name, value in batch.tensors.items() if name != "input_ids"}
    with torch.no_grad():
        got = tiny.bridge.run_with_hooks(batch.tensors["input_ids"], fwd_hooks=pairs, **rest)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def passes(model: Any, inputs: Any) -> list[Any]:
    """A pass with hooks by gatelens and by plain TransformerLens."""
    rest = {name: value for name, value in inputs.tensors.items() if name != "input_ids"}
    ids = inputs.tensors["input_ids"]
    return [
        lambda pairs: model.run_with_hooks(inputs, pairs),
        lambda pairs: model.bridge.run_with_hooks(ids, fwd_hooks=pairs, **rest),
    ]


@torch.no_grad()
def test_hooks_put_together_by_hand_act_in_the_models_order_or_say_so(tiny: Any, batch: Any) -> None:
    post = gi.ablate("last", "resid_post", layers=1)
    mid = gi.steer(torch.ones(tiny.cfg.d_model), "last", "resid_mid", layers=1)
    expected = run(tiny, batch, [post, mid])
    first, then = (one.hooks(batch.tokens, tiny.cfg) for one in (mid, post))
    for run_pass in passes(tiny, batch):
        torch.testing.assert_close(run_pass(first + then), expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(InterventionError, match=r"blocks.1.hook_resid_post.*gl\.hooks\("):
            run_pass(then + first)


@torch.no_grad()
def test_knockouts_put_together_by_hand_leave_no_row_empty(tiny: Any, batch: Any) -> None:
    halves = [gi.knockout("last", "image", layers=1), gi.knockout("last", "~image", layers=1)]
    pairs = [pair for half in halves for pair in half.hooks(batch.tokens, tiny.cfg)]
    apart = [*halves[0].hooks(batch.tokens), *gi.knockout("last", "~image", layers=2).hooks(batch.tokens)]
    for run_pass in passes(tiny, batch):
        assert torch.isfinite(run_pass(apart)[batch.tokens.roles != 0]).all()
        with pytest.raises(InterventionError, match=r"hook_attn_scores, example 0, head 0.*gl\.hooks\("):
            run_pass(pairs)
