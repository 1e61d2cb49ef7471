"""Section *drawing*: what the picture in a prompt does to a picture the model draws after it, and by which path.

The paper leaves image generation to future work. A native model is asked to draw after a picture of something
else; paths from that picture into the drawing are cut, and the gate is patched or steered. What the same edits of
the gate do to a *said* answer is shown next to it: the check that they are edits that can do something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from gatelens.data import Example, prompts, scenes
from gatelens.drawing.pictures import GUIDANCE, TEMPERATURE, decoder
from gatelens.engine.drawing import draw_many
from gatelens.errors import ModelError
from gatelens.examples import Labels, consecutive, prepare
from gatelens.interventions import hook_name, knockout, patch, steer
from gatelens.interventions.base import Intervention
from gatelens.model import HookedVLM
from gatelens.plots.pictures import picture_uri
from gatelens.runs import Run
from gatelens.studies.narrow_gate.drawing import reading
from gatelens.studies.narrow_gate.drawing.cases import (
    Case,
    image_of,
    make_cases,
    thing,
    unseen,
    with_directions,
)
from gatelens.studies.narrow_gate.drawing.page import cards
from gatelens.studies.narrow_gate.drawing.table import NO_PICTURE, NONE, hits, summarise
from gatelens.studies.options import Examples, Options
from gatelens.studies.section import VALUES, Absent, Batch, Measured, Section, Setup, Tables, cells

DRAWING, BOTH = "last | generated", "(query | last | generated) - gate"
TEXT = "text - gate"
# the marker that begins the drawing is not part of the picture
IMAGE_SIDE = "(boi | image | row_break) - last"
EVERYTHING = f"gate | {IMAGE_SIDE}"
BATCH = 64
Runs = Mapping[str, Sequence[Intervention]]


class DrawingOptions(Options):
    """Drawings."""

    n: Annotated[Examples, Field(description="Scenes that are asked for, two ways each.")] = 24


@dataclass(frozen=True)
class ColorMeans(Batch):
    """Pictures whose gates, by plate colour, the steering direction is made of."""

    pictures: Sequence[Example]
    size: int


@dataclass(frozen=True)
class Draw(Batch):
    """One row of the table on some cases, the first numbered ``start``; ``size`` pictures are read at once."""

    row: str
    start: int
    cases: Sequence[Case]
    means: pd.DataFrame
    backgrounds: Sequence[reading.RGB]
    classes: Sequence[str]
    size: int
    seed: int


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The colour means of the pictures each part of the cases leaves over; then a batch a row of the table."""
    n = setup.section_options["drawing"].n
    pool = [e for e in setup.drawn.get("class", ()) if len(e.meta.get("objects", ())) == 1]
    if "draw" not in setup.data.tasks or not pool or n == 0:
        raise Absent("the data asks for no drawings")
    try:
        decoder(setup.model)
    except ModelError as error:
        raise Absent("the model does not draw") from error
    seed = setup.options.seed
    cases = make_cases(setup.data.examples("draw", limit=n, seed=seed), pool)
    backgrounds = sorted({reading.commonest(image_of(e)) for e in pool})
    work: list[Batch] = []
    for number, start, some in consecutive(cases, BATCH):
        part = with_directions(pool, some)
        if not part:
            continue
        fit = ColorMeans(f"{number:04d}-colour-means", unseen(pool, part), setup.size)
        work.append(fit)
        if fit.name in measured:
            work += [
                Draw(
                    f"{number:04d}-{i:02d}", row, start, part, measured[fit.name]["means"], backgrounds,
                    setup.data.classes, setup.size, seed,
                )
                for i, row in enumerate([NO_PICTURE, *ROWS])
            ]  # fmt: skip
    if not work:
        raise Absent("no scene has a picture of another class, colour and shape beside it")
    return work


def measure(model: HookedVLM, batch: ColorMeans | Draw) -> Tables:
    """``means``: ``color, mean``; or ``drawings``: a line per case, with what pixels and model say of it."""
    if isinstance(batch, ColorMeans):
        means = color_means(model, batch.pictures, middle_layer(model), batch.size)
        rows = [(color, mean.tolist()) for color, mean in means.items()]
        return {"means": pd.DataFrame(rows, columns=["color", "mean"])}
    return {"drawings": draw_row(model, batch)}


def middle_layer(model: HookedVLM) -> int:
    """Where the gate is steered."""
    return int(model.cfg.n_layers) // 2


def cut(queries: str, called: str) -> Runs:
    """Gate, image tokens and both, not read by ``queries``."""
    keys = {"gate": "gate", "image": IMAGE_SIDE, "gate + image": EVERYTHING}
    return {f"{name} → {called}": [knockout(queries=queries, keys=k)] for name, k in keys.items()}


CUT_DRAWING, CUT_BOTH = cut(DRAWING, "drawing"), cut(BOTH, "text + drawing")
CUT_TEXT = cut(TEXT, "text + drawing")  # while it says, not draws
CUT_ZERO = {"gate + image → text + drawing, zero": [knockout(queries=BOTH, keys=EVERYTHING, how="zero")]}
CUTS: Runs = {**CUT_DRAWING, **CUT_BOTH, **CUT_ZERO}
OTHER_GATE, STEERED = "gate of another picture", "gate steered to another colour"
RANDOM = "random direction at the gate"
ROWS = (NONE, *CUTS, OTHER_GATE, STEERED, RANDOM)


def gate_edit(model: HookedVLM, batch: Draw) -> list[Intervention]:
    """The gate's residual stream: another picture's, moved by a difference of colour means, or moved at random."""
    if batch.row == OTHER_GATE:
        names = [hook_name("resid_pre", n) for n in range(int(model.cfg.n_layers))]
        inputs = prepare(model, [c.target for c in batch.cases])
        _, cache = model.run_with_cache(inputs, names, positions="gate")
        return [patch(cache, at="gate")]
    means = {r.color: torch.tensor(r.mean) for r in batch.means.itertuples()}
    direction = torch.stack(
        [means[thing(c.target).color] - means[thing(c.picture).color] for c in batch.cases]
    )
    if batch.row == RANDOM:
        generator = torch.Generator().manual_seed(batch.seed * 1000 + batch.start)
        other = torch.randn(direction.shape, generator=generator).to(direction)
        direction = other / other.norm(dim=-1, keepdim=True) * direction.norm(dim=-1, keepdim=True)
    return [steer(direction, at="gate", layers=middle_layer(model))]


def draw_row(model: HookedVLM, batch: Draw) -> pd.DataFrame:
    """The drawings of one row: one line per case, with what pixels and model say of it."""
    cases, row = batch.cases, batch.row
    edit = gate_edit(model, batch) if row in (OTHER_GATE, STEERED, RANDOM) else []
    if row == NO_PICTURE:
        inputs = model.prepare(text=[c.text for c in cases])
    else:
        after = [dataclasses.replace(c.picture, prompt=f"<image>{c.text}") for c in cases]
        inputs = prepare(model, after, batch.start)
    specs, seed = edit or CUTS.get(row, []), batch.seed * 1000 + batch.start
    (drawn,) = draw_many(model, inputs, [specs], temperature=TEMPERATURE, guidance=GUIDANCE, seed=seed)
    pictures = decoder(model)(drawn.token_ids)
    labels = Labels(model, any_word=True)
    table = reading.read_back(model, pictures, batch.classes, labels, batch.size)
    table.insert(0, "row", row)
    table.insert(0, "prompt", [c.form for c in cases])
    table["case"] = [c.number for c in cases]
    table["pixel_color"] = [reading.plate(p) for p in pictures]
    table["pixel_background"] = [reading.background(p, batch.backgrounds) for p in pictures]
    said_under = {NONE: [], **CUT_TEXT}.get(row, edit)
    answered = row == NONE or row in CUT_TEXT or bool(edit)
    table["said_color"] = says(model, cases, said_under, labels) if answered else ""
    for role in ("asked", "picture", "target"):
        for what, field in (("class", "name"), ("color", "color"), ("shape", "shape")):
            table[f"{role}_{what}"] = [getattr(thing(getattr(c, role)), field) for c in cases]
    table["picture_background"] = [reading.named(reading.commonest(image_of(c.picture))) for c in cases]
    table["text"] = [c.text for c in cases]
    table["shown"] = [_shown(p) if c.shown else "" for p, c in zip(pictures, cases, strict=True)]
    table["shown_picture"] = [_shown(image_of(c.picture)) if c.shown and row == NONE else "" for c in cases]
    return table


def color_means(
    model: HookedVLM, pictures: Sequence[Example], layer: int, size: int
) -> dict[str, Float[Tensor, " d_model"]]:
    """Mean residual stream of the gate, entering a layer, over the pictures of each plate colour."""
    name = hook_name("resid_pre", layer)
    gates = []
    for _, _, part in consecutive(pictures, size):
        inputs = prepare(model, part)
        _, cache = model.run_with_cache(inputs, name, positions="gate")
        gates.append(cache[name][:, -1].float())
    colors = pd.Series([thing(e).color for e in pictures])
    every = torch.cat(gates)
    return {str(c): every[list(where)].mean(0) for c, where in colors.groupby(colors).groups.items()}


def says(model: HookedVLM, cases: Sequence[Case], edit: Sequence[Intervention], labels: Labels) -> list[str]:
    """The plate colour the model names, asked about the picture, under an edit."""
    question = [reading.COLOR_QUESTION.format(thing(c.picture).name) for c in cases]
    texts = [prompts.QUESTION_PROMPT.format(question=q) for q in question]
    asked = [dataclasses.replace(c.picture, prompt=f"<image>{t}") for c, t in zip(cases, texts, strict=True)]
    return reading.likeliest(model, prepare(model, asked), texts[0], list(scenes.COLORS), labels, edit)


def _shown(picture: Image.Image) -> str:
    return picture_uri(picture, 128, enlarge=True)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``drawings`` (a line a drawing), ``drawing`` (the measures) and ``drawing_pictures`` (the first drawn)."""
    every = measured.table("drawings")
    plain = every.drop(columns=["shown", "shown_picture"])
    shown = every[every.shown != ""]
    heads = shown[shown["row"] == NONE]
    rows = [{"row": row, "drawn": list(part.shown)} for row, part in shown.groupby("row", sort=False)]
    return {
        "drawings": plain,
        "drawing": summarise(plain, setup.options.n_boot, setup.options.seed),
        "drawing_pictures": {
            "prompts": heads[["prompt", "case", "text"]].to_dict("records"),
            "pictures": list(heads.shown_picture),
            "rows": rows,
        },
    }


def compared(run: Run) -> pd.DataFrame:
    """What drawings show under each edit, for the comparison of two runs."""
    table = run.table("drawing")
    return cells(table, table.prompt + ": " + table.measure, table["row"])


def compared_values(run: Run) -> pd.DataFrame:
    """Whether each drawing shows it."""
    table = hits(run.table("drawings"))
    named = {"how": "", "metric": table.prompt + ": " + table.measure, "id": table.case.astype(str)}
    return table.assign(**named, value=table.hit.astype(float), span=1.0)[VALUES]


SECTION = Section(
    "drawing",
    "what the prompt’s picture does to a picture drawn after it",
    batches,
    measure,
    conclude,
    DrawingOptions,
    page=cards,
    cells=compared,
    values=compared_values,
)
