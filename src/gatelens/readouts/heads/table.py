"""One row per head: where it looks, what it draws, what is lost without it, what it writes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data.corruptions import asked_object
from gatelens.errors import DataError, InputError, did_you_mean, shown
from gatelens.executors import executing
from gatelens.identity import as_setting, content_fingerprint, model_settings
from gatelens.interventions.arguments import as_count
from gatelens.measures.heads import check_apart, subset_regression
from gatelens.measures.stats import mean_interval
from gatelens.model import HookedVLM
from gatelens.readouts.heads.batches import HeadsWork
from gatelens.readouts.heads.columns import Columns, Settings
from gatelens.readouts.heads.prompts import Asked, asked_of
from gatelens.readouts.heads.result import HEADINGS, HeadsTable
from gatelens.readouts.heads.vocabulary import Writing
from gatelens.tokens import SelectorLike
from gatelens.units import opened

Part = Literal["attention", "localisation", "sinks", "attribution", "knockout", "regression", "vocabulary"]
# arguments that are not settings of a run, or are among them under another name
NO_SETTINGS = ("model", "data", "out", "progress", "workers", "ray")
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
    workers: int | None = None,
    ray: str | None = None,
) -> HeadsTable:
    """A row for every head of the decoder, each column a mean over examples with a 95 % interval (``_low, _high``).

    Args:
        data: a data set, its name or folder, a list of examples, or pairs.
        parts: groups of columns (:class:`HeadsTable`); None is all that the data allow except ``regression``. An
            example costs ``knockout`` a run per head, ``regression`` one per subset, the others a run or two.
        n, task, seed: how many examples of a data set, of which task; what they (and the subsets) are drawn by.
        queries: the rows whose attention is looked at.
        ablate_at: of ``knockout`` and ``regression``: the positions where a head's output ``z`` is replaced.
        ablate_with: by what: ``zero``, or the ``mean`` of ``z`` over these positions of all examples.
        subsets: of the regression: how many subsets of heads; None is 4 × heads, 64 at least.
        fraction: of the regression: the share of heads left out in each.
        ridge: of the regression: its penalty; 0 is least squares.
        ov_of: of ``vocabulary``: the positions whose mean value goes through the OV circuit.
        top: of ``vocabulary``: how many tokens of each head.
        out, progress, workers, ray: as in :func:`gatelens.sweep`; the folder gets ``heads_table.parquet``.

    Raises:
        GatelensError: an unknown part, no examples, no masks, or another invalid argument.

    Example:
        >>> heads = gl.heads_table(model, "emoji-scenes", parts=["attention"], n=8, progress=False)
        >>> heads.sort_values("gate", ascending=False).head(3)[["layer", "head"]].to_numpy().tolist()
        [[4, 2], [3, 3], [2, 0]]
    """
    given = {**locals()}
    _check(ablate_with, ridge)
    asked = asked_of(model, data, task, as_count(n, "n", error=InputError), seed)
    chosen = _possible(parts, asked)
    settings, writing = Settings(ablate_at), Writing(model, ov_of, as_count(top, "top", error=InputError))
    if "regression" in chosen:
        settings.subsets = _subsets(model, subsets, fraction, ridge, seed)
    work = HeadsWork(model, asked, queries, chosen, settings, writing)
    said = partial(_asked_for, given, asked)
    with opened(out, "heads_table", said) as run, executing(workers, ray) as executor:
        if ablate_with == "mean" and {"knockout", "regression"} & set(chosen):
            settings.means = work.mean_outputs(run)
        table = _summary(work, work.measured(run, progress, executor), ridge)
        run.save(run.study, table)
    return table


def _asked_for(given: Mapping[str, Any], asked: Sequence[Asked]) -> dict[str, Any]:
    """What the folder of a table says was asked for."""
    others = {name: as_setting(value) for name, value in given.items() if name not in NO_SETTINGS}
    return {**model_settings(given["model"]), "examples": content_fingerprint(list(asked)), **others}


def _possible(parts: Any, asked: Sequence[Asked]) -> list[str]:
    """The parts, ``localisation`` only where an example has a mask of the object it is about.

    Raises DataError where it was named and none has.
    """
    chosen = _parts(parts)
    if "localisation" not in chosen or any(asked_object(one.example) for one in asked):
        return chosen
    if parts is not None:
        raise DataError("no example has a mask of the object it is about: leave 'localisation' out of parts")
    return [one for one in chosen if one != "localisation"]


def _check(ablate_with: Any, ridge: Any) -> None:
    if ablate_with not in ("mean", "zero"):
        raise InputError(f"ablate_with={shown(ablate_with)}: write 'mean' or 'zero'")
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
        raise InputError(f"ridge={shown(ridge)}: give a penalty, 0 or more")


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


def _summary(work: HeadsWork, made: Columns, ridge: float) -> HeadsTable:
    """Mean and interval of each column for each head; examples without a number are left out of it."""
    settings, (n_layers, n_heads) = work.settings, work.shape
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
    if "vocabulary" in work.chosen:
        summary["writes"] = work.writing.words()
    summary.attrs |= {**attrs, "n": len(work.asked)}
    if any(HEADINGS.get(name, ("", ""))[1] == "answer" for name in made):
        summary.attrs["quantity"] = "logit difference" if work.asked[0].wrong is not None else "logit"
    return summary


def _mean(values: Any) -> tuple[float, float, float]:
    values = values[~pd.isna(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    return float(values.mean()), *mean_interval(values, None)
