"""A search for a gate as far as it is measured: which sets of places carry the picture."""

from __future__ import annotations

from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.concentration import (
    label_information,
    naming_p_value,
    set_sizes,
    share_by_example,
    share_removed,
    smallest_carrying,
)
from gatelens.measures.stats import CHANGE
from gatelens.studies.gate_finder.carriers import PART, Carriers, judge
from gatelens.studies.gate_finder.result import LOST, TAKEN
from gatelens.studies.gate_finder.spliced import asked_of
from gatelens.studies.gate_finder.state import MATTERS, PlacesState
from gatelens.studies.gate_finder.verdict import LEAST_WORTH, RESAMPLE

STRONGEST = 6  # places of which all sets are tried
FINE_SIZES = 128  # sets up to this size are all measured, larger ones in steps of a quarter


class SearchState(PlacesState):
    """One search as far as it is measured."""

    @cached_property
    def second_look(self) -> Carriers | None:
        """What single places add; None where none were asked."""
        return judge(asked_of(self.measured.table("added", "again-"))) if self.singles else None

    def together(self) -> dict[str, list[int]]:
        """Of several chosen places those that can replace others, and those that need others."""
        look = self.second_look
        if look is None or len(self.chosen) < 2:
            return {"redundant": [], "complementary": []}
        kinds = {"redundant": look.redundant, "complementary": look.complementary}
        places = {kind: [self.singles[p][0] for p in players] for kind, players in kinds.items()}
        return {kind: [p for p in some if p in self.chosen] for kind, some in places.items()}

    @cached_property
    def ranked(self) -> list[int]:
        """The single places, those that add most first; the places of other blocks after them."""
        strength: dict[int, float] = {}
        if self.second_look is not None:
            values = self.second_look.strength.tolist()
            strength = {one[0]: value for one, value in zip(self.singles, values, strict=True)}
        single = [p for p in strength if p in self.apart or p in self.carrying]
        blocks = sorted(
            (number for number, block in enumerate(self.blocks) if block not in self.strongest),
            key=lambda number: -self.first_look.strength[number],
        )
        rest = [p for number in blocks for p in self.blocks[number]]
        return [*sorted(single, key=lambda p: -strength[p]), *rest]

    @property
    def small_sets(self) -> list[tuple[int, ...]]:
        """All sets of the strongest places, smaller ones first."""
        top = [p for p in self.ranked if [p] in self.singles][:STRONGEST]
        return [one for size in range(1, len(top) + 1) for one in combinations(top, size)]

    @cached_property
    def order(self) -> list[int]:
        """All places that can carry: those of the smallest set that is enough first."""
        table = self.scores("small")
        first: tuple[int, ...] = ()
        if table is not None:
            full, left, empty = table
            share = share_removed(full, left, empty)
            sizes = np.array([len(one) for one in self.small_sets])
            enough = np.flatnonzero(share >= PART)
            if len(enough):
                first = self.small_sets[max(enough, key=lambda i: (-sizes[i], share[i]))]
        return [*first, *(p for p in self.ranked if p not in first)]

    @cached_property
    def growing(self) -> list[list[int]]:
        """The sets on the way, each larger than the one before."""
        return [self.order[:size] for size in set_sizes(len(self.order), every=FINE_SIZES)]

    def scores(self, step: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Of a step whose first set is empty: the score of the own answer with nothing taken, with each of the other
        sets taken, and with nothing kept; [set,] example.

        What a set leaves is the mean of the score without it and of what it lacks when it alone is kept, so that a set
        must be enough and be needed.
        """
        table = self.measured.table("spliced", f"{step}-")
        if table.empty:
            return None
        kept, taken = (
            part.pivot(index="set", columns="example", values="score").to_numpy()
            for part in (table[table.kept], table[~table.kept])
        )
        full, empty = taken[0], kept[0]
        return full, np.clip((taken[1:] + full - kept[1:] + empty) / 2, 0, 1), empty

    def paths(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
        """Scores by example of the half that judges: unmodified, with each growing set gone, with all gone; chance.

        By what being gone means: activations of another picture, which decides, or a kind of knockout.
        """
        scores, judge = self.scores("path"), self.halves[1]
        assert scores is not None  # asked once all is measured
        paths = {RESAMPLE: (*scores, 0.0)}
        for how in self.hows:
            none, floor = (self.probability(step)[judge] for step in ("clean", f"floor-{how}"))
            answers = self.measured.table("answers", f"path-{how}-")
            left = np.exp(answers.pivot(index="set", columns="example", values="log_prob").to_numpy())
            paths[how] = (none, left, floor, self.chance)
        return paths

    @cached_property
    def curves_and_sets(self) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
        """The share that sets of each size carry, and by what being gone means the smallest that carries enough."""
        options, curves = self.setup.options, []
        sets: dict[str, dict[str, Any]] = {}
        for how, (none, left, floor, chance) in self.paths().items():
            settings = (chance, PART, options.n_boot, options.seed)
            for one, row in zip(self.growing, left, strict=True):
                share = smallest_carrying(none, floor, {len(one): row}, *settings)
                curves.append((how, len(one), share.share, share.share_low, share.share_high, one[-1]))
            path = {len(one): row for one, row in zip(self.growing, left, strict=True)}
            smallest = smallest_carrying(none, floor, path, *settings)
            damage = self._damage(self.hows[0] if how == RESAMPLE else how)
            sets[how] = {
                **vars(smallest),
                "places": sorted(self.order[: smallest.size or 0]),
                "damage": damage,
            }
        return pd.DataFrame(curves, columns=["how", "size", "share", "low", "high", "added"]), sets

    @cached_property
    def by_example(self) -> pd.DataFrame:
        """``how, what, number, id, value``: accuracy lost with a place after the picture, and the share that a set of
        1, 2, 4, … positions carries (:func:`~gatelens.measures.concentration.share_by_example`)."""
        parts = []
        drops = self.drops("singles", self.singles) if self.singles else pd.DataFrame()
        for kind in self.hows if len(drops) else ():
            lost = drops[(drops.measure == f"{kind} accuracy") & drops.place.isin(self.layout.after)]
            parts.append(lost.assign(how=kind, what=LOST, number=lost.place))
        for how, (none, left, floor, chance) in self.paths().items():
            judges = [n for n in self.halves[1] if how != RESAMPLE or n in self.partners]
            for one, row in zip(self.growing, left, strict=True):
                if len(one).bit_count() == 1:
                    value = share_by_example(none, row, floor, chance)
                    columns = {
                        "how": how,
                        "what": TAKEN,
                        "number": len(one),
                        "example": judges,
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
        places = sets[RESAMPLE]["places"] if self.worth["worth"] >= LEAST_WORTH else []
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
