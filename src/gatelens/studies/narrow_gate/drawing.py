"""Section *drawing*: what the picture in a prompt does to a picture the model draws after it, and by which path.

The paper leaves image generation to future work. A native model is asked to draw behind a picture of something
else; paths from that picture into the drawing are cut, and the gate is patched or steered. What the same edits of
the gate do to a *said* answer stands beside it: the check that they are edits that can do something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import prompts, scenes
from gatelens.engine import last_logits
from gatelens.engine.drawing import draw_many
from gatelens.errors import ModelError
from gatelens.interventions import hook_name, knockout, patch, steer
from gatelens.picture_drawing import GUIDANCE, TEMPERATURE, Decoder, decoder
from gatelens.studies.common import chunks, data_uri, prepare
from gatelens.studies.narrow_gate import drawing_reading as reading
from gatelens.studies.narrow_gate.drawing_table import NO_PICTURE, NONE, summarise
from gatelens.studies.narrow_gate.section import Context, Piece, Section

if TYPE_CHECKING:
    from PIL.Image import Image

    from gatelens.data import Example

DRAWING, BOTH = "last | generated", "(query | last | generated) - gate"
TEXT = "text - gate"
IMAGE_SIDE = (
    "(boi | image | row_break) - last"  # the marker that begins the drawing is no part of the picture
)
ASKED = {"colour asked": "a {o.name} on a {o.color} {o.shape}", "colour open": "a {o.name} on a {o.shape}"}
MEANS_OF = 200  # pictures whose gates the steering direction is made of, at most
SHOWN = 3
BATCH = 64


@dataclass(frozen=True)
class Case:
    """What is asked for, the picture before it, and a third one whose colour the gate is given.

    Neither class nor colour nor shape of the picture is what is asked for; the target's colour is of neither.
    ``form``: one of ASKED; ``number``: of the scene that is asked for.
    """

    asked: Example
    picture: Example
    target: Example
    form: str
    number: int

    @property
    def text(self) -> str:
        """The prompt, without the picture."""
        return prompts.DRAW_PROMPT.format(caption=ASKED[self.form].format(o=thing(self.asked)))

    @property
    def shown(self) -> bool:
        """Whether its drawings are on the page: the first ones are, whatever they show."""
        return self.number < SHOWN


def thing(example: Example) -> Any:
    """The object of a scene that has one."""
    return example.meta["objects"][0]


def image_of(example: Example) -> Image:
    """Its picture, which a study has made sure of."""
    assert example.image is not None
    return example.image


def make_cases(asked: Sequence[Example], pool: Sequence[Example]) -> list[Case]:
    """Cases in the order of ``asked``, one a form; what finds no partner in ``pool`` is left out."""
    found: list[Case] = []
    for i, wanted in enumerate(asked):
        a = thing(wanted)
        turned = [*pool[i % max(len(pool), 1) :], *pool[: i % max(len(pool), 1)]]
        for picture in turned:
            p = thing(picture)
            if p.name == a.name or p.color == a.color or p.shape == a.shape:
                continue
            target = next((t for t in turned if thing(t).color not in (a.color, p.color)), None)
            if target is not None:
                found += [Case(wanted, picture, target, form, len(found) // len(ASKED)) for form in ASKED]
                break
    return found


def unseen(pool: Sequence[Example], cases: Sequence[Case]) -> list[Example]:
    """The pictures that the colour directions of these cases are made of: those that none of them shows."""
    shown = {id(c.picture) for c in cases}
    return [e for e in pool if id(e) not in shown][:MEANS_OF]


def with_directions(pool: Sequence[Example], cases: Sequence[Case]) -> list[Case]:
    """The cases whose two colours both have a picture to take a mean of; few pictures lack some."""
    known = {thing(e).color for e in unseen(pool, cases)}
    return [c for c in cases if {thing(c.picture).color, thing(c.target).color} <= known]


def cut(queries: str, how: str = "mask") -> dict[str, list[Any]]:
    """Gate, image tokens and both, not read by ``queries``."""
    keys = {"gate": "gate", "image": IMAGE_SIDE, "gate + image": f"gate | {IMAGE_SIDE}"}
    return {name: [knockout(queries=queries, keys=k, how=how)] for name, k in keys.items()}  # type: ignore[arg-type]


def gate_edits(
    context: Context, cases: Sequence[Case], means: dict[str, Tensor], layer: int, start: int
) -> dict[str, list[Any]]:
    """The gate's residual stream: another picture's, moved by a difference of colour means, moved at random."""
    names = [hook_name("resid_pre", n) for n in range(int(context.model.cfg.n_layers))]
    inputs = prepare(context.model, [c.target for c in cases])
    _, cache = context.model.run_with_cache(inputs, names, positions="gate")
    direction = torch.stack([means[thing(c.target).color] - means[thing(c.picture).color] for c in cases])
    generator = torch.Generator().manual_seed(context.seed * 1000 + start)
    other = torch.randn(direction.shape, generator=generator).to(direction)
    other = other / other.norm(dim=-1, keepdim=True) * direction.norm(dim=-1, keepdim=True)
    return {
        "gate of another picture": [patch(cache, at="gate")],
        "gate steered to another colour": [steer(direction, at="gate", layers=layer)],
        "random direction at the gate": [steer(other, at="gate", layers=layer)],
    }


def color_means(
    context: Context, pictures: Sequence[Example], layer: int
) -> dict[str, Float[Tensor, " d_model"]]:
    """Mean residual stream of the gate, entering a layer, over the pictures of each plate colour."""
    name = hook_name("resid_pre", layer)
    gates = []
    for _, _, part in chunks(pictures, context.size):
        inputs = prepare(context.model, part)
        _, cache = context.model.run_with_cache(inputs, name, positions="gate")
        gates.append(cache[name][:, -1].float())
    colors = pd.Series([thing(e).color for e in pictures])
    every = torch.cat(gates)
    return {str(c): every[list(where)].mean(0) for c, where in colors.groupby(colors).groups.items()}


def draw_all(
    context: Context, decode: Decoder, pool: Sequence[Example], start: int, cases: Sequence[Case]
) -> pd.DataFrame:
    """Every row of the table on some cases: one line a row and case, with what pixels and model say of it."""
    layer = int(context.model.cfg.n_layers) // 2
    means = color_means(context, unseen(pool, cases), layer)
    edits = gate_edits(context, cases, means, layer, start)
    runs: dict[str, list[Any]] = {NONE: []}
    runs |= {f"{name} → drawing": specs for name, specs in cut(DRAWING).items()}
    runs |= {f"{name} → text + drawing": specs for name, specs in cut(BOTH).items()}
    runs["gate + image → text + drawing, zero"] = cut(BOTH, "zero")["gate + image"]
    runs |= edits
    behind = [dataclasses.replace(c.picture, prompt=f"<image>{c.text}") for c in cases]
    how: dict[str, Any] = {
        "temperature": TEMPERATURE, "guidance": GUIDANCE, "seed": context.seed * 1000 + start,
    }  # fmt: skip
    drawn = draw_many(context.model, prepare(context.model, behind, start), list(runs.values()), **how)
    alone = draw_many(context.model, context.model.prepare(text=[c.text for c in cases]), [[]], **how)
    cuts_of_text = {f"{name} → text + drawing": specs for name, specs in cut(TEXT).items()}
    said = says(context, cases, {NONE: []} | cuts_of_text | edits)
    backgrounds = sorted({reading.commonest(image_of(e)) for e in pool})
    tables = []
    for row, one in zip([NO_PICTURE, *runs], [*alone, *drawn], strict=True):
        pictures = decode(one.token_ids)
        table = reading.read_back(context.model, pictures, context.data.classes, context.labels, context.size)
        table.insert(0, "row", row)
        table.insert(0, "prompt", [c.form for c in cases])
        table["case"] = [c.number for c in cases]
        table["pixel_color"] = [reading.plate(p) for p in pictures]
        table["pixel_background"] = [reading.background(p, backgrounds) for p in pictures]
        table["said_color"] = said.get(row, [""] * len(cases))
        for role in ("asked", "picture", "target"):
            for what, field in (("class", "name"), ("color", "color"), ("shape", "shape")):
                table[f"{role}_{what}"] = [getattr(thing(getattr(c, role)), field) for c in cases]
        table["picture_background"] = [reading.named(reading.commonest(image_of(c.picture))) for c in cases]
        table["text"] = [c.text for c in cases]
        table["shown"] = [data_uri(p, 128) if c.shown else "" for p, c in zip(pictures, cases, strict=True)]
        first = [data_uri(image_of(c.picture), 128) if c.shown and row == NONE else "" for c in cases]
        table["shown_picture"] = first
        tables.append(table)
        context.bar.step(f"drawing, {row}")
    return pd.concat(tables, ignore_index=True)


def says(context: Context, cases: Sequence[Case], runs: dict[str, list[Any]]) -> dict[str, list[str]]:
    """The plate colour the model names, asked about the picture, under each run."""
    question = [reading.COLOR_QUESTION.format(thing(c.picture).name) for c in cases]
    texts = [prompts.QUESTION_PROMPT.format(question=q) for q in question]
    asked = [
        dataclasses.replace(c.picture, prompt=f"<image>{text}") for c, text in zip(cases, texts, strict=True)
    ]
    words = list(scenes.COLORS)
    ids = [context.labels.first_token(texts[0], word) for word in words]
    found = last_logits(context.model, prepare(context.model, asked), list(runs.values()))
    return {
        row: [words[i] for i in logits[:, ids].argmax(-1).tolist()]
        for row, logits in zip(runs, found, strict=True)
    }


def pieces(context: Context) -> list[Piece]:
    """A piece a batch of cases and way of asking; none where the model cannot draw or nothing says what to draw."""
    n = context.options("drawing")["n"]
    pool = [e for e in context.drawn.get("class", []) if len(e.meta.get("objects", ())) == 1]
    if "draw" not in context.data.tasks or not pool or n == 0:
        return []
    try:
        decode = decoder(context.model)
    except ModelError:
        return []
    asked = context.data.examples("draw", limit=n, seed=context.seed)
    cases = make_cases(asked, pool)
    found = []
    for number, start, some in chunks(cases, BATCH):
        part = with_directions(pool, some)
        if not part:
            continue

        def compute(start: int = start, part: Sequence[Case] = part) -> pd.DataFrame:
            return draw_all(context, decode, pool, start, part)

        found.append(Piece(f"shards/drawing-{number:04d}", "drawing", compute, 12))
    return found


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``drawings`` (a line a drawing), ``drawing`` (the measures) and ``drawing_pictures`` (the first drawn)."""
    if not tables:
        return
    every = pd.concat(tables, ignore_index=True)
    plain = every.drop(columns=["shown", "shown_picture"])
    context.run.save_table("drawings", plain)
    context.run.save_table("drawing", summarise(plain, context.n_boot, context.seed))
    shown = every[every.shown != ""]
    heads = shown[shown["row"] == NONE]
    context.run.save_json(
        "drawing_pictures",
        {
            "prompts": heads[["prompt", "case", "text"]].to_dict("records"),
            "pictures": list(heads.shown_picture),
            "rows": [
                {"row": row, "drawn": list(shown[shown["row"] == row].shown)}
                for row in dict.fromkeys(shown["row"])
            ],
        },
    )


SECTION = Section(
    "drawing",
    "what the prompt's picture does to a picture drawn after it",
    pieces,
    conclude,
    options={"n": 24},
)
