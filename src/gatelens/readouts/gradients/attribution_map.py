"""``gl.attribution_map``: gradients in the place of patches, with how far they are from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from gatelens.data import Pair
from gatelens.errors import InputError, shown
from gatelens.examples import Labels
from gatelens.interventions.arguments import Heads, Layers, as_count
from gatelens.measures.agreement import Agreement, agreement, thirds
from gatelens.model import HookedVLM
from gatelens.readouts.effect_map import EffectMap
from gatelens.readouts.gradients.contrast import Contrast
from gatelens.readouts.gradients.edges import EdgeAxes, EdgeScores
from gatelens.readouts.gradients.nodes import NodeScores, legendre_steps
from gatelens.readouts.gradients.passes import GradientPasses
from gatelens.readouts.map_axes import MapAxes
from gatelens.readouts.map_metrics import MapMetric, PairMetric
from gatelens.readouts.patch_maps import (
    Direction,
    MapWork,
    PairRuns,
    check_call,
    effect_map,
    pairs_of,
)
from gatelens.tokens import SelectorLike

Method = Literal["atp", "atp*", "ig", "eap", "eap-ig"]
OF_EDGES = ("eap", "eap-ig")


@dataclass(frozen=True, eq=False, repr=False)
class AttributionMap(EffectMap):
    """An :class:`EffectMap` whose effects are approximated, to first order or along a way.

    ``columns["exact"]`` holds the effects of the cells that were patched exactly, NaN elsewhere; ``patched`` is what
    the approximation makes of the metric.

    Attributes:
        method: how it was made.
        agreement: of approximation and truth at the checked cells, as means over pairs; None without a check.
    """

    method: str = ""
    agreement: Agreement | None = None

    @property
    def warnings(self) -> list[str]:
        """Why this map should not be trusted, a line each; see :class:`gatelens.measures.Agreement`."""
        return [] if self.agreement is None else self.agreement.warnings

    def sel(self, **wanted: Any) -> AttributionMap:
        """Some of the cells or pairs; the agreement stays that of the whole map."""
        return as_attribution(super().sel(**wanted), self.method, self.agreement)

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """As :meth:`EffectMap.show`; the title says how well the map agrees with exact patches, and warns."""
        heading = title or "\n".join([f"{self.method}, {self.heading}", *self._said()])
        return super().show(heading, image, dark)

    def _said(self) -> list[str]:
        said = ["not checked against exact patches" if self.agreement is None else str(self.agreement)]
        return said + [f"Warning: {line}" for line in self.warnings]

    def __repr__(self) -> str:
        return "\n  ".join([f"{super()._summary()[:-1]}, {self.method})", *self._said()])


def as_attribution(effects: EffectMap, method: str, agreed: Agreement | None) -> AttributionMap:
    """Effects with what is known of their agreement."""
    own = {field.name: getattr(effects, field.name) for field in fields(EffectMap)}
    return AttributionMap(**own, method=method, agreement=agreed)


def attribution_map(
    model: HookedVLM,
    pairs: Iterable[Pair] | Pair,
    metric: str | PairMetric = "logit_diff",
    method: Method = "atp",
    over: Sequence[str] | str | None = None,
    *,
    site: str | Sequence[str] | None = None,
    direction: Direction = "denoising",
    at: SelectorLike | Mapping[str, SelectorLike] | None = None,
    layers: Layers = None,
    heads: Heads = None,
    steps: int = 32,
    check: int = 64,
    seed: int = 0,
    chat: bool = False,
) -> AttributionMap:
    """The map of :func:`gatelens.patch_map` from gradients: a few passes a pair, and how far they are from the truth.

    Args:
        pairs, metric, site, direction, at, heads, chat: as in an exact map; the metric must be smooth.
        method: ``atp``: attribution patching, the gradient of the run times the difference of activations. ``atp*``:
            the same, but at ``q`` and ``k`` the softmax is recomputed (the QK fix of arXiv 2403.00745). ``ig``: the
            mean gradient on the way from one activation to the other, a site and layer at a time (arXiv 1703.01365).
            ``eap``: edges, from the embedding, heads and MLPs to queries, keys, values, MLPs and logits (arXiv
            2310.10348); ``eap-ig``: with the mean gradient on the way of the input (arXiv 2403.17806).
        over: the axes, of layer, pos, role, head, site; None is layer and pos. Edges have ``sender`` and ``receiver``.
            A cell is that of an exact map, but of one layer.
        layers: which; of nodes only. None is all.
        steps: of ``ig`` and ``eap-ig``, the points of a Gauss–Legendre rule.
        check: how many cells to patch exactly too, in every pair: a third those of largest effect, a third of
            smallest, a third drawn by ``seed``. 0 is none.

    Raises:
        InputError: as for an exact map; several layers without an axis for them.
        InterventionError: a metric without a gradient.
        ModelError: edges in a model whose parts do not add up to the stream.
    """
    if method not in get_args(Method):
        raise InputError(f"method={shown(method)}: write one of {', '.join(get_args(Method))}")
    check_call(model, model, direction)
    several, steps, check = pairs_of(pairs), as_count(steps, "steps"), as_count(check, "check", least=0)
    given: dict[str, Any] = {"over": over, "site": site, "layers": layers, "heads": heads}
    axes = _edge_axes(model, method, at, given) if method in OF_EDGES else _node_axes(model, at, **given)
    measured = MapMetric(metric, Labels(model))
    work = GradientWork(model, measured, axes, direction == "denoising", chat, method, steps)
    numbers = work.run(several, progress=False)
    chosen = _chosen(work, numbers, check, seed)
    exact = work.exact(several, numbers, chosen)
    effects = effect_map(several, work, numbers, direction, {"exact": exact})
    agreed = None
    if chosen:
        guess, truth = (np.nanmean(x[:, chosen], axis=0) for x in (work.effects(numbers), exact))
        agreed = agreement(guess, truth)
    return as_attribution(effects, method, agreed)


def _node_axes(model: HookedVLM, at: Any, over: Any, site: Any, layers: Layers, heads: Heads) -> MapAxes:
    over = ("layer", "pos") if over is None else over
    axes = MapAxes(model, model, over, site, layers, heads, at, 1, None)
    if max(map(len, axes.windows)) > 1:
        raise InputError(
            f"over={shown(over)} patches {len(axes.layers)} layers at once, of which no gradient tells: put 'layer' in "
            "over, or give one layer"
        )
    return axes


def _edge_axes(model: HookedVLM, method: str, at: Any, given: Mapping[str, Any]) -> EdgeAxes:
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name}={shown(value)} is of a map of nodes: leave it out for method={method!r}"
            )
    return EdgeAxes(model, "all" if at is None else at)


def _chosen(
    work: GradientWork, numbers: Float[np.ndarray, "pair number"], check: int, seed: int
) -> list[int]:
    """The cells to patch exactly."""
    effects = work.effects(numbers)
    known = np.isfinite(effects).any(axis=0).nonzero()[0]
    if not check or not len(known):
        return []
    mean = np.nanmean(effects[:, known], axis=0)
    return [int(known[i]) for i in thirds(mean, check, seed)]


class GradientWork(MapWork):
    """The passes of a map, pair by pair, and the cells that are patched exactly."""

    def __init__(
        self,
        model: HookedVLM,
        metric: MapMetric,
        axes: Any,
        denoising: bool,
        chat: bool,
        method: str,
        steps: int,
    ) -> None:
        super().__init__(model, model, metric, axes, denoising, chat)
        self.method, self.steps = method, steps

    def _cells(self, pair: Pair, number: int, bar: Any, n_pairs: int) -> list[float]:
        with self.model.lock:
            runs = self.runs_of(pair, number)
            there = [i for i, one in enumerate(runs.patches) if one is not None]
            found = np.full(len(runs.patches), np.nan)
            if there:
                (base,) = self.values(runs.base, [None], runs.metric, runs.where)
                found[there] = base + np.array(self._scores(runs, [runs.patches[i] for i in there]))
        return found.tolist()

    def _scores(self, runs: PairRuns, cells: Sequence[Any]) -> list[float]:
        passes = self._passes(runs)
        if self.method not in OF_EDGES:
            return NodeScores(passes, cells, self.method, self.steps).all()
        steps = legendre_steps(self.steps) if self.method == "eap-ig" else ([0.0], [1.0])
        scores = EdgeScores(passes, self.map_axes.graph).scores(*steps)
        return [float(scores[edge.sender, edge.receiver]) for edge in cells]

    def _passes(self, runs: PairRuns) -> GradientPasses:
        """Passes over all positions that any cell is about."""
        wanted = {position for one in runs.patches if one is not None for position in one.at}
        places = [place for place in runs.places if place[0] in wanted]
        return GradientPasses(self.model, Contrast(runs.base, runs.cache, places), runs.metric)

    def effects(self, numbers: Float[np.ndarray, "pair number"]) -> Float[np.ndarray, "pair cell"]:
        """The share of the way between the two runs, from metrics."""
        clean, corrupt, cells = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
        base, other = (corrupt, clean) if self.denoising else (clean, corrupt)
        return (cells - base) / (other - base)

    def exact(
        self, pairs: Sequence[Pair], numbers: Float[np.ndarray, "pair number"], chosen: Sequence[int]
    ) -> Float[np.ndarray, "pair cell"]:
        """The true effects of the chosen cells; NaN for the others."""
        known = np.concatenate([numbers[:, :2], np.full((len(pairs), numbers.shape[1] - 2), np.nan)], axis=1)
        for number, pair in enumerate(pairs) if chosen else ():
            with self.model.lock:
                runs = self.runs_of(pair, number)
                there = [i for i in chosen if runs.patches[i] is not None]
                patches: Any = [runs.patches[i] for i in there]
                if self.method in OF_EDGES and patches:
                    patches = EdgeScores(self._passes(runs), self.map_axes.graph).patches(patches)
                values = self.values(runs.base, patches, runs.metric, runs.where) if there else []
                known[number, [2 + i for i in there]] = values
        return self.effects(known)
