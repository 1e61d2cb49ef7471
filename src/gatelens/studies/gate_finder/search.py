"""The order of the search: four measures, blocks of the picture before single positions, then growing sets.

The section proceeds in rounds: where the input varies; the unmodified model, and blocks of the picture; single
positions of the blocks that matter; the order in which they are cut jointly; the share that sets of growing size
take; and the chosen set layer by layer. :func:`gatelens.studies.find_gate` says what each step is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from gatelens.data import Example
from gatelens.measures.concentration import (
    label_information,
    naming_p_value,
    set_sizes,
    smallest_carrying,
)
from gatelens.measures.overlap import overlap_by_chance
from gatelens.measures.stats import bootstrap_interval, summary
from gatelens.model import HookedVLM
from gatelens.plots.card import Card
from gatelens.runs import Run
from gatelens.studies.examples import Labels, labels_of
from gatelens.studies.gate_finder.cards import search_cards
from gatelens.studies.gate_finder.measurements import (
    CACHE,
    PART,
    AttentionReceived,
    ClassOverlap,
    CleanAnswers,
    CutAnswers,
    CutOrder,
    PatchedAnswers,
    PlacedPrompts,
    VaryingInputs,
)
from gatelens.studies.gate_finder.places import Layout, find_places
from gatelens.studies.gate_finder.result import SearchResult
from gatelens.studies.gate_finder.verdict import LEAST_WORTH, gate_verdict
from gatelens.studies.options import (
    AtLeastOne,
    Count,
    CountsExamples,
    Examples,
    Options,
    Says,
    kinds_of_knockout,
)
from gatelens.studies.section import Absent, Batch, Measured, Section, Setup, Tables

NAME = "finder"
FEWEST = 20  # examples
OVERLAP_LAYERS = 8  # at which the overlap is measured, at most
MATTERS = 0.02  # of the whole effect: what a block must be worth to be taken apart, a place to carry anything
FINE_SIZES = 128  # sets up to this size are all measured, larger ones in steps of a quarter
MEASURE_COLUMNS = ["place", "measure", "mean", "low", "high", "n", "layer"]


class FinderOptions(Options):
    """How finely the positions are searched."""

    n: Annotated[
        int | None,
        Field(ge=0, description="Examples of the task class. Default: all that are drawn."),
        Says("a whole number, 0 or more"),
        CountsExamples(),
    ] = None
    n_pairs: Annotated[Examples, Field(description="Pairs of examples for patching.")] = 48
    refine: Annotated[Count, Field(description="Blocks of the picture taken apart, at most.")] = 16
    block: Annotated[
        AtLeastOne | None,
        Field(description="Positions in a block. Default: the square root of the picture's."),
    ] = None
    narrow: Annotated[AtLeastOne, Field(description="Positions of a narrow gate, at most.")] = 4
    k: Annotated[
        AtLeastOne | None,
        Field(description="Neighbours of the overlap. Default: 30, or one less than a class has."),
    ] = None


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


@dataclass(frozen=True)
class Question:
    """The examples searched, and the tokens of their right answers.

    Attributes:
        examples: all have the same prompt.
        tokens: first tokens of the class names, each once.
        labels: the right one of each example, as a number into ``tokens``.
        halves: numbers of the examples that choose sets, and of those that judge them.
    """

    examples: Sequence[Example]
    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    halves: tuple[list[int], list[int]]

    @classmethod
    def of(cls, setup: Setup) -> Question:
        """Raises Absent where data or class names cannot be searched."""
        options = setup.sections[NAME]
        examples = [e for _, drawn in setup.examples("class")[:1] for e in drawn[: options.n]]
        reason = why_not(examples)
        if reason is not None:
            raise Absent(f"data {setup.data.name!r} {reason}")
        known, names = Labels(setup.model), [labels_of(e)[0] for e in examples]
        ids = [known.first_token(e.prompt, name) for e, name in zip(examples, names, strict=True)]
        tokens = sorted(set(ids))
        if len(tokens) < 2:
            raise Absent(
                f"the class names {', '.join(sorted(set(names))[:3])} begin with the same token, so that no answer "
                "tells them apart; give classes whose names begin differently"
            )
        n = len(examples)
        order = np.random.default_rng([setup.options.seed, 5]).permutation(n).tolist()
        halves = (sorted(order[: n // 2]), sorted(order[n // 2 :]))
        return cls(examples, tuple(tokens), tuple(tokens.index(i) for i in ids), halves)

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.examples)

    @property
    def chance(self) -> float:
        """Probability of the right answer by guessing."""
        return 1 / len(self.tokens)

    def pairs(self, n_pairs: int, seed: int) -> dict[int, int]:
        """For the first examples another of a different class."""
        rng, labels = np.random.default_rng([seed, 77]), np.array(self.labels)
        return {i: int(rng.choice(np.flatnonzero(labels != labels[i]))) for i in range(min(n_pairs, self.n))}


class Search:
    """One search, as far as it is measured: the batches of each round, and what is read off their tables."""

    def __init__(self, setup: Setup, measured: Measured) -> None:
        self.setup, self.measured = setup, measured
        self.options, self.seed, self.n_boot = (
            setup.sections[NAME],
            setup.options.seed,
            setup.options.n_boot,
        )
        self.hows = kinds_of_knockout(setup.options.how)
        self.question = Question.of(setup)
        self.pairs = self.question.pairs(self.options.n_pairs, self.seed)

    # -- batches

    def parts(self, half: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
        """``(number, examples)`` of the batches of one half, or of all."""
        halves = [self.setup.batched(numbers) for numbers in self.question.halves]
        parts = [(h, tuple(numbers)) for h, one in enumerate(halves) for _, _, numbers in one]
        return [(i, numbers) for i, (h, numbers) in enumerate(parts) if half in (None, h)]

    def _placed(self, numbers: Iterable[int]) -> dict[str, Any]:
        """What every batch of placed prompts holds."""
        q, chosen = self.question, tuple(numbers)
        return {
            "numbers": chosen,
            "examples": [q.examples[i] for i in chosen],
            "places": self.layout.places,
            "answers": tuple(q.tokens[q.labels[i]] for i in chosen),
        }

    def _cut(self, step: str, sets: Sequence[Sequence[int]], half: int | None = None) -> list[Batch]:
        """Sets of places cut under every kind of knockout."""
        return [batch for how in self.hows for batch in self._cut_by(how, step, sets, half)]

    def _cut_by(
        self,
        how: Any,
        step: str,
        sets: Sequence[Sequence[int]],
        half: int | None = None,
        spare: Sequence[int] = (),
    ) -> list[Batch]:
        return [
            CutAnswers(
                f"{step}-{how}-{i:02d}", **self._placed(numbers), how=how, sets=sets, spare=tuple(spare),
                units=len(sets),
            )
            for i, numbers in self.parts(half)
        ]  # fmt: skip

    def _patched(
        self, step: str, sets: Sequence[Sequence[int]], layers: Sequence[int | None] = ()
    ) -> list[Batch]:
        """Sets of places patched, in every pair of examples."""
        batches: list[Batch] = []
        for i, numbers in self.parts():
            paired = [number for number in numbers if number in self.pairs]
            if paired:
                sources = [self.question.examples[self.pairs[number]] for number in paired]
                batches.append(
                    PatchedAnswers(
                        f"{step}-patched-{i:02d}", **self._placed(paired), sources=sources, sets=sets, layers=layers,
                        units=len(sets),
                    )
                )  # fmt: skip
        return batches

    # -- rounds

    def inputs(self) -> list[Batch]:
        """Where the input varies."""
        examples, parts = self.question.examples, self.parts()
        first = parts[0][1][0]
        return [
            VaryingInputs(
                f"inputs-{i:02d}", numbers, [examples[n] for n in numbers], None if i == 0 else examples[first]
            )
            for i, numbers in parts
        ]  # fmt: skip

    def first_look(self) -> list[Batch]:
        """The unmodified model, the whole picture cut, and blocks of it."""
        work: list[Batch] = []
        for i, numbers in self.parts():
            placed = self._placed(numbers)
            work.append(CleanAnswers(f"clean-{i:02d}", **placed, tokens=self.question.tokens))
            work.append(AttentionReceived(f"attention-{i:02d}", **placed))
        work += self._cut("floor", [self.layout.picture])
        work += self._overlap()
        work += self._cut("blocks", self.blocks)
        return work + self._patched("blocks", self.blocks)

    def _overlap(self) -> list[Batch]:
        n_layers, n_places = self.setup.n_layers, len(self.layout.places)
        steps = np.linspace(0, n_layers - 1, min(n_layers, OVERLAP_LAYERS))
        layers = sorted({round(x) for x in steps})
        group = max(1, CACHE // (self.question.n * n_places * int(self.setup.model.cfg.d_model)))
        parts = [PlacedPrompts(f"{i:02d}", **self._placed(numbers)) for i, numbers in self.parts()]
        return [
            ClassOverlap(
                f"overlap-{layers[at]:03d}", parts, self.question.labels, tuple(layers[at : at + group]), self.k
            )
            for at in range(0, len(layers), group)
        ]  # fmt: skip

    def single_places(self) -> list[Batch]:
        """Places of the blocks that matter, and all after the picture, one by one."""
        sets = [[p] for p in self.singles]
        return [*self._cut("singles", sets), *self._patched("singles", sets)] if sets else []

    def orders(self) -> list[Batch]:
        """The order in which places are cut jointly, found on one half of the examples."""
        chosen, _ = self.question.halves
        parts = [PlacedPrompts(f"{i:02d}", **self._placed(numbers)) for i, numbers in self.parts(0)]
        candidates = tuple(sorted({*self.apart, *self.carrying}))
        clean = tuple(self.probability("clean")[chosen].tolist())
        return [
            CutOrder(
                f"order-{how}", parts, how, clean, tuple(self.probability(f"floor-{how}")[chosen].tolist()),
                self.question.chance, candidates, tuple(self.carrying), self.limit,
                units=1 + self.limit * len(candidates),
            )
            for how in self.hows
        ]  # fmt: skip

    def growing_sets(self) -> list[Batch]:
        """What sets of growing size leave, on the other half of the examples."""
        work: list[Batch] = []
        for how in self.hows:
            order = self.order(how)
            work += self._cut_by(how, "path", [order[:size] for size in _sizes(order)], 1)
        return work

    def chosen_set(self) -> list[Batch]:
        """The chosen set patched in all layers together and in each, and what passes around it when it alone reads
        on."""
        sets = [self.chosen] * (self.setup.n_layers + 1)
        others = [p for p in self.layout.picture if p not in self.chosen]
        work = self._patched("layers", sets, [None, *range(self.setup.n_layers)])
        return work + self._cut_by(self.hows[0], "around", [others], spare=self.chosen)

    # -- what is read off the tables

    @cached_property
    def layout(self) -> Layout:
        """The candidates."""
        return find_places(self.measured.table("positions"), self.question.n)

    @property
    def blocks(self) -> list[list[int]]:
        """The picture in pieces."""
        return self.layout.blocks(self.options.block)

    @property
    def limit(self) -> int:
        """Positions of a narrow set, at most."""
        return max(1, min(self.options.narrow, len(self.layout.picture) // 8))

    @property
    def k(self) -> int:
        """Neighbours of the overlap."""
        return self.options.k or max(1, min(30, round(self.question.n / len(self.question.tokens)) - 1))

    def outcome(self, step: str, column: str = "log_prob") -> np.ndarray:
        """Of the first set of a step, by example."""
        table = self.measured.table("outcomes", f"{step}-")
        return table[table.set == 0].sort_values("example")[column].to_numpy()

    def probability(self, step: str) -> np.ndarray:
        """Of the right answer by example: an accuracy that lucky hits do not make jump."""
        return np.exp(self.outcome(step))

    def whole_drop(self, how: str) -> float:
        """Nats lost with the whole picture cut; never 0, as it is divided by."""
        return max(float((self.outcome("clean") - self.outcome(f"floor-{how}")).mean()), 1e-9)

    def drops(self, step: str, firsts: Sequence[int], has: np.ndarray | None = None) -> pd.DataFrame:
        """``place, measure, example, value, layer``: what is lost of accuracy and log-probability under each set.

        ``firsts``: the place that names each set; ``has``: only examples that have this place.
        """
        tables = []
        for how in self.hows:
            cut = self.measured.table("outcomes", f"{step}-{how}-").sort_values(["set", "example"])
            place = np.array(firsts)[cut.set]
            kept = slice(None) if has is None else has[cut.example, place]
            for column, name in (("right", "accuracy"), ("log_prob", "log_prob")):
                value = self.outcome("clean", column)[cut.example] - cut[column]
                table = pd.DataFrame(
                    {"place": place, "measure": f"{how} {name}", "value": value, "layer": -1}
                )
                tables.append(table[kept])
        return pd.concat(tables, ignore_index=True)

    def moves(self, step: str, firsts: Sequence[int]) -> pd.DataFrame:
        """The same of flipped answers, and of the gain of overlap, under each set that was patched."""
        moved = self.measured.table("moved", f"{step}-")
        if moved.empty:
            return pd.DataFrame({"place": [], "measure": [], "value": [], "layer": []})
        moved = moved.sort_values(["set", "example"])
        table = pd.DataFrame({"place": np.array(firsts)[moved.set], "set": moved.set, "layer": -1})
        flips = table.assign(measure="flipped", value=moved.flipped)[moved.flippable]
        gains = table.assign(measure="target overlap", value=moved.gain)
        return pd.concat([flips, gains], ignore_index=True)

    def summary(self, values: pd.DataFrame) -> pd.DataFrame:
        """``place, measure, mean, low, high, n, layer``."""
        by = ["place", "measure", "layer"]
        table = summary(values, by, "value", None, n_boot=self.n_boot, seed=self.seed)
        return table[MEASURE_COLUMNS].astype({"place": int, "layer": int})

    @cached_property
    def block_table(self) -> pd.DataFrame:
        """Each block knocked out and patched as a whole: the measures' columns, and the block's ``last`` place."""
        firsts = [block[0] for block in self.blocks]
        table = self.summary(pd.concat([self.drops("blocks", firsts), self.moves("blocks", firsts)]))
        return table.assign(last=table.place.map({block[0]: block[-1] for block in self.blocks}))

    @cached_property
    def strongest(self) -> list[list[int]]:
        """The blocks whose places are measured one by one, strongest first."""
        whole = {f"{how} log_prob": self.whole_drop(how) for how in self.hows} | {"target overlap": 1.0}
        table = self.block_table[(self.block_table.low > 0) & self.block_table.measure.isin(whole)]
        size = table["mean"] / table.measure.map(whole)
        strength = size[size >= MATTERS].groupby(table.place, sort=False).max()
        order = strength.sort_values(ascending=False, kind="stable").index[: self.options.refine]
        by_first = {block[0]: block for block in self.blocks}
        return [by_first[p] for p in order]

    @property
    def apart(self) -> list[int]:
        """The places of these blocks."""
        return sorted(p for block in self.strongest for p in block)

    @property
    def singles(self) -> list[int]:
        """The places measured one by one."""
        return sorted({*self.apart, *self.layout.after})

    @cached_property
    def carrying(self) -> list[int]:
        """Places after the picture that carry something of it, by their patching."""
        moves = self.moves("singles", self.singles)
        gains = moves[(moves.measure == "target overlap") & moves.place.isin(self.layout.after)]
        table = self.summary(gains)
        return table.place[(table.low > 0) & (table["mean"] >= MATTERS)].tolist()

    def order(self, how: str) -> list[int]:
        """All places that are cut, in the order in which they are."""
        first = self.measured[f"order-{how}"]["order"].place.tolist()
        apart = set(self.apart)
        return [*first, *(p for block in self.blocks for p in block if p not in apart)]

    @cached_property
    def curves_and_sets(self) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
        """The share that sets of each size take, and by kind of knockout the smallest that takes enough."""
        judge, sets, curves = self.question.halves[1], {}, []
        none = self.probability("clean")[judge]
        for how in self.hows:
            order, floor = self.order(how), self.probability(f"floor-{how}")[judge]
            sizes = _sizes(order)
            outcomes = self.measured.table("outcomes", f"path-{how}-")
            left = np.exp(outcomes.pivot(index="set", columns="example", values="log_prob").to_numpy())
            path = dict(zip(sizes, left, strict=True))
            settings = (self.question.chance, PART, self.n_boot, self.seed)
            one = smallest_carrying(none, floor, path, *settings)
            shares = [smallest_carrying(none, floor, {size: path[size]}, *settings) for size in sizes]
            curve = {"share": "share", "low": "share_low", "high": "share_high"}
            table = {column: [getattr(share, name) for share in shares] for column, name in curve.items()}
            added = [order[size - 1] for size in sizes]
            curves.append(pd.DataFrame({"how": how, "size": sizes, **table, "added": added}))
            sets[how] = {**vars(one), "places": order[: one.size or 0], "damage": self.damage(how)}
        return pd.concat(curves, ignore_index=True), sets

    def damage(self, how: str) -> list[int]:
        """Places after the picture that carry nothing of it, and still hurt when they are cut."""
        drops = self.drops("singles", self.singles, self.layout.has)
        lost = drops[drops.measure == f"{how} log_prob"].groupby("place").value.mean()
        least = MATTERS * self.whole_drop(how)
        return [p for p in self.layout.after if p not in self.carrying and lost[p] > least]

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every place and measure."""
        singles = []
        if self.singles:
            singles = [
                self.drops("singles", self.singles, self.layout.has),
                self.moves("singles", self.singles),
            ]
        return self.summary(pd.concat([self._attention(), self._class_overlap(), *singles]))

    def _attention(self) -> pd.DataFrame:
        table = self.measured.table("attention").sort_values(["place", "example"])
        total = self.measured.table("layers").groupby(["place", "layer"]).total.sum().unstack()
        table = table.rename(columns={"share": "value"})
        return table.assign(measure="attention", layer=table.place.map(total.idxmax(axis=1)))

    def _class_overlap(self) -> pd.DataFrame:
        table = self.measured.table("overlap")
        if table.empty:
            return table
        mean = table.groupby(["place", "layer"]).value.mean().unstack()
        return table[table.layer == table.place.map(mean.idxmax(axis=1))].assign(measure="overlap")

    @cached_property
    def worth(self) -> dict[str, Any]:
        """What the picture is worth: probability above the floor, and information about the label."""
        q = self.question
        none, floor = self.probability("clean"), self.probability(f"floor-{self.hows[0]}")
        logs = self.measured.table("labels").sort_values("example").drop(columns="example").to_numpy()
        labels = np.array(q.labels)
        information = label_information(logs, labels)
        low, high = bootstrap_interval(information, self.n_boot, self.seed)
        least = max(float(floor.mean()), q.chance)
        above = float(none.mean()) - least
        worth = bootstrap_interval(none - floor, self.n_boot, self.seed)
        return {
            "chance": q.chance, "accuracy": float(self.outcome("clean", "right").mean()),
            "probability": float(none.mean()), "floor": least, "worth": above, "worth_low": min(worth[0], above),
            "worth_high": worth[1], "information": float(information.mean()), "information_low": low,
            "information_high": high, "naming_p": naming_p_value(logs, labels, seed=self.seed),
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

    def layers(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The chosen set patched in each layer (a table) and in all; and what passes around it."""
        moves = self.moves("layers", [0] * (self.setup.n_layers + 1))
        facts: dict[str, Any] = {"patched": self.chosen}
        joint = moves[(moves.set == 0) & (moves.measure == "flipped")] if len(moves) else moves
        if len(joint):
            row = self.summary(joint).iloc[0]
            facts |= {f"joint_{name}": float(row[name]) for name in ("mean", "low", "high")}
        table = pd.DataFrame(columns=MEASURE_COLUMNS)
        if len(moves):
            single = moves[moves.set > 0]
            table = self.summary(single.assign(layer=single.set - 1))
        drop = self.outcome("clean", "right") - self.outcome(f"around-{self.hows[0]}", "right")
        low, high = bootstrap_interval(drop, self.n_boot, self.seed)
        facts |= {"around": float(drop.mean()), "around_low": low, "around_high": high}
        return table[["measure", "layer", "mean", "low", "high", "n"]], facts


def _sizes(order: Sequence[int]) -> list[int]:
    return set_sizes(len(order), every=FINE_SIZES)


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """All rounds that can be planned from what is measured.

    Raises:
        Absent: the data or the model's answers cannot be searched.
    """
    search = Search(setup, measured)
    work: list[Batch] = []
    for plan in (
        search.inputs, search.first_look, search.single_places, search.orders, search.growing_sets, search.chosen_set,
    ):  # fmt: skip
        work += plan()
        if any(batch.name not in measured for batch in work):
            break
    return work


def measure(model: HookedVLM, batch: Any) -> Tables:
    """The tables of one batch, each of its own kind."""
    return batch.measure(model)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """The search's tables and its verdict: see :class:`~gatelens.studies.gate_finder.result.SearchResult`."""
    search = Search(setup, measured)
    question, layout = search.question, search.layout
    curves, sets = search.curves_and_sets
    layers, confirmed = search.layers()
    told = {name: setup.run.settings[name] for name in ("data", "weights", "examples", "n_boot")}
    settings = {
        **told, "n": question.n, "n_pairs": search.options.n_pairs, "how": list(search.hows), "seed": search.seed,
        "narrow": search.limit, "k": search.k, "overlap_by_chance": overlap_by_chance(torch.tensor(question.labels)),
        "n_picture": len(layout.picture), "n_after": len(layout.after), "block": len(search.blocks[0]),
        "taken_apart": len(search.strongest), "part": PART, **search.worth, **confirmed, "gate": list(layout.gate),
    }  # fmt: skip
    verdict = gate_verdict(layout.places, search.measures, sets, settings)
    result = SearchResult(
        setup.run.settings["model"], question.examples[0].prompt, layout.places, search.measures, search.block_table,
        curves, layers, settings, verdict,
    )  # fmt: skip
    return result.stored()


def page(run: Run) -> list[Card]:
    """The positions and what they carry."""
    return search_cards(SearchResult.from_run(run), "gate", "The positions and what they carry")


SECTION = Section(
    NAME,
    "which positions carry the picture, told by what they do and not by name",
    batches,
    measure,
    conclude,
    FinderOptions,
    page=page,
)
