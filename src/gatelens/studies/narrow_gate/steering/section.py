"""Section *steering*: a direction added at the gate makes the answer another class. What else does it change?

The directions are differences of class means (:mod:`.directions`), fitted on one half of the pictures and
added to the other half's gate in the layer that the fitting half chose, at doses from a quarter to four times the
difference. Beside them stand pushes of the same length in random directions and in the direction of another pair of
classes, and the price: captions of the same pictures without the class's name, and questions that concern neither
class. The same recipe at the last position shows that it works where the answer certainly is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, Field
from safetensors.torch import save

from gatelens.data import Example
from gatelens.directions import overlaps_with_first
from gatelens.engine import generate_many, last_logits
from gatelens.examples import Labels, prepare
from gatelens.measures.answers import vqa_accuracy
from gatelens.measures.stats import SHARE
from gatelens.model import HookedVLM
from gatelens.plots.numbers import percent, percent_cell
from gatelens.plots.pictures import picture_uri
from gatelens.runs import Run
from gatelens.studies.narrow_gate.class_pairs import (
    AskedPairs,
    ClassPair,
    Every,
    layers_visited,
    pair_name,
    take_turns,
)
from gatelens.studies.narrow_gate.steering.directions import (
    MEANS,
    NOTHING,
    OTHER,
    PLACES,
    RANDOM,
    REFERENCE,
    SITE,
    Halves,
    Item,
    Pushes,
    answers,
    choose_pairs,
    chosen_layer,
    directions_at,
    fit,
    halves,
    layer_scores,
)
from gatelens.studies.narrow_gate.steering.page import cards
from gatelens.studies.narrow_gate.steering.table import (
    ABOVE,
    ALL,
    BOUNDS,
    SUCCESS,
    by_example,
    names,
    score_captions,
    summarise,
)
from gatelens.studies.narrow_gate.verdict import DISTRIBUTED, FEWEST, FLIPS, INCONCLUSIVE, MIXED, NARROW
from gatelens.studies.options import Examples, Options, Repeats, Says
from gatelens.studies.section import (
    VALUES,
    Absent,
    Batch,
    Evidence,
    Measured,
    Section,
    Setup,
    Tables,
    cells,
    span_of,
)

FIT = "fit"
KINDS = ("pictures", "captions", "questions")  # what is steered; also the tables of the answers
FEWEST_TO_FIT = 10  # pictures of a class, for a direction that changes little to mean anything
SHOWN, SHOWN_DOSES = 4, (0.0, 0.5, 1.0, 2.0, 4.0)  # pictures on the page, and the doses of their captions


def doses_of(asked: str | Sequence[float]) -> list[float]:
    """The doses asked for, and 1 in any case, ascending.

    Raises:
        ValueError: a dose that is not a number above 0.
    """
    try:
        given = [float(x) for x in (asked.split(",") if isinstance(asked, str) else asked)]
    except (TypeError, ValueError):
        given = [-1.0]
    if any(not 0 <= x < float("inf") for x in given):
        raise ValueError("no doses")
    return sorted({x for x in given if x} | {1.0})


class SteeringOptions(Options):
    """Pairs, pictures, pushes and layers."""

    pairs: AskedPairs = None
    n_pairs: Annotated[Examples, Field(description="Class pairs, where none are given.")] = 8
    n: Annotated[Examples, Field(description="Pictures of each pair that are steered.")] = 12
    n_caption: Annotated[Examples, Field(description="Pictures whose captions are steered.")] = 32
    n_vqa: Annotated[Examples, Field(description="Questions that concern neither class.")] = 64
    n_random: Annotated[Repeats, Field(description="Random directions of a pair.")] = 3
    doses: Annotated[
        Any,
        AfterValidator(doses_of),
        Says("numbers above 0, as [0.5, 1, 2]"),
        Field(description="Multiples of the difference of class means; 1 is always among them."),
    ] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    every: Every = None


@dataclass(frozen=True)
class Fit(Batch):
    """One half of the pictures, on which the directions are fitted and their layer is chosen."""

    pairs: Sequence[ClassPair]
    split: Halves
    every: int | None
    size: int


@dataclass(frozen=True)
class Steer(Batch):
    """Pictures or questions of the other half, each with the pair it is steered along; ``start`` numbers the first.

    ``kind``: ``pictures`` (the class answer), ``captions`` (asked for by ``prompt``) or ``questions``.
    """

    kind: str
    start: int
    items: Sequence[Item]
    pushes: Pushes
    prompt: str = ""
    max_new_tokens: int = 1

    @property
    def pairs(self) -> list[ClassPair]:
        """The pair of each item."""
        return [item.pair for item in self.items]

    @property
    def examples(self) -> list[Example]:
        """What is asked."""
        return [item.example for item in self.items]


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The fit; then batches of pictures to steer, of their captions, and of questions."""
    options: SteeringOptions = setup.section_options["steering"]
    seed, tasks = setup.options.seed, setup.examples("class")
    if not tasks:
        raise Absent("the data has no task class")
    split = halves(tasks[0][1], seed, options.pairs)
    pairs = choose_pairs(split, options.pairs, options.n_pairs, seed)
    if not pairs or not options.n:
        raise Absent("it needs two classes with four pictures each")
    layers = layers_visited(setup.n_layers, options.every)
    used = {name: split[name] for pair in pairs for name in pair}
    work: list[Batch] = [Fit(FIT, pairs, used, options.every, setup.size, units=len(layers))]
    if FIT not in measured:
        return work
    items = take_turns([[Item(pair, e) for e in split[pair[0]][1][: options.n]] for pair in pairs])
    asked = [e for _, examples in setup.examples("vqa")[:1] for e in examples]
    questions = unconcerned(asked, pairs, setup.data.classes)[: options.n_vqa]
    pushes = Pushes(measured[FIT]["directions"], options.doses, options.n_random, seed)
    return work + _steered(setup, options, pushes, items, questions)


def _steered(
    setup: Setup, options: SteeringOptions, pushes: Pushes, items: Sequence[Item], questions: Sequence[Item]
) -> list[Batch]:
    once = replace(pushes, n_random=1)
    work: list[Batch] = [
        Steer(f"pictures-{i:04d}", "pictures", start, part, pushes, units=8)
        for i, start, part in setup.batched(items)
    ]
    for _, examples in setup.examples("caption")[:1]:
        prompt, longest = examples[0].prompt, setup.options.caption_tokens
        work += [
            Steer(f"captions-{i:04d}", "captions", start, part, once, prompt, longest, units=16)
            for i, start, part in setup.batched(items[: options.n_caption])
        ]
    along, longest = {item.example.id: item.pair for item in questions}, setup.options.vqa_tokens
    for i, start, some in setup.batched_by_length([q.example for q in questions]):
        part = [Item(along[e.id], e) for e in some]
        work.append(Steer(f"questions-{i:04d}", "questions", start, part, once, "", longest, units=8))
    return work


def unconcerned(
    examples: Sequence[Example], pairs: Sequence[ClassPair], classes: Sequence[str]
) -> list[Item]:
    """Each question with a pair that it does not concern, pairs taking turns.

    A question is left out where its answer is the name of a class, or where it names a class of every pair.
    """
    items: list[Item] = []
    known = {name.lower() for name in classes}
    for example in examples:
        if known & {a.lower() for a in example.answers}:
            continue
        text = " ".join([example.prompt, *example.answers])
        turn = len(items) % len(pairs)
        for pair in [*pairs[turn:], *pairs[:turn]]:
            if not any(names(text, one) for one in pair):
                items.append(Item(pair, example))
                break
    return items


def measure(model: HookedVLM, batch: Fit | Steer) -> Tables:
    """``directions`` of the fit, else ``pictures``, ``captions`` or ``questions``."""
    if isinstance(batch, Fit):
        layers, labels = layers_visited(int(model.cfg.n_layers), batch.every), Labels(model, any_word=True)
        return {"directions": fit(model, batch.pairs, batch.split, layers, batch.size, labels)}
    steered = {"pictures": steer_pictures, "captions": steer_captions, "questions": steer_questions}
    return {batch.kind: steered[batch.kind](model, batch)}


def steer_pictures(model: HookedVLM, batch: Steer) -> pd.DataFrame:
    """``direction, repeat, dose, right`` (unsteered), and :func:`.directions.answers`."""
    ways, runs = batch.pushes.runs([MEANS, RANDOM, OTHER, REFERENCE], batch.pairs)
    inputs, labels = prepare(model, batch.examples, batch.start), Labels(model, any_word=True)
    judged = [answers(batch.items, logits, labels) for logits in last_logits(model, inputs, runs)]
    tables = []
    for (kind, repeat, dose), one in zip(ways, judged, strict=True):
        told = one.assign(direction=kind, repeat=repeat, dose=dose, right=judged[0].is_base)
        # a pair that shares a class with every other has no control of this kind
        there = [batch.pushes.direction(kind, repeat, pair) is not None for pair in batch.pairs]
        tables.append(told[there])
    return pd.concat(tables, ignore_index=True)


def steer_captions(model: HookedVLM, batch: Steer) -> pd.DataFrame:
    """``id, base, target, direction, dose, caption``: the same pictures under the caption prompt."""
    ways, runs = batch.pushes.runs([MEANS, RANDOM], batch.pairs)
    inputs = model.prepare(images=[e.image for e in batch.examples], text=[batch.prompt] * len(batch.items))
    written = generate_many(model, inputs, runs, batch.max_new_tokens)
    rows = []
    for (kind, _, dose), said in zip(ways, written, strict=True):
        for item, text in zip(batch.items, said.texts, strict=True):
            rows.append((item.example.id, *item.pair, kind, dose, text.strip()))
    return pd.DataFrame(rows, columns=["id", "base", "target", "direction", "dose", "caption"])


def steer_questions(model: HookedVLM, batch: Steer) -> pd.DataFrame:
    """``id, base, target, direction, dose, prediction, score, overlap``.

    ``overlap``: Σ min(p, q) of the answer's first token with the unsteered one.
    """
    ways, runs = batch.pushes.runs([MEANS, RANDOM], batch.pairs)
    inputs = prepare(model, batch.examples, batch.start)
    written = generate_many(model, inputs, runs, batch.max_new_tokens)
    overlaps = overlaps_with_first(model, inputs, runs)
    rows = []
    for (kind, _, dose), said, shared in zip(ways, written, overlaps, strict=True):
        for item, text, overlap in zip(batch.items, said.texts, shared.tolist(), strict=True):
            score = vqa_accuracy(text, item.example.answers)
            rows.append((item.example.id, *item.pair, kind, dose, text.strip(), score, overlap))
    columns = ["id", "base", "target", "direction", "dose", "prediction", "score", "overlap"]
    return pd.DataFrame(rows, columns=columns)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``steering``, ``steering_layers``, the answers they are made of, ``steering_examples`` and the directions."""
    n_boot, seed = setup.options.n_boot, setup.options.seed
    fitted, pictures = measured[FIT]["directions"], measured.table("pictures")
    layers = {place: chosen_layer(fitted, place) for place in PLACES}
    tables: dict[str, Any] = {"steering_pictures": pictures}
    captions, questions = measured.table("captions"), measured.table("questions")
    if len(captions):
        captions = score_captions(captions)
        tables |= {"steering_captions": captions, "steering_examples": _examples(setup, captions)}
    if len(questions):
        tables["steering_questions"] = questions
    tables["steering"] = summarise(pictures, captions, questions, layers, n_boot, seed)
    scores = [layer_scores(fitted, place).assign(place=place) for place in PLACES]
    scores = [s.assign(chosen=s.layer == layers[place]) for s, place in zip(scores, PLACES, strict=True)]
    tables["steering_layers"] = pd.concat(scores, ignore_index=True)
    tables["directions.safetensors"] = as_safetensors(fitted, layers["gate"])
    return tables


def _examples(setup: Setup, captions: pd.DataFrame) -> list[dict[str, object]]:
    """The first picture of the first pairs with its captions by dose, for the page."""
    images = {e.id: e.image for _, drawn in setup.examples("class")[:1] for e in drawn if e.image is not None}
    mine = captions[captions.direction.isin((NOTHING, MEANS)) & captions.dose.isin(SHOWN_DOSES)]
    first = captions.drop_duplicates(["base", "target"]).head(SHOWN)
    shown: list[dict[str, object]] = []
    for one in first.itertuples():
        said = mine[(mine.id == one.id) & (mine.base == one.base) & (mine.target == one.target)]
        by_dose = [[float(r.dose), r.caption] for r in said.sort_values("dose").itertuples()]
        picture = picture_uri(images[one.id], 256, enlarge=True)
        shown.append({"id": one.id, "pair": [one.base, one.target], "picture": picture, "captions": by_dose})
    return shown


def as_safetensors(fitted: pd.DataFrame, layer: int) -> bytes:
    """The directions of the chosen layer by ``base-target``, Float[d_model]; the metadata says how to add them."""
    tensors = {pair_name(pair): v for pair, v in directions_at(fitted, layer).items()}
    data = save(tensors, metadata={"at": "gate", "site": SITE, "layers": json.dumps([layer])})
    # the library writes the header in an order of its own each time: the same directions are to be the same bytes
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def evidence(run: Run) -> list[Evidence]:
    """Narrow where the difference of means, added once at the gate, turns the answer; distributed where no dose
    does although the same recipe works at the last position; nothing can be said where it works at neither, or
    where it works a little with means of few pictures."""
    kind = "steering the gate"
    table = run.table("steering")
    above = table[(table.pair == ALL) & (table.measure == ABOVE)].set_index("dose")
    right = table[(table.pair == ALL) & (table.measure == SUCCESS)].n
    n = 0 if right.empty else int(right.max())
    if above.empty or n < FEWEST:
        text = "without a random direction there is nothing to compare with"
        if n < FEWEST:
            text = f"only {n} pictures are answered correctly unsteered, at least {FEWEST} are needed"
        return [{"kind": kind, "says": INCONCLUSIVE, "text": text, "line": text}]
    once, best = above.loc[1.0], above.loc[above["mean"].idxmax()]
    at_last = table[(table.direction == REFERENCE) & (table.measure == SUCCESS)]["mean"].iloc[0]
    note = ""
    if once.low > FLIPS[1]:
        says = NARROW
    elif best.high < FLIPS[0]:
        says = DISTRIBUTED if at_last > FLIPS[1] else INCONCLUSIVE
        note = f"; at the last position {percent(at_last)}"
    else:
        says = MIXED
        n_fit = int(run.table("steering_layers").n_fit.min())
        if n_fit < FEWEST_TO_FIT:
            says = INCONCLUSIVE
            note = f"; a class mean of {n_fit} pictures says little, at least {FEWEST_TO_FIT} are needed"
    most = f"no dose up to {above.index.max():g} changes more than that"
    if best["mean"] > 0:
        most = f"at best, dose {best.name:g}, in {percent(best['mean'])}"
    text = (
        f"the difference of class means added at the gate in layer {int(once.layer)} changes the answer to the target "
        f"class in {percent_cell(once['mean'], once.low, once.high)} of {int(once.n)} pictures more "
        f"than a random direction of the same length does;  {most}{note}"
    )
    turned = percent_cell(once["mean"], once.low, once.high)
    line = (
        f"a class direction (layer {int(once.layer)}) changes {turned} more answers than a random one{note}"
    )
    return [{"kind": kind, "says": says, "text": text, "line": line}]


def compared(run: Run) -> pd.DataFrame:
    """Each measure by direction and dose, all pairs together, for the comparison of two runs."""
    table = run.table("steering")
    table = table[table.pair == ALL]
    return cells(table, table.measure, _pushes(table))


def compared_values(run: Run) -> pd.DataFrame:
    """What these are the means of, by picture, caption or question."""
    kept = (
        run.table(f"steering_{name}") if run.has(f"steering_{name}") else pd.DataFrame() for name in KINDS
    )
    table = by_example(*kept)
    table = table[table.pair == ALL]
    spans = [span_of(BOUNDS.get(measure, SHARE)) for measure in table.measure]
    return table.assign(how="", metric=table.measure, row=_pushes(table), span=spans)[VALUES]


def _pushes(table: pd.DataFrame) -> pd.Series:
    """Direction and dose as the name of a row."""
    return table.direction + " × " + table.dose.map("{:g}".format)


SECTION = Section(
    "steering",
    "a class direction added at the gate: what it changes, and what it costs",
    batches,
    measure,
    conclude,
    SteeringOptions,
    evidence,
    cards,
    cells=compared,
    values=compared_values,
)
