"""What :func:`gatelens.circuit` returns: the parts that were kept, and how faithful sets of every size are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from gatelens.plots.circuit_graph import circuit_graph
from gatelens.plots.curve import curves
from gatelens.plots.style import ReferenceLine, SeriesStyle
from gatelens.readouts.circuits.parts import Parts
from gatelens.readouts.labelled import LabelledTensor

SERIES = (
    SeriesStyle("top", "largest scores", "image"),
    SeriesStyle("random", "random sets", "neutral"),
    SeriesStyle("circuit", "circuit", "gate", line="", marker="D"),
)


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(LabelledTensor):
    """Float[part]: the scores of a circuit's edges or nodes, largest first.

    ``.table`` has a row for each: what it joins or where it is, its score (``value``), and ``without``, the
    circuit's faithfulness when this part alone is taken out. ``.show()`` draws it, ``.show_curves()`` how faithful and
    complete sets of every size are.

    Attributes:
        curves: faithfulness and completeness: ``set, size, measure, mean, low, high, n``. Sets are ``top`` (the largest
            scores), ``circuit`` and ``random`` ones of the same size. Intervals (95 %) are over pairs, of ``random``
            over sets.
        parts: every part with its ``score``, and whether it is ``kept``.
        share: the faithfulness to reach.
        method: of the scores, or ``given scores``.
        metric: what is measured, in words.
        n_pairs: how many pairs the means are over.
        group: how many query heads share a key and a value.

    Example:
        >>> circuit = gl.circuit(model, pairs, scores="atp", random=0, progress=False)
        >>> circuit.parts.columns.tolist()
        ['node', 'site', 'kind', 'layer', 'head', 'score', 'kept']
    """

    curves: pd.DataFrame = field(kw_only=True)
    parts: pd.DataFrame = field(kw_only=True)
    share: float = field(kw_only=True)
    method: str = field(kw_only=True)
    metric: str = field(kw_only=True)
    n_pairs: int = field(kw_only=True)
    group: int = field(kw_only=True)

    @staticmethod
    def of(
        parts: Parts,
        kept: Sequence[int],
        without: Float[np.ndarray, " part"],
        curves: pd.DataFrame,
        share: float,
        method: str,
        metric: str,
        n_pairs: int,
        group: int,
    ) -> Circuit:
        """A circuit of the parts with these numbers."""
        number = list(kept)
        labels = parts.labels.drop(columns=["map"], errors="ignore").dropna(axis=1, how="all")
        every = labels.assign(score=parts.scores, kept=np.isin(np.arange(len(parts)), number))
        return Circuit(
            torch.as_tensor(parts.scores[number]),
            {parts.kind: labels.iloc[number].reset_index(drop=True)},
            f"share of the {metric} by {method}",
            parts.maps[0].tokens,
            columns={"without": without},
            curves=curves,
            parts=every,
            share=share,
            method=method,
            metric=metric,
            n_pairs=n_pairs,
            group=group,
        )

    @property
    def kind(self) -> str:
        """``edge`` or ``node``."""
        return self.dims[0]

    @property
    def faithfulness(self) -> float:
        """(m(C) − m(∅)) / (m(M) − m(∅)): the share of the metric that the circuit alone recovers.

        m is the mean over pairs of the metric of the clean prompt; outside the circuit C, of nothing (∅) or of all
        parts (M), everything is as in the corrupt run. Its interval is in ``curves``. See :func:`gatelens.circuit`.
        """
        return self._of_circuit("faithfulness")

    @property
    def completeness(self) -> float:
        """1 − faithfulness of all parts outside the circuit."""
        return self._of_circuit("completeness")

    def _of_circuit(self, measure: str) -> float:
        row = (self.curves["set"] == "circuit") & (self.curves["measure"] == measure)
        return float(self.curves["mean"][row].iloc[0])

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """The circuit as a graph, layer by layer from the embedding up to the logits.

        The thicker a frame (of a node) or an arrow, the larger the size of its score. Frames of heads and attention
        are blue, of MLPs green, of the embedding and logits grey.
        """
        return circuit_graph(self.table, self.kind, title or self._heading(), group=self.group, dark=dark)

    def show_curves(self, title: str = "", dark: bool = False) -> Figure:
        """Faithfulness and completeness over sizes, with random sets of the same size."""
        figure = curves(
            self.curves,
            SERIES,
            by="set",
            x="size",
            columns="measure",
            references=[ReferenceLine(self.share, f"share {self.share:g}")],
            title=title,
            xlabel=f"{self.kind}s in the set",
            ylabel=f"share of the {self.metric}",
            ylim=None,
            dark=dark,
        )
        sizes = sorted(self.curves["size"].unique())
        for axes in figure.axes:
            axes.set_xscale("symlog", linthresh=1, linscale=0.4)
            axes.set_xticks(*_ticks(int(sizes[-1])))
            axes.minorticks_off()
            axes.set_xlim(-0.15, sizes[-1] * 1.15)
        return figure

    def _heading(self) -> str:
        return (
            f"{len(self.tensor)} of {len(self.parts)} {self.kind}s: faithfulness {self.faithfulness:.2f}, "
            f"completeness {self.completeness:.2f}"
        )

    def _summary(self) -> str:
        pairs = f"{self.n_pairs} pair{'s' if self.n_pairs > 1 else ''}"
        return (
            f"Circuit({len(self.tensor)} of {len(self.parts)} {self.kind}s: faithfulness {self.faithfulness:.2f} "
            f"(share {self.share:g}), completeness {self.completeness:.2f}; by {self.method}, {self.metric}, {pairs})"
        )


def _ticks(largest: int) -> tuple[list[int], list[str]]:
    """0, powers of ten, and all."""
    powers = [10**power for power in range(len(str(largest))) if 10**power < largest / 1.8]
    ticks = [0, *powers, largest]
    return ticks, [str(tick) for tick in ticks]
