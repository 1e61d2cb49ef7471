"""The house style: three colours that everybody tells apart, and figures whose colours the page decides."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba

from figure_tables import bar_table, curve_table
from gatelens.plots.bars import bars
from gatelens.plots.curve import curves
from gatelens.plots.style import (
    DARK,
    LIGHT,
    Palette,
    SeriesStyle,
    inline_svg,
    saved,
    see_through,
    theme_css,
)

# Machado, Oliveira and Fernandes (2009), severity 1: what a colour in linear RGB becomes
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(color: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb.clip(
        0, 1
    )
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_told_apart_by_everybody(colors: Palette) -> None:
    meaning = [colors.gate, colors.image, colors.third]
    for kind, matrix in {"all": np.eye(3), **BLIND}.items():
        for a, b in itertools.combinations(meaning, 2):
            distance = np.linalg.norm(lab(np.array(matrix) @ linear(a)) - lab(np.array(matrix) @ linear(b)))
            assert distance > 12, (kind, a, b, distance)
    assert all(contrast(color, colors.ground) > 3 for color in [*meaning, colors.neutral])  # graphics
    assert all(contrast(color, colors.ground) > 4.5 for color in (colors.ink, colors.soft))  # text


def test_the_page_decides_the_colours_of_a_figure() -> None:
    figure = bars(bar_table(), groups="row", panels="metric", colors={"none": "gate"})
    svg = inline_svg(saved(figure, "svg"), "mine")
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert {"gate", "ground", "ink", "faint"} <= used
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and "http" not in svg
    sheet = theme_css()
    for role in used:
        assert f"--{role}:{getattr(LIGHT, role)}" in sheet and f"--{role}:{getattr(DARK, role)}" in sheet
    assert len({LIGHT.color(role) for role in LIGHT.__dataclass_fields__}) == len(LIGHT.__dataclass_fields__)


def test_two_figures_on_a_page_share_no_id() -> None:
    figure = curves(curve_table(), [SeriesStyle("gate")], by="keys")
    svg = saved(figure, "svg")
    one, two = inline_svg(svg, "one"), inline_svg(svg, "two")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for text, known in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= known


@pytest.mark.parametrize(("kind", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_figure_as_a_file_is_the_same_each_time(kind: str, head: bytes) -> None:
    files = [saved(curves(curve_table(), [SeriesStyle("gate")], by="keys"), kind) for _ in range(2)]
    assert files[0].startswith(head) and files[0] == files[1]
    if kind == "svg":
        assert b"<text" in files[0]  # text stays text


def test_small_values_let_the_ground_through() -> None:
    scale = see_through(LIGHT.gate)
    assert scale(0.0)[3] == 0 and scale(1.0) == pytest.approx(to_rgba(LIGHT.gate), abs=0.01)
    assert scale(np.ma.masked)[3] == 0


def test_what_is_no_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="'x' is not an SVG of Matplotlib"):
        inline_svg(b"<svg></svg>", "x")
