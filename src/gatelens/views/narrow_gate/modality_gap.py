"""Image tokens against text tokens, on the page."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from gatelens.plots import card
from gatelens.plots.curve import layer_axis
from gatelens.plots.style import NotebookFigure as Figure
from gatelens.plots.style import Palette, styled
from gatelens.runs import Run

WORDS = {
    "modality gap": (
        "One image token and one text token after the gate are drawn of every sample (a picture with its caption, "
        "where the data has captions). |cos| is of their residual streams, over all pairs of an image and a text "
        "token. Layer l is the input of block l; the last is the output of the last block."
    ),
    "homogeneity": (
        "Of clusters by Advanced Density Peaks (Z = 1.65, k-NN density with k = 16, cosine distance, 128 neighbours, "
        "intrinsic dimension by Gride, as in the paper): 1 if every cluster holds tokens of one modality only, 0 if "
        "clusters say nothing of the modality. Equal vectors, common where tokens enter, are clustered once and "
        "counted at their full number. By chance: the same clusters with the labels shuffled."
    ),
}


def cards(run: Run) -> list[card.Card]:
    """The gap and the clusters, where they were measured."""
    if not run.done("modality_gap"):
        return []
    table = run.table("modality_gap")
    histogram = run.table("modality_gap_histogram") if run.done("modality_gap_histogram") else None
    blocks: list[card.Block] = [
        card.Chart("modality_gap", lambda dark: cosine_by_layer(table, histogram, dark), _caption(table))
    ]
    words = {"modality gap": WORDS["modality gap"]}
    if run.done("modality_clusters"):
        clusters = run.table("modality_clusters")
        if len(clusters):
            blocks.append(
                card.Chart(
                    "modality_clusters",
                    lambda dark: homogeneity_by_layer(clusters, dark),
                    _clusters(clusters),
                )
            )
            words["homogeneity"] = WORDS["homogeneity"]
    return [card.Card("Image tokens and text tokens", blocks, words)]


def _caption(table: pd.DataFrame) -> str:
    part = table[table.pair == "image-text"].set_index("layer")
    top = part["median"].idxmax()
    return (
        f"How alike image and text tokens are, from {int(part.n.iloc[0]):,} pairs a layer: the median of |cos| is "
        f"highest in layer {int(top)} ({part['median'].max():.2f}). Where the two kinds of tokens lie tells nothing of "
        "the way between them, so the verdict does not use it. In the paper the medians of models trained on both "
        "from the start stay near 0; in models built on a language model the two kinds come together in the middle "
        "layers."
    )


def _clusters(table: pd.DataFrame) -> str:
    top, least = table.loc[table.homogeneity.idxmax()], table.loc[table.homogeneity.idxmin()]

    def say(row: pd.Series) -> str:
        count = int(row.clusters)
        return f"in layer {int(row.layer)} ({row.homogeneity:.2f}, {count} cluster{'s' * (count != 1)})"

    return (
        f"Do clusters of the {int(table.n.iloc[0]):,} tokens hold one modality each? Most {say(top)}, least "
        f"{say(least)}. The numbers in the figure count clusters."
    )


def cosine_by_layer(table: pd.DataFrame, histogram: pd.DataFrame | None = None, dark: bool = False) -> Figure:
    """Median |cos| of image and text tokens with its quartiles and distribution, by layer.

    Args:
        table: ``layer, pair, median, q25, q75`` as a study's ``modality_gap`` table.
        histogram: ``layer, pair, from, to, share`` as its ``modality_gap_histogram`` table; drawn behind.
        dark: draw on dark ground.
    """
    between = table[table.pair == "image-text"].sort_values("layer")
    layers = [int(x) for x in between.layer]
    with styled(dark) as p:
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        top = max(float(table["median"].max()), float(between.q75.max()))
        if histogram is not None:
            _strips(axes, histogram[histogram.pair == "image-text"], p)
        for pair, label, color in (
            ("image-image", "two image tokens, median", p.image),
            ("text-text", "two text tokens, median", p.third),
        ):
            part = table[table.pair == pair].sort_values("layer")
            axes.plot(part.layer, part["median"], ":", color=color, linewidth=1.5, label=label)
        axes.vlines(
            layers, between.q25, between.q75, color=p.ink, linewidth=2.5, label="image and text, quartiles"
        )
        label = "image and text, median"
        axes.plot(layers, between["median"], "-o", color=p.ink, markersize=4.5, label=label)
        axes.set_ylim(0, min(1.0, max(0.2, 1.15 * top)))
        axes.set_ylabel("|cos|")
        axes.set_title("Cosine similarity of image and text tokens in the residual stream")
        layer_axis(axes, layers)
        axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=p.ink, fontsize=8.5)
    return figure


def _strips(axes: Axes, histogram: pd.DataFrame, p: Palette) -> None:
    """The distribution as a strip a layer, the darker the more pairs."""
    wide = histogram.pivot(index="from", columns="layer", values="share").sort_index()
    values = wide.to_numpy() / np.maximum(wide.to_numpy().max(axis=0, keepdims=True), 1e-12)
    colors = LinearSegmentedColormap.from_list("share", [p.ground, p.grid, p.faint])
    edges = [*wide.index, 1.0]
    for column, layer in enumerate(wide.columns):
        axes.pcolormesh(
            [layer - 0.42, layer + 0.42], edges, values[:, [column]], cmap=colors, vmin=0, vmax=1, zorder=0
        )


def homogeneity_by_layer(table: pd.DataFrame, dark: bool = False) -> Figure:
    """Homogeneity by modality of the clusters, by layer.

    Args:
        table: ``layer, homogeneity, chance, clusters`` as a study's ``modality_clusters`` table.
        dark: draw on dark ground.
    """
    part = table.sort_values("layer")
    layers = [int(x) for x in part.layer]
    with styled(dark) as p:
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(layers, part.homogeneity, "-o", color=p.ink, markersize=4.5, label="homogeneity")
        axes.plot(layers, part.chance, ":", color=p.soft, label="by chance")
        if len(layers) <= 16:
            for layer, value, count in zip(layers, part.homogeneity, part.clusters, strict=True):
                axes.annotate(
                    str(int(count)),
                    (layer, value),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=p.soft,
                )
        axes.set_ylim(-0.04, 1.16)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_title("Homogeneity of clusters by modality")
        axes.grid(axis="y")
        layer_axis(axes, layers)
        axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=p.ink, fontsize=8.5)
    return figure
