"""The heads of a layer as a still picture, for reports and papers: one small matrix a head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from torch import Tensor

from gatelens.plots.style import NotebookFigure, styled

EACH = 32  # positions that are named one by one; of more, stretches of image tokens and of others are


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
        ramp = LinearSegmentedColormap.from_list("weights", [p.ground, p.image, p.ink])
        most = float(attention.max())
        scale = ScalarMappable(Normalize(0, most), ramp)
        for i, axes in enumerate(grid.flat):
            if i >= n:
                axes.set_visible(False)
                continue
            axes.imshow(attention[i].numpy(), cmap=ramp, norm=scale.norm, interpolation="nearest")
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
    shown = [token.replace("$", r"\$") for token in tokens]  # else a formula
    if len(tokens) <= EACH:
        return [float(i) for i in range(len(tokens))], shown
    runs: list[list[int]] = []
    for i, token in enumerate(tokens):
        if runs and tokens[runs[-1][-1]].startswith("img") == token.startswith("img"):
            runs[-1].append(i)
        else:
            runs.append([i])
    labels = []
    for run in runs:
        name = "image" if tokens[run[0]].startswith("img") else f"{shown[run[0]]} …"
        labels.append(shown[run[0]] if len(run) == 1 else f"{name} ({len(run)})")
    return [(run[0] + run[-1]) / 2 for run in runs], labels
