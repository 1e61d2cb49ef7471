"""Figures of section *modality gap*: |cos| and the homogeneity of clusters, by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gatelens.plots.curve import curve, label_points, layer_axis
from gatelens.plots.style import NotebookFigure, Palette, see_through, styled


def cosine_by_layer(
    table: pd.DataFrame, histogram: pd.DataFrame | None = None, dark: bool = False
) -> NotebookFigure:
    """Median |cos| of image and text tokens with its quartiles and, from the histogram, its distribution, by layer."""
    between = table[table.pair == "image-text"].sort_values("layer")
    layers = [int(x) for x in between.layer]
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(9, 3.8), layout="constrained")
        axes = figure.subplots()
        top = max(float(table["median"].max()), float(between.q75.max()))
        if histogram is not None:
            _strips(axes, histogram[histogram.pair == "image-text"], p)
        for pair, label, color in (
            ("image-image", "two image tokens, median", p.image),
            ("text-text", "two text tokens, median", p.third),
        ):
            part = table[table.pair == pair].sort_values("layer")
            curve(axes, part.layer, part["median"], color=color, line=":", label=label)
        quartiles = "image and text, quartiles"
        axes.vlines(layers, between.q25, between.q75, color=p.ink, linewidth=2.5, label=quartiles)
        curve(axes, layers, between["median"], color=p.ink, marker="o", label="image and text, median")
        axes.set_ylim(0, min(1.0, max(0.2, 1.15 * top)))
        axes.set_ylabel("|cos|")
        axes.set_title("Cosine similarity of image and text tokens in the residual stream")
        layer_axis(axes, layers)
        axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _strips(axes: Axes, histogram: pd.DataFrame, p: Palette) -> None:
    """The distribution as a strip a layer, the darker the more pairs."""
    wide = histogram.pivot(index="from", columns="layer", values="share").sort_index()
    values = wide.to_numpy() / np.maximum(wide.to_numpy().max(axis=0, keepdims=True), 1e-12)
    edges = [*wide.index, 1.0]
    for column, layer in enumerate(wide.columns):
        sides = [layer - 0.42, layer + 0.42]
        axes.pcolormesh(
            sides, edges, values[:, [column]], cmap=see_through(p.faint), vmin=0, vmax=1, zorder=0
        )


def homogeneity_by_layer(table: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Homogeneity by modality of the clusters, by layer, of a study's ``modality_clusters`` table."""
    part = table.sort_values("layer")
    layers = [int(x) for x in part.layer]
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(9, 2.9), layout="constrained")
        axes = figure.subplots()
        curve(axes, layers, part.homogeneity, color=p.ink, marker="o", label="homogeneity")
        curve(axes, layers, part.chance, color=p.soft, line=":", label="by chance")
        if len(layers) <= 16:
            label_points(axes, layers, part.homogeneity, [str(int(n)) for n in part.clusters], color=p.soft)
        axes.set_ylim(-0.04, 1.16)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_title("Homogeneity of clusters by modality")
        axes.grid(axis="y")
        layer_axis(axes, layers)
        axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
