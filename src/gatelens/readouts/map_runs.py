"""The runs of a map: pairs of one length together, each such unit kept when it is whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from gatelens.data import Pair
from gatelens.engine import last_logits
from gatelens.engine.grid import measure_points
from gatelens.engine.plan import Specs
from gatelens.engine.stacked_runs import compile_for
from gatelens.errors import InputError
from gatelens.executors import Executor
from gatelens.interventions import Intervention
from gatelens.measures.logits import Metric
from gatelens.model import HookedVLM
from gatelens.readouts.map_axes import Axis, PatchedPrompts
from gatelens.readouts.map_metrics import MapMetric
from gatelens.readouts.prompt_pairs import Side, in_parts, masks_of, same_places, sides
from gatelens.runs import Run
from gatelens.tokens import TokenMap
from gatelens.units import Done, Unit, measured, numbered

# clean and corrupt metrics that are nearer than this share of the larger one have no difference to restore
SAME = 0.01
PAIRS_AT_ONCE, POSITIONS_AT_ONCE = (
    8,
    2048,
)  # of pairs that are run together: long prompts fill a pass by themselves
# a row of numbers per pair, and the words of these pairs at positions of the axes
Measured: TypeAlias = tuple[Float[np.ndarray, "pair number"], pd.DataFrame]
Part: TypeAlias = Sequence[int]  # numbers of the pairs that are run together
NO_WORDS = pd.DataFrame({"position": pd.Series(dtype=int), "word": pd.Series(dtype=str)})


class PairRuns(NamedTuple):
    """What is run of some pairs: the prompts that are patched, and the cells, None where none has such a place."""

    base: Side
    metric: Metric
    prompts: PatchedPrompts
    cells: list[Any]
    where: list[str]


class MapWork:
    """The runs of a map, in units of some pairs.

    Attributes:
        at_once: how many pairs at most.
        tokens, axes: of the first pair's prompt that is patched, which positions are labelled by.
    """

    most = PAIRS_AT_ONCE

    def __init__(
        self,
        model: HookedVLM,
        source: HookedVLM,
        metric: MapMetric,
        map_axes: Any,
        denoising: bool,
        chat: bool,
        pairs: Sequence[Pair],
    ) -> None:
        self.model, self.source, self.metric, self.map_axes = model, source, metric, map_axes
        self.denoising, self.chat, self.pairs = denoising, chat, pairs
        first = sides(model, pairs[:1], chat)
        self.tokens: TokenMap = first[1 if denoising else 0].tokens
        self.at_once = max(1, min(self.most, POSITIONS_AT_ONCE // self.tokens.n_pos))
        self.axes: list[Axis] = map_axes.axes(self.tokens)
        self.n_cells = math.prod(len(axis.choices) for axis in self.axes)
        self.words: list[set[str]] = [set() for _ in range(self.tokens.n_pos)]

    def run(self, run: Run, progress: bool, executor: Executor) -> Float[np.ndarray, "pair number"]:
        """A row per pair: the metric of its clean run, its corrupt run, and of every cell (NaN without one)."""
        ends = self.ends(run, progress, executor)
        cells = [[part] for part in in_parts(self.model, self.pairs, self.at_once)]
        found = self.measured(run, "cells", self.n_cells, cells, self._cells, progress, run.study, executor)
        return np.concatenate([ends, found], axis=1)

    def ends(self, run: Run, progress: bool, executor: Executor) -> Float[np.ndarray, "pair 2"]:
        """The metric of the clean and the corrupt run of each pair.

        They are one unit, so that pairs that prove impossible leave nothing in the folder.

        Raises:
            InputError: the two are hardly apart; all such pairs are named.
        """
        every = in_parts(self.model, self.pairs, self.at_once)
        return self.measured(
            run, "ends", 2, [every], self._ends, progress, "clean and corrupt runs", executor
        )

    def measured(
        self,
        run: Run,
        section: str,
        n: int,
        parts: Sequence[Sequence[Part]],
        measure: Callable[[Part, Done], Measured],
        progress: bool,
        words: str,
        executor: Executor,
    ) -> Float[np.ndarray, "pair n"]:
        """``n`` numbers of each pair, from the run where it has them; ``parts`` are those of each unit."""

        def tables(several: Sequence[Part], done: Done) -> dict[str, pd.DataFrame]:
            values, labels = zip(*(measure(part, done) for part in several), strict=True)
            numbers = np.concatenate(values)
            if section == "ends":
                self._check_apart(numbers, [i for part in several for i in part])
            pairs = np.repeat([i for part in several for i in part], n)
            cells = np.tile(np.arange(n), len(numbers))
            table = pd.DataFrame({"pair": pairs, "cell": cells, "value": numbers.ravel()})
            return {"values": table, "words": pd.concat(labels)}

        units = [
            Unit(numbered(i), n * sum(map(len, each)), partial(tables, each)) for i, each in enumerate(parts)
        ]
        found = np.full((len(self.pairs), n), np.nan)
        for each in measured(run, section, units, progress, (words, "run"), executor):
            values = each["values"]
            found[values["pair"], values["cell"]] = values["value"]
            for position, word in each["words"].itertuples(index=False):
                self.words[position].add(word)
        return found

    def _sides(self, part: Part) -> tuple[Side, Side, Metric]:
        """The clean and the corrupt prompts of some pairs, and their metric."""
        pairs = [self.pairs[i] for i in part]
        clean, corrupt = sides(self.model, pairs, self.chat)
        logits = None
        if self.metric.needs_clean:
            logits = last_logits(self.model, clean.inputs, [None])[0][:, None]
        return clean, corrupt, self.metric.of(pairs, part, logits)

    @torch.no_grad()
    def _ends(self, part: Part, done: Done) -> Measured:
        clean, corrupt, metric = self._sides(part)
        values = [self.values(side, [None], metric, self._called(part), done) for side in (clean, corrupt)]
        return np.concatenate(values).T, NO_WORDS

    @torch.no_grad()
    def _cells(self, part: Part, done: Done) -> Measured:
        runs = self.runs_of(part)
        found = np.full((len(part), len(runs.cells)), np.nan)
        there = [i for i, one in enumerate(runs.cells) if one is not None]
        done((len(runs.cells) - len(there)) * len(part))
        patches = [runs.cells[i].patch(runs.prompts) for i in there]
        found[:, there] = self.values(runs.base, patches, runs.metric, runs.where, done).T
        for i in there:  # some of the prompts may have no such place
            found[[not positions for positions in runs.cells[i].here], i] = np.nan
        return found, self._words(runs)

    def runs_of(self, part: Part) -> PairRuns:
        """What is run of some pairs."""
        where, pairs = self._called(part), [self.pairs[i] for i in part]
        clean, corrupt, metric = self._sides(part)
        base, given = (corrupt, clean) if self.denoising else (clean, corrupt)
        if self.source is not self.model:
            given = sides(self.source, pairs, self.chat)[0 if self.denoising else 1]
        rows = range(len(part))
        each, theirs = ([side.tokens.select([i]) for i in rows] for side in (base, given))
        places = [same_places(each[i], theirs[i], where[i]) for i in rows]
        cache = self._cache(given, {there for one in places for _, there in one})
        prompts = PatchedPrompts(
            cache,
            base.tokens,
            places,
            [self._reference(each[i], where[i]) for i in rows],
            [masks_of(pair) for pair in pairs],
            self.source is not self.model,
        )
        return PairRuns(base, metric, prompts, list(self.map_axes.cells(self.axes, prompts)), where)

    def _reference(self, tokens: TokenMap, where: str) -> dict[int, int]:
        """From positions of the axes, which are the first prompt's, to this prompt's."""
        if not self.map_axes.has_positions:
            return {}
        hint = ", or write 'role' for 'pos' in over"
        return dict(same_places(self.tokens, tokens, f"{where} and pair 0", hint))

    def _words(self, runs: PairRuns) -> pd.DataFrame:
        """The words of these prompts at the positions of the axes."""
        base, rows = runs.base.tokens, range(runs.base.tokens.batch_size)
        found = {
            (here, base.strings[i][there])
            for i in rows
            for here, there in self._reference(base.select([i]), runs.where[i]).items()
        }
        return pd.DataFrame(sorted(found), columns=NO_WORDS.columns)

    def _cache(self, side: Side, positions: Iterable[int]) -> Any:
        """The activations of the runs that cells take theirs from, at these positions."""
        hooks = compile_for(self.source, list(side.interventions), side.tokens)
        _, cache = self.source.run_with_cache(
            side.inputs, self.map_axes.cached, fwd_hooks=hooks.pairs, positions=sorted(positions)
        )
        return cache

    def values(
        self,
        side: Side,
        patches: Sequence[Intervention | None],
        metric: Metric,
        where: Sequence[str],
        done: Done = lambda n: None,
    ) -> Float[np.ndarray, "patch pair"]:
        """The metric of prompts under each patch; None is none. Raises InputError for a number that is not finite."""
        runs: list[Specs] = [[*side.interventions, *([] if one is None else [one])] for one in patches]
        name, n = "value", len(where)
        measured = measure_points(self.model, side.inputs, runs, {name: metric}, lambda k: done(k * n))
        found = np.array(measured[name]).reshape(len(patches), n)
        wrong = np.argwhere(~np.isfinite(found))
        if len(wrong):
            patch, pair = wrong[0]
            raise InputError(
                f"the metric gave {found[patch, pair]} for {where[pair]}: give one that is finite there"
            )
        return found

    def _called(self, part: Part) -> list[str]:
        return [f"pair {i} ({self.pairs[i]!r})" for i in part]

    def _check_apart(self, ends: Float[np.ndarray, "pair 2"], numbers: Sequence[int]) -> None:
        """Raise InputError, naming the pairs, where the metric hardly tells clean and corrupt apart."""
        apart = np.abs(ends[:, 0] - ends[:, 1])
        there = np.nonzero(~(apart > SAME * np.abs(ends).max(axis=1)))[0].tolist()
        alike = sorted((numbers[i], *ends[i]) for i in there)
        if alike:
            i, clean, corrupt = alike[0]
            raise InputError(
                f"the {self.metric.name} of pair {i} ({self.pairs[i]!r}) is {clean:.4g} in the clean run and "
                f"{corrupt:.4g} in the corrupt one: there is nothing to restore; leave such pairs out, "
                f"pairs.without({', '.join(str(one[0]) for one in alike)})"
            )
