"""Steering and ablation: the very numbers that must stand at the site afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.errors import InterventionError
from gatelens.interventions.compile import compile_hooks
from intervention_helpers import prompts

NAME = "blocks.1.hook_resid_pre"


def after(model: Any, inputs: Any, spec: Any, name: str = NAME) -> torch.Tensor:
    pairs = compile_hooks(spec, inputs.tokens, model.cfg).pairs
    return model.run_with_cache(inputs, name, fwd_hooks=pairs)[1][name]


@pytest.fixture
def before(tiny: Any, batch: Any, stepwise: Any) -> torch.Tensor:
    return tiny.run_with_cache(batch, NAME)[1][NAME]


def test_steer_adds_scale_times_direction_and_nothing_else(tiny: Any, batch: Any, before: Any) -> None:
    direction = torch.arange(32.0)
    got = after(tiny, batch, gi.steer(direction, "gate", layers=1, scale=2.5))
    gate = batch.tokens.mask("gate")
    torch.testing.assert_close(got[gate], before[gate] + 2.5 * direction)
    assert torch.equal(got[~gate], before[~gate])
    unit = after(tiny, batch, gi.steer(direction, "gate", layers=1, scale=3.0, normalize=True))
    torch.testing.assert_close((unit - before)[gate].norm(dim=-1), torch.full((int(gate.sum()),), 3.0))


def test_steer_one_direction_an_example_or_a_layer(tiny: Any, batch: Any, before: Any) -> None:
    directions = torch.randn(3, 32)
    got = after(tiny, batch, gi.steer(directions, "text", layers=[1]))
    for b in range(3):
        text = batch.tokens.mask("text")[b]
        torch.testing.assert_close(got[b, text], before[b, text] + directions[b])
    by_layer = gi.steer({1: directions[0], 2: directions[1]}, "last")
    assert [name for name, _ in by_layer.hooks(batch.tokens)] == [
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_pre",
    ]
    torch.testing.assert_close(after(tiny, batch, by_layer)[:, -1], before[:, -1] + directions[0])
    q = after(tiny, batch, gi.steer(torch.ones(8), "last", "q", 1, heads=2), "blocks.1.attn.hook_q")
    clean = tiny.run_with_cache(batch, "blocks.1.attn.hook_q")[1]["blocks.1.attn.hook_q"]
    torch.testing.assert_close((q - clean)[:, -1, 2], torch.ones(3, 8))
    assert torch.equal(q[:, :, [0, 1, 3]], clean[:, :, [0, 1, 3]])


def test_steering_there_and_back_is_the_clean_run(tiny: Any, batch: Any) -> None:
    direction = torch.randn(32)
    both = [gi.steer(direction, "gate", layers=0, scale=s) for s in (1.0, -1.0)]
    torch.testing.assert_close(run(tiny, batch, both), tiny(batch), atol=1e-4, rtol=1e-4)


def test_a_direction_that_needs_gradients_gets_them(tiny: Any, batch: Any) -> None:
    direction = torch.zeros(32, requires_grad=True)
    run(tiny, batch, gi.steer(direction, "gate", layers=0))[:, -1].sum().backward()
    assert direction.grad is not None and direction.grad.abs().max() > 0


def test_ablate_mean_is_the_mean_of_the_batch_selection(tiny: Any, batch: Any, before: Any) -> None:
    image, text = batch.tokens.mask("image"), batch.tokens.mask("text")
    got = after(tiny, batch, gi.ablate("image", layers=1, with_="mean"))
    torch.testing.assert_close(got[image], before[image].mean(0).expand(48, -1))
    got = after(tiny, batch, gi.ablate("last", layers=1, with_="mean", over="text"))
    torch.testing.assert_close(got[:, -1], before[text].mean(0).expand(3, -1))
    name = "blocks.1.attn.hook_z"
    z = tiny.run_with_cache(batch, name)[1][name]
    got = after(tiny, batch, gi.ablate("last", "z", 1, "mean", heads=1, over="image"), name)
    torch.testing.assert_close(got[:, -1, 1], z[image].mean(0)[1].expand(3, -1))
    assert torch.equal(got[:, -1, 0], z[:, -1, 0])


def test_ablate_mean_of_a_reference(tiny: Any, batch: Any) -> None:
    other = prompts(tiny, seed=3).select([1, 2])
    _, cache = tiny.run_with_cache(other, NAME)
    got = after(tiny, batch, gi.ablate("gate", layers=1, with_="mean", reference=cache))
    expected = cache[NAME][other.tokens.mask("gate")].mean(0)
    torch.testing.assert_close(got[batch.tokens.mask("gate")], expected.expand(3, -1))


def test_ablate_with_a_tensor(tiny: Any, batch: Any) -> None:
    for value in (torch.randn(32), torch.randn(3, 32)):
        got = after(tiny, batch, gi.ablate("last", layers=1, with_=value))
        assert torch.equal(got[:, -1], value.expand(3, -1))
    heads = torch.randn(4, 8)
    got = after(tiny, batch, gi.ablate("last", "z", 1, with_=heads), "blocks.1.attn.hook_z")
    assert torch.equal(got[:, -1], heads.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gi.ablate("last", with_="median"), ["'median'"]),
        (lambda: gi.ablate("last", over="text"), ["with_='mean'"]),
        (lambda: gi.steer([1.0], "last"), ["list"]),
        (lambda: gi.steer(torch.zeros(32), "last", normalize=True), ["length 0"]),
        (lambda: gi.steer(torch.ones(31), "last"), ["(31,)", "(32,)"]),
        (lambda: gi.steer(torch.ones(2, 32), "last"), ["(2, 32)", "(3, 32)"]),
        (lambda: gi.steer({1: torch.ones(32)}, "last", layers=[0, 1]), ["layer 0"]),
        (lambda: gi.ablate("last", with_="mean", over="generated"), ["over='generated'"]),
    ],
)
def test_what_does_not_fit_says_so(tiny: Any, batch: Any, make: Any, words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        run(tiny, batch, make())
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_mean_over_the_one_position_it_replaces_is_refused(tiny: Any, one_image: Any) -> None:
    with pytest.raises(InterventionError, match="single position"):
        run(tiny, one_image, gi.ablate("last", with_="mean"))


def test_repr() -> None:
    assert repr(gi.steer(torch.ones(4), "eoi", layers=3, scale=4.0)) == (
        "steer(at='eoi', site='resid_pre', direction=Float[4], scale=4.0, layers=(3,))"
    )
    assert repr(gi.ablate("random_image:10", layers=[3], with_="mean")) == (
        "ablate(at='random_image:10', site='resid_pre', with_='mean', layers=(3,))"
    )
