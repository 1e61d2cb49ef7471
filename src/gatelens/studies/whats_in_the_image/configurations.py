"""The knockout configurations of Kaduri et al. (arXiv 2411.17491): which rows cannot see the image, in which layers.

The paper's *query tokens* are all tokens of the prompt that are not image tokens, the system prompt and the markers
around the image among them. *Generated* rows are those at generated positions: the row that writes the first new
token is the prompt's last one, so that this token still sees the image (``first_token="sees"``, what the paper's
code does) unless it is asked to lose it as well (``"blocked"``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gatelens.interventions import knockout
from gatelens.studies.options import How

FirstToken = Literal["sees", "blocked"]

NONE = "none"
GENERATED, QUERY, BOTH = "image → generated", "image → query", "image → both"
PATHS = (GENERATED, QUERY, BOTH)
IMAGE_SIDE = "image | row_break"  # row breaks stand among the image tokens and read them
QUERY_ROWS = "system | boi | eoi | query"
NO_LAYERS, ALL, FROM, WITHIN, OUTSIDE = "no", "all", "from", "within", "outside"


@dataclass(frozen=True)
class Configuration:
    """One row of the table: a path that is cut, and the layers it is cut in.

    Attributes:
        path: one of ``PATHS``, or ``none``.
        scope: ``all`` layers, ``from`` layer ``start`` on, only ``within`` layers ``start`` to ``stop`` − 1, or in
            all layers ``outside`` of these.
        start, stop: the layers of the scope.
    """

    path: str
    scope: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The row's name in tables."""
        layers = span(self.start, self.stop)
        where = {
            NO_LAYERS: "",
            ALL: ", all layers",
            FROM: f", from layer {self.start} on",
            WITHIN: f", only in layers {layers}",
            OUTSIDE: f", in all layers but {layers}",
        }[self.scope]
        return self.path + where

    def layers(self, n_layers: int) -> list[int]:
        """The layers the path is cut in."""
        if self.scope == OUTSIDE:
            return [layer for layer in range(n_layers) if not self.start <= layer < self.stop]
        return list(range(self.start, self.stop))

    def specs(self, n_layers: int, how: How, first_token: FirstToken) -> list[Any]:
        """Its interventions; none for the unmodified model."""
        if self.path == NONE:
            return []
        rows = rows_of(self.path, first_token)
        return [knockout(queries=rows, keys=IMAGE_SIDE, layers=self.layers(n_layers), how=how)]


def span(start: int, stop: int) -> str:
    """Layers ``start`` to ``stop`` − 1, as text: ``2–3``, or ``2``."""
    return f"{start}–{stop - 1}" if stop - start > 1 else f"{start}"


def by_start(n_layers: int, starts: Sequence[int]) -> list[Configuration]:
    """Every path cut in all layers, and from each of ``starts`` on."""
    everywhere = [Configuration(path, ALL, 0, n_layers) for path in PATHS]
    return everywhere + [Configuration(path, FROM, start, n_layers) for path in PATHS for start in starts]


def by_window(n_layers: int, start: int, stop: int) -> list[Configuration]:
    """Every path cut only within the window, and in all layers but the window."""
    scopes = (WITHIN, OUTSIDE) if (start, stop) != (0, n_layers) else ()
    return [Configuration(path, scope, start, stop) for path in PATHS for scope in scopes]


def curve_starts(n_layers: int, most: int = 16) -> list[int]:
    """First layers of the curve: every layer but 0 (which is "all"), or evenly spaced ones in deep models."""
    step = max(1, -(-n_layers // most))
    return list(range(step, n_layers, step))


def rows_of(path: str, first_token: FirstToken) -> str:
    """Selector of the rows that lose the image under a path."""
    generated = "generated" if first_token == "sees" else "last | generated"
    return {GENERATED: generated, QUERY: QUERY_ROWS, BOTH: f"{QUERY_ROWS} | generated"}[path]
