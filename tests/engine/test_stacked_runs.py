"""What stands beside the engine: hooks of one's own, metrics that write, reach past the last layer, early ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.engine import explain, generate, generate_many, last_logits, look, sweep
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import InterventionError
from intervention_helpers import plain

RUNS = [[gi.knockout("text", "image", layers=range(s, 3), how=h)] for s in range(3) for h in ("mask", "zero")]


def by_position(tensor: Tensor, hook: Any = None) -> Tensor:
    """Scales every position by its own factor: right only in a pass over all of them."""
    return tensor * torch.linspace(0.5, 1.5, tensor.shape[1])[None, :, None]


@contextmanager
def torch_hook(model: Any) -> Iterator[None]:
    """The same by torch's own hook on a block of the wrapped model."""
    block = model.bridge.blocks[2]
    handle = block.register_forward_pre_hook(lambda module, args: (by_position(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["point", "torch"])
def test_hooks_that_stand_see_whole_passes(tiny: Any, batch: Any, real: Tensor, kind: str) -> None:
    name = "blocks.2.hook_resid_pre"
    with tiny.hooks([(name, by_position)]) if kind == "point" else torch_hook(tiny):
        many = RunBatch(tiny, batch, RUNS)
        assert not many.plan.parts and "the decoder has hooks" in str(explain(tiny, batch, RUNS))
        for i, logits in many.each():
            assert (logits - plain(tiny, batch, RUNS[i]))[real].abs().max() <= 1e-4
    assert RunBatch(tiny, batch, RUNS).plan.parts


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("last_only", [False, True])
def test_a_metric_may_write_into_the_logits(tiny: Any, batch: Any, last_only: bool, inference: bool) -> None:
    def reads(logits: Tensor) -> Tensor:
        return (logits * 2)[..., 3].mean(dim=1)

    def writes(logits: Tensor) -> Tensor:
        return logits.mul_(2)[..., 3].mean(dim=1)

    reads.last_only = writes.last_only = last_only  # type: ignore[attr-defined]
    grid = {"run": [None, None, *RUNS, gi.ablate("all", layers=0)]}
    with torch.inference_mode(inference):
        want, got = (sweep(tiny, batch, grid, metric, progress=False) for metric in (reads, writes))
    assert abs(want.value - got.value).max() <= 1e-5 and want.value.nunique() > 3


def test_last_logits_share_no_memory_and_hold_no_more_than_they_show(tiny: Any, batch: Any) -> None:
    found = last_logits(tiny, batch, [None, None, gi.ablate("all", layers=0)])
    assert len({one.data_ptr() for one in found}) == 3
    assert all(one.untyped_storage().nbytes() == one.numel() * one.element_size() for one in found)


class Unembedding(gi.Intervention):
    """Acts after the last layer."""

    def edits(self, tokens: Any, cfg: Any, span: Any) -> list[gi.Edit]:
        return [
            gi.Edit("ln_final.hook_in", lambda tensor, hook=None: tensor * torch.tensor([1.0, -2.0] * 16))
        ]

    def reach(self, tokens: Any, cfg: Any) -> gi.Reach:
        return gi.Reach(0, cfg.n_layers)


def test_an_intervention_may_begin_after_the_last_layer(tiny: Any, batch: Any, real: Tensor) -> None:
    runs: list[list[Any]] = [[Unembedding()], RUNS[0], [Unembedding(), gi.steer(torch.ones(32), "last")]]
    many = RunBatch(tiny, batch, runs)
    assert len(many.plan.parts) > 1
    for i, logits in many.each():
        assert (logits - plain(tiny, batch, runs[i]))[real].abs().max() <= 1e-4


def test_a_run_that_ends_early_is_as_long_as_alone(tiny: Any, batch: Any, monkeypatch: Any) -> None:
    one = batch.select([0])
    runs = [*RUNS, *([gi.steer(torch.eye(32)[i] * 9, "last", layers=2)] for i in range(6))]
    free = generate_many(tiny, one, runs, max_new_tokens=5, stop_at_eos=False)
    end = int(free[0].token_ids[0, 0])
    monkeypatch.setattr(tiny.hf.generation_config, "eos_token_id", end)
    lengths = set()
    for got, specs in zip(generate_many(tiny, one, runs, max_new_tokens=5), runs, strict=True):
        alone = generate(tiny, one, specs, max_new_tokens=5)
        assert torch.equal(got.token_ids, alone.token_ids) and torch.equal(
            got.tokens.roles, alone.tokens.roles
        )
        lengths.add(got.token_ids.shape[1])
    assert 1 in lengths and len(lengths) > 1


def test_see_is_shown_one_row_however_attention_is_computed(tiny: Any, batch: Any) -> None:
    shown: dict[str, list[Any]] = {"fused": [], "stepwise": []}
    before = tiny.attention
    try:
        for way, seen in shown.items():
            tiny.attention = way
            generate(tiny, batch, RUNS[0], 2, see=lambda *what, seen=seen: seen.append(what))
    finally:
        tiny.attention = before
    assert len(shown["fused"]) == 6
    for (a, p, at), (b, q, there) in zip(*shown.values(), strict=True):
        assert (a, at) == (b, there) and p.shape == q.shape and p.shape[2] == 1
        assert (p - q).abs().max() <= 1e-5


def test_looking_at_nothing_is_an_error(tiny: Any, batch: Any) -> None:
    with pytest.raises(InterventionError, match=r"gate & image'\) selects no position"):
        look(tiny, batch, "gate & image", lambda *what: None)


@pytest.mark.parametrize("grad", [False, True])
def test_an_edited_key_is_what_the_cache_keeps_and_not_what_others_kept(
    tiny: Any, batch: Any, grad: bool
) -> None:
    name, kept = "blocks.1.attn.hook_rot_k", []
    hooks = [(name, lambda key, hook: kept.append(key)), (name, lambda key, hook: key * 2)]
    with torch.set_grad_enabled(grad):
        _, clean = tiny.forward_step(batch.tensors, use_cache=True)
        _, past = tiny.forward_step(batch.tensors, hooks, use_cache=True)
    assert torch.equal(past.layers[1].keys, clean.layers[1].keys * 2)
    assert torch.equal(kept[0].transpose(1, 2), clean.layers[1].keys)  # shown as [batch, pos, head, d_head]
