"""The results of a benchmark run: a page of tables, and two figures in the package's style."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from gatelens.atomic_files import check_writable, write_atomic
from gatelens.bench.scoring import ALL, BenchResult, in_order
from gatelens.measures.stats import SHARE, summary
from gatelens.plots.curve import SHARE as SHARE_AXIS
from gatelens.plots.heatmap import heat_map
from gatelens.plots.numbers import number
from gatelens.plots.style import NotebookFigure, png, styled

OWN = "find_gate"  # compared with the others at equal cost
_COLUMNS = {
    "f1": "F1", "exact": "exact", "covered": "interval covers", "precision": "average precision",
    "on_decoy": "on a decoy", "false_gate": "false gate", "passes": "passes", "seconds": "seconds",
}  # fmt: skip
_SIZES = {"none": (0, 0), "1 to 4": (1, 4), "5 to 8": (5, 8), "more": (9, 10**6)}


def write_results(result: BenchResult, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``SPLIT.md`` with its figures ``SPLIT-f1-by-kind.png`` and ``SPLIT-f1-by-passes.png`` into a folder.

    Args:
        result: of :func:`score`.
        folder: made if it is not there.

    Raises:
        OutputError: the folder can't be written.

    Example:
        >>> def later(model, task):
        ...     return torch.arange(task.inputs.tokens.n_pos).float()
        >>> result = gl.bench.score(later, plants={"mine": lambda: plant}, progress=False)
        >>> [file.name for file in gl.bench.write_results(result, folder)]
        ['given-f1-by-kind.png', 'given-f1-by-passes.png', 'given.md']
    """
    place, split = check_writable(folder), result.split
    figures = {"f1-by-kind": f1_by_kind(result), "f1-by-passes": f1_by_passes(result)}
    files = {f"{split}-{name}.png": _in_few_colors(png(figure)) for name, figure in figures.items()}
    says = ("F1 by method and kind", "F1 against forward passes, by method")
    files[f"{split}.md"] = page(result, dict(zip(files, says, strict=True))).encode()
    for name, data in files.items():
        write_atomic(place / name, data)
    return [place / name for name in files]


def _in_few_colors(data: bytes) -> bytes:
    """A PNG of a figure in a third of the bytes, which look the same."""
    small = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def page(result: BenchResult, pictures: Mapping[str, str] | None = None) -> str:
    """All tables of a result in Markdown.

    Args:
        pictures: files of figures next to the page, with what each shows.
    """
    cases = result.cases
    questions = cases.drop_duplicates(["plant", "question"])
    each = f", {result.pictures} pictures each" if result.pictures else ""
    head = (
        f"{questions.plant.nunique()} plants of the split `{result.split}`, {len(questions)} questions{each}. In "
        "brackets: 95 % intervals over questions. Passes are forward passes over all examples; seconds are of CPU time."
    )
    parts = [
        f"# GateBench: {result.split}",
        head,
        overview(result),
        *(f"![{shows}]({name})" for name, shows in (pictures or {}).items()),
    ]
    parts += ["## By size of the set", _markdown(by_size(cases))]
    parts += ["## By layout of the set", _markdown(by_layout(cases))]
    if OWN in set(cases.method):
        parts += [f"## `{OWN}` at equal cost", _EQUAL_COST, _markdown(at_equal_cost(cases))]
    if result.rules:
        parts += ["## Rules", _RULES, _markdown(_rules(result))]
    return "\n\n".join(parts) + "\n"


_EQUAL_COST = (
    f"For each kind the best of the other methods that needs no more passes there than `{OWN}`, by mean F1."
)
_RULES = "How scores became sets, for methods that give none: a share of the highest score, and a floor."


def overview(result: BenchResult) -> str:
    """One row a method, the highest F1 first."""
    table = result.table[lambda t: t.kind == ALL]
    return _markdown(_said(table, list(_COLUMNS)))


def by_size(cases: pd.DataFrame) -> pd.DataFrame:
    """F1 by the number of carriers; in the heads, the number of questions."""
    return _in_parts(cases, {name: cases["size"].between(low, high) for name, (low, high) in _SIZES.items()})


def by_layout(cases: pd.DataFrame) -> pd.DataFrame:
    """F1 of sets of several carriers that are adjacent, or not."""
    several = cases["size"] > 1
    return _in_parts(cases, {name: several & (cases.layout == name) for name in ("contiguous", "spread")})


def at_equal_cost(cases: pd.DataFrame) -> pd.DataFrame:
    """By kind, the finder and the best of the methods that need no more passes."""
    rows = []
    for kind in in_order(cases.kind):
        means = cases[cases.kind == kind].groupby("method")[["f1", "passes"]].mean()
        own = means.loc[OWN]
        others = means.drop(index=OWN)
        others = others[others.passes <= own.passes].sort_values(["f1", "passes"], ascending=[False, True])
        row = {"kind": f"`{kind}`", f"`{OWN}` F1": number(own.f1), "passes": f"{own.passes:.1f}"}
        if len(others):
            best = others.iloc[0]
            row |= {
                "best other": f"`{others.index[0]}`",
                "its F1": number(best.f1),
                "its passes": f"{best.passes:.1f}",
            }
            row["not the best"] = "behind" if best.f1 > own.f1 + 5e-3 else ""
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def f1_by_kind(result: BenchResult, dark: bool = False) -> NotebookFigure:
    """A heat map: methods down, kinds across, the mean F1 in each cell."""
    table = result.table[lambda t: t.measure == "f1"]
    methods = _by_f1(table)
    order = in_order(table.kind)
    drawn = table.assign(method=pd.Categorical(table.method, methods), kind=pd.Categorical(table.kind, order))
    return heat_map(
        drawn,
        rows="method",
        columns="kind",
        title=f"F1 of the set of carriers, split {result.split}",
        dark=dark,
    )


def f1_by_passes(result: BenchResult, dark: bool = False) -> NotebookFigure:
    """F1 against forward passes over all examples, a numbered point a method, with 95 % intervals of F1."""
    table = result.table[lambda t: t.kind == ALL]
    f1 = table[table.measure == "f1"].set_index("method").loc[_by_f1(table)]
    passes = table[table.measure == "passes"].set_index("method")["mean"].reindex(f1.index).clip(lower=0.5)
    with styled(dark) as p:
        figure = NotebookFigure(figsize=(7.4, 4.0), layout="constrained")
        axes, names = figure.subplots(1, 2, width_ratios=(3.4, 1))
        names.axis("off")
        for number_, (name, row) in enumerate(f1.iterrows(), 1):
            color = p.gate if name == OWN else p.image
            sides = [[row["mean"] - row.low], [row.high - row["mean"]]]
            axes.errorbar(
                passes[name], row["mean"], yerr=sides, fmt="o", color=color, markersize=5, elinewidth=1
            )
            at = {"textcoords": "offset points", "fontsize": 8, "color": color}
            axes.annotate(str(number_), (passes[name], row["mean"]), xytext=(5, 3), **at)
            height = 1 - (number_ - 0.5) / max(len(f1), 12)
            names.text(
                0, height, f"{number_}", fontsize=8, color=color, ha="right", transform=names.transAxes
            )
            names.text(0.08, height, str(name), fontsize=8, color=color, transform=names.transAxes)
        low, high = float(passes.min()) / 1.3, float(passes.max()) * 1.3
        axes.set_xscale("log", base=2)
        ticks = [2.0**i for i in range(-1, 12) if low <= 2.0**i <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlim=(low, high), ylim=SHARE_AXIS)
        axes.set(xlabel="forward passes over all examples", ylabel="F1 of the set of carriers")
        axes.set_title(f"F1 against cost, split {result.split}")
    return figure


def _in_parts(cases: pd.DataFrame, parts: dict[str, pd.Series]) -> pd.DataFrame:
    """F1 of parts of the questions; a part without questions is left out."""
    columns = {}
    for name, chosen in parts.items():
        some = cases[chosen]
        if len(some):
            one = summary(some, ["method"], "f1", ["plant", "question"], bounds=SHARE)
            head = f"{name} ({len(some.drop_duplicates(['plant', 'question']))})"
            columns[head] = {f"`{r.method}`": _interval(r) for _, r in one.iterrows()}
    table = pd.DataFrame(columns).fillna("")
    order = [f"`{name}`" for name in cases.groupby("method").f1.mean().sort_values(ascending=False).index]
    return table.reindex(order).rename_axis("method").reset_index()


def _said(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    rows = []
    for name in _by_f1(table):
        part = table[table.method == name].set_index("measure")
        row = {"method": f"`{name}`"}
        for measure in (one for one in measures if one in set(table.measure)):
            there = measure in part.index
            amount = measure in ("passes", "seconds")
            said = (
                ""
                if not there
                else f"{part.loc[measure, 'mean']:.1f}"
                if amount
                else _interval(part.loc[measure])
            )
            row[_COLUMNS[measure]] = said
        rows.append(row)
    return pd.DataFrame(rows)


def _by_f1(table: pd.DataFrame) -> list[str]:
    means = table[(table.measure == "f1") & (table.kind == ALL)].set_index("method")["mean"]
    return [str(name) for name in means.sort_values(ascending=False).index]


def _interval(row: pd.Series) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _rules(result: BenchResult) -> pd.DataFrame:
    ruled = result.found[result.found.positions.isna()].method.unique()
    return pd.DataFrame(
        [
            {"method": f"`{name}`", "share": f"{rule.share:.2f}", "floor": f"{rule.floor:.3g}"}
            for name, rule in result.rules.items()
            if name in ruled
        ]
    )


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Iterator[str] | Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    heads = [str(name) for name in table.columns]
    rows = [line([str(value) for value in row]) for row in table.itertuples(index=False)]
    return "\n".join([line(heads), line(["---"] * len(heads)), *rows])
