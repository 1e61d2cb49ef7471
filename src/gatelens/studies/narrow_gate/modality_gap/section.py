"""Section *modality gap*: how far image tokens are from text tokens in the residual stream, by layer.

As the paper measures it (NG, section 3): of every picture with its caption one image token and one text token are
drawn; the median of |cos| over all pairs of an image and a text token, and the homogeneity by modality of the clusters
that Advanced Density Peaks finds among all tokens. The paper has 10,000 samples of Flickr30k: ``n`` says how many.

There is no evidence for the verdict in it. The gap says where the tokens lie, not how the text gets at the picture: a
model whose text reads the image tokens directly can keep the two modalities apart (``organism:open`` has the same
architecture and image codes as ``organism:gated``, and small cosines like it).
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
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.examples import draw
from gatelens.measures.modality_gap import cosine_spread, homogeneity, modality_clusters
from gatelens.measures.neighbours import distinct
from gatelens.model import HookedVLM
from gatelens.plots.card import Card, Chart
from gatelens.runs import Run
from gatelens.studies.narrow_gate.asking import as_asked, turned_kinds
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.studies.narrow_gate.meaning import stream_names
from gatelens.studies.narrow_gate.modality_gap.figures import cosine_by_layer, homogeneity_by_layer
from gatelens.studies.options import Examples, Options
from gatelens.studies.section import Absent, Batch, Measured, Section, Setup, Tables, cells
from gatelens.studies.vectors import as_table, at_layer, vectors_of
from gatelens.tokens import TokenMap

PAIRS = ("image-text", "image-image", "text-text")
QUANTILES = (0.05, 0.25, 0.75, 0.95)
SHUFFLES = 20  # of the modality labels, for the homogeneity that clusters of these sizes have by chance
CLUSTER_COLUMNS = ["layer", "homogeneity", "chance", "clusters", "dimension", "halo", "repeats", "n"]
NEED = 17  # distinct points: the density estimate takes 16 neighbours

WORDS = {
    "modality gap": (
        "One image token and one text token after the gate are drawn from each picture, with its caption where there "
        "is one. The measure is |cos| between their residual streams, over all pairs. The last layer is the output of "
        "the last block."
    ),
    "homogeneity": (
        "1 if every cluster holds tokens of one modality, 0 if clusters say nothing about it. Clusters are made by "
        "Advanced Density Peaks with the paper’s settings (Z = 1.65, k = 16, cosine distance, 128 neighbours, Gride). "
        "Equal vectors are clustered once and counted in full. By chance: labels shuffled."
    ),
}


class ModalityGapOptions(Options):
    """Samples."""

    n: Annotated[Examples, Field(description="Pictures with their text; the paper has 10,000.")] = 500


@dataclass(frozen=True)
class Samples(Batch):
    """Samples of which an image and a text token are kept; ``start`` numbers the first."""

    start: int
    examples: Sequence[Example]
    seed: int


@dataclass(frozen=True)
class Gap(Batch):
    """One layer of all samples, as clusters need the tokens of all; ``rows`` as in section *meaning*."""

    layer: int
    rows: pd.DataFrame
    seed: int


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """The tokens of some samples at a time; then what they show, a layer at a time."""
    examples, seed = samples(setup), setup.options.seed
    if len(examples) < 2:
        raise Absent("it needs two samples")
    work: list[Batch] = [
        Samples(f"tokens-{i:04d}", start, part, seed, units=2) for i, start, part in setup.batched(examples)
    ]
    if any(batch.name not in measured for batch in work):
        return work
    tokens = [measured[batch.name]["tokens"] for batch in work]
    layers = range(setup.n_layers + 1)
    return work + [Gap(f"layer-{layer:03d}", layer, at_layer(tokens, layer), seed) for layer in layers]


def measure(model: HookedVLM, batch: Samples | Gap) -> Tables:
    """``tokens``: see :func:`~gatelens.studies.vectors.as_table`; or ``modality_gap``, ``modality_gap_histogram`` and
    ``modality_clusters`` of a layer."""
    if isinstance(batch, Samples):
        image, text = drawn_tokens(model, batch.examples, batch.start, batch.seed)
        return {"tokens": as_table({"image": image, "text": text})}
    both = vectors_of(batch.rows)
    image, text = (both[name].to(model.device) for name in ("image", "text"))
    spreads, bins, clustered = compare(image, text, batch.seed)
    at = {"layer": batch.layer}
    return {
        "modality_gap": pd.DataFrame([{**at, **row} for row in spreads]),
        "modality_gap_histogram": pd.DataFrame([{**at, **row} for row in bins]),
        "modality_clusters": pd.DataFrame(
            [{**at, **clustered}] if clustered else [], columns=CLUSTER_COLUMNS
        ),
    }


def samples(setup: Setup) -> list[Example]:
    """``n`` examples of the first task with captions, else of questions, else of classes; drawn on when the study
    itself wants fewer of them."""
    n = setup.section_options["modality_gap"].n
    for task, drawn in setup.examples("caption", "vqa", "class"):
        if len(drawn) >= n:
            return list(drawn[:n])
        more = {task: draw(setup.data, task, n, setup.options.seed)}
        return as_asked(setup.model, more, turned_kinds(setup.model, setup.options.chat))[task]
    return []


def texts(examples: Sequence[Example]) -> list[str]:
    """The prompts, each with its first caption where it has one: a pair's text is then not always the same words."""
    return [f"{e.prompt} {e.answers[0]}" if kind(e.task) == "caption" else e.prompt for e in examples]


def draw_positions(tokens: TokenMap, start: int, seed: int) -> Bool[Tensor, "batch pos"]:
    """One image token and one text token after the gate of every example, drawn by its number.

    Raises:
        DataError: an example without an image token or without text after the gate.
    """
    out = torch.zeros(tokens.batch_size, tokens.n_pos, dtype=torch.bool)
    masks = [tokens.mask("image"), tokens.mask(QUERIES)]
    for b in range(tokens.batch_size):
        rng = np.random.default_rng([seed, 31, start + b])
        for name, mask in zip(("image token", "text after the gate"), masks, strict=True):
            at = mask[b].nonzero().flatten()
            if not len(at):
                raise DataError(f"modality gap: example {start + b} has no {name}; leave it out")
            out[b, at[int(rng.integers(len(at)))]] = True
    return out


def drawn_tokens(
    model: HookedVLM, examples: Sequence[Example], start: int, seed: int
) -> Float[Tensor, "modality example layer d_model"]:
    """The residual stream of the drawn image (0) and text (1) tokens, at :func:`~.meaning.stream_names`; on the CPU, in
    the model's dtype. Nothing else is kept."""
    names = stream_names(model)
    inputs = model.prepare(images=[e.image for e in examples], text=texts(examples))
    mask = draw_positions(inputs.tokens, start, seed)
    _, cache = model.run_with_cache(inputs, names_filter=names, positions=mask, device="cpu")
    kept = mask.nonzero()[:, 1].view(-1, 2)
    image = inputs.tokens.mask("image").gather(1, kept).long().argmax(-1)
    here = torch.arange(len(examples))
    both = torch.stack([cache[name] for name in names], dim=2)  # [example, kept, layer, d_model]
    return torch.stack([both[here, image], both[here, 1 - image]])


def compare(
    image: Float[Tensor, "example d_model"], text: Float[Tensor, "example d_model"], seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any] | None]:
    """One layer: rows of ``modality_gap`` and of its histogram (without ``layer``), and the row of
    ``modality_clusters``, None with fewer than 17 distinct points, of which no density can be taken."""
    spreads, histogram = [], []
    for pair, (a, b) in zip(PAIRS, ((image, text), (image, None), (text, None)), strict=True):
        if len(a) < 2:
            continue
        s = cosine_spread(a, b, QUANTILES)
        quantiles = {f"q{100 * q:02.0f}": value for q, value in s.quantiles.items()}
        row = {"pair": pair, "median": s.median, **quantiles, "mean": s.mean, "signed_mean": s.signed_mean}
        spreads.append({**row, "n": s.pairs})
        edges = torch.linspace(0, 1, len(s.histogram) + 1).tolist()
        shares = (s.histogram.double() / s.pairs).tolist()
        bins = pd.DataFrame({"pair": pair, "from": edges[:-1], "to": edges[1:], "share": shares})
        histogram += bins.to_dict("records")
    points = torch.cat([image, text]).float()
    if len(distinct(points)[0]) < NEED:
        return spreads, histogram, None
    modality = torch.arange(2).repeat_interleave(len(image))
    clustered = modality_clusters(points, modality)
    generator = torch.Generator().manual_seed(seed)
    chance = [
        homogeneity(modality[torch.randperm(len(modality), generator=generator)], clustered.labels)
        for _ in range(SHUFFLES)
    ]
    numbers = [clustered.homogeneity, float(np.mean(chance)), clustered.n_clusters, clustered.dimension]
    numbers += [clustered.halo, clustered.repeats, len(points)]
    return spreads, histogram, dict(zip(CLUSTER_COLUMNS[1:], numbers, strict=True))


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``modality_gap``, ``modality_gap_histogram`` and ``modality_clusters``."""
    tables = {name: measured.table(name, "layer-") for name in ("modality_gap", "modality_gap_histogram")}
    clusters = measured.table("modality_clusters", "layer-")
    # of too few points there is none in any layer
    return {
        **tables,
        "modality_clusters": clusters if len(clusters) else pd.DataFrame(columns=CLUSTER_COLUMNS),
    }


def page(run: Run) -> list[Card]:
    """The gap and the clusters."""
    table, histogram = run.table("modality_gap"), run.table("modality_gap_histogram")
    clusters = run.table("modality_clusters")
    charts = [Chart("modality_gap", partial(cosine_by_layer, table, histogram), _caption(table), table)]
    words = {"modality gap": WORDS["modality gap"]}
    if len(clusters):
        draw_clusters = partial(homogeneity_by_layer, clusters)
        charts.append(Chart("modality_clusters", draw_clusters, _clusters_caption(clusters), clusters))
        words["homogeneity"] = WORDS["homogeneity"]
    between = table[table.pair == "image-text"].set_index("layer")["median"]
    finding = f"median |cos| at most {between.max():.2f}, in layer {int(between.idxmax())}"
    return [Card("Image tokens and text tokens", charts, words, short="Modality", finding=finding)]


def _caption(table: pd.DataFrame) -> str:
    part = table[table.pair == "image-text"].set_index("layer")
    top = part["median"].idxmax()
    return (
        f"How similar image and text tokens are: {int(part.n.iloc[0]):,} pairs per layer, all with their quartiles. "
        f"The median |cos| is highest in layer {int(top)} ({part['median'].max():.2f}). The verdict ignores it: where "
        "tokens lie does not show which path is used."
    )


def _clusters_caption(table: pd.DataFrame) -> str:
    top, least = table.loc[table.homogeneity.idxmax()], table.loc[table.homogeneity.idxmin()]

    def say(row: pd.Series) -> str:
        count = int(row.clusters)
        return f"in layer {int(row.layer)} ({row.homogeneity:.2f}, {count} cluster{'s' * (count != 1)})"

    return (
        f"Does each cluster of the {int(table.n.iloc[0]):,} tokens hold one modality? Most {say(top)}, least "
        f"{say(least)}. Written above: how many clusters. No interval: drawing tokens twice would make clusters of "
        "their own."
    )


UNPAIRED = {
    "median |cos|": "a median over pairs of tokens is not a mean over examples",
    "homogeneity of clusters": "clusters are made of the tokens of all examples at once",
}


def compared(run: Run) -> pd.DataFrame:
    """Medians and homogeneity by layer, which have no intervals, for the comparison of two runs."""
    none = {"low": np.nan, "high": np.nan}
    gap = run.table("modality_gap").drop(columns="mean").rename(columns={"median": "mean"}).assign(**none)
    clusters = run.table("modality_clusters").rename(columns={"homogeneity": "mean"}).assign(**none)
    return pd.concat(
        [
            cells(gap, "median |cos|", gap.pair + ", layer " + gap.layer.astype(str)),
            cells(clusters, "homogeneity of clusters", "layer " + clusters.layer.astype(str)),
        ],
        ignore_index=True,
    )


SECTION = Section(
    "modality_gap",
    "how far image tokens are from text tokens, by layer",
    batches,
    measure,
    conclude,
    ModalityGapOptions,
    page=page,
    cells=compared,
    unpaired=UNPAIRED,
)
