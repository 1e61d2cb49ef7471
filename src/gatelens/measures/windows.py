"""Which layers carry an effect, read off a curve of knockouts rather than set by hand.

WI reports that the middle quarter of the layers carries most of the flow from image to text, with windows set by hand
(layers 4–20 of 32, 20–40 of 80). Here the effect of each layer is read off the knockouts, and decides on the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gatelens.errors import DataError


@dataclass(frozen=True)
class Window:
    """Contiguous layers, and the share of the whole effect they carry."""

    layers: range
    share: float


def layer_windows(n_layers: int, width: int, step: int = 1) -> list[range]:
    """Every window of ``width`` layers, ``step`` apart; the last one ends at the last layer."""
    if not 1 <= width <= n_layers or step < 1:
        raise DataError(
            f"windows: width {width}, step {step} do not fit {n_layers} layers; use 1..{n_layers}"
        )
    starts = list(range(0, n_layers - width + 1, step))
    if starts[-1] != n_layers - width:
        starts.append(n_layers - width)
    return [range(s, s + width) for s in starts]


def effect_of_windows(
    drops: Sequence[float], spans: Sequence[range], n_layers: int
) -> Float[np.ndarray, " layer"]:
    """Effect of every layer, from the drop in score when each window of layers is knocked out.

    A window's drop (0 when the score rose) is shared out evenly among its layers; a layer has the mean of its shares
    over the windows that hold it. With windows that do not overlap the effects sum to the drops.
    """
    values = _finite(drops, len(spans), "windows")
    total, count = np.zeros(n_layers), np.zeros(n_layers)
    for drop, span in zip(values, spans, strict=True):
        if not len(span) or min(span) < 0 or max(span) >= n_layers:
            raise DataError(f"effect of windows: {span} is not among {n_layers} layers")
        total[list(span)] += max(drop, 0.0) / len(span)
        count[list(span)] += 1
    if not count.all():
        raise DataError(f"effect of windows: layer {int(count.argmin())} is in no window; add one")
    return total / count


def effect_of_starts(drops: Sequence[float]) -> Float[np.ndarray, " layer"]:
    """Effect of every layer, from the drops when all layers from 0, 1, 2 … on are knocked out.

    A layer's effect is what it adds to the drop: ``drops[l] − drops[l + 1]``, with nothing after the last. The drops
    are first made to fall (each at least the largest after it, at least 0), so that noise makes no negative effect.
    """
    values = _finite(drops, len(drops), "layers")
    falling = np.maximum.accumulate(np.append(np.maximum(values, 0.0), 0.0)[::-1])[::-1]
    return falling[:-1] - falling[1:]


def smallest_window(
    effect: Sequence[float] | Float[np.ndarray, " layer"], share: float = 0.9
) -> Window | None:
    """The fewest contiguous layers that carry at least ``share`` of the summed effect; None when it is 0.

    Among windows of that size the one that carries the most, then the earliest.

    Args:
        effect: of each layer, 0 or more, in any unit.
        share: of the summed effect, in (0, 1].

    Raises:
        DataError: an effect that is negative or not finite, or a share outside (0, 1].

    Example:
        >>> gl.measures.smallest_window([0, 1, 6, 3, 0, 0, 0, 0], share=0.9)
        Window(layers=range(2, 4), share=0.9)
    """
    if not 0 < share <= 1:
        raise DataError(f"smallest window: share {share} is outside (0, 1]; 0.9 means 90 % of the effect")
    n = len(effect)
    for width in range(1, n + 1):
        window = best_window(effect, width)
        if window is None or window.share >= share - 1e-9 or width == n:
            return window
    return None


def best_window(
    effect: Sequence[float] | Float[np.ndarray, " layer"], width: int | None = None
) -> Window | None:
    """The window of ``width`` layers that carries the most; the earliest of equal ones.

    None when no layer has any effect.

    Args:
        effect: of each layer, 0 or more, in any unit.
        width: layers of the window; None is WI's 25 % of the layers, rounded, at least 1.

    Raises:
        DataError: an effect that is negative or not finite, or a width that does not fit.

    Example:
        >>> gl.measures.best_window([0, 1, 6, 1, 0, 0, 0, 0], width=2)
        Window(layers=range(1, 3), share=0.875)
    """
    values = _finite(effect, len(effect), "layers")
    if (values < 0).any():
        raise DataError(f"window: layer {int(values.argmin())} has a negative effect; clip effects at 0")
    total = math.fsum(values)
    spans = layer_windows(len(values), quarter(len(values)) if width is None else width)
    if total == 0:
        return None
    shares = [math.fsum(values[list(span)]) / total for span in spans]
    best = max(range(len(spans)), key=lambda i: (round(shares[i], 12), -i))
    return Window(spans[best], shares[best])


def quarter(n_layers: int) -> int:
    """How many layers WI's 25 % are: rounded to the nearest (a half upwards), at least 1."""
    return max(1, math.floor(0.25 * n_layers + 0.5))


def _finite(values: Sequence[float] | Float[np.ndarray, " n"], n: int, what: str) -> Float[np.ndarray, " n"]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (n,) or n == 0:
        raise DataError(f"layer windows: {array.shape} values for {n} {what}; give one each, at least one")
    if not np.isfinite(array).all():
        raise DataError(f"layer windows: value {int((~np.isfinite(array)).argmax())} is not finite")
    return array
