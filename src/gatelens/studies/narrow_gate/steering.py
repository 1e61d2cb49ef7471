"""Section *steering*: a direction added at the gate makes the answer another class. What else does it change?

The directions are differences of class means (:mod:`.steering_fit`), fitted on one half of the pictures and added
to the other half's gate in the layer that the fitting half chose, at doses from a quarter to four times the
difference. Beside them stand pushes of the same length in random directions and in the direction of another pair of
classes, and the price: captions of the same pictures without the class's name, and questions that concern neither
class. The same recipe at the last position shows that it works where the answer certainly is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from gatelens.engine import generate_many, last_logits
from gatelens.errors import DataError
from gatelens.measures.answers import vqa_accuracy
from gatelens.measures.overlap import distribution_overlap
from gatelens.studies.common import chunks, chunks_by_length, prepare
from gatelens.studies.narrow_gate.class_pairs import ClassPair, layers_visited
from gatelens.studies.narrow_gate.section import Context, Piece, Section
from gatelens.studies.narrow_gate.steering_fit import (
    Item,
    answers,
    choose_pairs,
    fit,
    halves,
)
from gatelens.studies.narrow_gate.steering_push import MEANS, NOTHING, OTHER, RANDOM, REFERENCE, Pushes
from gatelens.studies.narrow_gate.steering_table import conclude, evidence, names

if TYPE_CHECKING:
    from gatelens.data import Example

FIT = "shards/steering-fit"


def pieces(context: Context) -> list[Piece]:
    """The fit; then batches of pictures to steer, of their captions, and of questions."""
    options, tasks = context.options("steering"), context.examples("class")
    if not tasks:
        return []
    split = halves(tasks[0][1], context.seed, options["pairs"])
    pairs = choose_pairs(split, options["pairs"], options["n_pairs"], context.seed)
    if not pairs or not options["n"]:
        return []
    model, doses = context.model, doses_of(options["doses"])
    layers = layers_visited(int(model.cfg.n_layers), options["every"])

    def fitting() -> pd.DataFrame:
        return fit(model, pairs, split, layers, context.size, context.labels)

    def pushes(n_random: int) -> Pushes:
        return Pushes(context.run.table(FIT), doses, n_random, context.seed)

    found = [Piece(FIT, "steering, fitting", fitting, len(layers))]
    turns = [split[base][1][: options["n"]] for base, _ in pairs]
    items = [
        Item(pair, turn[k])
        for k in range(max(map(len, turns)))
        for pair, turn in zip(pairs, turns, strict=True)
        if k < len(turn)
    ]
    for number, start, part in chunks(items, context.size):

        def compute(start: int = start, part: Sequence[Item] = part) -> pd.DataFrame:
            return steer_pictures(context, pushes(options["n_random"]), part, start)

        found.append(Piece(f"shards/steering-pictures-{number:04d}", "steering", compute, 8))
    captions = context.examples("caption")
    if captions:
        prompt = captions[0][1][0].prompt
        for number, start, part in chunks(items[: options["n_caption"]], context.size):

            def describe(start: int = start, part: Sequence[Item] = part) -> pd.DataFrame:
                return steer_captions(context, pushes(1), part, start, prompt)

            found.append(Piece(f"shards/steering-captions-{number:04d}", "steering, captions", describe, 16))
    asked = [e for _, examples in context.examples("vqa")[:1] for e in examples]
    questions = unconcerned(asked, pairs, context.data.classes)[: options["n_vqa"]]
    along = {item.example.id: item.pair for item in questions}
    for number, start, some in chunks_by_length(model, [q.example for q in questions], context.size):

        def ask(start: int = start, some: Sequence[Example] = some) -> pd.DataFrame:
            return steer_questions(context, pushes(1), [Item(along[e.id], e) for e in some], start)

        found.append(Piece(f"shards/steering-questions-{number:04d}", "steering, questions", ask, 8))
    return found


def doses_of(asked: str | Sequence[float]) -> list[float]:
    """The doses asked for, and 1 in any case, ascending.

    Raises:
        DataError: a dose that is no number above 0.
    """
    try:
        given = [float(x) for x in (asked.split(",") if isinstance(asked, str) else asked)]
    except (TypeError, ValueError):
        given = [-1.0]
    if any(not 0 <= x < float("inf") for x in given):
        raise DataError(f"doses={asked!r}: give numbers above 0, as [0.5, 1, 2]")
    return sorted({x for x in given if x} | {1.0})


def unconcerned(
    examples: Sequence[Example], pairs: Sequence[ClassPair], classes: Sequence[str]
) -> list[Item]:
    """Each question with a pair that it does not concern, pairs taking turns.

    A question is left out where its answer is the name of a class, or where it names a class of every pair.
    """
    found: list[Item] = []
    known = {name.lower() for name in classes}
    for example in examples:
        if known & {a.lower() for a in example.answers}:
            continue
        text = " ".join([example.prompt, *example.answers])
        turn = len(found) % len(pairs)
        for pair in [*pairs[turn:], *pairs[:turn]]:
            if not any(names(text, one) for one in pair):
                found.append(Item(pair, example))
                break
    return found


def steer_pictures(context: Context, pushes: Pushes, part: Sequence[Item], start: int) -> pd.DataFrame:
    """``direction, repeat, dose, right`` (unsteered), and :func:`.steering_fit.answers`."""
    ways = pushes.ways([MEANS, RANDOM, OTHER, REFERENCE])
    runs = [pushes.run(way, [item.pair for item in part]) for way in ways]
    inputs = prepare(context.model, [item.example for item in part], start)
    outcomes = last_logits(context.model, inputs, [None, *runs])
    judged = [answers(part, logits, context.labels) for logits in outcomes]
    right = judged[0].is_base
    tables = []
    for (kind, repeat, dose), one in zip([(NOTHING, 0, 0.0), *ways], judged, strict=True):
        told = one.assign(direction=kind, repeat=repeat, dose=dose, right=right)
        # a pair that shares a class with every other has no control of this kind
        there = [kind == NOTHING or pushes.direction(kind, repeat, item.pair) is not None for item in part]
        tables.append(told[there])
    return pd.concat(tables, ignore_index=True)


def steer_captions(
    context: Context, pushes: Pushes, part: Sequence[Item], start: int, prompt: str
) -> pd.DataFrame:
    """``id, base, target, direction, dose, caption``: the same pictures under the caption prompt."""
    ways = pushes.ways([MEANS, RANDOM])
    images = [item.example.image for item in part]
    inputs = context.model.prepare(images=images, text=[prompt] * len(part))
    runs = [None, *(pushes.run(way, [item.pair for item in part]) for way in ways)]
    longest = context.settings["max_new_tokens"]["caption"]
    rows = []
    for (kind, _, dose), said in zip(
        [(NOTHING, 0, 0.0), *ways], generate_many(context.model, inputs, runs, longest), strict=True
    ):
        for item, text in zip(part, said.texts, strict=True):
            rows.append((item.example.id, *item.pair, kind, dose, text.strip()))
    return pd.DataFrame(rows, columns=["id", "base", "target", "direction", "dose", "caption"])


def steer_questions(context: Context, pushes: Pushes, part: Sequence[Item], start: int) -> pd.DataFrame:
    """``id, base, target, direction, dose, prediction, score, overlap``.

    ``overlap``: Σ min(p, q) of the answer's first token with the unsteered one.
    """
    ways = pushes.ways([MEANS, RANDOM])
    inputs = prepare(context.model, [item.example for item in part], start)
    runs = [None, *(pushes.run(way, [item.pair for item in part]) for way in ways)]
    longest = context.settings["max_new_tokens"]["vqa"]
    written = generate_many(context.model, inputs, runs, longest)
    p = [x.float().softmax(-1).cpu() for x in last_logits(context.model, inputs, runs)]
    rows = []
    for (kind, _, dose), said, q in zip([(NOTHING, 0, 0.0), *ways], written, p, strict=True):
        overlaps = distribution_overlap(p[0], q).tolist()
        for item, text, overlap in zip(part, said.texts, overlaps, strict=True):
            score = vqa_accuracy(text, item.example.answers)
            rows.append((item.example.id, *item.pair, kind, dose, text.strip(), score, overlap))
    columns = ["id", "base", "target", "direction", "dose", "prediction", "score", "overlap"]
    return pd.DataFrame(rows, columns=columns)


SECTION = Section(
    "steering",
    "a class direction added at the gate: what it turns, and what it costs",
    pieces,
    conclude,
    evidence,
    {
        "pairs": None,
        "n_pairs": 8,
        "n": 12,
        "n_caption": 32,
        "n_vqa": 64,
        "n_random": 3,
        "doses": [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0],
        "every": None,
    },
)
