"""A search for a gate as far as it is measured: what its tables say of blocks and single places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gatelens.data import Example
from gatelens.examples import Labels, labels_of
from gatelens.measures.stats import CHANGE, SHARE, Bounds, mean_interval, summary
from gatelens.studies.gate_finder.carriers import QUESTIONS, Carriers, judge, likely
from gatelens.studies.gate_finder.places import Layout, find_places
from gatelens.studies.gate_finder.spliced import asked_of
from gatelens.studies.options import kinds_of_knockout
from gatelens.studies.section import Absent, Measured, Setup

FEWEST = 20  # examples
MATTERS = 0.02  # of the whole effect: what a place must be worth to carry anything
COLUMNS = ["place", "measure", "mean", "low", "high", "n", "layer"]


def why_not(examples: Sequence[Example]) -> str | None:
    """Why these examples cannot be searched, in words that go on after the name of their data; None if they can."""
    prompts = sorted({e.prompt for e in examples})
    if not prompts:
        return "has no task class"
    if len(prompts) > 1:
        return f"asks {len(prompts)} prompts ({prompts[0]!r}, {prompts[1]!r}, …), and places are those of one prompt"
    if len(examples) < FEWEST:
        return f"gives {len(examples)} examples of the task class, {FEWEST} are needed"
    if len({labels_of(e)[0] for e in examples}) < 2:
        return "has examples of one class alone, and two are needed"
    return None


def bounds_of(measure: str) -> Bounds | None:
    """The minimum and maximum of an example's score in a measure; None where it is not a score."""
    return {"flipped": SHARE, "kept": CHANGE}.get(measure, CHANGE if measure.endswith("accuracy") else None)


class PlacesState:
    """The places of one search as far as they are measured.

    Attributes:
        hows: kinds of knockout; the first says what the picture is worth.
        examples: all have the same prompt.
        tokens: first tokens of the class names, each once; ``chance`` is to guess the right one.
        labels: the right one of each example, as a number into ``tokens``.
        k: neighbours of the overlap.
        halves: numbers of the examples that choose sets, and of those that judge them.
        partners: for each example another of a different class with a picture of the same size; ``second_partners``
            are others, where there are. An example without one has none.

    Raises:
        Absent: data or class names cannot be searched.
    """

    def __init__(self, name: str, setup: Setup, measured: Measured) -> None:
        self.setup, self.measured = setup, measured
        self.options: Any = setup.section_options[name]
        self.hows = kinds_of_knockout(setup.options.how)
        self.examples = [e for _, drawn in setup.examples("class")[:1] for e in drawn[: self.options.n]]
        reason = why_not(self.examples)
        if reason is not None:
            raise Absent(f"data {setup.data.name!r} {reason}")
        known, names = Labels(setup.model, any_word=True), [labels_of(e)[0] for e in self.examples]
        ids = [known.first_token(e.prompt, label) for e, label in zip(self.examples, names, strict=True)]
        self.tokens = tuple(sorted(set(ids)))
        if len(self.tokens) < 2:
            raise Absent(
                f"the class names {', '.join(sorted(set(names))[:3])} begin with the same token, so that no answer "
                "tells them apart; give classes whose names begin differently"
            )
        self.labels = np.array([self.tokens.index(i) for i in ids])
        n, seed = len(self.examples), setup.options.seed
        self.chance = 1 / len(self.tokens)
        self.k = self.options.k or max(1, min(30, round(n / len(self.tokens)) - 1))
        order = np.random.default_rng([seed, 5]).permutation(n).tolist()
        self.halves = (sorted(order[: n // 2]), sorted(order[n // 2 :]))

    @cached_property
    def layout(self) -> Layout:
        """The candidates."""
        return find_places(self.measured.table("positions"), len(self.examples))

    @property
    def blocks(self) -> list[list[int]]:
        """The picture in pieces."""
        return self.layout.blocks(self.options.block)

    @property
    def limit(self) -> int:
        """Positions of a narrow set, at most."""
        return max(1, min(self.options.narrow, len(self.layout.picture) // 8))

    # -- answers under knockouts

    def answer(self, step: str, column: str = "log_prob") -> np.ndarray:
        """Of the first set of a step, by example."""
        table = self.measured.table("answers", f"{step}-")
        return table[table.set == 0].sort_values("example")[column].to_numpy()

    def probability(self, step: str) -> np.ndarray:
        """Of the right answer by example: an accuracy that lucky hits do not make jump."""
        return np.exp(self.answer(step))

    def whole_drop(self, how: str) -> float:
        """Nats lost with the whole picture cut; never 0, as it is divided by."""
        return max(float((self.answer("clean") - self.answer(f"floor-{how}")).mean()), 1e-9)

    def drops(self, step: str, sets: Sequence[Sequence[int]]) -> pd.DataFrame:
        """``place, measure, value, layer, example``: what is lost of accuracy and log-probability under each set.

        A set is named by its first place; only examples count that have it.
        """
        tables = []
        for how in self.hows:
            cut = self.measured.table("answers", f"{step}-{how}-").sort_values(["set", "example"])
            place = np.array([one[0] for one in sets])[cut.set]
            kept = self.layout.has[cut.example, place]
            for column, name in (("right", "accuracy"), ("log_prob", "log_prob")):
                lost = self.answer("clean", column)[cut.example] - cut[column]
                table = pd.DataFrame({"place": place, "value": lost, "layer": -1, "example": cut.example})
                tables.append(table.assign(measure=f"{how} {name}")[kept])
        return pd.concat(tables, ignore_index=True)

    def moves(self, step: str, sets: Sequence[Sequence[int]]) -> list[pd.DataFrame]:
        """The same of flipped answers and of the gain of overlap, with the ``set``; nothing where none was patched."""
        moved = self.measured.table("moved", f"{step}-")
        if moved.empty:
            return []
        moved = moved.sort_values(["set", "example"])
        place = np.array([one[0] for one in sets])[moved.set]
        table = pd.DataFrame({"place": place, "set": moved.set, "layer": -1})
        flips = table.assign(measure="flipped", value=moved.flipped)[moved.flippable]
        return [flips, table.assign(measure="target overlap", value=moved.gain)]

    def summary(self, *values: pd.DataFrame) -> pd.DataFrame:
        """``place, measure, mean, low, high, n, layer``."""
        filled = [table for table in values if len(table)]
        if not filled:
            return pd.DataFrame(columns=COLUMNS)
        by, options = ["place", "measure", "layer"], self.setup.options
        tables = [
            summary(
                part, by, "value", None, bounds=bounds_of(measure), n_boot=options.n_boot, seed=options.seed
            )
            for measure, part in pd.concat(filled).groupby("measure", sort=False)
        ]
        return pd.concat(tables, ignore_index=True)[COLUMNS]

    def interval(self, values: np.ndarray, bounds: Bounds | None) -> tuple[float, float]:
        """Of a mean over examples."""
        options = self.setup.options
        return mean_interval(values, bounds, n_boot=options.n_boot, seed=options.seed)

    # -- partners, blocks and single places

    @cached_property
    def partners(self) -> dict[int, int]:
        return {number: chosen[0] for number, chosen in self._partners.items()}

    @cached_property
    def second_partners(self) -> dict[int, int]:
        return {number: chosen[-1] for number, chosen in self._partners.items()}

    @cached_property
    def _partners(self) -> dict[int, list[int]]:
        rng, has = np.random.default_rng([self.setup.options.seed, 77]), self.layout.has
        chosen = {}
        for number, label in enumerate(self.labels):
            fitting = np.flatnonzero((self.labels != label) & (has == has[number]).all(1))
            if len(fitting):
                chosen[number] = rng.permutation(fitting)[:2].tolist()
        if len(chosen) < FEWEST:
            raise Absent(
                f"{len(chosen)} of {len(self.labels)} examples have another of a different class whose picture is of "
                f"the same size, {FEWEST} are needed; give pictures of one size, or more examples"
            )
        return chosen

    @property
    def blocks_and_words(self) -> list[list[int]]:
        """The players of the first look."""
        return [*self.blocks, *([p] for p in self.layout.after)]

    @cached_property
    def first_look(self) -> Carriers:
        """What blocks and words add."""
        return judge(asked_of(self.measured.table("added", "blocks-")))

    @cached_property
    def block_table(self) -> pd.DataFrame:
        """What each block adds, as a share of what all do: the measures' columns, and the block's ``last`` place."""
        asked = asked_of(self.measured.table("added", "blocks-"))
        values = (asked.added / max(float(asked.whole.mean()), 1e-9)).numpy()
        rows = []
        for number, block in enumerate(self.blocks):
            for question, measure in enumerate(QUESTIONS):
                value = values[question, number]
                rows.append(
                    (block[0], measure, value.mean(), *self.interval(value, None), len(value), -1, block[-1])
                )
        return pd.DataFrame(rows, columns=[*COLUMNS, "last"])

    @cached_property
    def strongest(self) -> list[list[int]]:
        """The blocks whose places are measured one by one, strongest first."""
        seen = likely(asked_of(self.measured.table("added", "blocks-")))
        order = sorted(seen, key=lambda player: -self.first_look.strength[player])
        return [self.blocks[b] for b in order if b < len(self.blocks)][: self.options.refine]

    @property
    def apart(self) -> list[int]:
        """The places of these blocks."""
        return sorted(p for block in self.strongest for p in block)

    @property
    def singles(self) -> list[list[int]]:
        """The places measured one by one, each as a set."""
        return [[p] for p in sorted({*self.apart, *self.layout.after})]

    @property
    def single_players(self) -> tuple[list[list[int]], list[int]]:
        """The players of the second look, and the numbers of those that are asked: the single places."""
        players = [*self.singles, *(block for block in self.blocks if block not in self.strongest)]
        return players, list(range(len(self.singles)))

    @cached_property
    def carrying(self) -> list[int]:
        """Places after the picture that carry something of it: taken they move the answer, or kept they bring it."""
        table = self.summary(*self.spliced()[1:])
        sure = table.place.isin(self.layout.after) & (table.low > 0) & (table["mean"] >= MATTERS)
        return sorted({int(p) for p in table.place[sure]})

    def spliced(self) -> list[pd.DataFrame]:
        """``place, measure, value, layer`` of single places: flipped answers and gain of overlap where each is the
        partner's, and the gain of the own answer where it alone keeps its own."""
        table = self.measured.table("spliced", "singles-")
        if table.empty:
            return []
        table = table.sort_values(["set", "example"])
        nothing = table[table.kept & (table.set == 0)].set_index("example").score
        table = table[table.set > 0]
        table = table.assign(place=np.array([one[0] for one in self.singles])[table.set - 1], layer=-1)
        table = table[self.layout.has[table.example, table.place]]
        taken, kept = table[~table.kept], table[table.kept]
        flips = taken[taken.flippable].assign(measure="flipped", value=lambda t: t.flipped)
        gains = taken.assign(measure="target overlap", value=lambda t: t.gain)
        return [flips, gains, kept.assign(measure="kept", value=kept.score - kept.example.map(nothing))]

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every place and measure."""
        attention = self.measured.table("attention").sort_values(["place", "example"])
        total = self.measured.table("layers").groupby(["place", "layer"]).total.sum().unstack()
        attention = attention.assign(measure="attention", layer=attention.place.map(total.idxmax(axis=1)))
        overlap = self.measured.table("overlap")
        if len(overlap):
            mean = overlap.groupby(["place", "layer"]).value.mean().unstack()
            best = overlap.layer == overlap.place.map(mean.idxmax(axis=1))
            overlap = overlap[best].assign(measure="overlap")
        drops = [self.drops("singles", self.singles)] if self.singles else []
        return self.summary(attention, overlap, *drops, *self.spliced())
