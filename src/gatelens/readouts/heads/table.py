"""One row a head: where it looks, what it draws, what is lost without it, what it writes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.atomic_files import as_path, check_writable, written_whole
from gatelens.data.corruptions import asked_object
from gatelens.errors import DataError, InputError, did_you_mean, shown
from gatelens.interventions.arguments import as_count
from gatelens.measures.heads import subset_regression
from gatelens.measures.stats import mean_interval
from gatelens.model import HookedVLM
from gatelens.plots.value_maps import Grid, value_figure
from gatelens.readouts.heads import columns
from gatelens.readouts.heads.columns import Columns, Settings
from gatelens.readouts.heads.prompts import Asked, Batch, asked_of, batches
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


# of a column: what a figure says of it, and its unit; ``answer`` is what is measured of an answer
HEADINGS = {
    "image": ("attention to the picture", "share of attention"),
    "gate": ("attention to the gate", "share of attention"),
    "text": ("attention to the text", "share of attention"),
    "entropy": ("entropy of attention", "nats"),
    "object": ("attention in the object's mask", "share of attention on the picture"),
    "sink": ("attention drawn by sinks", "share of attention"),
    "sink_tower": ("attention drawn by sinks of the tower", "share of attention"),
    "sink_decoder": ("attention drawn by sinks of the decoder", "share of attention"),
    "attribution": ("direct attribution", "answer"),
    "knockout": ("lost without the head", "answer"),
    "regression": ("worth by regression", "answer"),
}


class HeadsTable(pd.DataFrame):
    """A DataFrame with a row a head, which :meth:`show` draws.

    Each column is a mean over examples, with its 95 % interval (``_low, _high``). What is measured of an answer is one
    number: the logit of the right token less that of a wrong one (another example's answer; of pairs the corrupt
    picture's). Positive ``attribution``, ``knockout`` and ``regression`` mean that the head helps.

    ================  =============================================================================================
    part              columns
    ================  =============================================================================================
    ``attention``     ``image, gate, text``: shares of the query rows' attention; ``entropy`` of these rows (nats)
    ``localisation``  ``object``: of the attention on the picture, the share in the mask of the object asked about;
                      ``object_chance``: of an even map
    ``sinks``         ``sink``: attention of all later rows that goes to positions which draw 0.3 of it or more (Gu et
                      al. 2024); ``sink_tower, sink_decoder``: to those whose norm is large from the tower, or grows
                      in the decoder (:func:`gatelens.measures.heads.sink_origins`)
    ``attribution``   what it writes towards the answer directly (:func:`gatelens.attribute`)
    ``knockout``      what is lost when its output ``z`` is replaced
    ``regression``    its weight in a ridge regression of the answer on random subsets of heads (arXiv 2509.17588)
    ``vocabulary``    ``writes``: the tokens its OV circuit writes for the mean value of chosen positions
    ================  =============================================================================================

    ``.attrs`` hold what is true of the whole table: ``quantity``, ``n`` (examples), ``r2`` and ``r2_held_out`` of the
    regression, and ``sinks``, the positions that draw attention (as records; :attr:`sinks` is a table of them).
    """

    @property
    def _constructor(self) -> Callable[..., HeadsTable]:
        return HeadsTable

    @property
    def sinks(self) -> pd.DataFrame:
        """Positions that draw attention, one row an example and position; empty without the part ``sinks``."""
        return pd.DataFrame(self.attrs.get("sinks", []))

    def show(self, column: str = "knockout", title: str = "", dark: bool = False) -> Figure:
        """One column as a heat map of layers and heads.

        Raises:
            DataError: no such column of numbers, or rows of the table are missing.
        """
        numbers = [str(c) for c in self.select_dtypes("number") if not str(c).endswith(("_low", "_high"))]
        known = [name for name in numbers if name not in ("layer", "head")]
        if column not in known:
            raise DataError(
                f"show({shown(column)}): the columns are {', '.join(known)}{did_you_mean(str(column), known)}"
            )
        cells = pd.DataFrame(self).pivot(index="layer", columns="head", values=column)
        if cells.isna().all(axis=None):
            raise DataError(f"show({column!r}): no head has a number there")
        rows, columns_ = ([str(i) for i in axis] for axis in (cells.index, cells.columns))
        heading, unit = HEADINGS.get(column, (column, column))
        values = cells.to_numpy(dtype=float)
        return value_figure(
            grid=Grid(values, rows, columns_, "layer", "head"),
            title=title or f"{heading}, mean of {self.attrs.get('n', 'some')} examples",
            unit=self.attrs.get("quantity", "logit") if unit == "answer" else unit,
            signed=bool((values < 0).any()),
            dark=dark,
        )


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
    ridge: float = 1.0,
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
        parts: which; None is all that the data allow (``localisation`` needs masks). ``knockout`` costs a run a head
            and batch, ``regression`` a run a subset.
        n, task, seed, queries: which examples are drawn; the rows whose attention is looked at.
        ablate_at, ablate_with: where ``z`` is replaced, by its ``mean`` over all these positions or ``zero``.
        subsets, fraction, ridge: of the regression: how many subsets (None: twice the heads, 64 at least), the share of
            heads left out in each, the penalty.
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
        settings.subsets = _subsets(model, subsets, fraction, seed)
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
    chosen = known if parts is None else [parts] if isinstance(parts, str) else list(parts)
    for one in chosen:
        if one not in known:
            raise InputError(
                f"part {shown(one)}: the parts are {', '.join(known)}{did_you_mean(str(one), known)}"
            )
    if not chosen:
        raise InputError(f"parts is empty: name some of {', '.join(known)}")
    return [one for one in known if one in chosen]


def _subsets(model: HookedVLM, number: int | None, fraction: float, seed: int) -> Tensor:
    """Bool[subset, layer, head]: which heads are kept in each run."""
    n_layers, n_heads = int(model.cfg.n_layers), int(model.cfg.n_heads)
    number = (
        max(64, 2 * n_layers * n_heads) if number is None else as_count(number, "subsets", 10, InputError)
    )
    if not isinstance(fraction, float) or not 0 < fraction < 1:
        raise InputError(f"fraction={shown(fraction)}: give the share of heads left out, between 0 and 1")
    drawn = torch.rand(number, n_layers, n_heads, generator=torch.Generator().manual_seed(seed))
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
    with tqdm(total=len(asked), desc="heads", unit="example", disable=not progress) as bar:
        for batch in batches(model, asked, queries):
            for part in chosen:
                if part == "vocabulary":
                    writing.add(batch)
                    continue
                bar.set_postfix_str(part)
                for name, values in OF_BATCH[part](batch, settings).items():
                    made.setdefault(name, []).append(values)
            bar.update(len(batch.asked))
    return {name: torch.cat(values) for name, values in made.items()}


def _summary(made: Columns, settings: Settings, ridge: float, n_layers: int, n_heads: int) -> HeadsTable:
    """Mean and interval of each column for each head; examples without a number are left out of it."""
    attrs: dict[str, Any] = {"sinks": settings.sinks} if "sink" in made else {}
    if settings.subsets is not None:
        fit = subset_regression(settings.subsets.flatten(1), torch.cat(settings.subset_values, 1), ridge)
        made = {**made, "regression": fit.worth.float().view(-1, n_layers, n_heads)}
        attrs |= {"r2": fit.r2, "r2_held_out": fit.held_out}
    heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    table: dict[str, list[Any]] = {
        "layer": [layer for layer, _ in heads],
        "head": [head for _, head in heads],
    }
    for name, values in made.items():
        found = [_mean(values[:, layer, head].double().numpy()) for layer, head in heads]
        for suffix, numbers in zip(("", "_low", "_high"), zip(*found, strict=True), strict=True):
            table[name + suffix] = list(numbers)
    summary = HeadsTable(table)
    summary.attrs |= attrs
    return summary


def _mean(values: Any) -> tuple[float, float, float]:
    values = values[~pd.isna(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    return float(values.mean()), *mean_interval(values, None)
