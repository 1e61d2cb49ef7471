"""Path patching: what a sender changes through chosen receivers alone, exactly.

Wang et al. 2022, *Interpretability in the Wild* (arXiv 2211.00593, appendix B); Goldowsky-Dill et al. 2023,
*Localizing Model Behavior with Path Patching* (arXiv 2304.05969). Two runs a sender, both over the clean prompt:

1. The sender takes its value from the corrupt run. Every other head of every layer is frozen at its clean output
   (``z``, at all positions); MLPs are recomputed, or frozen as well (``mlps="frozen"``). Norms are recomputed. What the
   receivers compute here is kept: their queries, keys or values, what an MLP reads, or the logits.
2. The receivers take what was kept. Nothing is frozen.

With frozen heads nothing moves between positions, so a receiver changes at the sender's positions only. Both runs are
edits that the engine knows, and share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.data import Pair
from gatelens.engine.run_batch import RunBatch, last_logits
from gatelens.engine.stacked_runs import compile_for
from gatelens.errors import InputError, InterventionError, shown
from gatelens.examples import Labels
from gatelens.interventions import Rows, edit, patch
from gatelens.interventions.base import Intervention, select
from gatelens.interventions.sites import Site, hook_name
from gatelens.measures.logits import Metric
from gatelens.measures.stats import summary
from gatelens.model import HookedVLM
from gatelens.readouts.labelled import LabelledTensor
from gatelens.readouts.map_metrics import IN_WORDS, MapMetric, PairMetric
from gatelens.readouts.places import EVERYWHERE, Place, receivers_of, senders_of
from gatelens.readouts.prompt_pairs import Side, sides

Prompts = tuple[Side, Side, Metric]  # clean, corrupt, what is measured


@dataclass(frozen=True, eq=False, repr=False)
class PathEffects(LabelledTensor):
    """Float[example, sender], or Float[example, layer, head]: how much each sender moves the metric.

    A cell is the metric with the paths patched less that of the clean run. ``.table`` says of each the ``clean``,
    ``corrupt`` and ``patched`` value.

    Example:
        >>> effects = gl.path_patch(model, pairs, senders="mlps", progress=False)
        >>> effects.table.columns.tolist()
        ['example', 'sender', 'layer', 'clean', 'corrupt', 'patched', 'value']
    """

    @property
    def means(self) -> pd.DataFrame:
        """The mean effect of each sender over examples, with its 95 % interval."""
        names = [str(name) for name, axis in self.axes.items() if name != "example" for name in axis]
        return summary(self.table, by=names, values="value", unit="example", bounds=None)

    def show(self, title: str = "", image: int = 0, dark: bool = False) -> Figure:
        """The mean over examples, by layer and head or as bars."""
        axes = {name: axis for name, axis in self.axes.items() if name != "example"}
        n = len(self.tensor)
        heading = self.quantity + (f", mean of {n} examples" if n > 1 else "")
        mean = LabelledTensor(
            self.tensor.mean(0), axes, self.quantity, self.tokens, heading=heading, signed=True
        )
        return mean.show(title, dark=dark)


@torch.no_grad()
def path_patch(
    model: HookedVLM,
    pairs: Any,
    senders: str | Iterable[str] | Mapping[str, str | Iterable[str]] = "heads",
    receivers: str | Iterable[str] = "logits",
    metric: str | PairMetric = "logit_diff",
    mlps: Literal["recomputed", "frozen"] = "recomputed",
    progress: bool = True,
) -> PathEffects:
    """What each sender changes through the receivers alone.

    A path through two receivers in a row is not counted, and effects through single receivers need not add up to the
    effect through all. The total effect of a sender in the same units is ``patched`` less ``clean`` in the table of
    :func:`gatelens.patch_map` with ``direction="noising"``.

    Args:
        pairs: (clean, corrupt), two prepared batches with equally many prompts; or pairs of :func:`gatelens.pairs`.
        senders: ``heads`` or ``mlps``, all before the last receiver, each by itself; a name or a list of them, each by
            itself (head ``"L3H2"``, MLP ``"L3 mlp"``, the stream entering a layer ``"L3 resid_pre"``); or a mapping of
            a label to names that send together. ``"L3H2@last"`` sends from some positions only, by a selector; the k-th
            position it names takes the value of the k-th in the corrupt prompt.
        receivers: ``"logits"``, or one or several that receive together: a head's query, key or value (``"L5H1.q"``;
            of ``k`` and ``v`` the number counts key-value heads), an MLP's input ``"L5 mlp"``. With ``@selector`` at
            some positions only.
        metric: for pairs a name or a function as :func:`gatelens.patch_map` takes them; for batches a function of
            logits that gives one number per example, as ``gl.metrics`` make them.
        mlps: ``recomputed``, as in Wang et al.: a path may lead through MLPs; ``frozen``: the direct paths alone.
        progress: show a progress bar.

    Raises:
        InputError: a name that cannot be read, a sender after every receiver, or no metric; a receiver at none of a
            sender's positions. With ``receivers="logits"`` senders must include the position the metric reads
            (``@last``): heads between are frozen, so image tokens have no direct path to it.
        InterventionError: prompts whose positions do not pair, or a metric that gives no number per example.

    Example:
        >>> effects = gl.path_patch(model, pairs, senders="heads@last", receivers="logits", progress=False)
        >>> effects.dims, effects.tensor.shape
        (('example', 'layer', 'head'), torch.Size([2, 6, 4]))
    """
    if mlps not in ("recomputed", "frozen"):
        raise InputError(f"mlps={shown(mlps)}: write 'recomputed' or 'frozen'")
    towards = receivers_of(receivers, model.cfg)
    sending = senders_of(senders, towards, model.cfg)
    prompts, name = _prompts(model, pairs, metric)
    n_runs = len(prompts) * len(sending) * (1 if towards[0].site == "logits" else 2)
    bar = tqdm(total=n_runs, desc="path_patch", unit="run", disable=not progress)
    with model.lock, bar:
        found = [
            Paths(model, clean, corrupt, towards, mlps == "frozen", of, bar.update).effects(sending)
            for clean, corrupt, of in prompts
        ]
    grid = isinstance(senders, str) and senders.partition("@")[0].strip() == "heads"
    return _result(
        prompts, [one for one, *_ in sending.values()], None if grid else list(sending), found, name
    )


def _result(
    prompts: Sequence[Prompts],
    places: Sequence[Place],
    labels: Sequence[str] | None,
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    metric: str,
) -> PathEffects:
    """The effects with their names; by layer and head where senders have no ``labels``."""
    patched, clean, corrupt = (torch.cat(each) for each in zip(*found, strict=True))
    axes = {"example": pd.DataFrame({"example": range(len(patched))})}
    if labels is None:
        for name in ("layer", "head"):
            axes[name] = pd.DataFrame({name: sorted({getattr(one, name) for one in places})})
    else:
        axes["sender"] = pd.DataFrame({"sender": labels, "layer": [one.layer for one in places]})
    shape = [len(axis) for axis in axes.values()]
    clean, corrupt = (value[:, None].expand_as(patched) for value in (clean, corrupt))
    columns = {"clean": clean, "corrupt": corrupt, "patched": patched}
    inputs = prompts[0][0].inputs
    return PathEffects(
        (patched - clean).view(shape),
        axes,
        f"effect on {metric}",
        inputs.tokens,
        inputs.images,
        {key: value.reshape(shape).numpy() for key, value in columns.items()},
    )


class Paths:
    """The paths from senders to receivers in one batch of clean and corrupt prompts."""

    def __init__(
        self,
        model: HookedVLM,
        clean: Side,
        corrupt: Side,
        receivers: Sequence[Place],
        frozen_mlps: bool,
        metric: Metric,
        done: Callable[[], Any],
    ) -> None:
        self.model, self.clean, self.sides = model, clean.inputs, (clean, corrupt)
        self.receivers, self.metric, self.done = receivers, metric, done
        self.frozen: tuple[Site, ...] = ("z", "mlp_out") if frozen_mlps else ("z",)
        self.last_layer = min(max(one.layer for one in receivers), int(model.cfg.n_layers) - 1)

    def effects(self, senders: Mapping[str, Sequence[Place]]) -> tuple[Tensor, Tensor, Tensor]:
        """Metric with each sender's paths patched [batch, sender], of the clean run [batch], of the corrupt one."""
        every = [one for places in senders.values() for one in places]
        self._check_pairing(every)
        of_senders = {(one.site, one.layer) for one in every}
        first_layer = min(layer for _, layer in of_senders)
        freezing = [(s, layer) for s in self.frozen for layer in range(first_layer, self.last_layer + 1)]
        clean_value, self.clean_cache = self._cached(self.sides[0], freezing)
        corrupt_value, self.corrupt_cache = self._cached(self.sides[1], sorted(of_senders))
        to_logits = self.receivers[0].site == "logits"
        kept = [[Kept(self._reached(one, places)) for one in self.receivers] for places in senders.values()]
        runs = [self._sending(places, keep) for places, keep in zip(senders.values(), kept, strict=True)]
        patched = self._run(runs, measured=to_logits)
        if not to_logits:
            patched = self._run([self._receiving(keep) for keep in kept], measured=True)
        return patched, clean_value, corrupt_value

    def _check_pairing(self, senders: Sequence[Place]) -> None:
        for name, at in {one.at: (one.name, one.at) for one in senders}.values():
            here, there = (select(side.tokens, at, "path_patch").sum(1) for side in self.sides)
            if bool((differ := here != there).any()):
                i = int(differ.nonzero()[0])
                raise InputError(
                    f"sender {name!r} selects {int(here[i])} positions of clean prompt {i} and {int(there[i])} of the "
                    f"corrupt one: name some that both have, such as '{name.partition('@')[0]}@image'"
                )

    def _cached(self, side: Side, sites: Iterable[tuple[str, int]]) -> tuple[Tensor, Any]:
        names = [hook_name(site, layer) for site, layer in sites]
        own = compile_for(self.model, side.interventions, side.tokens).pairs
        logits, cache = self.model.run_with_cache(side.inputs, names_filter=names, fwd_hooks=own)
        return self._measured(logits), cache

    def _sending(self, senders: Sequence[Place], kept: Sequence[Kept]) -> list[Intervention]:
        """The first run: senders corrupt, all else that the receivers read by attention frozen."""
        layers = range(min(one.layer for one in senders), self.last_layer + 1)
        where = self._after(senders)
        acting: list[Intervention] = [patch(self.clean_cache, where, site, layers) for site in self.frozen]
        for one in senders:
            acting.append(patch(self.corrupt_cache, one.at, one.site, [one.layer], heads=one.head))
        for one, keep in zip(self.receivers, kept, strict=True):
            if one.site != "logits":
                acting.append(edit(keep.keep, keep.at, one.site, [one.layer]))
        return acting

    def _receiving(self, kept: Sequence[Kept]) -> list[Intervention]:
        """The second run: the receivers take what they computed in the first."""
        return [
            edit(keep.give, keep.at, one.site, [one.layer], heads=one.head)
            for one, keep in zip(self.receivers, kept, strict=True)
        ]

    def _after(self, senders: Sequence[Place]) -> Bool[Tensor, "batch pos"]:
        """The positions that could read a sender's; all of them where some attend both ways."""
        tokens = self.clean.tokens
        every = select(tokens, EVERYWHERE, "path_patch")
        if bool((tokens.two_way >= 0).any()):
            return every
        return every & (torch.stack([self._of(one) for one in senders]).any(0).cumsum(1) > 0)

    def _reached(self, receiver: Place, senders: Sequence[Place]) -> Bool[Tensor, "batch pos"]:
        """Where a receiver can change: at its own positions that are a sender's."""
        at = self._of(receiver) & torch.stack([self._of(one) for one in senders]).any(0)
        if receiver.site != "logits" and not bool(at.any()):
            raise InputError(
                f"receiver {receiver.name!r} is at none of the positions of sender {senders[0].name!r}: heads "
                "between them are frozen, so nothing reaches it; take positions that both have"
            )
        reads_last = receiver.site == "logits" and getattr(self.metric, "last_only", False)
        if reads_last and not bool(at[:, -1].any()):
            raise InputError(
                f"receivers='logits': sender {senders[0].name!r} must include the position the metric reads, the last; "
                "heads between are frozen, so other positions have no direct path to it: write "
                f"'{senders[0].name.partition('@')[0]}@last', or name heads that receive"
            )
        return at

    def _of(self, place: Place) -> Bool[Tensor, "batch pos"]:
        mask = select(self.clean.tokens, place.at, f"path_patch({place.name!r})")
        if not bool(mask.any()):
            raise InputError(f"{place.name!r} selects no position: name one that the prompts have")
        return mask

    def _run(self, runs: Sequence[list[Intervention]], measured: bool) -> Float[Tensor, "batch run"]:
        every = measured and not getattr(self.metric, "last_only", False)
        values: dict[int, Tensor] = {}
        for i, logits in RunBatch(self.model, self.clean, runs, every_position=every).each():
            values[i] = self._measured(logits) if measured else torch.empty(0)
            self.done()
        return torch.stack([values[i] for i in range(len(runs))], 1)

    def _measured(self, logits: Tensor) -> Float[Tensor, " batch"]:
        values, n = self.metric(logits), self.clean.batch_size
        if not isinstance(values, Tensor) or tuple(values.shape) != (n,):
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InterventionError(f"the metric gave {given}, expected {(n,)}: one number per example")
        return values.detach().float().cpu()


class Kept:
    """What a receiver computes at chosen positions of one run, to be put there in another."""

    def __init__(self, at: Bool[Tensor, "batch pos"]) -> None:
        self.at = at
        self._rows: Tensor | None = None

    def keep(self, rows: Float[Tensor, "n ..."], where: Rows) -> Float[Tensor, "n ..."]:
        """Keeps the rows and leaves them as they are."""
        self._rows = rows.clone()
        return rows

    def give(self, rows: Float[Tensor, "n ..."], where: Rows) -> Float[Tensor, "n ..."]:
        """The rows that were kept; both runs compute all of them."""
        assert self._rows is not None
        return self._rows


def _prompts(model: HookedVLM, given: Any, metric: Any) -> tuple[list[Prompts], str]:
    """The prompts to run, each with its metric, and the metric's name.

    Raises:
        InputError: neither two batches nor pairs, or a metric that does not go with them.
    """
    if isinstance(given, tuple) and len(given) == 2 and not isinstance(given[0], Pair):
        clean, corrupt = (model.batch(one) for one in given)
        if not callable(metric):
            raise InputError(
                f"metric={shown(metric)}: for prepared batches give a function, such as gl.metrics.logit_diff(a, b)"
            )
        if clean.batch_size != corrupt.batch_size:
            raise InputError(
                f"{clean.batch_size} clean prompts and {corrupt.batch_size} corrupt ones: give as many of each"
            )
        name = getattr(metric, "__name__", "metric").replace("<lambda>", "metric")
        return [(Side(clean), Side(corrupt), metric)], IN_WORDS.get(name, name)
    pairs = [given] if isinstance(given, Pair) else list(given) if isinstance(given, Sequence) else []
    if not pairs or not all(isinstance(one, Pair) for one in pairs):
        raise InputError(
            f"pairs is {shown(given)}: give (clean, corrupt), two prepared batches, or gl.pairs(...)"
        )
    named = MapMetric(metric, Labels(model)).of_logits()
    return [_of_pair(model, one, number, named) for number, one in enumerate(pairs)], named.name


def _of_pair(model: HookedVLM, pair: Pair, number: int, metric: MapMetric) -> Prompts:
    clean, corrupt = sides(model, [pair], chat=False)
    logits = last_logits(model, clean.inputs, [None])[0][:, None] if metric.needs_clean else None
    return clean, corrupt, metric.of([pair], [number], logits)
