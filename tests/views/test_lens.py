"""The logit lens on the picture: the right words at the right patch, in a browser."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case import cases

import gatelens as gl
from browser_kit import SCREENS, overflow, pdf_pages, screenshot, serious_faults, set_screen
from gatelens.errors import DataError, OutputError
from gatelens.plots.overlay import greyed, opacity
from gatelens.views import lens, lens_view
from gatelens.views.prompts import enlarged
from study_helpers import picture


@pytest.fixture(scope="module")
def read(tiny_chameleon: Any) -> Any:
    """The lens of two prompts, one of them padded."""
    images = [[picture("red", 0, size=32)], [picture("blue", 1, size=32)]]
    inputs = tiny_chameleon.prepare(
        images=images, text=["<image>this animal is a", "<image>what color is the dog ?"]
    )
    return gl.logit_lens(tiny_chameleon, inputs, at="image | last", targets="dog", top=3)


def shown(page: Any, row: int) -> list[list[str]]:
    """The list of a position: a line per layer."""
    page.wait_for_function("row => document.body.dataset.row === String(row)", arg=row)
    lines = page.locator(".list tbody tr")
    return [lines.nth(i).locator("th, td").all_inner_texts() for i in range(lines.count())]


def agrees(read: Any, example: int, position: int, lines: list[list[str]]) -> None:
    """A list says what the table says."""
    table = read.sel(example=example).table
    table = table[table["position"] == position]
    for layer, line in enumerate(lines):
        mine = table[table["layer"] == layer]
        assert line[0] == str(layer)
        for text, (_, cell) in zip(line[1:], mine.iterrows(), strict=True):
            word, share = text.rsplit(maxsplit=2)[0], text.rsplit(maxsplit=2)[1]
            assert word == (f"#{cell['rank'] + 1}" if cell["kind"] == "target" else str(cell["word"]).strip())
            assert float(share) == pytest.approx(100 * np.exp(cell["value"]), rel=0.06)


def test_a_patch_lists_its_words_at_every_layer(read: Any, page: Any, tmp_path: Path) -> None:
    page.goto(lens(read, example=1).save(tmp_path / "x.html").as_uri())
    image = read.tokens.positions("image", 1)
    agrees(read, 1, image[0], shown(page, 0))
    box = page.locator("button.panel").bounding_box()
    for row, col in ((1, 2), (3, 0)):
        x, y = box["x"] + (col + 0.5) * box["width"] / 4, box["y"] + (row + 0.5) * box["height"] / 4
        page.mouse.move(x, y)
        agrees(read, 1, image[4 * row + col], shown(page, 4 * row + col))
    page.mouse.click(x, y)
    page.mouse.move(5, 5)
    shown(page, 12)  # chosen
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    agrees(read, 1, image[9], shown(page, 9))
    page.locator(".chip", has_text="?").click()
    agrees(read, 1, read.tokens.positions("last", 1)[0], shown(page, 16))


def corners(page: Any) -> np.ndarray:
    """The colour near the upper left corner of each of 4 x 4 patches, which no word reaches."""
    taken = np.asarray(screenshot(page, of="button.panel"), dtype=float)
    side = taken.shape[0] // 4
    return np.array([[taken[r * side + 5, c * side + 5] for c in range(4)] for r in range(4)])


def test_colours_are_probabilities_of_the_layer(read: Any, page: Any, tmp_path: Path) -> None:
    page.goto(lens(read).save(tmp_path / "x.html").as_uri())
    shown(page, 0)
    grey = np.asarray(greyed(enlarged(read.images[0][0])), dtype=float)
    side = len(grey) // 4
    under = np.array([[grey[r * side + 5, c * side + 5] for c in range(4)] for r in range(4)])
    table = read.sel(example=0, role="image").table
    most = np.exp(table[table["kind"] == "target"]["value"].max())
    for layer in (0, 2, 3):
        page.locator("input.layer").fill(str(layer))
        for kind, top in (("", 1.0), ("0", float(most))):
            page.locator("select.show").select_option(kind)
            page.evaluate(
                "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )  # painted
            of = table[(table["layer"] == layer) & (table["target"] == ("dog" if kind else "top 0"))]
            alpha = opacity(np.exp(of["value"].to_numpy()).reshape(4, 4), top)[..., None]
            wanted = (1 - alpha) * under + alpha * np.array([226, 0, 116])
            assert np.abs(corners(page) - wanted).max() <= 2, (layer, kind)


def test_a_token_that_is_looked_for_is_outlined_and_counted(read: Any, page: Any, tmp_path: Path) -> None:
    page.goto(lens(read).save(tmp_path / "x.html").as_uri())
    table = read.sel(example=0, role="image", layer=3, kind="top").table
    word = table["word"].mode()[0]
    holds = table.groupby("position")["word"].agg(lambda words: any(word in one for one in words))
    page.locator("input.find").fill(str(word))
    page.wait_for_function("document.querySelector('.found').textContent !== ''")
    assert page.inner_text(".found") == f"{int(holds.sum())} of 16"


@pytest.mark.parametrize("name", ["llava-next", "pixtral"])
def test_tiles_and_several_pictures(name: str, page: Any, tmp_path: Path) -> None:
    case = cases()[name]
    model = gl.HookedVLM.from_module(copy.deepcopy(case.model()), case.processor())
    inputs = model.prepare([[case.picture(0), case.picture(1)]], ["<image> and <image> left of"])
    read = gl.logit_lens(model, inputs, at="image", layers=[0, 2], top=2)
    view = lens(read)
    page.goto(view.save(tmp_path / "x.html").as_uri())
    positions = read.axes["position"]["position"].tolist()
    for number, part in enumerate(view.parts):
        panel = page.locator("button.panel").nth(number)
        panel.scroll_into_view_if_needed()
        box = panel.bounding_box()
        size = read.tokens.image_sizes[0][part.image]
        for i in (0, len(part.positions) - 1):
            x0, y0, x1, y1 = read.tokens.box[0, part.positions[i]].tolist()
            x, y = (x0 + x1) / 2 * box["width"] / size[0], (y0 + y1) / 2 * box["height"] / size[1]
            page.mouse.move(box["x"] + x, box["y"] + y)
            lines = shown(page, positions.index(part.positions[i]))
            table = read.table[read.table["position"] == part.positions[i]]
            first = table[table["target"] == "top 0"]["word"].str.strip().tolist()
            assert [line[1].rsplit(maxsplit=2)[0] for line in lines] == first


def test_every_screen_is_whole_and_without_serious_faults(read: Any, page: Any, tmp_path: Path) -> None:
    page.goto(lens(read).save(tmp_path / "x.html").as_uri())
    shown(page, 0)
    for width, scheme in SCREENS:
        set_screen(page, width, scheme)
        assert overflow(page) == []
        assert serious_faults(page) == []
        screenshot(page, f"lens_{width}_{scheme}", whole=True)
    assert pdf_pages(page) <= 2


def test_a_still_picture_has_the_words_of_a_target(read: Any, tmp_path: Path) -> None:
    view = lens(read)
    figure = view.figure()
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    table = view.lens.sel(target="top 0", layer=1).table
    words = [str(word) for word in table[table["role"] == "image"]["word"]]
    assert [text.get_text() for text in panels["layer 1"].texts] == words
    assert "'dog' as next token" in view.figure("dog").get_suptitle()
    with pytest.raises(OutputError, match=r"view\.figure\(\)\.savefig\('x\.png'\)"):
        view.save(tmp_path / "x.png")


def test_errors(read: Any, tiny_chameleon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="a dict is none"):
        lens({})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="example 5"):
        lens(read, example=5)
    with pytest.raises(DataError, match="no image token with a place"):
        lens(gl.logit_lens(tiny_chameleon, tiny_chameleon.prepare(picture("red", 0), "<image>a"), at="last"))
    elsewhere = read.axes["position"].query("example == 0").reset_index(drop=True)
    n = len(elsewhere)
    some = dataclasses.replace(
        read,
        tensor=read.tensor[:, :n],
        axes={**read.axes, "position": elsewhere},
        columns={name: values[:, :n] for name, values in read.columns.items()},
    )
    with pytest.raises(DataError, match="no position of prompt 1"):
        lens(some, example=1)
    monkeypatch.setattr(lens_view, "MOST_CELLS", 10)
    with pytest.raises(DataError, match="fewer layers or a smaller top="):
        lens(read)
