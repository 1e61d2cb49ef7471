"""``gl.attribution_map``: gradients in the place of patches, with how far they are from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from gatelens.errors import InputError, shown
from gatelens.interventions.arguments import Layers, as_count, as_indices
from gatelens.interventions.base import resolve_indices
from gatelens.measures.agreement import Agreement, agreement, thirds
from gatelens.model import HookedVLM
from gatelens.readouts.gradients.cells import Cells, make_cells
from gatelens.readouts.gradients.contrast import Contrast
from gatelens.readouts.gradients.exact import node_patch, patched
from gatelens.readouts.gradients.nodes import (
    attribution_patching,
    integrated_gradients,
    with_query_key_fix,
)
from gatelens.readouts.gradients.passes import GradientPasses, Metric
from gatelens.readouts.labelled import LabelledTensor
from gatelens.tokens import SelectorLike

Method = Literal["atp", "atp*", "ig"]


@dataclass(frozen=True, eq=False, repr=False)
class AttributionMap(LabelledTensor):
    """What patching each cell should change, to first order, as the mean over pairs.

    ``columns["exact"]`` holds what it does change at the cells that were checked, NaN elsewhere.

    Attributes:
        method: how it was made.
        each: Float[pair, *axes], the map of every pair.
        difference: Float[pair], the metric of the run the values come from less that of the run they are put in.
        agreement: of the checked cells; None without a check.
    """

    method: str = ""
    each: Tensor = None  # type: ignore[assignment]
    difference: Tensor = None  # type: ignore[assignment]
    agreement: Agreement | None = None

    @property
    def warnings(self) -> list[str]:
        """Why this map should not be trusted, one line each; see :class:`gatelens.measures.Agreement`."""
        return [] if self.agreement is None else self.agreement.warnings

    def sel(self, **wanted: Any) -> AttributionMap:
        some = super().sel(**wanted)
        fields = {name: getattr(some, name) for name in ("tensor", "axes", "columns")}
        kept = [_kept(labels, some.axes[name]) for name, labels in self.axes.items()]
        return replace(self, **fields, each=self.each[np.ix_(np.arange(len(self.each)), *kept)])

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """As :meth:`LabelledTensor.show`; the title says how well it agrees with exact patches, and warns."""
        return super().show("\n".join([title or self._heading(), *self._said()]), image, dark)

    def _heading(self) -> str:
        return f"{self.method}, mean of {len(self.each)} pair{'s' * (len(self.each) > 1)}"

    def _said(self) -> list[str]:
        said = ["not checked against exact patches" if self.agreement is None else str(self.agreement)]
        return said + [f"Warning: {line}" for line in self.warnings]

    def __repr__(self) -> str:
        return "\n  ".join([f"{super()._summary()[:-1]}, {self._heading()})", *self._said()])


def _kept(before: pd.DataFrame, after: pd.DataFrame) -> np.ndarray:
    """Which rows of labels are left."""
    place = {row: number for number, row in enumerate(map(tuple, before.astype(str).to_numpy()))}
    return np.array([place[row] for row in map(tuple, after.astype(str).to_numpy())])


def attribution_map(
    model: HookedVLM,
    pairs: Any,
    metric: Metric,
    method: Method = "atp",
    over: Sequence[str] = ("layer", "pos"),
    *,
    site: str | Sequence[str] = "resid_pre",
    layers: Layers = None,
    at: SelectorLike = "all",
    steps: int = 32,
    check: int = 64,
    seed: int = 0,
) -> AttributionMap:
    """What patching each cell should change, from gradients: a few passes for the whole map.

    Args:
        pairs: (clean, corrupt), two prepared batches, one prompt beside the other. The corrupt prompts are run and
            get the clean ones' activations. Positions pair by role.
        metric: logits Float[batch, pos, d_vocab] to Float[batch], e.g. from ``gl.metrics``; it must be smooth.
        method: ``atp``: attribution patching, the gradient of the run times the difference of activations. ``atp*``:
            the same, but at ``q`` and ``k`` the softmax is recomputed (the QK fix of arXiv 2403.00745). ``ig``: the
            mean gradient on the way from one activation to the other, a site and layer at a time (arXiv 1703.01365).
        over: axes, of layer, pos or role, head, site.
        site: one or several of resid_pre, resid_mid, resid_post, attn_in, attn_out, mlp_in, mlp_out, q, k, v, z and
            pattern.
        layers: which; None is all.
        at: the positions that are compared.
        steps: of ``ig``, the points of a Gauss–Legendre rule.
        check: how many cells to patch exactly too, a run a cell and pair: a third those of largest value, a third of
            smallest, a third drawn. 0 is none.
        seed: of the draw.

    Raises:
        InputError: pairs, axes or sites that do not fit together.
        InterventionError: a metric without a gradient, or a site that the family does not have.
    """
    if method not in get_args(Method):
        raise InputError(f"method={shown(method)}: write one of {', '.join(get_args(Method))}")
    steps, check = as_count(steps, "steps"), as_count(check, "check", least=0)
    sites = (site,) if isinstance(site, str) else tuple(site)
    numbers = resolve_indices(
        as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", "attribution_map"
    )
    with model.lock:
        contrasts = contrasts_of(model, pairs, at)
        cells = make_cells(model.cfg, contrasts, over, sites, numbers)
        passes = [GradientPasses(model, contrast, metric) for contrast in contrasts]
        each = np.concatenate([cells.arrange(_scores(one, cells, method, steps)) for one in passes])
        chosen = thirds(each.mean(axis=0).reshape(-1), check, seed) if check else []
        exact = _exact(passes, cells, chosen)
    return _result(passes, cells, method, each, exact)


def _exact(
    passes: Sequence[GradientPasses], cells: Cells, chosen: Sequence[int]
) -> Float[np.ndarray, " *axes"]:
    """What patching the chosen cells changes, as the mean over pairs; NaN for all others."""
    exact = np.full(cells.shape, np.nan)
    if chosen:
        several = [cells.cell(number) for number in chosen]
        gained = [patched(one, [[node_patch(one, cells, cell)] for cell in several]) for one in passes]
        exact.reshape(-1)[chosen] = torch.cat(gained, dim=1).mean(1).numpy()
    return exact


def _result(
    passes: Sequence[GradientPasses], cells: Cells, method: str, each: np.ndarray, exact: np.ndarray
) -> AttributionMap:
    first, metric, mean = passes[0].contrast.base, passes[0].metric, each.mean(axis=0)
    checked = np.isfinite(exact)
    return AttributionMap(
        torch.as_tensor(mean).float(),
        cells.axes,
        f"change of {getattr(metric, '__name__', 'the metric')}",
        first.tokens,
        first.images,
        {"exact": exact} if checked.any() else {},
        method=method,
        each=torch.as_tensor(each).float(),
        difference=torch.cat([one.source_value - one.base_value for one in passes]).float().cpu(),
        agreement=agreement(mean[checked], exact[checked]) if checked.any() else None,
    )


def _scores(passes: GradientPasses, cells: Cells, method: str, steps: int) -> Any:
    by_layer = method == "ig" or (method == "atp*" and {"q", "k"} & set(cells.sites))
    passes.compare(cells.taps, sorted({0, *cells.layers}) if by_layer else [0])
    if method == "ig":
        return integrated_gradients(passes, cells, steps)
    return (with_query_key_fix if method == "atp*" else attribution_patching)(passes, cells)


def contrasts_of(model: HookedVLM, pairs: Any, at: SelectorLike) -> list[Contrast]:
    """The batches of pairs, corrupt prompts to be run."""
    if not isinstance(pairs, tuple) or len(pairs) != 2:
        raise InputError(f"pairs is {shown(pairs)}: give (clean, corrupt), two batches of model.prepare")
    clean, corrupt = (model.batch(one) for one in pairs)
    return [Contrast.of(corrupt, clean, at)]
