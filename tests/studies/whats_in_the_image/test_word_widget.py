"""A description whose words can be pointed at, in a browser."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browser_kit import screenshot
from gatelens.plots.card import Html
from gatelens.plots.overlay import painted
from gatelens.plots.pictures import opened, picture_uri
from gatelens.plots.templating import css, script
from gatelens.studies.whats_in_the_image.word_widget import CANVAS, THUMB, shown_example

GRID = (4, 2)


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """Two words, two bands of layers."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8))
    levels = rng.integers(0, 256, (2, 2, 8), dtype=np.uint8)
    levels[..., 3] = 255
    words = [
        {
            "text": text,
            "before": " " * bool(i),
            "object": text if i else "",
            "values": base64.b64encode(levels[i].tobytes()).decode(),
            "mass": [0.5, 0.25],
        }
        for i, text in enumerate(("a", "dog"))
    ]
    return {
        "id": "7", "picture": picture_uri(image.resize((CANVAS, CANVAS // 2))), "grid": list(GRID),
        "bands": ["all layers", "layer 1"], "words": words, "after": "", "marks": {}, "prompt": "<image>describe",
        "truth": ["dog"], "levels": levels, "image": image,
    }  # fmt: skip


def cells(width: int, height: int) -> np.ndarray:
    corners = [(c, r, c + 1, r + 1) for r in range(GRID[1]) for c in range(GRID[0])]
    return np.array(corners) * np.array([width / GRID[0], height / GRID[1]] * 2)


def test_each_word_and_band_lays_its_own_map_over_the_picture(
    example: dict[str, Any], page: Any, tmp_path: Path
) -> None:
    shown = shown_example(example, pd.DataFrame(), "all layers")
    widget = Html.from_template("look.html.j2", styles=["look.css"], scripts=[], examples=[shown])
    scripts = "".join(f"<script>{script(name)}</script>" for name in ("overlay.js", "look.js"))
    start = '<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>'
    wide = ".looking { display: block !important; } .looking .see { width: 512px; }"
    text = f"{start}<style>{css('look.css')}{wide}</style><main>{widget.markup}</main>{scripts}"
    (tmp_path / "x.html").write_text(text, encoding="utf-8")
    page.goto((tmp_path / "x.html").as_uri())
    page.wait_for_selector(".looking.live")
    large = example["image"].resize((CANVAS, CANVAS // 2))
    for word, band in ((1, 0), (0, 0), (0, 1)):
        page.locator("button.word").nth(word).click()
        page.mouse.move(1, 1)
        page.locator("input[type=range]").fill(str(band))
        assert shown["bands"][band] in page.inner_text(".said")
        wanted = np.asarray(
            painted(large, cells(*large.size), example["levels"][word, band], 255), dtype=float
        )
        seen = np.asarray(screenshot(page, of=".looking canvas"), dtype=float)
        assert seen.shape == wanted.shape
        assert np.quantile(np.abs(seen - wanted), 0.98) <= 2  # round corners


def test_a_thumbnail_is_the_same_map(example: dict[str, Any]) -> None:
    shown = shown_example(example, pd.DataFrame(), "layer 1")
    (thumb,) = shown["thumbs"]
    small = opened(example["picture"])
    small.thumbnail((THUMB, THUMB))
    wanted = np.asarray(painted(small, cells(*small.size), example["levels"][1, 1], 255), dtype=float)
    assert np.abs(np.asarray(opened(thumb["picture"]), dtype=float) - wanted).mean() < 6  # a JPEG
