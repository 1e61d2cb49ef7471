"""``gl.bench.score``: a method on many plants, compared with their truth; and the table of it."""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from transformer_lens.hook_points import HookPoint

from gatelens.bench.cases import (
    Case,
    Method,
    MethodError,
    Rule,
    Task,
    Truth,
    compare,
    counted,
    read,
    set_f1,
    task_of,
)
from gatelens.bench.checks import N_PICTURES, SPLITS, plant
from gatelens.bench.declared import KINDS
from gatelens.errors import DataError, InputError, shown, whole_number
from gatelens.executors import executing
from gatelens.identity import content_fingerprint
from gatelens.measures.stats import SHARE, summary, wilson_interval
from gatelens.model import HookedVLM
from gatelens.units import Done, Unit, measured, numbered, opened

BENCH = "bench"  # what its folder calls the study, and the only section
SHARES = ("f1", "exact", "covered", "precision", "on_decoy", "false_gate")
AMOUNTS = ("size_error", "passes", "seconds")
ALL = "all"  # the row of the table for every kind together
GIVEN = "given"  # what a result calls the split where cases were given
Makes: TypeAlias = Callable[[], Case]


@dataclass(frozen=True, eq=False)
class BenchResult:
    """What methods found on plants.

    Attributes:
        split, n: the plants.
        pictures: of a question; None where cases were given.
        found: one row a method and question: ``method, plant, question, kind, family, layout, carriers, decoys,
            candidates, scores, positions, low, high, passes, seconds``. ``positions`` is None where a rule makes the
            set of the scores, ``low`` and ``high`` are NaN without an interval; ``seconds`` are of CPU time.
        rules: by method, the rule.

    Example:
        >>> def right(model, task):
        ...     return gl.bench.Prediction(torch.zeros(task.inputs.tokens.n_pos), positions=[35])
        >>> result = gl.bench.score(right, plants={"mine": lambda: plant}, progress=False)
        >>> result.cases[["f1", "exact"]].values.tolist()
        [[1.0, 1.0]]
    """

    split: str
    n: int
    pictures: int | None
    found: pd.DataFrame
    rules: Mapping[str, Rule]

    @property
    def cases(self) -> pd.DataFrame:
        """One row a method and question, with the measures of :func:`gatelens.bench.cases.compare`."""
        rows = []
        for row in self.found.itertuples():
            scores = np.asarray(row.scores, dtype=float)
            positions = row.positions
            if positions is None:
                positions = self.rules[row.method].positions(scores, list(row.candidates))
            size = None if np.isnan(row.low) else (row.low, row.high)
            rows.append(compare(_truth(row), scores, list(positions), size))
        kept = ["method", "plant", "question", "kind", "family", "layout", "passes", "seconds"]
        sizes = self.found.carriers.map(len).rename("size")
        return pd.concat([self.found[kept], sizes, pd.DataFrame(rows, index=self.found.index)], axis=1)

    @property
    def table(self) -> pd.DataFrame:
        """``method, kind, measure, mean, low, high, n``: means over questions with 95 % intervals, and of all kinds."""
        cases = self.cases
        tables = []
        for kind, part in [(ALL, cases), *cases.groupby("kind", sort=False)]:
            for measure in (*SHARES, *AMOUNTS):
                some = part[part[measure].notna()]
                if len(some):
                    bounds = SHARE if measure in SHARES else None
                    one = summary(some, ["method"], measure, ["plant", "question"], bounds=bounds)
                    tables.append(one.assign(kind=kind, measure=measure))
        table = pd.concat(tables, ignore_index=True)
        return table[["method", "kind", "measure", "mean", "low", "high", "n"]]

    def wide(self, measure: str = "f1") -> pd.DataFrame:
        """One measure, methods down and kinds across, as ``mean [low, high]``."""
        part = self.table[self.table.measure == measure]
        said = [f"{r.mean:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in part.itertuples()]
        kinds = in_order(part.kind)
        table = part.assign(said=said).pivot(index="method", columns="kind", values="said")
        return table.reindex(index=list(dict.fromkeys(part.method)), columns=kinds).fillna("")

    def overview(self) -> pd.DataFrame:
        """One row a method: every measure over all kinds."""
        part = self.table[self.table.kind == ALL]
        digits = {"passes": 1, "size_error": 1, "seconds": 1}
        said = [f"{r.mean:.{digits.get(r.measure, 2)}f}" for r in part.itertuples()]
        table = part.assign(said=said).pivot(index="method", columns="measure", values="said")
        columns = [name for name in (*SHARES, *AMOUNTS) if name in table]
        return table.reindex(index=list(dict.fromkeys(part.method)), columns=columns).fillna("")

    def false_gates(self) -> str:
        """A line a method: of how many questions without a carrier it gives a set, with a 95 % (Wilson) interval."""
        part = self.cases.dropna(subset="false_gate").groupby("method", sort=False).false_gate
        lines = []
        for method, given in part:
            wrong = int(given.sum())
            low, high = wilson_interval(wrong, len(given))
            rate = f"{100 * given.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append(f"{method}: {wrong} of {len(given)}, {rate}")
        return "\n".join(lines)

    def __str__(self) -> str:
        cases = self.found.drop_duplicates(["plant", "question"])
        parts = [
            f"{cases['plant'].nunique()} plants of split {self.split}, {len(cases)} questions",
            self.overview().to_string(),
            f"F1 of the set by kind\n{self.wide().to_string()}",
        ]
        false_gates = self.false_gates()
        if false_gates:
            parts.append(f"A set given where nothing carries\n{false_gates}")
        return "\n\n".join(parts)

    __repr__ = __str__

    def tuned(self) -> dict[str, Rule]:
        """For each method that left its sets to a rule, the one with the highest mean F1 on these plants."""
        rules: dict[str, Rule] = {}
        for name, part in self.found[self.found.positions.isna()].groupby("method"):
            tops = [float(np.max(scores)) for scores in part.scores]
            floors = [
                0.0,
                *np.quantile([top for top in tops if top > 0] or [0.0], np.linspace(0.02, 0.5, 25)),
            ]
            options = [Rule(float(s), float(f)) for f in floors for s in np.linspace(0.05, 0.95, 19)]
            rules[str(name)] = max(options, key=partial(_mean_f1, part))
        return rules

    def with_rules(self, rules: Mapping[str, Rule]) -> BenchResult:
        """The same scores, read by other rules."""
        return BenchResult(self.split, self.n, self.pictures, self.found, {**self.rules, **rules})


def in_order(kinds: Iterable[str]) -> list[str]:
    """Each kind once: all together, then those of plants, then one's own."""
    there = dict.fromkeys(kinds)
    return [kind for kind in dict.fromkeys((ALL, *KINDS, *there)) if kind in there]


def _truth(row: Any) -> Truth:
    return Truth(list(row.carriers), list(row.decoys), list(row.candidates))


def _mean_f1(part: pd.DataFrame, rule: Rule) -> float:
    values = []
    for row in part.itertuples():
        chosen = rule.positions(np.asarray(row.scores), list(row.candidates))
        values.append(set_f1(set(row.carriers), set(chosen)))
    return float(np.mean(values))


def score(
    method: Method | Mapping[str, Method],
    plants: int | Sequence[int] | Mapping[str, Makes] = 64,
    split: str = "dev",
    *,
    rules: Mapping[str, Rule] | None = None,
    pictures: int = N_PICTURES,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> BenchResult:
    """Measure how well methods find the positions that carry the picture to the answer.

    Args:
        method: a function of a model and a :class:`~gatelens.bench.cases.Task` that gives a score for every position,
            Float[pos], or by layer, Float[layer, pos]; or a :class:`~gatelens.bench.cases.Prediction`, which may name
            the set and an interval of its size. Or several, by name.
        plants: how many, or their numbers; or your own cases: by name, functions that make a
            :class:`~gatelens.bench.cases.Case` each.
        split: ``"dev"``, to develop and tune a method, or ``"heldout"``, to report it.
        rules: by method, how scores become a set where it names none; by default those of at least half the highest.
        pictures: of a question.
        out: a folder that keeps what is measured; the same call resumes there.
        workers: the number of processes.

    Raises:
        MethodError: a method raised, or gave something that cannot be scored; names plant and method.
        InputError: no such split or numbers.
        OutputError: ``out`` can't be written or holds other methods or plants.

    Example:
        >>> later = lambda model, task: torch.arange(task.inputs.tokens.n_pos)  # a score for each position
        >>> gl.bench.score(later, {"mine": lambda: plant}, progress=False).cases.exact.tolist()
        [0.0]
    """
    named = dict(method) if isinstance(method, Mapping) else {getattr(method, "__name__", "method"): method}
    for name, one in named.items():
        if not callable(one):
            raise InputError(f"method {name!r} is {shown(one)}: give a function of a model and a task")
    if not named:
        raise InputError("no method is given: give at least one")
    if split not in SPLITS:
        raise InputError(f"split={shown(split)}: give {' or '.join(map(repr, SPLITS))}")
    own = isinstance(plants, Mapping)
    makes = _makes(plants, split, pictures)
    settings = {
        "split": GIVEN if own else split,
        "plants": {k: content_fingerprint(v) for k, v in makes.items()} if own else [*map(int, makes)],
        "pictures": None if own else pictures,
        "methods": {name: content_fingerprint(one) for name, one in named.items()},
    }
    units = [Unit(name, len(named), partial(_measure, named, make)) for name, make in makes.items()]
    with executing(workers) as executor, opened(out, BENCH, lambda: settings) as run:
        tables = measured(run, BENCH, units, progress, (f"{split} plants", "method"), executor)
        found = pd.concat([one["found"] for one in tables], ignore_index=True)
        own_rules = {name: Rule() for name in named} | {k: r for k, r in (rules or {}).items() if k in named}
        result = BenchResult(GIVEN if own else split, len(makes), None if own else pictures, found, own_rules)
        run.save("cases", result.cases)
        run.save("table", result.table)
    return result


def _makes(plants: Any, split: str, pictures: int) -> dict[str, Makes]:
    """What makes each case, by its name."""
    if isinstance(plants, Mapping):
        return dict(plants)
    whole = whole_number(plants)
    numbers = list(range(whole)) if whole is not None else plants
    if not isinstance(numbers, list | tuple | range) or not numbers:
        raise InputError(f"plants={shown(plants)}: give how many, or a list of their numbers")
    makes: dict[str, Makes] = {}
    for number in numbers:
        makes[numbered(number)] = partial(plant, split, number, pictures)
    return makes


def _measure(methods: Mapping[str, Method], make: Makes, done: Done) -> dict[str, pd.DataFrame]:
    """All methods on one plant: ``found``, see :class:`BenchResult`."""
    case = make()
    rows = []
    for question in case.questions:
        task = task_of(case, question)
        decoys = sorted({p for places in question.decoys.values() for p in places})
        shared = {
            "plant": case.name, "question": question.name, "kind": case.kind, "family": case.family,
            "layout": case.layout, "carriers": list(question.carriers), "decoys": decoys,
            "candidates": list(question.candidates),
        }  # fmt: skip
        for name, method in methods.items():
            try:
                rows.append({"method": name, **shared, **_found(method, case.model, task)})
            except MethodError as error:
                raise MethodError(f"method {name!r} on plant {task.name!r} {error}") from error.__cause__
    done(len(methods))
    return {"found": pd.DataFrame(rows)}


def _found(method: Method, model: HookedVLM, task: Task) -> dict[str, Any]:
    """What one method found, and what it cost in passes over all examples."""
    n_layers = int(model.cfg.n_layers)
    started = time.process_time()
    with _left_as_it_was(model), counted(model.hf.get_decoder().layers) as count:
        try:
            given = method(model, task)
        except Exception as error:
            line = " ".join(str(error).split())
            raise MethodError(f"raised {type(error).__name__}: {line}") from error
    seconds = time.process_time() - started
    one = read(given, task, n_layers)
    low, high = one.size or (float("nan"), float("nan"))
    whole = len(task.held) * task.inputs.tokens.n_pos * n_layers
    return {
        "scores": list(one.scores), "positions": one.positions, "low": float(low), "high": float(high),
        "passes": count["rows"] / whole, "seconds": seconds,
    }  # fmt: skip


@contextmanager
def _left_as_it_was(model: HookedVLM) -> Iterator[None]:
    """Refuse a method that leaves hooks or other weights: what comes after it would measure another model.

    Raises:
        MethodError: says which.
    """
    before = _hooks(model), _weights(model)
    yield
    left = _hooks(model) - before[0]
    if left:
        raise MethodError(
            f"left {left} hook{'s' * (left > 1)} on the model: remove them, even when it raises"
        )
    if not torch.equal(before[1], _weights(model)):
        raise MethodError("changed the model's weights: put them back, or work on a copy")


def _hooks(model: HookedVLM) -> int:
    """Hooks on hook points and, of others than the toolkit's own, on modules."""
    count = 0
    for module in model.modules():
        count += len(getattr(module, "fwd_hooks", ())) + len(getattr(module, "bwd_hooks", ()))
        if not isinstance(module, HookPoint):
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            count += sum(not _ours(hook) for hook in hooks)
    return count


def _ours(hook: Any) -> bool:
    name = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return name.partition(".")[0] in ("gatelens", "transformer_lens")


@torch.no_grad()
def _weights(model: HookedVLM) -> torch.Tensor:
    """Numbers that are other ones for other weights."""
    sums = [torch.stack([w.double().sum(), w.double().square().sum()]) for w in model.hf.parameters()]
    return torch.stack(sums)


def method_of(path: str | os.PathLike[str]) -> Method:
    """The function ``method`` of a Python file.

    Raises:
        DataError: no such file, it cannot be run, or it has no such function.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"there is no file {str(file)!r}; give a Python file with a function method(model, task)"
        )
    try:
        found = runpy.run_path(str(file)).get("method")
    except (Exception, SystemExit) as error:
        line = " ".join(str(error).split())
        raise DataError(f"{str(file)!r} cannot be run: {type(error).__name__}: {line}") from error
    if not callable(found):
        raise DataError(f"{str(file)!r} has no function named method: define method(model, task)")
    return found
