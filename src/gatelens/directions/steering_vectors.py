"""Steering vectors: a direction from two sets of examples, and what adding it in doses changes and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from gatelens.activation_store import ActivationStore
from gatelens.data import Example
from gatelens.directions.contrasts import Chooser, paired, sides_of, stored_sides
from gatelens.engine import last_logits
from gatelens.engine.grid import Metric
from gatelens.errors import DataError, InterventionError, shown, whole_number
from gatelens.examples import prepare_numbered
from gatelens.identity import model_name
from gatelens.inputs import VLMInputs
from gatelens.interventions import hook_name, steer
from gatelens.interventions.arguments import Layers, as_indices
from gatelens.interventions.base import Intervention, resolve_indices, select
from gatelens.interventions.sites import Site, check_site
from gatelens.measures.overlap import distribution_overlap
from gatelens.measures.probe import probe_normal
from gatelens.measures.stats import Bounds, summary
from gatelens.model import HookedVLM
from gatelens.plots.curve import draw_series
from gatelens.plots.style import NotebookFigure, SeriesStyle, legend_below, styled
from gatelens.sweeps import batches_of, examples_of, sweep
from gatelens.tokens import SelectorLike

METHODS = ("mean", "probe", "pca")
SERIES = (
    SeriesStyle("own", "the vector", "gate"),
    SeriesStyle("random", "random directions", "neutral", "--"),
)
OF = {"data": "examples", "others": "other examples"}


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector(Mapping[int, Tensor]):
    """A direction in each layer: ``gl.steer(vector, vector.at, vector.site)``, or ``gl.ablate(…, direction=vector)``.

    Attributes:
        vectors: by layer, float32 on the CPU: [d_model], at sites with heads [n_heads, d_head]. Scale 1 goes from
            the mean of the negative examples to that of the positive ones along it.
        at, site: where it was read.
        source: the examples, the method and the model it is from, in words.

    Example:
        >>> vector = gl.direction(model, pairs, at="gate", layers=[1])
        >>> vector.vectors[1].shape, vector.site
        (torch.Size([128]), 'resid_pre')
    """

    vectors: Mapping[int, Float[Tensor, " ..."]]
    at: SelectorLike
    site: Site
    source: str

    def __getitem__(self, layer: int) -> Float[Tensor, " ..."]:
        return self.vectors[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.vectors)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        lengths = ", ".join(f"{layer}: {float(v.norm()):.3g}" for layer, v in self.vectors.items())
        return f"SteeringVector(at={shown(self.at)}, site={self.site!r}; {self.source}; length by layer {lengths})"


def direction(
    model: HookedVLM,
    data: Any = None,
    *,
    at: SelectorLike,
    positive: Chooser | None = None,
    negative: Chooser | None = None,
    site: Site = "resid_pre",
    layers: Layers = None,
    method: Literal["mean", "probe", "pca"] = "mean",
    task: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> SteeringVector:
    """The direction from negative to positive examples in the activations at ``at``.

    Args:
        data: a data set, its name or folder, a list of examples; ``gl.pairs`` (clean is positive, corrupt negative);
            a ``gl.ActivationStore``, read without running the model; None where the next two are lists of examples.
            Pairs of many classes average unrelated differences: ``pairs.sel(target="fox")``.
        at: selector of the positions; of several in an example the mean is its activation.
        positive, negative: a label, a predicate on examples, or a list; ``negative=None`` is all not positive.
        site, layers: see :mod:`gatelens.interventions.sites`; None is all layers.
        method: ``"mean"``: difference of means (Marks and Tegmark, arXiv 2310.06824). ``"probe"``: the normal of a
            logistic regression. ``"pca"``: the first principal component of the differences of pairs in order, about
            zero (Zou et al., arXiv 2310.01405). The last two have the length of the difference of means along them.
        task, limit, seed, batch_size: as :func:`gatelens.sweep` takes them.

    Raises:
        DataError: no examples on a side, one on both, or for ``pca`` lists of different length.
        InterventionError: an unknown site, layer or method, or ``at`` selects nothing.

    Example:
        >>> scenes = gl.data.load("emoji-scenes", split="train").examples("class", limit=40)
        >>> vector = gl.direction(model, scenes, positive="fox", negative="pig", at="gate", layers=[1])
        >>> vector.vectors[1].shape
        torch.Size([128])
    """
    if method not in METHODS:
        raise InterventionError(f"method={shown(method)}: say {', '.join(map(repr, METHODS))}")
    check_site(site)
    chosen = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "direction")
    sides: tuple[list[Any], list[Any]]
    if isinstance(data, ActivationStore):
        sides, words = stored_sides(data, model, positive, negative, at, (task, limit, batch_size))
        chosen = data.layers(site) if layers is None else chosen
    else:
        sides, words = sides_of(data, positive, negative, task, limit, seed)
    sides = paired(sides, isinstance(positive, list | tuple)) if method == "pca" else sides
    if isinstance(data, ActivationStore):
        plus, minus = (data.example_means(site, chosen, side) for side in sides)
    else:
        plus, minus = (activations_at(model, side, [at], site, chosen, batch_size)[0] for side in sides)
    vectors = {layer: _direction(plus[layer], minus[layer], method) for layer in chosen}
    if not any(bool(v.any()) for v in vectors.values()):
        same = f"at={shown(at)}, {site} is the same in positive and negative examples"
        raise DataError(f"{same}; take a later layer or position")
    source = f"{method} of {len(sides[0])} {words[0]} − {len(sides[1])} {words[1]}, {model_name(model)}"
    return SteeringVector(vectors, at, site, source)


def activations_at(
    model: HookedVLM,
    examples: Sequence[Example],
    places: Sequence[SelectorLike],
    site: Site,
    layers: Sequence[int],
    batch_size: int | None = None,
) -> list[dict[int, Float[Tensor, "example ..."]]]:
    """For each selector the activation of every example by layer (float64, CPU), the mean of its positions.

    Raises:
        InterventionError: a selector selects nothing in an example.
    """
    _, parts = batches_of(model, examples, batch_size)
    kept: list[dict[int, dict[int, Tensor]]] = [{layer: {} for layer in layers} for _ in places]
    for part in parts:
        inputs = prepare_numbered(model, [examples[i] for i in part], part)
        masks = [_selected(inputs, at, [examples[i] for i in part]) for at in places]

        def keep(
            x: Tensor, hook: Any, layer: int, masks: list[Tensor] = masks, part: Sequence[int] = part
        ) -> None:
            for by_layer, mask in zip(kept, masks, strict=True):
                for row, i in enumerate(part):
                    by_layer[layer][i] = x[row, mask[row].to(x.device)].double().mean(dim=0).cpu()

        hooks = [(hook_name(site, layer), _of_layer(keep, layer)) for layer in layers]
        with torch.no_grad():
            model.run_with_hooks(inputs, fwd_hooks=hooks)
    order = range(len(examples))
    return [{n: torch.stack([by[n][i] for i in order]) for n in layers} for by in kept]


def _of_layer(keep: Callable[..., None], layer: int) -> Callable[..., None]:
    return lambda tensor, hook: keep(tensor, hook, layer)


def _selected(inputs: VLMInputs, at: SelectorLike, examples: Sequence[Example]) -> Bool[Tensor, "batch pos"]:
    mask = select(inputs.tokens, at, "direction")
    for example, row in zip(examples, mask, strict=True):
        if not bool(row.any()):
            raise InterventionError(f"at={shown(at)} selects no position of example {example.id!r}")
    return mask


def _direction(
    plus: Float[Tensor, "example ..."], minus: Float[Tensor, "example ..."], method: str
) -> Float[Tensor, " ..."]:
    means = (plus.mean(dim=0) - minus.mean(dim=0)).flatten()
    if method == "mean" or not bool(means.any()):
        return means.view(plus.shape[1:]).float()
    if method == "probe":
        rows = torch.cat([plus, minus]).flatten(1)
        normal = probe_normal(rows, torch.arange(len(rows)) < len(plus))
        return (normal * (normal @ means).abs()).view(plus.shape[1:]).float()
    first = torch.linalg.svd((plus - minus).flatten(1), full_matrices=False).Vh[0]
    return (first * (first @ means)).view(plus.shape[1:]).float()


def random_like(vector: Float[Tensor, " ..."], *numbers: int) -> Float[Tensor, " ..."]:
    """A direction drawn evenly from all of the same length, by the numbers given."""
    drawn = np.random.default_rng([*numbers, 80]).normal(size=vector.numel())
    other = torch.tensor(drawn, dtype=vector.dtype).view(vector.shape)
    return other / other.norm() * vector.norm()


def overlaps_with_first(
    model: HookedVLM, inputs: VLMInputs, runs: Sequence[Any]
) -> list[Float[Tensor, " batch"]]:
    """Σ min(p, q) of each run's next-token distribution with the first run's: 1 where nothing has changed."""
    p = [x.float().softmax(-1).cpu() for x in last_logits(model, inputs, runs)]
    return [distribution_overlap(p[0], q) for q in p]


class DoseCurve(pd.DataFrame):
    """What a steering vector changes and costs, dose by dose, which :meth:`show` draws.

    Columns ``on`` (``data``, ``others``), ``measure``, ``direction`` (``none``, ``own``, ``random``), ``scale``,
    ``mean``, ``low``, ``high`` (95 %, over examples), ``n``.

    Example:
        >>> sunflower = gl.metrics.top1(model.to_single_token("sunflower"))
        >>> vector = gl.direction(model, pairs, at="gate", layers=[1])
        >>> doses = gl.dose_curve(model, vector, [scene], [1.0], sunflower, bounds=(0, 1), progress=False)
        >>> doses[["measure", "direction", "scale"]].to_numpy().tolist()
        [['value', 'none', 0.0], ['value', 'own', 1.0], ['value', 'random', 1.0]]
    """

    @property
    def _constructor(self) -> Callable[..., DoseCurve]:
        return DoseCurve

    def show(self, title: str = "", dark: bool = False) -> Figure:
        """A panel for each measure: the vector's doses, next to random directions of its length."""
        panels = list(dict.fromkeys(zip(self["on"], self["measure"], strict=True)))
        if not panels:
            raise DataError("this dose curve has no rows to draw")
        with styled(dark) as p:
            figure = NotebookFigure(figsize=(0.6 + 3.4 * len(panels), 3.4), layout="constrained")
            row = figure.subplots(1, len(panels), squeeze=False)[0]
            for axes, (on, measure) in zip(row, panels, strict=True):
                part = pd.DataFrame(self)[(self["on"] == on) & (self["measure"] == measure)]
                unsteered = part[part["direction"] == "none"]  # where every curve is at dose 0
                both = [
                    unsteered.assign(direction=one.key) for one in SERIES if one.key in set(part.direction)
                ]
                draw_series(axes, pd.concat([part, *both]), SERIES, p, by="direction", x="scale")
                n = unsteered["n"].iloc[0] if len(unsteered) else part["n"].iloc[0]
                axes.set(title=f"{measure}, {n} {OF[on]}", xlabel="dose", ylabel=f"mean {measure}")
            if title:
                figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=p.ink)
            legend_below(figure, [one.name for one in SERIES])
        return figure


def dose_curve(
    model: HookedVLM,
    direction: SteeringVector,
    data: Any,
    scales: Sequence[float],
    metric: Metric | Mapping[str, Metric],
    *,
    layers: Layers = None,
    others: Any = None,
    n_random: int = 1,
    bounds: Bounds | None = None,
    task: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> DoseCurve:
    """What a steering vector changes, dose by dose, next to random directions of its length, and what it costs.

    Args:
        model: the model.
        direction: from :func:`gatelens.direction`; it is added where it was read.
        data: the examples that are steered, as :func:`gatelens.sweep` takes them; not those it was made from.
        scales: the doses; 0 is always among them.
        metric: as in :func:`gatelens.sweep`.
        layers: in which of the vector's layers it is added; None is all of them.
        others: examples (likewise) whose answer should stay; of them ``overlap`` is measured, Σ min(p, q) of the
            next-token distribution with the unsteered one.
        n_random: how many random directions.
        bounds: minimum and maximum of the metric, (0, 1) for right or wrong: they make its interval.
        task, limit, batch_size: of ``data`` and ``others``, as :func:`gatelens.sweep` takes them.
        seed: draws the examples and the random directions.
        progress: show a progress bar.

    Raises:
        InterventionError: no steering vector, or a scale that is not a finite number.

    Example:
        >>> scenes = gl.data.load("emoji-scenes", "train").examples("class", limit=200)
        >>> vector = gl.direction(model, scenes, positive="penguin", negative="crown", at="gate", layers=[1])
        >>> crowns = [one for one in gl.data.load("emoji-scenes").examples("class", limit=100) if one.label == "crown"]
        >>> penguin = gl.metrics.top1(model.to_single_token("penguin"))
        >>> doses = gl.dose_curve(model, vector, crowns, [0.5, 1], penguin, bounds=(0, 1), progress=False)
        >>> doses.query("scale == 1")[["direction", "mean"]].to_numpy().tolist()
        [['own', 1.0], ['random', 0.0]]
    """
    ways = _ways(direction, scales, layers, n_random, seed)
    named = {"value": metric} if callable(metric) else metric
    steered = sweep(
        model, data, {"way": {i: run for i, (_, _, run) in enumerate(ways)}}, named, progress,
        task=task, limit=limit, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    tables = [_summarised(steered, ways, "data", list(named), bounds, seed)]
    if others is not None:
        kept = _overlaps(model, examples_of(others, task, limit, seed), [run for *_, run in ways], batch_size)
        tables.append(_summarised(kept, ways, "others", ["overlap"], None, seed))
    return DoseCurve(pd.concat(tables, ignore_index=True))


def _ways(
    direction: Any, scales: Any, layers: Layers, n_random: int, seed: int
) -> list[tuple[str, float, Intervention | None]]:
    """(kind, scale, intervention) of every dose."""
    if not isinstance(direction, SteeringVector):
        raise InterventionError(f"direction is {shown(direction)}: give what gl.direction returned")
    given = list(scales) if isinstance(scales, Sequence | np.ndarray) and not isinstance(scales, str) else []
    if not given or not all(isinstance(s, Real) and math.isfinite(s) for s in given):
        raise InterventionError(f"scales={shown(scales)}: give a list of finite numbers")
    if whole_number(n_random) is None or n_random < 0:
        raise InterventionError(f"n_random={shown(n_random)}: give a whole number, 0 or more")
    chosen = as_indices(layers, "layers")
    used = (
        tuple(direction)
        if chosen is None
        else resolve_indices(chosen, max(direction) + 1, "layers", "dose_curve")
    )
    missing = [n for n in used if n not in direction]
    if missing:
        raise InterventionError(f"the direction has no layer {missing[0]}, it has {list(direction)}")
    kinds = [("own", {n: direction[n] for n in used})]
    for repeat in range(n_random):
        kinds.append(("random", {n: random_like(direction[n], seed, n, repeat) for n in used}))
    doses = sorted({float(s) for s in given} - {0.0})
    at, site = direction.at, direction.site
    steered = [(kind, dose, steer(v, at, site, scale=dose)) for kind, v in kinds for dose in doses]
    return [("none", 0.0, None), *steered]


def _overlaps(
    model: HookedVLM, examples: Sequence[Example], runs: Sequence[Any], batch_size: int | None
) -> pd.DataFrame:
    rows = []
    for part in batches_of(model, examples, batch_size)[1]:
        inputs = prepare_numbered(model, [examples[i] for i in part], part)
        for way, values in enumerate(overlaps_with_first(model, inputs, runs)):
            rows += [(way, examples[i].id, value) for i, value in zip(part, values.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["way", "example", "overlap"])


def _summarised(
    table: pd.DataFrame, ways: Sequence[tuple[str, float, Any]], on: str, measures: list[str],
    bounds: Bounds | None, seed: int,
) -> pd.DataFrame:  # fmt: skip
    table = table.assign(
        on=on, direction=[ways[i][0] for i in table.way], scale=[ways[i][1] for i in table.way]
    )
    parts = []
    for measure in measures:
        part = summary(table, ["on", "direction", "scale"], measure, unit="example", bounds=bounds, seed=seed)
        parts.append(part.assign(measure=measure))
    columns = ["on", "measure", "direction", "scale", "mean", "low", "high", "n"]
    return pd.concat(parts, ignore_index=True)[columns]
