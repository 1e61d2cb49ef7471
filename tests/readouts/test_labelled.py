"""A tensor with names: picking, the table, and pictures of every form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.errors import DataError
from gatelens.readouts.labelled import position_labels
from intervention_helpers import batch  # noqa: F401  (fixture)
from tiny_models import make_picture


@pytest.fixture
def grid(one_image: Any) -> gl.LabelledTensor:
    """A number for every layer and position of one prompt."""
    n = one_image.tokens.n_pos
    axes = {
        "layer": pd.DataFrame({"layer": range(3)}),
        "position": position_labels(one_image.tokens, [0] * n, range(n)),
    }
    values = torch.arange(3.0 * n).view(3, n)
    return gl.LabelledTensor(
        values, axes, "effect", one_image.tokens, one_image.images, {"twice": (2 * values).numpy()}
    )


def test_the_table_has_a_row_a_cell(grid: gl.LabelledTensor) -> None:
    table = grid.table
    assert len(table) == grid.tensor.numel() and table["value"].tolist() == list(range(len(table)))
    assert (table["twice"] == 2 * table["value"]).all()
    one = table[(table["layer"] == 2) & (table["role"] == "image")].iloc[5]
    assert (one["row"], one["col"]) == (1, 1) and one["value"] == float(grid.tensor[2, int(one["position"])])


def test_picking(grid: gl.LabelledTensor) -> None:
    assert grid.sel(layer=1).tensor.shape == (1, grid.tensor.shape[1])
    assert torch.equal(grid.sel(layer=[0, 2]).tensor, grid.tensor[[0, 2]])
    assert torch.equal(grid.sel(layer=slice(1, None)).tensor, grid.tensor[1:])
    assert torch.equal(grid.sel(layer=range(2)).tensor, grid.tensor[:2])
    image = grid.sel(role="image", layer=2)
    assert image.tensor.shape == (1, 16) and (image.columns["twice"] == 2 * image.tensor.numpy()).all()
    late = grid.sel(position=lambda p: p > 18)
    assert torch.equal(late.tensor, grid.tensor[:, 19:]) and late.dims == ("layer", "position")


def test_what_cannot_be_picked(grid: gl.LabelledTensor) -> None:
    with pytest.raises(
        DataError, match=r"sel\(layers=...\): the columns are layer, example.*did you mean 'layer'"
    ):
        grid.sel(layers=1)
    with pytest.raises(DataError, match=r"sel\(layer=7\) leaves nothing; there are 0, 1, 2"):
        grid.sel(layer=7)
    with pytest.raises(DataError, match="for axes of"):
        gl.LabelledTensor(torch.zeros(2, 2), grid.axes, "effect", grid.tokens)


def test_pictures_of_every_form(grid: gl.LabelledTensor) -> None:
    """Panels over the picture with a grid of the other positions; a grid; bars."""
    whole = grid.show(title="effects")
    titles = [axes.get_title(loc="left") for axes in whole.axes]
    assert {"picture", "layer 0", "layer 1", "layer 2"} <= set(titles)
    assert any("animal" in label.get_text() for axes in whole.axes for label in axes.get_xticklabels())
    assert whole._suptitle.get_text() == "effects"  # type: ignore[attr-defined]
    alone = gl.LabelledTensor(grid.tensor, grid.axes, "effect", grid.tokens).show(dark=True)
    assert "picture" not in [axes.get_title(loc="left") for axes in alone.axes]
    bars = grid.sel(position=3).show()
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == ["0", "1", "2"]
    for figure in (whole, alone, bars):
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_columns_of_two_axes_have_the_axis_before_them(grid: gl.LabelledTensor) -> None:
    ends = {name: pd.DataFrame({name: ["a", "b"], "layer": [0, i]}) for i, name in enumerate(("from", "to"))}
    edges = gl.LabelledTensor(torch.arange(4.0).view(2, 2), ends, "effect", grid.tokens)
    assert edges.table.columns.tolist() == ["from", "from_layer", "to", "to_layer", "value"]
    assert edges.sel(to_layer=1).tensor[:, 0].tolist() == [1, 3] and edges.sel(from_layer=0).tensor.shape == (
        2,
        2,
    )
    with pytest.raises(DataError, match=r"sel\(layer=...\): the columns are from, from_layer, to, to_layer"):
        edges.sel(layer=0)


def test_effects_have_0_in_the_middle_of_their_colours(grid: gl.LabelledTensor) -> None:
    """Also where all are positive; and a selection says the same above its picture."""
    effects = replace(grid, signed=True, heading="what was done").sel(layer=[1, 2])
    figure = effects.show()
    (bar,) = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylim() == (-float(grid.tensor.max()), float(grid.tensor.max()))
    assert figure._suptitle.get_text() == "what was done"  # type: ignore[attr-defined]
    assert grid.sel(layer=[1, 2]).show()._suptitle is None  # type: ignore[attr-defined]


def test_parts_and_lenses_are_drawn(tiny: Any, one_image: Any, batch: Any) -> None:  # noqa: F811
    for by in ("component", "layer", "head", "mlp", "neuron", "position"):
        figure = gl.attribute(tiny, one_image, (30, 33), by=by).show(dark=by == "head")
        assert figure._repr_png_()
    heads = gl.attribute(tiny, one_image, (30, 33), by="head")
    columns = [label.get_text() for axes in heads.show().axes for label in axes.get_xticklabels()]
    assert {"0", "1", "2", "3", "mlp"} <= set(columns)
    over = gl.attribute(tiny, one_image, (30, 33), by="position").sel(layer=1, head=2).show()
    assert "attention, by source" in [axes.get_title(loc="left") for axes in over.axes]
    mean = gl.attribute(tiny, batch, (30, 33), by="head").show()
    assert "mean of 3 examples" in mean._suptitle.get_text()
    rows = gl.attribute(tiny, one_image, (30, 33), by="head", at="all")
    assert f"mean of {len(rows.total)} positions" in rows.show()._suptitle.get_text()
    with pytest.raises(DataError, match=r"a picture is of one prompt, and here are 3: sel\(example=0\)"):
        gl.attribute(tiny, batch, (30, 33), by="position").show()
    top = gl.logit_lens(tiny, one_image, at="all")
    words = {text.get_text() for axes in top.show().axes for text in axes.texts}
    assert set(top.sel(target="top 0", role="query").columns["word"].ravel()) <= words
    target = gl.logit_lens(tiny, one_image, targets="dog").show()
    chosen = "'dog' as next token, by layer (1 of 6 targets; sel(target=...) chooses)"
    assert target._suptitle.get_text() == chosen
    with pytest.raises(DataError, match="are all open"):
        three = {
            "a": pd.DataFrame({"a": [0, 1]}),
            "b": pd.DataFrame({"b": [0, 1]}),
            "c": pd.DataFrame({"c": [0, 1]}),
        }
        gl.LabelledTensor(torch.zeros(2, 2, 2), three, "effect", one_image.tokens).show()


def test_each_picture_of_a_prompt_can_be_drawn(tiny: Any) -> None:
    pictures = [make_picture(), make_picture(seed=1)]
    parts = gl.attribute(tiny, tiny.prepare(pictures, "<image> and <image> left of"), 30, by="position")
    values = parts.sel(kind="source").table.groupby("position")["value"].sum()
    far = values.abs().max()
    for image in (0, 1):
        figure = parts.show(image=image)
        drawn = figure.axes[0].get_images()[0].get_array()
        assert np.array_equal(np.asarray(drawn), np.asarray(pictures[image]))
        mine = values[parts.tokens.positions(f"image[{image}]")].to_numpy()
        opacity = figure.axes[1].collections[0].get_facecolors()[:, 3]
        words = values[parts.tokens.positions("all - image")].abs().max()
        shown = max(np.abs(mine).max(), words)  # the scale of this figure: what is in it
        np.testing.assert_allclose(opacity, 0.6 * (np.abs(mine) / shown) ** 0.75, atol=1e-4)
    assert far > 0
    with pytest.raises(DataError, match=r"image=2: the prompt has 2 picture\(s\)"):
        parts.show(image=2)
