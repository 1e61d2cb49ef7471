"""What drawings are measured by, against scenes whose truth is known; the section against drawing by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from gatelens.studies.narrow_gate.section import Context
from PIL import Image

import gatelens as gl
from gatelens.drawing.pictures import draw_pictures
from gatelens.runs import Run
from gatelens.studies.examples import Labels, Progress
from gatelens.studies.narrow_gate import drawing, drawing_reading, drawing_table
from study_helpers import TinyData

N = 2


@pytest.fixture(scope="module")
def pool() -> list[Any]:
    return gl.data.load("emoji-scenes").examples("class", limit=80, seed=0)


def setup_of(STUDY, model: Any, data: Any, pool: Any, n: int = N) -> Context:
    settings = {"seed": 0, "n_boot": 50, "sections": {"drawing": {"n": n}}}
    run = Run.open(None, study="narrow-gate", settings=settings)
    return Context(model, data, {"class": pool}, ("zero",), 64, run, Labels(model), Progress(0, False))


def test_pixels_tell_plate_and_background(pool: list[Any]) -> None:
    known = sorted({drawing_reading.commonest(e.image) for e in pool})
    assert len(known) == 2
    right = [drawing_reading.plate(e.image) == drawing.thing(e).color for e in pool]
    assert sum(right) == len(right)
    for e in pool[:20]:
        corner = [e.image.getpixel(xy) for xy in ((0, 0), (63, 0), (0, 63), (63, 63))]
        truth = max(set(corner), key=corner.count)  # a plate covers at most one corner of the four
        assert drawing_reading.background(e.image, known) == drawing_reading.named(truth)
    blank = Image.new("RGB", (64, 64), (250, 250, 248))
    assert drawing_reading.plate(blank) == drawing_reading.NOTHING
    few, enough = blank.copy(), blank.copy()
    few.paste((225, 48, 48), (0, 0, 31, 1))
    enough.paste((225, 48, 48), (0, 0, 32, 1))
    assert [drawing_reading.plate(x) for x in (few, enough)] == [drawing_reading.NOTHING, "red"]


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
    lines["row"] = "none"
    lines["read_class"] = ["x", "y", "y", "y"]
    lines["said_color"] = ["", "x", "x", "y"]
    found = drawing_table.summarise(lines, 20, 0).set_index(["prompt", "measure"])
    assert found.loc[("colour asked", "class asked")]["mean"] == 0.5
    assert found.loc[("colour open", "class asked")]["mean"] == 0
    assert ("colour open", "colour asked") not in found.index  # where no colour was asked for
    assert ("colour asked", "says colour of the picture") not in found.index  # an answer is missing
    assert found.loc[("colour open", "says colour of the target")]["mean"] == 0.5
    assert set(found.n) == {2}
    assert [drawing_table.chance(m) for m in ("class asked", "background of the picture")] == [1 / 16, 1 / 2]


def test_color_means_by_hand(pool: list[Any]) -> None:
    model = gl.HookedVLM.from_pretrained("organism:gated")
    context = setup_of(STUDY, model, gl.data.load("emoji-scenes"), pool)
    means = drawing.color_means(context, pool[:12], layer=3)
    red = [e for e in pool[:12] if drawing.thing(e).color == "red"]
    gates = []
    for e in red:
        inputs = model.prepare(e.image, e.prompt)
        _, cache = model.run_with_cache(inputs, "blocks.3.hook_resid_pre")
        gates.append(cache["blocks.3.hook_resid_pre"][0, inputs.tokens.strings[0].index("<eoss>")])
    torch.testing.assert_close(means["red"], torch.stack(gates).mean(0), atol=1e-5, rtol=1e-5)


def test_the_section_is_what_drawing_by_hand_gives(pool: list[Any]) -> None:
    model = gl.HookedVLM.from_pretrained("organism:gated")
    context = setup_of(STUDY, model, gl.data.load("emoji-scenes"), pool)
    with torch.inference_mode():
        (piece,) = drawing.pieces(context)
        drawing.conclude(context, [piece.compute()])
    lines, run = context.run.table("drawings"), context.run
    assert len(lines) == 2 * N * 12 and set(run.table("drawing").n) == {N}
    asked = context.data.examples("draw", limit=N, seed=0)
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
        assert list(mine.pixel_color) == [drawing_reading.plate(p) for p in pictures]
        said = model.prepare(images=pictures, text=["<image>this is a"] * len(pictures))
        words = model.decode(model(said)[:, -1].argmax(-1, keepdim=True))
        assert [w.strip() for w in words] == list(mine.read_class)
    without = lines[lines["row"] == drawing_table.NO_PICTURE]
    assert set(without.said_color) == {""}  # nothing was shown that it could say a colour of


def test_who_cannot_draw_has_no_section(pool: list[Any], tiny_chameleon: Any) -> None:
    data = gl.data.load("emoji-scenes")
    llava = gl.HookedVLM.from_pretrained("organism:llava")
    assert drawing.pieces(setup_of(STUDY, llava, data, pool)) == []
    assert drawing.pieces(setup_of(STUDY, tiny_chameleon, data, pool)) == []  # tokens, but no picture decoder
    assert drawing.pieces(setup_of(STUDY, tiny_chameleon, TinyData(), TinyData().examples("class"))) == []
    gated = SimpleNamespace()  # nothing of the model is touched when nothing is asked for
    assert drawing.pieces(context_of_nothing(gated, data, pool)) == []


def context_of_nothing(model: Any, data: Any, pool: Any) -> Any:
    options = {"n": 0}
    return SimpleNamespace(model=model, data=data, drawn={"class": pool}, options=lambda name: options)


def test_codebook_in_another_dtype() -> None:
    """A model run in bfloat16 decodes its drawings by the same float32 decoder."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    half = gl.HookedVLM.from_pretrained("organism:gated", dtype="bfloat16")
    ids = torch.tensor([sorted(model.hf.model.vocabulary_mapping.bpe2img)[:64]])
    first, second = (drawing.decoder(m)(ids)[0].convert("RGB") for m in (model, half))
    difference = torch.tensor(list(first.getdata())).float() - torch.tensor(list(second.getdata())).float()
    assert float(difference.abs().mean()) < 3  # of 255: the codebook's rounding
    assert next(half.hf.model.vqmodel.parameters()).dtype == torch.bfloat16
