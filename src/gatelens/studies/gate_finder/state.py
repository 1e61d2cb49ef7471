"""A search for a gate as far as it is measured: what its tables say, from which the next round is planned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from gatelens.data import Example
from gatelens.examples import Labels, labels_of
from gatelens.measures.concentration import (
    label_information,
    naming_p_value,
    set_sizes,
    share_by_example,
    smallest_carrying,
)
from gatelens.measures.stats import CHANGE, SHARE, Bounds, mean_interval, summary
from gatelens.studies.gate_finder.measurements import PART
from gatelens.studies.gate_finder.order import OrderSearch
from gatelens.studies.gate_finder.places import Layout, find_places
from gatelens.studies.gate_finder.result import LOST, TAKEN
from gatelens.studies.gate_finder.verdict import LEAST_WORTH
from gatelens.studies.options import kinds_of_knockout
from gatelens.studies.section import Absent, Measured, Setup

FEWEST = 20  # examples
MATTERS = 0.02  # of the whole effect: what a block must be worth to be taken apart, a place to carry anything
FINE_SIZES = 128  # sets up to this size are all measured, larger ones in steps of a quarter
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
    """The least and the most an example can score in a measure; None where it is no score."""
    return SHARE if measure == "flipped" else CHANGE if measure.endswith("accuracy") else None


class SearchState:
    """One search as far as it is measured.

    Attributes:
        hows: kinds of knockout; the first decides.
        examples: all have the same prompt.
        tokens: first tokens of the class names, each once; ``chance`` is to guess the right one.
        labels: the right one of each example, as a number into ``tokens``.
        k: neighbours of the overlap.
        halves: numbers of the examples that choose sets, and of those that judge them.
        pairs: for the first examples another of a different class.

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
        known, names = Labels(setup.model), [labels_of(e)[0] for e in self.examples]
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
        self._orders: dict[str, tuple[list[int] | None, list[list[tuple[int, ...]]]]] = {}
        self.halves = (sorted(order[: n // 2]), sorted(order[n // 2 :]))
        rng = np.random.default_rng([seed, 77])
        self.pairs = {
            i: int(rng.choice(np.flatnonzero(self.labels != self.labels[i])))
            for i in range(min(self.options.n_pairs, n))
        }

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

    def drops(self, step: str, sets: Sequence[Sequence[int]], all_examples: bool = False) -> pd.DataFrame:
        """``place, measure, value, layer, example``: what is lost of accuracy and log-probability under each set.

        A set is named by its first place; without ``all_examples`` only those count that have it.
        """
        tables = []
        for how in self.hows:
            cut = self.measured.table("answers", f"{step}-{how}-").sort_values(["set", "example"])
            place = np.array([one[0] for one in sets])[cut.set]
            kept = self.layout.has[cut.example, place] | all_examples
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

    # -- blocks and single places

    @cached_property
    def block_table(self) -> pd.DataFrame:
        """Each block knocked out and patched as a whole: the measures' columns, and the block's ``last`` place."""
        drops = self.drops("blocks", self.blocks, all_examples=True)
        table = self.summary(drops, *self.moves("blocks", self.blocks))
        return table.assign(last=table.place.map({block[0]: block[-1] for block in self.blocks}))

    @cached_property
    def strongest(self) -> list[list[int]]:
        """The blocks whose places are measured one by one, strongest first."""
        whole = {f"{how} log_prob": self.whole_drop(how) for how in self.hows} | {"target overlap": 1.0}
        table = self.block_table[(self.block_table.low > 0) & self.block_table.measure.isin(whole)]
        size = table["mean"] / table.measure.map(whole).astype(float)  # of no row, a column of words
        strength = size[size >= MATTERS].groupby(table.place, sort=False).max()
        order = strength.sort_values(ascending=False, kind="stable").index[: self.options.refine]
        by_first = {block[0]: block for block in self.blocks}
        return [by_first[p] for p in order]

    @property
    def apart(self) -> list[int]:
        """The places of these blocks."""
        return sorted(p for block in self.strongest for p in block)

    @property
    def singles(self) -> list[list[int]]:
        """The places measured one by one, each as a set."""
        return [[p] for p in sorted({*self.apart, *self.layout.after})]

    @cached_property
    def carrying(self) -> list[int]:
        """Places after the picture that carry something of it, by their patching."""
        gains = [t[t.place.isin(self.layout.after)] for t in self.moves("singles", self.singles)[1:]]
        table = self.summary(*gains)
        return table.place[(table.low > 0) & (table["mean"] >= MATTERS)].tolist()

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
        return self.summary(attention, overlap, *drops, *self.moves("singles", self.singles))

    # -- sets

    @staticmethod
    def question(how: str, number: int) -> str:
        """The step that answers a question of the search for an order."""
        return f"order-{how}-{number:02d}"

    def questions(self, how: str) -> list[list[tuple[int, ...]]]:
        """The sets that were asked at once to find the order, and those that are to be asked next."""
        return self._ordered(how)[1]

    def _ordered(self, how: str) -> tuple[list[int] | None, list[list[tuple[int, ...]]]]:
        """The order as far as it is found (else None), and its questions."""
        if how not in self._orders:
            half = self.halves[0]
            clean, floor = (self.probability(step)[half] for step in ("clean", f"floor-{how}"))
            singles = sorted({*self.apart, *self.carrying})
            answers = partial(self._answers, how)
            search = OrderSearch(answers, clean, floor, self.chance, singles, self.carrying, self.limit)
            self._orders[how] = (search.order(), search.questions)
        return self._orders[how]

    def _answers(self, how: str, number: int) -> np.ndarray | None:
        table = self.measured.table("answers", f"{self.question(how, number)}-")
        if table.empty:
            return None
        return table.pivot(index="set", columns="example", values="log_prob").to_numpy()

    def order(self, how: str) -> list[int]:
        """All places that are cut, in the order in which they are."""
        first, _ = self._ordered(how)
        assert first is not None  # asked once all is measured
        return [*first, *(p for block in self.blocks if block not in self.strongest for p in block)]

    def growing(self, how: str) -> list[list[int]]:
        """The sets on the way, each larger than the one before."""
        order = self.order(how)
        return [order[:size] for size in set_sizes(len(order), every=FINE_SIZES)]

    @cached_property
    def curves_and_sets(self) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
        """The share that sets of each size take, and by kind of knockout the smallest that takes enough."""
        judge, options, curves = self.halves[1], self.setup.options, []
        sets: dict[str, dict[str, Any]] = {}
        none = self.probability("clean")[judge]
        for how in self.hows:
            floor = self.probability(f"floor-{how}")[judge]
            answers = self.measured.table("answers", f"path-{how}-")
            left = np.exp(answers.pivot(index="set", columns="example", values="log_prob").to_numpy())
            grown = self.growing(how)
            settings = (self.chance, PART, options.n_boot, options.seed)
            for one, row in zip(grown, left, strict=True):
                share = smallest_carrying(none, floor, {len(one): row}, *settings)
                curves.append((how, len(one), share.share, share.share_low, share.share_high, one[-1]))
            path = {len(one): row for one, row in zip(grown, left, strict=True)}
            smallest = smallest_carrying(none, floor, path, *settings)
            places = self.order(how)[: smallest.size or 0]
            sets[how] = {**vars(smallest), "places": places, "damage": self._damage(how)}
        return pd.DataFrame(curves, columns=["how", "size", "share", "low", "high", "added"]), sets

    @cached_property
    def by_example(self) -> pd.DataFrame:
        """``how, what, number, id, value``: accuracy lost with a place after the picture, and the share that a set of
        1, 2, 4, … positions takes (:func:`~gatelens.measures.concentration.share_by_example`)."""
        judge, parts = self.halves[1], []
        drops = self.drops("singles", self.singles) if self.singles else pd.DataFrame()
        for how in self.hows:
            if len(drops):
                lost = drops[(drops.measure == f"{how} accuracy") & drops.place.isin(self.layout.after)]
                parts.append(lost.assign(how=how, what=LOST, number=lost.place))
            none, floor = (self.probability(step)[judge] for step in ("clean", f"floor-{how}"))
            answers = self.measured.table("answers", f"path-{how}-")
            left = np.exp(answers.pivot(index="set", columns="example", values="log_prob").to_numpy())
            for one, row in zip(self.growing(how), left, strict=True):
                if len(one).bit_count() == 1:
                    value = share_by_example(none, row, floor, self.chance)
                    columns = {
                        "how": how,
                        "what": TAKEN,
                        "number": len(one),
                        "example": judge,
                        "value": value,
                    }
                    parts.append(pd.DataFrame(columns))
        table = pd.concat(parts, ignore_index=True)
        table["id"] = [self.examples[i].id for i in table.example]
        return table[["how", "what", "number", "id", "value"]].dropna().astype({"value": "float32"})

    def _damage(self, how: str) -> list[int]:
        """Places after the picture that carry nothing of it, and still hurt when they are cut."""
        others = [p for p in self.layout.after if p not in self.carrying]
        if not others:
            return []
        drops = self.drops("singles", self.singles)
        lost = drops[drops.measure == f"{how} log_prob"].groupby("place").value.mean()
        return [p for p in others if lost[p] > MATTERS * self.whole_drop(how)]

    @cached_property
    def worth(self) -> dict[str, Any]:
        """What the picture is worth: probability above the floor, and information about the label."""
        none, floor = self.probability("clean"), self.probability(f"floor-{self.hows[0]}")
        logs = np.stack([self.answer("clean", str(c)) for c in range(len(self.tokens))], axis=1)
        information = label_information(logs, self.labels)
        low, high = self.interval(information, None)
        least = max(float(floor.mean()), self.chance)
        above, (worth_low, worth_high) = float(none.mean()) - least, self.interval(none - floor, CHANGE)
        return {
            "chance": self.chance, "accuracy": float(self.answer("clean", "right").mean()),
            "probability": float(none.mean()), "floor": least, "worth": above,
            "worth_low": min(worth_low, above), "worth_high": worth_high,
            "information": float(information.mean()), "information_low": low, "information_high": high,
            "naming_p": naming_p_value(logs, self.labels, seed=self.setup.options.seed),
        }  # fmt: skip

    @cached_property
    def chosen(self) -> list[int]:
        """The narrow set that carries enough; else the place whose patching moves most."""
        _, sets = self.curves_and_sets
        places = sets[self.hows[0]]["places"] if self.worth["worth"] >= LEAST_WORTH else []
        if places and len(places) <= self.limit:
            return list(places)
        gains = self.measures[self.measures.measure == "target overlap"]
        return [self.layout.picture[0] if gains.empty else int(gains.place[gains["mean"].idxmax()])]

    def confirmed(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The chosen set patched in each layer (a table) and in all, and what passes around it when it alone reads."""
        moves = self.moves("layers", [self.chosen] * (self.setup.n_layers + 1))
        facts: dict[str, Any] = {"patched": self.chosen}
        for row in self.summary(*(t[t.set == 0] for t in moves[:1])).to_dict("records"):
            facts |= {f"joint_{name}": row[name] for name in ("mean", "low", "high")}
        layers = self.summary(*(t[t.set > 0].assign(layer=t.set - 1) for t in moves))
        drop = self.answer("clean", "right") - self.answer(f"around-{self.hows[0]}", "right")
        low, high = self.interval(drop, CHANGE)
        facts |= {"around": float(drop.mean()), "around_low": low, "around_high": high}
        return layers[["measure", "layer", "mean", "low", "high", "n"]], facts
