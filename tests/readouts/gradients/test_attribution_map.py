"""Gradient maps against plain transformers: autograd, finite differences, patches by torch hooks."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens as gl
from attack.oracle import Change, Oracle
from gatelens.errors import GatelensError
from tiny_models import make_picture

RIGHT, WRONG = 30, 33
SITES = ("resid_pre", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "z", "q", "k", "v", "pattern")
METRIC = gl.metrics.logit_diff(RIGHT, WRONG)


class Differentiated(Oracle):
    """Plain transformers in float64 whose activations are taken with their gradients, by autograd alone."""

    def gradients(self, tensors: dict[str, Tensor]) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
        """The gradient of the metric by every activation, and the metric."""
        self.cuts, self.edits, self.zeros = (), defaultdict(list), {}
        before, self.config._attn_implementation = self.config._attn_implementation, self.name
        try:
            with torch.enable_grad(), self.hooked():
                value = METRIC(self.plain(**tensors, use_cache=False).logits)
                grads = torch.autograd.grad(value.sum(), list(self.zeros.values()))
        finally:
            self.config._attn_implementation = before
        return dict(zip(self.zeros, grads, strict=True)), value.detach()

    def apply(self, site: str, layer: int, value: Tensor) -> Tensor:
        if torch.is_grad_enabled() and site != "resid_mid":
            zero = self.zeros[site, layer] = torch.zeros_like(value, requires_grad=True)
            return value + zero
        return super().apply(site, layer, value)


class Plain:
    """Both runs of plain transformers, in float64."""

    def __init__(self, hf: Any, clean: Any, corrupt: Any) -> None:
        self.oracle = Differentiated(copy.deepcopy(hf).double().requires_grad_(False))
        self.tensors = wide(corrupt.tensors)
        logits, seen = self.oracle.run(wide(clean.tensors))
        self.source, self.source_value = seen.sites, METRIC(logits)
        logits, seen = self.oracle.run(self.tensors)
        self.base, self.base_value = seen.sites, METRIC(logits)
        self.grads, value = self.oracle.gradients(self.tensors)
        assert torch.equal(value, self.base_value)

    def delta(self, site: str, layer: int) -> Tensor:
        return self.source[site, layer] - self.base[site, layer]

    def patched(
        self, site: str, layer: int, position: int | None, head: int | None = None, share: float = 1.0
    ) -> Tensor:
        """What the metric gains when the cell is moved by a share of the difference."""
        delta = self.delta(site, layer)
        at = torch.zeros(delta.shape[:2], dtype=torch.bool)
        at[:, slice(None) if position is None else position] = True

        def new(rows: Tensor, layer: int, whole: Tensor) -> Tensor:
            return rows + share * delta[at]

        change = Change(site, at, (layer,), None if head is None else (head,), new)
        return METRIC(self.oracle.run(self.tensors, [change])[0]) - self.base_value


def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


@pytest.fixture
def pair(tiny: Any) -> tuple[Any, Any]:
    texts = ["this <image> animal is a"] * 2
    clean, corrupt = ([make_picture(seed=2 * i + j) for j in range(2)] for i in range(2))
    return tiny.prepare(clean, texts), tiny.prepare(corrupt, texts)


@pytest.fixture
def plain(tiny: Any, oracle: Any, pair: Any) -> Plain:
    return Plain(oracle, *pair)


@pytest.fixture
def mapped(tiny: Any, pair: Any) -> Callable[..., Any]:
    def make(method: str = "atp", over: Any = ("layer", "pos"), check: int = 0, **rest: Any) -> Any:
        return gl.attribution_map(tiny, pair, METRIC, method, over, check=check, **rest)

    return make


@pytest.mark.parametrize("site", SITES)
def test_attribution_patching_is_plain_autograd(mapped: Any, plain: Plain, site: str) -> None:
    by_head = site in ("z", "q", "k", "v", "pattern")
    got = mapped(site=site, over=("layer", "pos", "head") if by_head else ("layer", "pos"))
    for layer in range(3):
        want = (plain.grads[site, layer] * plain.delta(site, layer)).sum(-1)
        torch.testing.assert_close(got.each[:, layer], want.float(), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(got.tensor, got.each.mean(0))
    torch.testing.assert_close(
        got.difference, (plain.source_value - plain.base_value).float(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "k"])
def test_attribution_patching_is_the_slope_of_the_patch(mapped: Any, plain: Plain, site: str) -> None:
    got, h = mapped(site=site), 5e-3  # norms compute in single precision
    for layer, position in ((0, 3), (1, 9), (2, -1)):
        up, down = (plain.patched(site, layer, position, share=s) for s in (h, -h))
        slope = ((up - down) / (2 * h)).float()
        torch.testing.assert_close(got.each[:, layer, position], slope, atol=1e-3, rtol=1e-2)


def test_other_axes_are_sums(mapped: Any) -> None:
    fine = mapped(site=["z", "q"], over=("site", "layer", "pos", "head"))
    coarse = mapped(site=["z", "q"], over=("head", "site", "role", "layer"))
    roles = fine.axes["position"]["role"]
    for number, role in enumerate(coarse.axes["role"]["role"]):
        want = fine.tensor[:, :, (roles == role).to_numpy()].sum(2)  # [site, layer, head]
        torch.testing.assert_close(coarse.tensor[:, :, number].permute(1, 2, 0), want, atol=1e-5, rtol=1e-4)
    one = mapped(site="z", layers=1, over="head", at="image")
    want = fine.tensor[0, 1][(roles == "image").to_numpy()].sum(0)
    torch.testing.assert_close(one.tensor, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "z", "q", "mlp_out"])
def test_integrated_gradients_sum_to_the_patch_of_all_rows(mapped: Any, plain: Plain, site: str) -> None:
    got = mapped("ig", site=site).each.sum(-1)  # [pair, layer]
    for layer in range(3):
        want = plain.patched(site, layer, None)
        if site == "resid_pre":
            torch.testing.assert_close(want, plain.source_value - plain.base_value)
        torch.testing.assert_close(got[:, layer], want.float(), atol=2e-3, rtol=0.01)


@pytest.mark.parametrize("site", ["q", "k"])
def test_the_softmax_is_recomputed(mapped: Any, plain: Plain, site: str) -> None:
    got = mapped("atp*", site=site, over=("layer", "pos", "head"), layers=[0, 2])
    joined = mapped("atp*", site=site, over=("layer", "role"), layers=[0, 2])
    n_heads = plain.source[site, 0].shape[2]
    for number, layer in enumerate((0, 2)):
        grad, before = plain.grads["pattern", layer], plain.base["pattern", layer]
        for position, head in ((3, 0), (9, n_heads - 1), (-1, 1)):
            want = (grad * (patterned(plain, site, layer, [position], head) - before)).sum((1, 2, 3))
            torch.testing.assert_close(
                got.each[:, number, position, head], want.float(), atol=2e-4, rtol=1e-3
            )
        image = got.axes["position"].query("role == 'image'")["position"].tolist()
        want = (grad * (patterned(plain, site, layer, image, None) - before)).sum((1, 2, 3))
        of_image = joined.axes["role"]["role"].tolist().index("image")
        torch.testing.assert_close(joined.each[:, number, of_image], want.float(), atol=5e-4, rtol=1e-3)


def patterned(plain: Plain, site: str, layer: int, positions: list[int], head: int | None) -> Tensor:
    """The pattern of a layer with the source's queries or keys at some positions."""
    delta = plain.delta(site, layer)
    at = torch.zeros(delta.shape[:2], dtype=torch.bool)
    at[:, positions] = True
    change = Change(
        site, at, (layer,), None if head is None else (head,), lambda rows, layer, whole: rows + delta[at]
    )
    return plain.oracle.run(plain.tensors, [change])[1].sites["pattern", layer]


def test_other_sites_need_no_fix(mapped: Any) -> None:
    torch.testing.assert_close(mapped("atp*", site="v").tensor, mapped(site="v").tensor)


def test_checked_cells_are_patched_exactly(mapped: Any, plain: Plain) -> None:
    got = mapped(site="z", over=("layer", "pos", "head"), check=9)
    exact = torch.as_tensor(got.columns["exact"])
    assert int((~exact.isnan()).sum()) == 9 == got.agreement.cells
    for layer, position, head in (~exact.isnan()).nonzero().tolist():
        want = plain.patched("z", layer, position, head).mean()
        torch.testing.assert_close(exact[layer, position, head], want, atol=1e-4, rtol=1e-3)
    assert got.table["exact"].notna().sum() == 9
    assert f"9 cells patched exactly: rank correlation {got.agreement.rank_correlation:.2f}" in repr(got)
    assert "not checked" in repr(mapped())


def test_agreement_goes_along(mapped: Any) -> None:
    got = mapped(check=64)
    assert got.warnings and "Warning: " in repr(got)  # weights are random: nothing is linear here
    some = got.sel(layer=[1, 2], role="image")
    assert type(some) is type(got) and some.warnings == got.warnings
    torch.testing.assert_close(some.each.mean(0), some.tensor)
    figure = got.sel(layer=1).show()
    shown = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "rank correlation" in shown and "Warning" in shown


@pytest.mark.parametrize("metric", [gl.metrics.log_prob(RIGHT), gl.metrics.entropy(), gl.metrics.prob(9)])
def test_masked_logits_give_finite_gradients(tiny: Any, pair: Any, metric: Any) -> None:
    got = gl.attribution_map(tiny, pair, metric, check=0)
    assert bool(got.tensor.isfinite().all())


def test_prompts_of_other_lengths_pair_by_role(tiny: Any) -> None:
    """Padded on the left, and a shorter prompt beside a longer one: the same numbers."""
    short, long = "this <image> animal is a", "this <image> animal is a dog"
    clean, corrupt = make_picture(seed=1), make_picture(seed=2)
    alone = gl.attribution_map(
        tiny,
        (tiny.prepare(clean, short), tiny.prepare(corrupt, short)),
        METRIC,
        over=("layer", "role"),
        check=0,
    )
    padded = gl.attribution_map(
        tiny,
        (tiny.prepare([clean, clean], [short, long]), tiny.prepare([corrupt, corrupt], [short, long])),
        METRIC,
        over=("layer", "role"),
        check=0,
    )
    torch.testing.assert_close(padded.each[0], alone.tensor, atol=1e-4, rtol=1e-3)
    mixed = (tiny.prepare(clean, long), tiny.prepare(corrupt, short))
    of_images = gl.attribution_map(tiny, mixed, METRIC, at="image", check=3)
    assert len(of_images.axes["position"]) == 16
    with pytest.raises(GatelensError, match="role 'query' cannot be paired"):
        gl.attribution_map(tiny, mixed, METRIC, check=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"metric": gl.metrics.top1(RIGHT)}, "metric 'top1' has no gradient"),
        ({"method": "atp+"}, "method='atp\\+': write one of atp"),
        ({"over": ("layer", "neuron")}, "name axes once each, of layer, pos"),
        ({"over": ("layer", "pos", "role")}, "either by 'pos' or 'role'"),
        ({"over": ("pos",)}, "sums over 3 layers"),
        ({"over": ("layer", "head")}, "site='resid_pre' has no heads"),
        ({"over": ("layer", "site", "head"), "site": ["q", "k"]}, "different numbers of heads"),
        ({"site": "resid"}, "site='resid': the sites of a map are resid_pre"),
        ({"layers": 7}, "layer 7 does not exist, the model has 3 layers"),
        ({"at": "word('zebra')"}, "selects no position|zebra"),
        ({"steps": 0}, "steps=0: give a whole number, 1 or more"),
        ({"check": -1}, "check=-1: give a whole number, 0 or more"),
        ({"pairs": "emoji"}, "pairs is 'emoji'"),
        ({"metric": lambda logits: logits.sum()}, "one number an example"),
    ],
)
def test_refusals(tiny: Any, pair: Any, change: dict[str, Any], message: str) -> None:
    given = {"pairs": pair, "metric": METRIC, "check": 0} | change
    with pytest.raises(GatelensError, match=message) as error:
        gl.attribution_map(tiny, **given)
    assert "\n" not in str(error.value)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny.hook_points())
    assert not any("forward" in block.__dict__ for block in tiny.blocks)


def test_gradients_are_taken_in_any_mode_and_reach_no_weight(tiny: Any, pair: Any, mapped: Any) -> None:
    want = mapped().tensor
    with torch.inference_mode():
        torch.testing.assert_close(mapped().tensor, want)
    assert all(weight.grad is None for weight in tiny.parameters())


def test_what_is_held_does_not_grow_with_the_layers(tiny: Any, pair: Any) -> None:
    """Between forward and backward the graph keeps what enters each block, and the inside of none."""
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    def metric(logits: Tensor) -> Tensor:
        nonlocal before
        before = sum(held)
        return METRIC(logits)

    metric.last_only, before = True, 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gl.attribution_map(tiny, pair, metric, site="resid_pre", check=0)
    stream = pair[0].tokens.n_pos * 2 * int(tiny.cfg.d_model)
    inside = stream * 12  # q, k, v, z, MLP and norms of one block, at least
    assert before < inside, (before, inside)
