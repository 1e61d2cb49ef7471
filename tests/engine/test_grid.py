"""Grids: the order of the rows, the labels, and the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens.interventions as gi
from gatelens.engine import run, sweep
from gatelens.errors import InterventionError
from gatelens.measures.logits import logit_diff

METRIC = logit_diff(11, 12)


def test_one_axis(tiny: Any, batch: Any) -> None:
    specs = [gi.knockout("text", "image", layers=range(start, 3)) for start in range(3)]
    table = sweep(tiny, batch, grid={"start": specs}, metric=METRIC, progress=False)
    assert list(table.columns) == ["start", "example", "value"]
    assert (
        table["start"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and table["example"].tolist() == [0, 1, 2] * 3
    )
    expected = torch.cat([METRIC(run(tiny, batch, spec)) for spec in specs])
    torch.testing.assert_close(torch.tensor(table["value"].tolist()), expected)


def test_axes_multiply_and_compose(tiny: Any, batch: Any) -> None:
    cut, steer = gi.knockout("text", "image"), gi.steer(torch.ones(32), "last", layers=1)
    grid = {"cut": {"none": None, "image": cut}, "push": [None, steer, [steer, cut]]}
    table = sweep(tiny, batch, grid, METRIC, progress=False)
    assert list(table.columns) == ["cut", "push", "example", "value"] and len(table) == 18
    points = table[["cut", "push"]].drop_duplicates().itertuples(index=False, name=None)
    assert list(points) == [("none", 0), ("none", 1), ("none", 2), ("image", 0), ("image", 1), ("image", 2)]
    at = table.set_index(["cut", "push", "example"])["value"]
    for label, push, specs in [("none", 0, []), ("image", 1, [cut, steer]), ("none", 2, [steer, cut])]:
        got = torch.tensor([at[label, push, b] for b in range(3)])
        torch.testing.assert_close(got.float(), METRIC(run(tiny, batch, specs)))


def test_no_axis_is_the_clean_run(tiny: Any, batch: Any) -> None:
    table = sweep(tiny, batch, {}, METRIC, progress=False)
    torch.testing.assert_close(torch.tensor(table["value"].tolist()).float(), METRIC(tiny(batch)))
    assert list(table.columns) == ["example", "value"]


def test_an_axis_may_be_a_generator(tiny: Any, batch: Any) -> None:
    axis = (gi.ablate("last", layers=layer) for layer in range(3))
    assert len(sweep(tiny, batch, {"layer": axis}, METRIC, progress=False)) == 9


@pytest.mark.parametrize(
    ("grid", "metric", "words"),
    [
        ({"value": [None]}, METRIC, ["'value'"]),
        ({"a": []}, METRIC, ["'a'", "no choices"]),
        ({"a": ["eoi"]}, METRIC, ["not an intervention"]),
        ({"a": [None]}, lambda logits: logits, ["(3,)"]),
        ({"a": [None]}, lambda logits: 1.0, ["float"]),
        ({"a": [gi.knockout("text", "image", layers=7)]}, METRIC, ["layer 7"]),
    ],
)
def test_what_cannot_be_swept_says_so(
    tiny: Any, batch: Any, grid: Any, metric: Any, words: list[str]
) -> None:
    with pytest.raises(InterventionError) as error:
        sweep(tiny, batch, grid, metric, progress=False)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("steer_first", [False, True])
def test_choices_of_a_point_act_in_the_order_of_the_axes(tiny: Any, batch: Any, steer_first: bool) -> None:
    """An ablation before a push leaves the push alone; after it, nothing: here by writing the stream directly."""
    direction = torch.linspace(-2, 2, 32)
    axes = {"ablate": [gi.ablate("last", layers=1)], "push": [gi.steer(direction, "last", layers=1)]}
    order = ["push", "ablate"] if steer_first else ["ablate", "push"]
    table = sweep(tiny, batch, {name: axes[name] for name in order}, METRIC, progress=False)

    def write(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        stream = stream.clone()
        stream[:, -1] = 0 if steer_first else direction
        return stream

    expected = METRIC(tiny.run_with_hooks(batch, [("blocks.1.hook_resid_pre", write)]))
    torch.testing.assert_close(torch.tensor(table["value"].tolist()).float(), expected, atol=1e-4, rtol=1e-4)


def test_one_metric_of_the_last_position_leaves_the_others_every_position(tiny: Any, batch: Any) -> None:
    def everywhere(logits: torch.Tensor) -> torch.Tensor:
        return logits.abs().mean(dim=(1, 2))

    spec = gi.knockout("text - gate", "image", layers=[1])
    metrics = {"last": METRIC, "everywhere": everywhere}
    table = sweep(tiny, batch, {"cut": [None, spec, []]}, metrics, progress=False)
    want = torch.cat([everywhere(run(tiny, batch, specs)) for specs in ([], [spec], [])])
    torch.testing.assert_close(torch.tensor(table["everywhere"].tolist()).float(), want, atol=1e-5, rtol=1e-4)
