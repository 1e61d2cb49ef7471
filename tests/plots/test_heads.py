"""The heads view: labels, pooling, and pages that need no network."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gatelens import views
from gatelens.errors import DataError
from gatelens.plots import heads as heads_module
from gatelens.plots.head_grid import head_grid
from gatelens.plots.heads import heads
from gatelens.tokens import Role, TokenMap
from study_helpers import picture


@pytest.fixture(scope="module")
def run(tiny_chameleon: Any) -> Any:
    inputs = tiny_chameleon.prepare(images=[picture("red", 0)], text=["<image>this animal is a"])
    _, cache = tiny_chameleon.run_with_cache(inputs, names_filter="blocks.1.attn.hook_pattern")
    return inputs, cache


def test_image_tokens_are_labelled_by_row_and_column(run: Any) -> None:
    inputs, cache = run
    view = heads(cache, inputs.tokens, layer=1)
    assert "img 0,0" in view.tokens
    assert "img 3,3" in view.tokens
    assert view.tokens[-1] == "a"
    torch.testing.assert_close(view.attention, cache["blocks.1.attn.hook_pattern"][0].float())
    assert "16 image tokens" in view.note


@pytest.mark.parametrize(("pool", "n_image"), [("row", 4), ("image", 1)])
def test_pooling_keeps_rows_summing_to_one(run: Any, pool: Any, n_image: int) -> None:
    inputs, cache = run
    view = heads(cache, inputs.tokens, layer=1, pool=pool, heads=[2])
    assert sum(t.startswith("img") for t in view.tokens) == n_image
    assert view.attention.shape[0] == 1
    torch.testing.assert_close(view.attention.sum(-1), torch.ones_like(view.attention.sum(-1)))
    full = cache["blocks.1.attn.hook_pattern"][0, 2]
    image = inputs.tokens.mask("image")[0]
    pooled = view.attention[0, -1][[t.startswith("img") for t in view.tokens]].sum()
    assert float(pooled) == pytest.approx(float(full[-1][image].sum()), abs=1e-6)
    assert "pooled" in view.note


def test_many_image_tokens_are_pooled_by_themselves(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_module, "MOST_UNPOOLED", 8)
    inputs, cache = run
    assert sum(t.startswith("img row") for t in heads(cache, inputs.tokens, layer=1).tokens) == 4


@pytest.fixture(scope="module")
def tiled() -> Any:
    """Seven positions of a picture whole (2x1 tokens) and in two tiles (2x1 and 1x1), and a pattern over them."""
    row, tile = torch.tensor([[-1, 0, 1, 0, 1, 0, -1]]), torch.tensor([[-1, 0, 0, 1, 1, 2, -1]])
    x0, x1 = torch.tensor([[0.0, 0, 0, 0, 0, 8, 0]]), torch.tensor([[0.0, 16, 16, 8, 8, 16, 0]])
    y0, y1 = torch.tensor([[0.0, 0, 8, 0, 8, 0, 0]]), torch.tensor([[0.0, 8, 16, 8, 16, 16, 0]])
    tokens = TokenMap(
        roles=torch.where(row >= 0, int(Role.IMAGE), int(Role.QUERY)),
        image_index=torch.where(row >= 0, 0, -1),
        row=row,
        col=torch.where(row >= 0, 0, -1),
        box=torch.stack([x0, y0, x1, y1], dim=-1).where((row >= 0)[..., None], float("nan")),
        image_sizes=(((16, 16),),),
        strings=(("a", *["<image>"] * 5, "b"),),
        prompt_length=7,
        tile=tile,
    )
    return tokens, torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)


def test_tiles_are_told_apart(tiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, pattern = tiled
    assert heads(pattern, tokens, 0, pool=None).tokens[3:6] == (
        "img tile 1 0,0",
        "img tile 1 1,0",
        "img tile 2 0,0",
    )
    rows = ("img whole row 0", "img whole row 1", "img tile 1 row 0", "img tile 1 row 1", "img tile 2 row 0")
    assert heads(pattern, tokens, 0, pool="row").tokens == ("a", *rows, "b")
    view = heads(pattern, tokens, 0, pool="tile")
    assert view.tokens == ("a", "img whole", "img tile 1", "img tile 2", "b")
    torch.testing.assert_close(view.attention[0, -1, 2], pattern[0, 0, -1, 3:5].sum())
    monkeypatch.setattr(heads_module, "MOST_UNPOOLED", 4)  # five rows are too many, three tiles are not
    assert heads(pattern, tokens, 0).tokens == view.tokens
    alternating = dataclasses.replace(tokens, tile=torch.tensor([[-1, 1, 2, 1, 2, 1, -1]]))
    assert heads(pattern, alternating, 0).tokens == ("a", "img (all)", "b")  # five pieces of two tiles


def test_overlay_draws_the_whole_and_the_tiles_beside_each_other(tiled: Any) -> None:
    tokens, _ = tiled
    figure = views.overlay(torch.arange(5.0), tokens, picture("red", 0), title="heat", labels=True)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:3] == ["picture", "heat, whole", "heat, tiles"]
    assert [len(axes.patches) for axes in figure.axes[:3]] == [0, 2, 3]


def test_page_is_self_contained(run: Any, tmp_path: Path) -> None:
    inputs, cache = run
    file = heads(cache, inputs.tokens, layer=1, picture=inputs.images[0][0]).save(tmp_path / "heads.html")
    page = file.read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?https?:", page)
    assert not re.search(r"\bimport\b[^;]{0,80}[\"']https?:", page)
    assert "data:image/png;base64," in page
    assert "L1H0" in page


def test_only_some_positions(run: Any) -> None:
    inputs, cache = run
    view = heads(cache, inputs.tokens, layer=1, only="gate | query")
    assert view.tokens[0] == "<eoss>"
    assert len(view.tokens) == 5


def test_errors(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, cache = run
    with pytest.raises(DataError, match=r"blocks\.0\.attn\.hook_pattern"):
        heads(cache, inputs.tokens, layer=0)
    with pytest.raises(DataError, match="0 to 3"):
        heads(cache, inputs.tokens, layer=1, heads=[9])
    with pytest.raises(DataError, match="example 3"):
        heads(cache, inputs.tokens, layer=1, example=3)
    with pytest.raises(DataError, match="pool="):
        heads(cache, inputs.tokens, layer=1, pool="column")  # type: ignore[arg-type]
    monkeypatch.setattr(heads_module, "MOST_CELLS", 10)
    with pytest.raises(DataError, match="too many to draw"):
        heads(cache, inputs.tokens, layer=1)


def test_the_still_picture_shows_what_the_page_shows(run: Any) -> None:
    inputs, cache = run
    view = heads(cache, inputs.tokens, layer=1, heads=[3, 0, 2], pool="row")
    figure = view.figure(columns=2)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == ["L1H3", "L1H0", "L1H2"]
    for axes, pattern in zip(shown, view.attention, strict=True):
        image = axes.images[0]
        assert torch.equal(torch.as_tensor(image.get_array()), pattern)
        assert image.get_clim() == (0.0, pytest.approx(float(view.attention.max())))
    assert [t.get_text() for t in shown[0].get_yticklabels()] == list(view.tokens)
    assert [t.get_text() for t in shown[2].get_xticklabels()] == list(view.tokens)
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_of_many_positions_the_still_picture_names_stretches() -> None:
    tokens = ["<s>", "<boi>", *(f"img {i // 6},{i % 6}" for i in range(36)), "<eoi>"]
    pattern = torch.eye(len(tokens))[None]
    figure = head_grid(pattern, tokens, ["L0H0"], "one head")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["<s> … (2)", "image (36)", "<eoi>"]
    assert axes.get_yticks().tolist() == [0.5, 19.5, 38.0]
