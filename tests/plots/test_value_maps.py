"""Colours, words and sizes of value maps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from gatelens.plots.style import LIGHT
from gatelens.plots.value_maps import Bars, Grid, PicturePanels, value_figure

BOXES = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]], dtype=float)


def panels(*values: float) -> PicturePanels:
    return PicturePanels(
        Image.new("RGB", (16, 16), "white"), BOXES, {"one": np.array(values)}, {"one": list("abcd")}
    )


def test_signed_values_are_blue_below_and_orange_above_zero() -> None:
    figure = value_figure(unit="effect", signed=True, panels=panels(-2, 0, 1, 2))
    colors = figure.axes[1].collections[0].get_facecolors()
    assert colors[0][2] > colors[0][0] and colors[3][0] > colors[3][2]  # blue, orange
    assert colors[1][3] < 0.1 < colors[2][3] < colors[0][3]  # the picture shows where there is nothing
    assert [text.get_text() for text in figure.axes[1].texts] == list("abcd")


def test_a_grid_writes_numbers_or_words_and_thins_its_ticks() -> None:
    values = np.array([[1.0, np.nan], [2.0, -3.0]])
    figure = value_figure(
        unit="effect", signed=True, grid=Grid(values, ["0", "1"], ["x", "y"], "layer", "place")
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "", "2.00", "−3.00"]
    assert figure.axes[0].get_xlabel() == "place" and figure.axes[1].get_ylabel() == "effect"
    words = Grid(values, ["0", "1"], ["x", "y"], text=[["dog", ""], ["cat", "a"]])
    figure = value_figure(unit="effect", signed=False, grid=words)
    assert [text.get_text() for text in figure.axes[0].texts] == ["dog", "", "cat", "a"]
    many = Grid(np.zeros((2, 100)), ["0", "1"], [str(i) for i in range(100)])
    figure = value_figure(unit="effect", signed=False, grid=many)
    assert len(figure.axes[0].get_xticks()) <= 32 and figure.get_figwidth() <= 13


def test_bars_have_the_sign_of_their_value() -> None:
    figure = value_figure(
        unit="effect", signed=True, bars=Bars(["a", "b"], np.array([1.0, -1.0])), title="two"
    )
    from matplotlib.colors import to_hex

    assert [to_hex(bar.get_facecolor()) for bar in figure.axes[0].patches] == [LIGHT.gate, LIGHT.image]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "−1.00"]


def test_intervals_of_bars_reach_no_number() -> None:
    low, high = np.array([0.5, -3.0]), np.array([2.0, 0.5])
    figure = value_figure(
        unit="effect", signed=True, bars=Bars(["a", "b"], np.array([1.0, -1.0]), "", low, high)
    )
    axes = figure.axes[0]
    drawn = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert drawn == [[0.5, 2.0], [-3.0, 0.5]]
    assert [text.xy[0] for text in axes.texts] == [2.0, -3.0]  # type: ignore[attr-defined]
    assert axes.get_xlim()[0] < -3 and axes.get_xlim()[1] > 2


def test_one_scale_for_pictures_and_grid() -> None:
    grid = Grid(np.array([[4.0]]), [""], ["x"])
    figure = value_figure(unit="effect", signed=True, panels=panels(-2, 0, 1, 2), grid=grid)
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 1 and bars[0].get_ylim() == (-4, 4)


def test_every_layer_has_a_panel_that_can_be_read() -> None:
    for n in (1, 6, 8, 32):
        many = {f"layer {i}": np.linspace(0, i, 4) for i in range(n)}
        figure = value_figure(unit="p", signed=False, panels=PicturePanels(panels(0).picture, BOXES, many))
        shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
        assert [axes.get_title(loc="left") for axes in shown] == ["picture", *many]
        for _ in range(2):  # the layout of pictures of fixed shape settles in two passes
            figure.draw_without_rendering()
        sizes = [axes.get_window_extent().width / figure.dpi for axes in shown]
        assert min(sizes) > 1.3 and figure.get_figwidth() <= 16, (n, sizes, figure.get_figwidth())


def test_a_word_is_shrunk_then_cut_and_never_lost() -> None:
    edges = np.arange(0, 64, 8.0)
    boxes = np.array([[x, y, x + 8, y + 8] for y in edges for x in edges])
    words = ["on", "butterfly", "sunflower", "a word of many characters"] * 16
    one = PicturePanels(Image.new("RGB", (64, 64)), boxes, {"one": np.ones(64)}, {"one": words})
    figure = value_figure(unit="p", signed=False, panels=one)
    for _ in range(2):
        figure.draw_without_rendering()
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "one")
    shown = [text.get_text() for text in axes.texts]
    assert shown[:3] == words[:3] and shown[3].startswith("a word") and shown[3].endswith("…")
    token = axes.get_window_extent().width / 8
    assert max(text.get_window_extent().width for text in axes.texts) <= token
    small = PicturePanels(Image.new("RGB", (512, 512)), boxes, {"one": np.ones(64)}, {"one": words})
    figure = value_figure(unit="p", signed=False, panels=small, title="words")
    assert figure.get_suptitle() == "words (tokens are too small for their words)"


def test_cells_far_below_the_rest_do_not_stretch_the_scale() -> None:
    rest = np.linspace(-4, -1, 30)
    for values, low, clipped in (
        ([*rest, -40.0], -4.0, True),
        ([*rest, -6.0], -6.0, False),  # within the fence
        ([*rest, 30.0], -4.0, False),  # what stands out above is the finding
        ([0.0] * 30 + [-5.0], -5.0, False),
    ):
        grid = Grid(np.array([values]), [""], [str(i) for i in range(31)])
        figure = value_figure(unit="log p", signed=False, grid=grid)
        image = figure.axes[0].images[0]
        assert image.norm.vmin == low and image.norm.vmax == max(values)
        (bar,) = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
        assert (bar._colorbar.extend == "min") is clipped  # type: ignore[attr-defined]
        assert bar.get_ylabel() == ("log p, down to −40.00" if clipped else "log p")
    signed = value_figure(unit="effect", signed=True, panels=panels(-40, 0, 1, 2))
    assert next(axes for axes in signed.axes if axes.get_label() == "<colorbar>").get_ylim() == (-40, 40)


def test_long_names_of_rows_leave_the_cells_their_width() -> None:
    cells = np.arange(12.0).reshape(2, 6)
    short, long = (
        value_figure(unit="share", signed=False, grid=Grid(cells, [name, "b"], [str(i) for i in range(6)]))
        for name in ("a", "hidden state at other image tokens")
    )
    widths = []
    for figure in (short, long):
        figure.draw_without_rendering()
        widths.append(figure.axes[0].get_window_extent().width / figure.dpi)
    assert widths[1] > 0.9 * widths[0]
