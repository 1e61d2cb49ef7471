"""Gradient maps in every family against autograd on plain transformers, whatever its norms, masks and rotations."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from case import cases
from torch import Tensor

import gatelens as gl
from attack.compositions import subject
from gatelens.data import Example, Pair
from gatelens.errors import ModelError
from gatelens.interventions.sites import SITES, has_heads
from gradient_helpers import PlainRuns

CASES = cases()
WITHOUT_EDGES = ("qwen3-vl",)  # adds pictures to later layers, which are not part of the graph


def measured(logits: Tensor) -> Tensor:
    return (logits[:, -1, -4:] ** 2).sum(-1)  # of words that every vocabulary ends with


# so that the last layer computes one row where no hook is inside it
measured.last_only = True  # type: ignore[attr-defined]


class Mapped:
    """A family's tiny model, a pair of pictures, and plain transformers on both."""

    def __init__(self, name: str) -> None:
        self.name, case, self.model = name, CASES[name], subject(name).built.model
        sides = [
            Example(case.picture(0, seed), case.texts[0], ("dog",), "class", str(seed)) for seed in (1, 2)
        ]
        self.pair = Pair(*sides, differ="picture", target="dog", base="cat")
        clean, corrupt = (self.model.prepare([e.image], [e.prompt]) for e in sides)
        self.plain = PlainRuns(subject(name).built.plain, clean, corrupt, measured)
        self.layers = range(int(self.model.cfg.n_layers))

    def gained(self, method: str, over: Any = None, **rest: Any) -> Tensor:
        """What the metric should gain by each cell of the map."""
        got = gl.attribution_map(self.model, self.pair, measured, method, over, check=0, **rest)
        return torch.as_tensor(got.columns["patched"] - got.columns["corrupt"])[0]


@cache
def mapped(name: str) -> Mapped:
    return Mapped(name)


@pytest.fixture(params=sorted(CASES))
def family(request: pytest.FixtureRequest) -> Mapped:
    return mapped(request.param)


def assert_near(got: Tensor, want: Tensor, share: float = 3e-4) -> None:
    """Equal but for single precision, as a share of the largest number."""
    size = float(want.abs().max())
    torch.testing.assert_close(got.double(), want.double(), atol=share * max(size, 0.1), rtol=0)


STEPS = {"vila-u": 128}  # the metric turns often on this way: 32 steps are 4 % off, 128 are 0.01 %
# sites that one map holds: with as many heads each
TOGETHER = [[site for site in SITES if not has_heads(site)], ["q", "z", "pattern"], ["k", "v"]]


def test_attribution_patching_is_plain_autograd(family: Mapped) -> None:
    for sites in TOGETHER:
        over = ("site", "layer", "pos", "head") if has_heads(sites[0]) else ("site", "layer", "pos")
        for got, site in zip(family.gained("atp", over, site=sites), sites, strict=True):
            assert_near(got, torch.stack([family.plain.slope(site, layer)[0] for layer in family.layers]))


def test_the_stream_alone_is_plain_autograd_too(family: Mapped) -> None:
    """With no hook inside the last layer, which then computes one row."""
    want = torch.stack([family.plain.slope("resid_pre", layer)[0] for layer in family.layers])
    assert_near(family.gained("atp"), want)


def test_integrated_gradients_are_the_mean_of_plain_gradients(family: Mapped) -> None:
    places, weights = np.polynomial.legendre.leggauss(2)
    for site in ("resid_pre", "k"):
        got = family.gained("ig", ("pos",), site=site, layers=1, steps=2)
        want = family.plain.mean_slope(site, 1, ((places + 1) / 2).tolist(), (weights / 2).tolist())[0]
        assert_near(got, want.sum(-1) if has_heads(site) else want)


def test_integrated_gradients_of_a_whole_stream_sum_to_the_difference(family: Mapped) -> None:
    """All rows of the stream entering a layer are all that the layers from there on know of the prompt."""
    got = float(family.gained("ig", ("pos",), layers=1).sum())
    later = family.model.family.adds_later  # these layers know more than the stream
    want = family.plain.patched("resid_pre", 1, None) if later else family.plain.way
    assert got == pytest.approx(float(want), rel=0.01)


def test_edges_are_slopes_of_what_a_receiver_reads(family: Mapped) -> None:
    if family.model.family.name in WITHOUT_EDGES:
        with pytest.raises(ModelError, match="its edges cannot be separated; take method='atp'"):
            family.gained("eap")
        return
    got = gl.attribution_map(family.model, family.pair, measured, "eap", check=0)
    edges = torch.tensor(got.columns["patched"] - got.columns["corrupt"])[0]
    senders, receivers = (got.axes[axis] for axis in ("sender", "receiver"))
    heads = (senders["kind"] == "head") & (senders["layer"] == 0)
    plain, last = family.plain, family.layers[-1]
    for rows, added in (
        (senders["kind"] == "embed", plain.delta("resid_pre", 0)),
        (heads, plain.delta("attn_out", 0)),  # through the norm after attention, where there is one
    ):
        from_sender = edges[torch.tensor(rows)].sum(0)
        want = plain.edges(added, 1, "resid_pre") | plain.edges(added, 1, "resid_mid")
        for site, slope in want.items():
            kind = "mlp" if site == "mlp_in" else site
            own = torch.tensor((receivers["kind"] == kind) & (receivers["layer"] == 1))
            assert_near(from_sender[own], slope[0].reshape(-1), 2e-3)  # norms compute in single precision
        want_logits = (plain.grads["resid_post", last] * added[0]).sum((1, 2))
        assert_near(from_sender[torch.tensor(receivers["kind"] == "logits")], want_logits)


def test_edges_along_the_way_of_the_input_sum_to_the_difference(family: Mapped) -> None:
    if family.model.family.name not in WITHOUT_EDGES:
        steps = STEPS.get(family.name, 32)
        got = float(family.gained("eap-ig", steps=steps)[0].nansum())
        assert got == pytest.approx(float(family.plain.way), rel=0.01)
