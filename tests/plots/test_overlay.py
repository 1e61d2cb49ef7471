"""Values of image tokens over their picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gatelens import views
from gatelens.errors import DataError
from gatelens.plots.overlay import boundary, greyed, opacity, outlined, overlay, painted, parts_of
from gatelens.plots.style import png
from gatelens.tokens import Role, TokenMap
from study_helpers import picture

BOXES = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]], dtype=float)


def test_overlay(tiny_chameleon: Any) -> None:
    image = picture("red", 0, size=32)
    inputs = tiny_chameleon.prepare(images=[image], text=["<image>this animal is a"])
    t = inputs.tokens
    assert png(overlay(torch.rand(16), t, image, labels=True)).startswith(b"\x89PNG")
    assert png(overlay(np.zeros(t.n_pos), t, image, dark=True)).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="7 values fit neither"):
        overlay(torch.rand(7), t, image)


def test_print_keeps_shapes(tiny_chameleon: Any) -> None:
    image = picture("red", 0, size=32)
    tokens = tiny_chameleon.prepare(images=[image], text=["<image>this animal is a"]).tokens
    figure, files = overlay(torch.arange(16.0), tokens, image), {}
    for kind in ("svg", "pdf"):
        files[kind] = io.BytesIO()
        figure.savefig(files[kind], format=kind)
    svg = files["svg"].getvalue().decode()
    assert svg.count("<image") <= 3  # the picture, the same in grey, the scale: no picture of the heat
    assert svg.count("fill: #e20074") >= 15
    assert files["pdf"].getvalue()[:5] == b"%PDF-"


def test_painting_by_hand() -> None:
    under = Image.new("RGB", (16, 16), (100, 150, 200))
    grey = np.asarray(greyed(under))[0, 0].astype(float)
    light = int(0.299 * 100 + 0.587 * 150 + 0.114 * 200 + 0.5)
    assert grey.tolist() == [round(64 + light * 191 / 255)] * 3
    shown = np.asarray(painted(under, BOXES, np.array([0.0, 1.0, 4.0, 0.5]))).astype(float)
    heat = np.array([226, 0, 116])
    for (x, y), value in (((2, 2), 0), ((13, 2), 1), ((4, 12), 4), ((13, 12), 0.5)):
        alpha = 0.6 * (value / 4) ** 0.75
        np.testing.assert_allclose(shown[y, x], (1 - alpha) * grey + alpha * heat, atol=0.5)
    # a white line and a dark one around the only token that reaches half of the largest
    assert shown[7, 3].tolist() == [255, 255, 255] and shown[6, 3].tolist() == [20, 20, 28]
    assert shown[12, 8].tolist() == [255, 255, 255] and shown[12, 9].tolist() == [20, 20, 28]


def test_no_value_covers_the_object() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    shown = np.asarray(painted(noise, BOXES, np.array([1.0, 0.9, 0.8, 0.7]))).astype(float)[..., 1]
    under = np.asarray(greyed(noise)).astype(float)[..., 1]
    for y, x in ((slice(0, 6), slice(0, 6)), (slice(10, 16), slice(10, 16))):
        assert np.corrcoef(shown[y, x].ravel(), under[y, x].ravel())[0, 1] > 0.99
        assert shown[y, x].std() > 0.35 * under[y, x].std()


def test_nothing_is_drawn_where_nothing_is() -> None:
    under = picture("blue", 0, size=16)
    for values in (np.zeros(4), np.array([-1.0, -2, -3, -0.5])):
        assert painted(under, BOXES, values).tobytes() == greyed(under).tobytes()
    assert opacity(np.array([-1.0, 0.0, 2.0]), 1.0).tolist() == [0, 0, 0.6]
    assert not outlined(np.zeros(3), 0.0).any()


def test_the_boundary_is_that_of_the_union() -> None:
    """Against counting: a unit edge belongs to it when one of its two cells is covered."""
    rng = np.random.default_rng(1)
    full = rng.random((5, 6)) < 0.5
    boxes = np.array([[x, y, x + 1, y + 1] for y, x in zip(*full.nonzero(), strict=True)], dtype=float)
    found = {tuple(sorted(piece)) for piece in boundary(boxes)}
    rim = np.pad(full, 1)
    wanted = set()
    for y in range(6):
        for x in range(7):
            if rim[y, x + 1] != rim[y + 1, x + 1] and x < 6:
                wanted.add(((float(x), float(y)), (float(x + 1), float(y))))
            if rim[y + 1, x] != rim[y + 1, x + 1] and y < 5:
                wanted.add(((float(x), float(y)), (float(x), float(y + 1))))
    assert found == wanted
    assert boundary(np.zeros((0, 4))) == []


@pytest.fixture
def tiled() -> TokenMap:
    """Positions of a picture whole (2x1 tokens) and in two tiles (2x1 and 1x1), and one without a place."""
    row, tile = torch.tensor([[-1, 0, 1, 0, 1, 0, -1]]), torch.tensor([[-1, 0, 0, 1, 1, 2, -1]])
    x0, x1 = torch.tensor([[0.0, 0, 0, 0, 0, 8, 0]]), torch.tensor([[0.0, 16, 16, 8, 8, 16, 0]])
    y0, y1 = torch.tensor([[0.0, 0, 8, 0, 8, 0, 0]]), torch.tensor([[0.0, 8, 16, 8, 16, 16, 0]])
    return TokenMap(
        roles=torch.tensor([[Role.IMAGE] * 6 + [Role.QUERY]]),
        image_index=torch.tensor([[0] * 6 + [-1]]),
        row=row,
        col=torch.where(row >= 0, 0, -1),
        box=torch.stack([x0, y0, x1, y1], dim=-1).where((row >= 0)[..., None], float("nan")),
        image_sizes=(((16, 16),),),
        strings=(("<cls>", *["<image>"] * 5, "b"),),
        prompt_length=7,
        tile=tile,
    )


def test_the_whole_and_the_tiles_stand_beside_each_other(tiled: TokenMap) -> None:
    whole, tiles = parts_of(tiled, 0, 0)
    assert (whole.name, whole.positions, tiles.name, tiles.positions) == ("whole", [1, 2], "tiles", [3, 4, 5])
    assert tiles.places == [(1, 0, 0), (1, 1, 0), (2, 0, 0)]
    figure = views.overlay(torch.arange(6.0), tiled, picture("red", 0, size=16), title="heat", labels=True)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["picture", "heat, whole", "heat, tiles"]
    heat = [axes.collections[0].get_facecolors()[:, 3] for axes in figure.axes[1:3]]
    np.testing.assert_allclose(heat[0], opacity(np.array([1.0, 2]), 5.0))  # on one scale
    np.testing.assert_allclose(heat[1], opacity(np.array([3.0, 4, 5]), 5.0))
    nowhere = TokenMap(**{**vars(tiled), "box": torch.full((1, 7, 4), float("nan"))})
    with pytest.raises(DataError, match="no place in the picture"):
        overlay(torch.arange(6.0), nowhere, picture("red", 0, size=16))
