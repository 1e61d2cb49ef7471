"""``gl.attribution_map``: gradients instead of patches, with how far they are from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from gatelens.data import Pair
from gatelens.engine.stacked_runs import compile_for
from gatelens.errors import InputError, shown
from gatelens.examples import Labels
from gatelens.executors import Executor, executing
from gatelens.interventions.arguments import Heads, Layers, as_count
from gatelens.measures.agreement import Agreement, agreement, thirds
from gatelens.model import HookedVLM
from gatelens.model.activation_cache import ActivationCache, KeptRows, caching_hooks
from gatelens.readouts.effect_map import EffectMap
from gatelens.readouts.gradients.contrast import Contrast, ending_early, reads_last_row
from gatelens.readouts.gradients.edges import EdgeAxes, EdgeScores
from gatelens.readouts.gradients.nodes import NodeScores, legendre_steps
from gatelens.readouts.gradients.passes import GradientPasses
from gatelens.readouts.map_axes import MapAxes
from gatelens.readouts.map_metrics import MapMetric, PairMetric, number_of
from gatelens.readouts.map_runs import NO_WORDS, MapWork, Measured, PairRuns, Part
from gatelens.readouts.patch_maps import Direction, check_call, effect_map, kept, map_settings, pairs_of
from gatelens.readouts.prompt_pairs import Side
from gatelens.runs import Run
from gatelens.tokens import SelectorLike
from gatelens.units import Done, opened

Method = Literal["atp", "atp*", "ig", "eap", "eap-ig"]
OF_EDGES = ("eap", "eap-ig")


@dataclass(frozen=True, eq=False, repr=False)
class AttributionMap(EffectMap):
    """An :class:`EffectMap` whose effects are approximated, to first order or along a path.

    ``columns["exact"]`` holds the effects of the cells that were patched exactly, NaN elsewhere; ``patched`` is what
    the approximation makes of the metric.

    Attributes:
        method: how it was made.
        agreement: of approximation and truth at the checked cells, as means over pairs; None without a check.

    Example:
        >>> effects = gl.attribution_map(model, pairs, over=("layer", "role"), check=4, progress=False)
        >>> effects.dims, "exact" in effects.table
        (('pair', 'layer', 'role'), True)
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
    pairs: Any,
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
    differ: str | None = None,
    n: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    ray: str | None = None,
) -> AttributionMap:
    """The map of :func:`gatelens.patch_map` from gradients: a few passes a pair, and how far they are from the truth.

    Args:
        pairs, site, direction, at, heads, chat, differ, n, progress, workers, ray: as in :func:`gatelens.patch_map`.
        metric: as there, a smooth function of logits.
        method: ``atp``: attribution patching, the gradient of the run times the difference of activations. ``atp*``:
            the same, but at ``q`` and ``k`` the softmax is recomputed (the QK fix of arXiv 2403.00745; not its
            GradDrop). ``ig``: the mean gradient from one activation to the other, a site and layer at a time
            (arXiv 1703.01365). ``eap``: edges, from the embedding, heads and MLPs to queries, keys, values, MLPs and
            logits (arXiv 2310.10348); ``eap-ig``: with the mean gradient on the input's path (arXiv 2403.17806).
        over: of layer, pos, role, head, site; None is layer and pos. Edges have ``sender`` and ``receiver``.
        layers: of nodes only: which; None is all.
        steps: of ``ig`` and ``eap-ig``: the points of a Gauss–Legendre rule.
        check: how many cells to patch exactly too, in every pair: a third those of largest effect, a third of
            smallest, a third drawn by ``seed``. 0 is none.
        out: a folder that keeps finished pairs, as in :func:`gatelens.sweep`, and ``attribution_map.parquet``.

    Raises:
        InputError: as for an exact map; several layers without an axis for them.
        InterventionError: a metric without a gradient.
        ModelError: edges in a model whose parts do not add up to the stream.

    Example:
        >>> gl.attribution_map(model, pairs, over="layer", at="gate", check=2, progress=False).dims
        ('pair', 'layer')
    """
    asked = {**locals()}
    check_call(model, model, direction)
    axes = _axes(model, method, at, {"over": over, "site": site, "layers": layers, "heads": heads})
    steps, check = as_count(steps, "steps"), as_count(check, "check", least=0)
    several, measured = pairs_of(pairs, differ, n, seed), MapMetric(metric, Labels(model)).of_logits()
    work = GradientWork(model, measured, axes, direction == "denoising", chat, several, method, steps)
    with (
        opened(out, "attribution_map", partial(map_settings, asked, work)) as run,
        executing(workers, ray) as executor,
    ):
        return kept(run, _checked_map(run, work, check, seed, progress, executor))


def _checked_map(
    run: Run, work: GradientWork, check: int, seed: int, progress: bool, executor: Executor
) -> AttributionMap:
    """The map of all pairs, and how it agrees with exact patches."""
    numbers = work.run(run, progress, executor)
    chosen = _chosen(work, numbers, check, seed)
    exact = work.exact(run, numbers, chosen, progress, executor)
    effects, agreed = effect_map(work, numbers, {"exact": exact}), None
    if chosen:
        guess, truth = (np.nanmean(x[:, chosen], axis=0) for x in (work.effects(numbers), exact))
        agreed = agreement(guess, truth)
    return as_attribution(effects, work.method, agreed)


def _axes(model: HookedVLM, method: Any, at: Any, given: dict[str, Any]) -> MapAxes | EdgeAxes:
    if method not in get_args(Method):
        raise InputError(f"method={shown(method)}: write one of {', '.join(get_args(Method))}")
    return _edge_axes(model, method, at, given) if method in OF_EDGES else _node_axes(model, at, **given)


def _node_axes(model: HookedVLM, at: Any, over: Any, site: Any, layers: Layers, heads: Heads) -> MapAxes:
    over = ("layer", "pos") if over is None else over
    axes = MapAxes(model, model, over, site, layers, heads, at, 1, None)
    if "neuron" in axes.sites:
        raise InputError("site='neuron' is only for exact maps: take gl.patch_map, or site='mlp_out'")
    if max(map(len, axes.windows)) > 1:
        raise InputError(
            f"over={shown(over)} patches {len(axes.layers)} layers at once, unlike any gradient: put 'layer' in "
            "over, or give one layer"
        )
    return axes


def _edge_axes(model: HookedVLM, method: str, at: Any, given: Mapping[str, Any]) -> EdgeAxes:
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name}={shown(value)} is only for maps of nodes: leave it out for method={method!r}"
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
        pairs: Sequence[Pair],
        method: str,
        steps: int,
    ) -> None:
        super().__init__(model, model, metric, axes, denoising, chat, pairs)
        self.method, self.steps = method, steps
        self.source_logits = torch.empty(0)

    def run(self, run: Run, progress: bool, executor: Executor) -> Float[np.ndarray, "pair number"]:
        """As of an exact map, but pair by pair, as what is held of a pass grows with its rows.

        The passes that gradients need give the metric of both runs too; where a folder keeps pairs, all of them are
        checked first.
        """
        if run.path is not None:
            self.ends(run, progress, executor)
        every = [[[number]] for number in range(len(self.pairs))]
        return self.measured(
            run, "cells", 2 + self.n_cells, every, self._cells, progress, run.study, executor
        )

    def _cells(self, part: Part, done: Done) -> Measured:
        """The clean and the corrupt metric, and that of every cell."""
        with self.model.lock:
            runs = self.runs_of(part)
            source = number_of(runs.metric, self.source_logits, runs.where[0])
            there = [i for i, one in enumerate(runs.cells) if one is not None]
            found = np.full((1, len(runs.cells)), np.nan)
            if there:
                logits, scores = self._scores(runs, [runs.cells[i] for i in there])
                base = number_of(runs.metric, logits, runs.where[0])
                found[:, there] = base + np.array(scores)
            else:
                base = float(self.values(runs.base, [None], runs.metric, runs.where))
        done(2 + len(runs.cells))
        ends = [source, base] if self.denoising else [base, source]
        self._check_apart(np.array([ends]), part)
        return np.concatenate([[ends], found], axis=1), self._words(runs)

    @torch.no_grad()
    def _cache(self, side: Side, positions: Iterable[int]) -> ActivationCache:
        """The activations of the source's run; its logits, no more of them than the metric reads, are kept too."""
        stored: dict[str, Tensor] = {}
        kept = KeptRows.of(side.tokens, sorted(positions))
        before = compile_for(self.model, list(side.interventions), side.tokens).pairs
        hooks: list[Any] = [*before, *caching_hooks(self.map_axes.cached, stored, kept)]
        tensors = {**side.inputs.tensors, "logits_to_keep": self.metric.rows}
        with ending_early(self.model, reads_last_row(self.model, hooks, self.metric.rows)):
            self.source_logits, _ = self.model.forward_step(tensors, hooks)
        return ActivationCache(stored, self.model, side.tokens, kept)

    def _scores(self, runs: PairRuns, cells: Sequence[Any]) -> tuple[Tensor, list[float]]:
        """The logits of the base's run, and what each cell should gain."""
        passes = self._passes(runs)
        if self.method not in OF_EDGES:
            scores = NodeScores(passes, cells, self.method, self.steps).all()
        else:
            steps = legendre_steps(self.steps) if self.method == "eap-ig" else ([0.0], [1.0])
            found = EdgeScores(passes, self.map_axes.graph).scores(*steps)
            scores = [float(found[edge.sender, edge.receiver]) for edge in cells]
        assert passes.base is not None
        return passes.base, scores

    def _passes(self, runs: PairRuns) -> GradientPasses:
        """Passes over all positions that any cell is about."""
        wanted = {position for one in runs.cells if one is not None for position in one.here[0]}
        places = [place for place in runs.prompts.places[0] if place[0] in wanted]
        return GradientPasses(self.model, Contrast(runs.base, runs.prompts.cache, places), runs.metric)

    def effects(self, numbers: Float[np.ndarray, "pair number"]) -> Float[np.ndarray, "pair cell"]:
        """The share of the way between the two runs, from metrics."""
        clean, corrupt, cells = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
        base, other = (corrupt, clean) if self.denoising else (clean, corrupt)
        return (cells - base) / (other - base)

    def exact(
        self,
        run: Run,
        numbers: Float[np.ndarray, "pair number"],
        chosen: Sequence[int],
        progress: bool,
        executor: Executor,
    ) -> Float[np.ndarray, "pair cell"]:
        """The true effects of the chosen cells; NaN for the others."""

        def patched(part: Part, done: Done) -> Measured:
            patches: list[Any]
            found = np.full((1, len(chosen)), np.nan)
            with self.model.lock:
                runs = self.runs_of(part)
                there = [i for i, cell in enumerate(chosen) if runs.cells[cell] is not None]
                cells = [runs.cells[chosen[i]] for i in there]
                if self.method in OF_EDGES and cells:
                    patches = EdgeScores(self._passes(runs), self.map_axes.graph).patches(cells)
                else:
                    patches = [cell.patch(runs.prompts) for cell in cells]
                if there:
                    found[:, there] = self.values(runs.base, patches, runs.metric, runs.where, done).T
            done(len(chosen) - len(there))
            return found, NO_WORDS

        known = np.full_like(numbers, np.nan)
        known[:, :2] = numbers[:, :2]
        if chosen:
            units = [[[i]] for i in range(len(self.pairs))]
            cells = self.measured(
                run, "exact", len(chosen), units, patched, progress, "exact patches", executor
            )
            known[:, [2 + cell for cell in chosen]] = cells
        return self.effects(known)
