"""Tidy tables as studies make them, for tests of figures."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def curve_table(metrics: Sequence[str] = ("class accuracy",), n_layers: int = 4) -> pd.DataFrame:
    """Two series, ``gate`` rising with the layer and ``image`` falling, for every metric."""
    rows = []
    for m, metric in enumerate(metrics):
        for keys in ("gate", "image"):
            for layer in reversed(range(n_layers)):  # tables need not be in the order of the axis
                rise = layer / n_layers
                mean = (rise if keys == "gate" else 1 - rise) / (m + 1)
                rows.append((metric, keys, layer, mean, mean - 0.05, mean + 0.05, 10 + m))
    return pd.DataFrame(rows, columns=["metric", "keys", "layer", "mean", "low", "high", "n"])


def bar_table() -> pd.DataFrame:
    """Three rows of a knockout table under two metrics; the last row lacks the second metric."""
    rows = [
        ("none", "class accuracy", 0.9, 0.8, 1.0, 20),
        ("gate → text", "class accuracy", 0.2, 0.1, 0.3, 20),
        ("image → text", "class accuracy", 0.8, 0.7, 0.9, 20),
        ("none", "caption CIDEr-D", 2.0, 1.5, 2.5, 12),
        ("gate → text", "caption CIDEr-D", -0.1, -0.2, 0.0, 12),
    ]
    return pd.DataFrame(rows, columns=["row", "metric", "mean", "low", "high", "n"])
