"""Numbers as text: a real minus sign, no minus zero, and intervals written the same way everywhere."""

from __future__ import annotations

import math

MISSING = "–"  # a cell without a number


def number(value: float, digits: int = 2) -> str:
    """−0.5 → ``−0.50``; what rounds to zero has no sign."""
    text = f"{value:.{digits}f}"
    if text.startswith("-") and not text.strip("-0."):
        text = text[1:]
    return text.replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """0.5 → ``+0.50``, for differences."""
    text = number(value, digits)
    return text if text.startswith("−") or math.isnan(value) else f"+{text}"


def percent(share: float, digits: int = 0) -> str:
    """0.123 → ``12 %``, with a space that does not break; ``n/a`` where the share is not finite."""
    return f"{number(100 * share, digits)}\u00a0%" if math.isfinite(share) else "n/a"


def span(low: float, high: float, digits: int = 2) -> str:
    """``0.88 – 0.93``: an interval under its mean."""
    return f"{number(low, digits)} – {number(high, digits)}"


def percent_span(low: float, high: float, digits: int = 0) -> str:
    """``88 % – 93 %``: an interval of shares under its mean."""
    return f"{percent(low, digits)} – {percent(high, digits)}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """``[0.88, 0.93]``: an interval in running text."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def cell(mean: float, low: float, high: float, digits: int = 2) -> str:
    """``0.91 [0.88, 0.93]``."""
    return f"{number(mean, digits)} {interval(low, high, digits)}"


def percent_cell(mean: float, low: float, high: float, digits: int = 0) -> str:
    """``91 % [88 %, 93 %]``."""
    return f"{percent(mean, digits)} [{percent(low, digits)}, {percent(high, digits)}]"
