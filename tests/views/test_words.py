"""The words view: where a word looked and what cutting does, in a browser against plain arrays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from case import cases

import gatelens as gl
from browser_kit import SCREENS, overflow, pdf_pages, screenshot, serious_faults, set_screen
from gatelens.errors import DataError
from gatelens.plots.overlay import greyed, opacity, painted, parts_of
from gatelens.views import heads_view, words, words_view
from gatelens.views.prompts import enlarged
from study_helpers import picture

LONGEST = 352


@pytest.fixture(scope="module")
def table(tiny_chameleon: Any) -> Any:
    """Of the second prompt of a padded batch."""
    images = [[picture("red", 0, size=32)], [picture("blue", 1, size=32)]]
    inputs = tiny_chameleon.prepare(
        images=images, text=["<image>what color is the dog ?", "<image>this animal is a"]
    )
    generation = tiny_chameleon.generate(inputs, return_type="map", max_new_tokens=5)
    return gl.words_table(tiny_chameleon, generation, example=1, grid=2)


def settled(page: Any, query: int) -> None:
    page.wait_for_function("query => document.body.dataset.query === String(query)", arg=query)


def test_a_written_word_shows_where_it_looked_and_what_cutting_does(
    table: Any, page: Any, tmp_path: Path
) -> None:
    page.goto(words(table).save(tmp_path / "x.html").as_uri())
    chips = page.locator("button.word")
    assert [chips.nth(i).inner_text() for i in range(chips.count())] == table.words["word"].tolist()
    (part,) = parts_of(table.tokens, 0, 0)
    shown = enlarged(table.images[0], LONGEST)
    scale = shown.width / 32
    for w in (1, 2):
        chips.nth(w).hover()
        settled(page, w)
        looked = table.attention[:, :, w].mean((0, 1))[part.positions].numpy()
        wanted = np.asarray(painted(shown, part.boxes * scale, looked), dtype=float)
        seen = np.asarray(screenshot(page, of="button.panel"), dtype=float)
        assert np.quantile(np.abs(seen - wanted), 0.99) <= 3
        cut = np.asarray(screenshot(page, of=".stage canvas[role=img]"), dtype=float)
        under, top = np.asarray(greyed(shown), dtype=float), max(0.01, float(table.effects[:, w].abs().max()))
        for block, effect in zip(table.blocks, table.effects[:, w].tolist(), strict=True):
            x, y = (
                int((low + high) / 2 * scale) for low, high in zip(block.box[:2], block.box[2:], strict=True)
            )
            color = np.array([209, 98, 15] if effect > 0 else [47, 111, 181])
            alpha = float(opacity(np.array([abs(effect)]), top)[0])
            assert np.abs(cut[y, x] - ((1 - alpha) * under[y, x] + alpha * color)).max() <= 2


def test_a_patch_says_its_lens_and_what_cutting_its_block_does(table: Any, page: Any, tmp_path: Path) -> None:
    page.goto(words(table).save(tmp_path / "x.html").as_uri())
    settled(page, 0)
    page.locator("button.word").nth(1).click()
    page.locator("button.panel").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):  # the first shows the mark
        page.keyboard.press(key)
    page.wait_for_function("document.querySelector('.said').textContent.includes('row 2, column 0')")
    said = page.inner_text(".said")
    token = table.tokens.positions("image", 0)[8]
    of = table.lens.table.query("position == @token and layer == 3 and target == 'top 0'").iloc[0]
    assert f"lens at layer 3: “{of['word']}” {100 * np.exp(of['value']):.1f} %" in said
    (block,) = [i for i, one in enumerate(table.blocks) if token in one.positions]
    effect = float(table.effects[block, 1])
    shown = said.split("by ")[-1].split(" nats")[0].replace("−", "-")
    assert float(shown) == pytest.approx(effect, rel=0.01)
    assert f"Cutting its block ({len(table.blocks[block].positions)} image tokens)" in said
    page.locator("input.layer").fill("1")
    page.wait_for_function("document.querySelector('.said').textContent.includes('lens at layer 1')")


def test_bars_under_words_are_attention_to_them(table: Any, page: Any, tmp_path: Path) -> None:
    page.goto(words(table, heads="mean", layers=[1]).save(tmp_path / "x.html").as_uri())
    last = len(table.words) - 1
    page.locator("button.word").nth(last).hover()
    settled(page, last)
    first = table.tokens.prompt_length
    paid = table.attention[1].mean(0)[last]
    prompt = table.tokens.positions("all - image - pad - generated", 0)
    keys = [float(paid[p]) for p in prompt]
    keys += [
        float(paid[first + a : first + b + 1].sum())
        for a, b in zip(table.words["first"], table.words["last"], strict=True)
    ]
    scale = "(chip) => Number(chip.querySelector('.bar').style.transform.slice(7, -1))"
    shown = page.evaluate(f"[...document.querySelectorAll('.chip[data-key]')].map({scale})")
    np.testing.assert_allclose(shown, np.array(keys) / max(keys), atol=2 / 255)
    assert not page.locator(".heads").is_visible()  # one row of means: there are no heads to choose


def test_tiles_and_several_pictures(page: Any, tmp_path: Path) -> None:
    case = cases()["llava-next"]
    model = gl.HookedVLM.from_module(copy.deepcopy(case.model()), case.processor())
    inputs = model.prepare([[case.picture(0), case.picture(1)]], ["<image> and <image> left of"])
    table = gl.words_table(model, model.generate(inputs, return_type="map", max_new_tokens=4), grid=2)
    page.goto(words(table).save(tmp_path / "x.html").as_uri())
    settled(page, 0)
    assert page.locator(".stage button.panel").count() == 4  # whole and tiles of each
    assert page.locator(".stage canvas[role=img]").count() == 2
    assert serious_faults(page) == []


def test_heads_are_averaged_where_there_is_no_room_for_each(
    table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = words(table)
    assert (len(apart.heads), apart.averaged) == (4, 0)
    limit = apart.pictures[0].values.numel() // 4
    for module in (heads_view, words_view):
        monkeypatch.setattr(module, "MOST_BYTES", limit)
    mean = words(table)
    assert (len(mean.heads), mean.averaged) == (1, 4)
    total = mean.pictures[0].share + mean.words.share
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)


def test_every_screen_is_whole_and_without_serious_faults(table: Any, page: Any, tmp_path: Path) -> None:
    page.goto(words(table).save(tmp_path / "x.html").as_uri())
    settled(page, 0)
    for width, scheme in SCREENS:
        set_screen(page, width, scheme)
        assert overflow(page) == []
        assert serious_faults(page) == []
        screenshot(page, f"words_{width}_{scheme}", whole=True)
    assert pdf_pages(page) <= 3


def test_errors(table: Any) -> None:
    for said, more in (("layers", {"layers": [7]}), ("0 to 3", {"heads": [4]}), ("pool=0", {"pool": 0})):
        with pytest.raises(DataError, match=said):
            words(table, **more)
    with pytest.raises(DataError, match=r"give gl.words_table\(model, generation\)"):
        words("a text")  # type: ignore[arg-type]
