"""What drawings are measured by, against scenes whose truth is known; the section against drawing by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

import gatelens as gl
from gatelens.drawing.pictures import decoder, draw_pictures
from gatelens.studies.narrow_gate.drawing import reading
from gatelens.studies.narrow_gate.drawing import section as drawing
from gatelens.studies.narrow_gate.drawing import table as drawing_table
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.section import Absent, Measured, Setup
from section_helpers import run_section, setup_of
from study_helpers import TinyData

N = 1


@pytest.fixture(scope="module")
def pool() -> list[Any]:
    return gl.data.load("emoji-scenes").examples("class", limit=80, seed=0)


def drawing_setup(model: Any, data: Any, pool: Any, n: int = N) -> Setup:
    return setup_of(STUDY, model, data, {"drawing": {"n": n}}, 64, {"class": pool})


def test_pixels_tell_plate_and_background(pool: list[Any]) -> None:
    known = sorted({reading.commonest(e.image) for e in pool})
    assert len(known) == 2
    right = [reading.plate(e.image) == drawing.thing(e).color for e in pool]
    assert sum(right) == len(right)
    for e in pool[:20]:
        corner = [e.image.getpixel(xy) for xy in ((0, 0), (63, 0), (0, 63), (63, 63))]
        truth = max(set(corner), key=corner.count)  # a plate covers at most one corner of the four
        assert reading.background(e.image, known) == reading.named(truth)
    blank = Image.new("RGB", (64, 64), (250, 250, 248))
    assert reading.plate(blank) == reading.NOTHING
    few, enough = blank.copy(), blank.copy()
    few.paste((225, 48, 48), (0, 0, 31, 1))
    enough.paste((225, 48, 48), (0, 0, 32, 1))
    assert [reading.plate(x) for x in (few, enough)] == [reading.NOTHING, "red"]


def test_cases_share_nothing(pool: list[Any]) -> None:
    asked = gl.data.load("emoji-scenes").examples("draw", limit=30, seed=0)
    cases = drawing.make_cases(asked, pool)
    assert len(cases) == 60 and [c.number for c in cases[:4]] == [0, 0, 1, 1]
    for c in cases:
        a, p, t = (drawing.thing(x) for x in (c.asked, c.picture, c.target))
        assert a.name != p.name and a.shape != p.shape and len({a.color, p.color, t.color}) == 3
    assert cases[0].text == cases[0].asked.prompt
    assert drawing.thing(cases[1].asked).color not in cases[1].text
    assert drawing.make_cases(asked, []) == []


def test_few_pictures_leave_out_what_has_no_direction(pool: list[Any]) -> None:
    """With a handful of pictures some colour is left without one to take a mean of."""
    asked = gl.data.load("emoji-scenes").examples("draw", limit=4, seed=0)
    for n in (2, 4, 8):
        cases = drawing.make_cases(asked, pool[:n])
        kept = drawing.with_directions(pool[:n], cases)
        shown = {c.picture.id for c in cases}
        free = {drawing.thing(e).color for e in pool[:n] if e.id not in shown}
        for c in cases:
            fits = drawing.thing(c.picture).color in free and drawing.thing(c.target).color in free
            assert (c in kept) == fits
    cases = drawing.make_cases(asked, pool)
    assert drawing.with_directions(pool, cases) == cases


def test_shares_by_hand() -> None:
    columns = {right: ["x"] * 4 for pair in drawing_table.MEASURES.values() for right in pair}
    lines = pd.DataFrame(
        {"prompt": ["colour asked", "colour asked", "colour open", "colour open"], **columns}
    )
    lines["row"], lines["case"] = "none", range(4)
    lines["read_class"] = ["x", "y", "y", "y"]
    lines["said_color"] = ["", "x", "x", "y"]
    table = drawing_table.summarise(lines, 20, 0).set_index(["prompt", "measure"])
    assert table.loc[("colour asked", "class asked")]["mean"] == 0.5
    assert table.loc[("colour open", "class asked")]["mean"] == 0
    assert ("colour open", "colour asked") not in table.index  # where no colour was asked for
    assert ("colour asked", "says colour of the picture") not in table.index  # an answer is missing
    assert table.loc[("colour open", "says colour of the target")]["mean"] == 0.5
    assert set(table.n) == {2}
    assert [drawing_table.chance(m) for m in ("class asked", "background of the picture")] == [1 / 16, 1 / 2]


def test_color_means_by_hand(pool: list[Any]) -> None:
    model = gl.HookedVLM.from_pretrained("organism:gated")
    means = drawing.color_means(model, pool[:12], layer=3, size=64)
    red = [e for e in pool[:12] if drawing.thing(e).color == "red"]
    gates = []
    for e in red:
        inputs = model.prepare(e.image, e.prompt)
        _, cache = model.run_with_cache(inputs, "blocks.3.hook_resid_pre")
        gates.append(cache["blocks.3.hook_resid_pre"][0, inputs.tokens.strings[0].index("<eoss>")])
    torch.testing.assert_close(means["red"], torch.stack(gates).mean(0), atol=1e-5, rtol=1e-5)


def test_the_section_is_what_drawing_by_hand_gives(pool: list[Any]) -> None:
    model = gl.HookedVLM.from_pretrained("organism:gated")
    data = gl.data.load("emoji-scenes")
    run = run_section(STUDY, "drawing", drawing_setup(model, data, pool))
    lines = run.table("drawings")
    assert len(lines) == 2 * N * 12 and set(run.table("drawing").n) == {N}
    asked = data.examples("draw", limit=N, seed=0)
    cases = drawing.make_cases(asked, pool)
    by_hand = {
        drawing_table.NO_PICTURE: draw_pictures(model, [c.text for c in cases], seed=0),
        "gate → drawing": draw_pictures(
            model,
            [f"<image>{c.text}" for c in cases],
            images=[c.picture.image for c in cases],
            interventions=gl.knockout("last | generated", "eoi - boi"),
            seed=0,
        ),
    }
    shown = run.json("drawing_pictures")
    assert [p["text"] for p in shown["prompts"]] == [c.text for c in cases]
    assert len(shown["pictures"]) == 2 * N and len(shown["rows"]) == 12
    for row, pictures in by_hand.items():
        mine = lines[lines["row"] == row]
        assert list(mine.pixel_color) == [reading.plate(p) for p in pictures]
        said = model.prepare(images=pictures, text=["<image>this is a"] * len(pictures))
        words = model.decode(model(said)[:, -1].argmax(-1, keepdim=True))
        assert [w.strip() for w in words] == list(mine.read_class)
    without = lines[lines["row"] == drawing_table.NO_PICTURE]
    assert set(without.said_color) == {""}  # nothing was shown that it could say a colour of


def test_who_cannot_draw_has_no_section(pool: list[Any], tiny_chameleon: Any) -> None:
    data = gl.data.load("emoji-scenes")
    for model in (gl.HookedVLM.from_pretrained("organism:llava"), tiny_chameleon):
        with pytest.raises(Absent, match="the model does not draw"):  # the second has tokens, but no decoder
            drawing.batches(drawing_setup(model, data, pool), Measured())
    no_drawings = drawing_setup(tiny_chameleon, TinyData(), TinyData().examples("class"))
    # nothing of the model is touched when nothing is asked for
    nothing = dataclasses.replace(drawing_setup(tiny_chameleon, data, pool, 0), model=SimpleNamespace())
    for setup in (no_drawings, nothing):
        with pytest.raises(Absent, match="asks for no drawings"):
            drawing.batches(setup, Measured())


def test_codebook_in_another_dtype() -> None:
    """A model run in bfloat16 decodes its drawings by the same float32 decoder."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    half = gl.HookedVLM.from_pretrained("organism:gated", dtype="bfloat16")
    ids = torch.tensor([sorted(model.hf.model.vocabulary_mapping.bpe2img)[:64]])
    first, second = (decoder(m)(ids)[0].convert("RGB") for m in (model, half))
    difference = torch.tensor(list(first.getdata())).float() - torch.tensor(list(second.getdata())).float()
    assert float(difference.abs().mean()) < 3  # of 255: the codebook's rounding
    assert next(half.hf.model.vqmodel.parameters()).dtype == torch.bfloat16
