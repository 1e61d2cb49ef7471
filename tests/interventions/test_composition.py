"""Properties of lists of interventions, with random selectors, layers, heads and kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from gatelens.interventions import knockouts as knockouts_module

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
        fwd_hooks=gi.compile_hooks([zero, add], batch.tokens, tiny.cfg).pairs,
    )
    assert torch.equal(cache["blocks.1.hook_resid_pre"][:, -1], ones.expand(3, -1))
    _, cache = tiny.run_with_cache(
        batch,
        "blocks.1.hook_resid_pre",
        fwd_hooks=gi.compile_hooks([add, zero], batch.tokens, tiny.cfg).pairs,
    )
    assert not cache["blocks.1.hook_resid_pre"][:, -1].any()


@pytest.mark.parametrize("wrong", ["knockout", 3, [gi.knockout], {"a": gi.knockout("text", "image")}])
def test_what_is_no_intervention_is_refused(tiny: Any, batch: Any, wrong: Any) -> None:
    with pytest.raises(InterventionError, match="no intervention"):
        run(tiny, batch, wrong)
