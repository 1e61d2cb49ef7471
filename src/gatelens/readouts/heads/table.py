"""One row a head: where it looks, what it draws, what is lost without it, what it writes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.atomic_files import as_path, check_writable, written_whole
from gatelens.data.corruptions import asked_object
from gatelens.errors import DataError, InputError, did_you_mean, shown
from gatelens.interventions.arguments import as_count
from gatelens.measures.heads import check_apart, subset_regression
from gatelens.measures.stats import mean_interval
from gatelens.model import HookedVLM
from gatelens.readouts.heads import columns
from gatelens.readouts.heads.columns import Columns, Settings
from gatelens.readouts.heads.prompts import Asked, Batch, asked_of, batches
from gatelens.readouts.heads.result import HeadsTable
from gatelens.readouts.heads.vocabulary import Writing
from gatelens.tokens import SelectorLike

Part = Literal["attention", "localisation", "sinks", "attribution", "knockout", "regression", "vocabulary"]
OF_BATCH: dict[str, Callable[[Batch, Settings], Columns]] = {
    "attention": columns.attention,
    "localisation": columns.localisation,
    "sinks": columns.sinks,
    "attribution": columns.attribution,
    "knockout": columns.knockout,
    "regression": columns.regression,
}
NORMAL = 1.959964  # standard errors from a mean to the ends of a 95 % interval


@torch.no_grad()
def heads_table(
    model: HookedVLM,
    data: Any,
    parts: Part | Sequence[Part] | None = None,
    n: int = 64,
    task: str = "class",
    queries: SelectorLike = "last",
    ablate_at: SelectorLike = "all",
    ablate_with: Literal["mean", "zero"] = "mean",
    subsets: int | None = None,
    fraction: float = 0.2,
    ridge: float = 0.0,
    ov_of: SelectorLike = "image",
    top: int = 5,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> HeadsTable:
    """A row for every head of the decoder, each column a mean over examples with a 95 % interval (``_low, _high``).

    What the columns are, :class:`HeadsTable` says.

    Args:
        data: a data set, its name or folder, a list of examples, or pairs.
        parts: which; None is all that the data allow (``localisation`` needs masks) but ``regression``. An example
            costs ``knockout`` a run for each head, ``regression`` one for each subset, the others a run or two. What
            runs share before ``ablate_at`` is computed once: the picture's positions at ``"gate | text"``.
        n, task, seed, queries: which examples are drawn; the rows whose attention is looked at.
        ablate_at, ablate_with: where ``z`` is replaced, by its ``mean`` over all these positions or ``zero``.
        subsets, fraction, ridge: of the regression: how many subsets (None: four times the heads, 64 at least), the
            share of heads left out in each, the penalty (0: least squares).
        ov_of, top: the positions whose values are written, and how many tokens to give.
        out: a file for the table, in Parquet.

    Raises:
        GatelensError: an unknown part, no examples, no masks, or another argument that means nothing.

        >>> import gatelens as gl
        >>> model = gl.HookedVLM.from_pretrained("organism:gated")
        >>> heads = gl.heads_table(model, "emoji-scenes", parts=["attention"], n=8, progress=False)
        >>> heads.sort_values("gate", ascending=False).head(3)[["layer", "head"]].to_numpy().tolist()
        [[1, 0], [1, 2], [4, 2]]
    """
    chosen, place = _parts(parts), _checked(out, ablate_with, ridge)
    asked = asked_of(model, data, task, as_count(n, "n", error=InputError), seed)
    if "localisation" in chosen and not _has_masks(asked, needed=parts is not None):
        chosen.remove("localisation")
    settings = Settings(ablate_at)
    if "regression" in chosen:
        settings.subsets = _subsets(model, subsets, fraction, ridge, seed)
    if ablate_with == "mean" and {"knockout", "regression"} & set(chosen):
        settings.means = _mean_outputs(model, asked, queries, ablate_at)
    writing = Writing(model, ov_of, as_count(top, "top", error=InputError))
    made = _measured(model, asked, queries, chosen, settings, writing, progress)
    table = _summary(made, settings, ridge, int(model.cfg.n_layers), int(model.cfg.n_heads))
    table.attrs["quantity"] = "logit difference" if asked[0].wrong is not None else "logit"
    table.attrs["n"] = len(asked)
    if "vocabulary" in chosen:
        table["writes"] = writing.words()
    return _written(table, place)


def _has_masks(asked: Sequence[Asked], needed: bool) -> bool:
    """Whether an example has a mask of the object it is about. Raises DataError where one is ``needed``."""
    found = any(asked_object(one.example) for one in asked)
    if needed and not found:
        raise DataError("no example has a mask of the object it is about: leave 'localisation' out of parts")
    return found


def _written(table: HeadsTable, place: Path | None) -> HeadsTable:
    if place is not None:
        with written_whole(place) as temporary:
            table.to_parquet(temporary, index=False)
    return table


def _checked(out: Any, ablate_with: Any, ridge: Any) -> Path | None:
    """The file to write to, proved to be writable before any compute; None for none."""
    if ablate_with not in ("mean", "zero"):
        raise InputError(f"ablate_with={shown(ablate_with)}: write 'mean' or 'zero'")
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
        raise InputError(f"ridge={shown(ridge)}: give a penalty, 0 or more")
    if out is None:
        return None
    place = as_path(out)
    if place.is_dir() or place.suffix != ".parquet":
        raise InputError(f"out={str(out)!r}: give a file whose name ends in .parquet")
    check_writable(place.parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _parts(parts: Any) -> list[str]:
    known = list(get_args(Part))
    if parts is None:
        parts = [one for one in known if one != "regression"]
    chosen = [parts] if isinstance(parts, str) else list(parts)
    for one in chosen:
        if one not in known:
            raise InputError(
                f"part {shown(one)}: the parts are {', '.join(known)}{did_you_mean(str(one), known)}"
            )
    if not chosen:
        raise InputError(f"parts is empty: name some of {', '.join(known)}")
    return [one for one in known if one in chosen]


def _subsets(model: HookedVLM, number: int | None, fraction: float, ridge: float, seed: int) -> Tensor:
    """Bool[subset, layer, head]: which heads are kept in each run."""
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    number = (
        max(64, 4 * n_layers * n_heads) if number is None else as_count(number, "subsets", 10, InputError)
    )
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise InputError(f"fraction={shown(fraction)}: give the share of heads left out, between 0 and 1")
    drawn = torch.rand(number, n_layers, n_heads, generator=torch.Generator().manual_seed(seed))
    check_apart((drawn >= fraction).flatten(1), ridge)
    return drawn >= fraction


def _mean_outputs(
    model: HookedVLM, asked: Sequence[Asked], queries: SelectorLike, at: SelectorLike
) -> dict[int, Float[Tensor, "head d_head"]]:
    """The mean of ``z`` over the chosen positions of all examples, by layer."""
    sums: dict[int, Tensor] = {}
    count = 0
    for batch in batches(model, asked, queries):
        mask = batch.mask(at)
        count += int(mask.sum())

        def add(z: Tensor, hook: Any, mask: Tensor = mask) -> None:
            layer = int(hook.name.split(".")[1])
            sums[layer] = sums.get(layer, 0) + z.detach()[mask.to(z.device)].double().sum(0)

        hooks = [(f"blocks.{layer}.attn.hook_z", add) for layer in range(batch.shape[1])]
        model.forward_step({**batch.inputs.tensors, "logits_to_keep": 1}, hooks)
    if not count:
        raise InputError(f"ablate_at={at!r} selects no position: name some that the prompts have")
    return {layer: (total / count).float() for layer, total in sums.items()}


def _measured(
    model: HookedVLM,
    asked: Sequence[Asked],
    queries: SelectorLike,
    chosen: Sequence[str],
    settings: Settings,
    writing: Writing,
    progress: bool,
) -> Columns:
    """All columns, the examples in the order of the batches."""
    made: dict[str, list[Tensor]] = {}
    n_heads = int(model.cfg.n_layers) * int(model.cfg.n_heads)
    runs = {"knockout": n_heads + 1, "regression": 0 if settings.subsets is None else len(settings.subsets)}
    total = len(asked) * sum(runs.get(part, 1) for part in chosen)
    with tqdm(total=total, desc="heads", unit="run", disable=not progress) as bar:
        for batch in batches(model, asked, queries):

            def done(n: int, size: int = len(batch.asked)) -> None:
                bar.update(n * size)

            settings.done = done
            for part in chosen:
                bar.set_postfix_str(part)
                if part == "vocabulary":
                    writing.add(batch)
                else:
                    for name, values in OF_BATCH[part](batch, settings).items():
                        made.setdefault(name, []).append(values)
                if part not in runs:
                    settings.done(1)
    return {name: torch.cat(values) for name, values in made.items()}


def _summary(made: Columns, settings: Settings, ridge: float, n_layers: int, n_heads: int) -> HeadsTable:
    """Mean and interval of each column for each head; examples without a number are left out of it."""
    attrs: dict[str, Any] = {"sinks": settings.sinks} if "sink" in made else {}
    errors: dict[str, Float[Tensor, " part"]] = {}  # of a mean, beside what the draw of examples leaves open
    if settings.subsets is not None:
        fit = subset_regression(settings.subsets.flatten(1), torch.cat(settings.subset_values, 1), ridge)
        made = {**made, "regression": fit.worth.view(-1, n_layers, n_heads)}
        errors["regression"] = fit.error
        attrs |= {"r2": fit.r2, "r2_held_out": fit.held_out}
    table: dict[str, Any] = {
        "layer": [layer for layer in range(n_layers) for _ in range(n_heads)],
        "head": list(range(n_heads)) * n_layers,
    }
    for name, values in made.items():
        of_heads = values.flatten(1).double().T.numpy()
        means, lows, highs = np.array([_mean(of_head) for of_head in of_heads]).T
        error = NORMAL * errors[name].numpy() if name in errors else 0.0
        table[name] = means
        table[f"{name}_low"] = means - np.hypot(means - lows, error)
        table[f"{name}_high"] = means + np.hypot(highs - means, error)
    summary = HeadsTable(table)
    summary.attrs |= attrs
    return summary


def _mean(values: Any) -> tuple[float, float, float]:
    values = values[~pd.isna(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    return float(values.mean()), *mean_interval(values, None)
