"""The heads of a layer as a still picture, for reports and papers: one small matrix a head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from gatelens.plots.heatmap import ramp
from gatelens.plots.style import NotebookFigure, styled

MOST_NAMED = 32  # positions with a tick each; of more, each stretch of image tokens and of others has one


def head_grid(
    attention: Float[Tensor, "head query key"],
    tokens: Sequence[str],
    names: Sequence[str],
    title: str = "",
    *,
    columns: int = 4,
    dark: bool = False,
) -> NotebookFigure:
    """Attention patterns side by side on one scale, from 0 to the largest weight shown.

    Args:
        attention: what is drawn; rows are queries, columns keys.
        tokens: labels of the positions, image tokens starting with ``img`` (:func:`gatelens.plots.heads` makes them).
        names: of the heads.
        title: over all of them.
        columns: heads in a row.
        dark: for dark pages.
    """
    n, size = len(names), len(tokens)
    across = min(columns, n)
    down = math.ceil(n / across)
    ticks, labels = _ticks(tokens)
    side = 1.9 if size <= 12 else 2.6
    beside = 0.075 * max(map(len, labels))  # inches of the longest label
    width, height = across * side + beside + 1.4, down * (side + 0.25) + beside + 0.9
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        colors = ramp(p, "image", "ink")
        scale = ScalarMappable(Normalize(0, float(attention.max())), colors)
        for i, axes in enumerate(grid.flat):
            if i >= n:
                axes.set_visible(False)
                continue
            axes.imshow(attention[i].numpy(), cmap=colors, norm=scale.norm, interpolation="nearest")
            axes.set_title(names[i])
            for spine in axes.spines.values():
                spine.set_visible(True)
            first, last = i % across == 0, i + across >= n
            axes.set_yticks(ticks, labels if first else [""] * len(ticks), fontsize=8)
            axes.set_xticks(ticks, labels if last else [""] * len(ticks), fontsize=8, rotation=90)
            axes.tick_params(length=2)
            axes.set_xlabel("key" if last else "")
            axes.set_ylabel("query" if first else "")
        bar = figure.colorbar(scale, ax=grid.ravel().tolist(), shrink=0.7, aspect=25, pad=0.02)
        bar.set_label("attention weight")
        bar.outline.set_visible(False)
        if title:
            figure.suptitle(title, fontsize=10.5, color=p.ink)
    return figure


def _ticks(tokens: Sequence[str]) -> tuple[list[float], list[str]]:
    """Where labels stand and what they say."""
    shown = [token.replace("$", r"\$") for token in tokens]  # Matplotlib reads $…$ as a formula
    if len(tokens) <= MOST_NAMED:
        return [float(i) for i in range(len(tokens))], shown
    middles, labels = list[float](), list[str]()
    for is_image, stretch in groupby(range(len(tokens)), key=lambda i: tokens[i].startswith("img")):
        positions = list(stretch)
        name = "image" if is_image else f"{shown[positions[0]]} …"
        labels.append(shown[positions[0]] if len(positions) == 1 else f"{name} ({len(positions)})")
        middles.append((positions[0] + positions[-1]) / 2)
    return middles, labels
