"""Section *meaning*: at which tokens, and from which layer on, the class of the picture can be read.

For the gate, the first and last image token, the mean of the internal image tokens, the last prompt position and the
image-side positions that stand out in attention, by layer of the residual stream:

- *overlap*: the paper's χ^{l,gt}, the share of a prompt's k nearest neighbours (Euclidean) that have its class;
- *probe*: cross-validated accuracy of a linear map (:func:`gatelens.measures.probe.linear_probe`);
- *overlap with the gate*: the share of nearest neighbours that the place has in common with the gate
  (Doimo et al., NeurIPS 2020): whether the two arrange the pictures in the same way.

There is no evidence for the verdict in it. A narrow gate must hold the class, but so may any token after the picture
in a model whose text reads the image tokens directly, and a class that neither neighbours nor a linear map find may
still be there. Where the class *can* be read is not where it *is* read: that takes a knockout or a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from gatelens.data import Example
from gatelens.examples import labels_of, prepare
from gatelens.interventions import hook_name
from gatelens.measures.attention import image_side_slots, slot_place
from gatelens.model import HookedVLM
from gatelens.plots.card import Card, Chart
from gatelens.plots.curve import curves
from gatelens.plots.numbers import interval, number
from gatelens.plots.style import NotebookFigure, ReferenceLine, SeriesStyle
from gatelens.runs import Run
from gatelens.studies.narrow_gate.readings import (
    BOUNDS,
    GATE,
    OVERLAP,
    PROBE,
    WITH_GATE,
    averaged,
    readings,
)
from gatelens.studies.options import AtLeastOne, AtLeastTwo, Count, Examples, Options
from gatelens.studies.section import VALUES, Absent, Batch, Measured, Section, Setup, Tables, cells, span_of
from gatelens.studies.vectors import as_table, at_layer, vectors_of
from gatelens.tokens import TokenMap

Further = tuple[str, str, int]  # a place that stands out in attention: its name, kind and index

LAST, INTERNAL = "last prompt position", "internal image tokens, mean"
PLACES: Mapping[str, str] = {  # selectors
    GATE: "gate",
    "last image token": "last_image",
    INTERNAL: "image - last_image",
    "first image token": "first_image",
    LAST: "last",
}
PANELS = {
    OVERLAP: "Neighbours of the same class",
    PROBE: "Linear probe, accuracy",
    WITH_GATE: "Neighbours shared with the gate",
}

WORDS = {
    "neighbourhood overlap": (
        "The paper’s χ: of a residual stream’s {k} nearest neighbours (Euclidean), the share with the same class, mean "
        "over prompts. Shared with the gate: the neighbours that a place and the gate have in common. Layer l is the "
        "input of block l; the last is the output of the last block. Equal vectors get neighbours at random."
    ),
    "linear probe": (
        "Multinomial logistic regression with a ridge on standardised residual streams. Accuracy is on held-out "
        "prompts ({folds}-fold cross-validation), with Wilson’s 95 % interval. By chance: the most common class."
    ),
}


class MeaningOptions(Options):
    """Examples, neighbours and probes."""

    n: Annotated[Examples, Field(description="Examples of the task class.")] = 400
    k: Annotated[AtLeastOne, Field(description="Nearest neighbours.")] = 30
    folds: Annotated[AtLeastTwo, Field(description="Folds of the probe's cross-validation.")] = 5
    layers: Annotated[Count, Field(description="Layers that are probed.")] = 5
    extra: Annotated[Count, Field(description="Also probe places that stand out in attention.")] = 2


@dataclass(frozen=True)
class Stream(Batch):
    """Examples whose residual stream is kept at each place; ``start`` numbers the first."""

    start: int
    examples: Sequence[Example]
    further: Sequence[Further]


@dataclass(frozen=True)
class Readable(Batch):
    """One layer of all examples, as neighbours are sought among all of them.

    ``rows`` are of :func:`~gatelens.studies.vectors.at_layer`; ``probed``: whether the probe is fitted, too.
    """

    layer: int
    rows: pd.DataFrame
    labels: Sequence[int]
    probed: bool
    options: MeaningOptions
    n_boot: int
    seed: int


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The residual stream of some examples at a time; then what can be read of it, a layer at a time."""
    options: MeaningOptions = setup.section_options["meaning"]
    examples = _examples(setup)
    names = [labels_of(e)[0] for e in examples]
    if len(set(names)) < 2 or len(set(names)) == len(names):
        raise Absent("it needs classes with several examples each")
    further, study = standing_out(setup.run, options.extra), setup.options
    work: list[Batch] = [
        Stream(f"stream-{i:04d}", start, part, further, units=2) for i, start, part in setup.batched(examples)
    ]
    if any(batch.name not in measured for batch in work):
        return work
    streams = [measured[batch.name]["stream"] for batch in work]
    classes = sorted(set(names))
    labels = [classes.index(name) for name in names]
    probed = evenly(setup.n_layers, options.layers)
    return work + [
        Readable(
            f"layer-{layer:03d}", layer, at_layer(streams, layer), labels, layer in probed, options, study.n_boot,
            study.seed, units=4,
        )
        for layer in range(setup.n_layers + 1)
    ]  # fmt: skip


def _examples(setup: Setup) -> list[Example]:
    """The examples of the task class that are looked at."""
    return [
        e for _, drawn in setup.examples("class")[:1] for e in drawn[: setup.section_options["meaning"].n]
    ]


def measure(model: HookedVLM, batch: Stream | Readable) -> Tables:
    """``stream``: see :func:`~gatelens.studies.vectors.as_table`; or ``meaning`` of a layer (:func:`averaged`) with
    the ``readings`` of every example, ``place, layer, measure, example, value``."""
    if isinstance(batch, Stream):
        return {"stream": as_table(residual_stream(model, batch.examples, batch.start, batch.further))}
    stream = {place: x[:, None] for place, x in vectors_of(batch.rows).items()}
    k, folds, probed = batch.options.k, batch.options.folds, [0] if batch.probed else []
    found = readings(stream, torch.tensor(batch.labels), k, folds, probed, batch.seed)
    each = [
        pd.DataFrame({"place": r.place, "measure": r.measure, "example": r.examples, "value": r.values})
        for r in found
    ]
    return {
        "meaning": averaged(found, batch.n_boot, batch.seed).assign(layer=batch.layer),
        "readings": pd.concat(each).assign(layer=batch.layer).astype({"value": "float32"}),
    }


def places(tokens: TokenMap, further: Sequence[Further] = ()) -> dict[str, Bool[Tensor, "batch pos"]]:
    """The positions of each place in a batch; of ``further`` those ``(name, kind, index)``.

    Left out: a place that some example does not have, and one that is another in every example (the gate where the
    prompt ends with it, the last image token of one).
    """
    masks = {name: tokens.mask(selector) for name, selector in PLACES.items()}
    slots = image_side_slots(tokens)
    for name, kind, index in further:
        number = next((s for s in slots.unique().tolist() if s >= 0 and slot_place(s) == (kind, index)), None)
        masks[name] = slots == number if number is not None else torch.zeros_like(slots, dtype=torch.bool)
    out: dict[str, Tensor] = {}
    for name, mask in masks.items():
        if bool(mask.any(-1).all()) and not any(torch.equal(mask, other) for other in out.values()):
            out[name] = mask
    return out


def standing_out(run: Run, most: int) -> list[Further]:
    """Image tokens and row breaks that stand out in attention, highest first, where that was measured. The start
    of the image comes before the picture and holds nothing of it."""
    if not run.has("attention_positions"):
        return []
    table = run.table("attention_positions")
    table = table[table.stands_out & table.kind.isin(["image", "row_break"])].head(most)
    return list(zip(table["name"], table["kind"], table["index"].map(int), strict=True))


def stream_names(model: HookedVLM) -> list[str]:
    """``resid_pre`` of every layer and, last, ``resid_post`` of the last one."""
    last = int(model.cfg.n_layers) - 1
    return [*(hook_name("resid_pre", layer) for layer in range(last + 1)), hook_name("resid_post", last)]


def residual_stream(
    model: HookedVLM, examples: Sequence[Example], start: int, further: Sequence[Further] = ()
) -> dict[str, Float[Tensor, "example layer d_model"]]:
    """The mean over each place's positions, taken inside the hook: :func:`stream_names` of one vector each are kept."""
    inputs = prepare(model, examples, start)
    masks = places(inputs.tokens, further)
    kept: dict[str, list[Tensor]] = {name: [] for name in masks}

    def keep(value: Any, hook: Any) -> None:
        stream = value[0] if isinstance(value, tuple) else value
        for place, mask in masks.items():
            # row by row: a padding row may hold anything, so weights of 0 would not do
            rows = [stream[b, mask[b].to(stream.device)].float().mean(0) for b in range(len(examples))]
            kept[place].append(torch.stack(rows).to("cpu", stream.dtype))

    model.forward_step(
        {**inputs.tensors, "logits_to_keep": 1}, [(name, keep) for name in stream_names(model)]
    )
    return {place: torch.stack(layers, dim=1) for place, layers in kept.items()}


def evenly(n_layers: int, most: int) -> list[int]:
    """At most ``most`` of the layers 0 … n_layers, both ends among them."""
    return sorted({round(x) for x in np.linspace(0, n_layers, min(most, n_layers + 1))}) if most else []


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``meaning``, and ``meaning_by_example``: ``place, layer, measure, id, value``."""
    each = measured.table("readings", "layer-")
    if len(each):
        ids = [e.id for e in _examples(setup)]
        each = each.assign(id=[ids[i] for i in each.example]).drop(columns="example")
    return {"meaning": measured.table("meaning", "layer-"), "meaning_by_example": each}


def page(run: Run) -> list[Card]:
    """The curves by layer and place."""
    table = run.table("meaning")
    k, folds = int(table.k.max()), run.settings["sections"]["meaning"]["folds"]
    words = {"neighbourhood overlap": WORDS["neighbourhood overlap"].format(k=k)}
    if (table.measure == PROBE).any():
        words["linear probe"] = WORDS["linear probe"].format(folds=folds)
    chart = Chart("meaning", partial(class_by_layer, table), _caption(table, k), table)
    title = "Where the class can be read"
    return [Card(title, [chart], words, short="Meaning", finding=_finding(table))]


def _finding(table: pd.DataFrame) -> str:
    """Where the class can be read best at the gate."""
    measure = PROBE if (table.measure == PROBE).any() else OVERLAP
    part = table[(table.measure == measure) & (table.place == GATE)]
    if part.empty:
        return ""
    top = part.loc[part["mean"].idxmax()]
    what = "a linear probe reads it" if measure == PROBE else "neighbours share it"
    return f"at the gate, {what} best in layer {int(top.layer)}: {number(top['mean'])}"


def _caption(table: pd.DataFrame, k: int) -> str:
    overlap = table[table.measure == OVERLAP]
    text = (
        f"Left: of the {k} nearest neighbours, the share with the same class. Dotted: by chance. Dashed: the most "
        "possible."
    )
    for place, what in ((GATE, "the gate"), (LAST, "the last prompt position")):
        part = overlap[overlap.place == place]
        if len(part):
            top = part.loc[part["mean"].idxmax()]
            numbers = f"{number(top['mean'])} {interval(top.low, top.high)}"
            text += f" Highest at {what}: layer {int(top.layer)} ({numbers})."
    return f"{text} The verdict ignores it. Bands: 95 % intervals."


def class_by_layer(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """How well the class can be read at each place, by layer, a panel a measure."""
    shown = pd.concat([table[table.measure == name] for name in PANELS])
    levels = shown.groupby("measure")[["chance", "most"]].first()
    most = levels.most[levels.most < 1]
    return curves(
        shown,
        _looks(list(table.place.unique())),
        by="place",
        columns="measure",
        references=[ReferenceLine(levels.chance.to_dict()), ReferenceLine(most.to_dict(), line="--")],
        titles=PANELS,
        ylabel="share",
        dark=dark,
    )


def _looks(places: list[str]) -> list[SeriesStyle]:
    """Image tokens are blue, and told apart by their lines."""
    fixed = [
        SeriesStyle(GATE, color="gate"),
        SeriesStyle(LAST, color="third"),
        SeriesStyle(INTERNAL, color="image"),
        SeriesStyle("last image token", color="image", line="--"),
        SeriesStyle("first image token", color="image", line=":"),
    ]
    known, markers = {style.key for style in fixed}, ("s", "^", "D", "v")
    further = [place for place in places if place not in known]
    return fixed + [
        SeriesStyle(place, color="neutral", line="--", marker=markers[i % 4])
        for i, place in enumerate(further)
    ]


def compared(run: Run) -> pd.DataFrame:
    """Each measure by place and layer, for the comparison of two runs."""
    table = run.table("meaning")
    return cells(table, table.measure, table.place + ", layer " + table.layer.astype(str))


def compared_values(run: Run) -> pd.DataFrame:
    """What these are the means of, by example."""
    table = run.table("meaning_by_example") if run.has("meaning_by_example") else pd.DataFrame()
    if table.empty:
        return pd.DataFrame(columns=VALUES)
    named = table.assign(how="", metric=table.measure, row=table.place + ", layer " + table.layer.astype(str))
    spans = table.measure.map({measure: span_of(bounds) for measure, bounds in BOUNDS.items()})
    return named.assign(value=table.value.astype(float), span=spans)[VALUES]


SECTION = Section(
    "meaning",
    "at which tokens and layers the class can be read",
    batches,
    measure,
    conclude,
    MeaningOptions,
    page=page,
    reads=("attention",),
    cells=compared,
    values=compared_values,
)
