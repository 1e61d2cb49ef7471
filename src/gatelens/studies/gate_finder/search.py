"""The order of the search: four measures, blocks of the picture before single positions, then growing sets.

:func:`gatelens.studies.find_gate` says what each step is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from gatelens.measures.concentration import label_information, naming_p_value
from gatelens.measures.overlap import overlap_by_chance
from gatelens.measures.stats import bootstrap_interval
from gatelens.studies.common import How, Progress
from gatelens.studies.gate_finder import verdict as gate_verdict
from gatelens.studies.gate_finder.attention import add_attention
from gatelens.studies.gate_finder.knockouts import Clean, Effects, clean_run, cut
from gatelens.studies.gate_finder.overlap import add_overlap
from gatelens.studies.gate_finder.patching import patched
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.studies.gate_finder.rows import Rows
from gatelens.studies.gate_finder.sets import PART, smallest_set
from gatelens.studies.gate_finder.setup import Setup

MATTERS = 0.02  # of the whole effect: what a block must be worth to be taken apart, a place to carry anything
STEPS = 6  # of the bar, and one a kind of knockout


@dataclass
class Search:
    """One search.

    Attributes:
        setup: what is searched.
        hows: kinds of knockout; the first decides.
        bar: stepped :data:`STEPS` times and once a kind of knockout, ``unit`` each.
    """

    setup: Setup
    hows: tuple[How, ...]
    bar: Progress
    unit: int = 1
    rows: Rows = field(init=False)
    clean: Clean = field(init=False)
    whole: dict[How, Effects] = field(init=False)

    def run(
        self, name: str, n_pairs: int, block: int | None, refine: int, narrow: int, k: int | None
    ) -> GateSearch:
        """The whole search of the model of that name."""
        setup = self.setup
        places = setup.places
        blocks = places.blocks(block)
        limit = max(1, min(narrow, len(places.picture) // 8))
        k = k or max(1, min(30, round(setup.n / len(setup.tokens)) - 1))
        self.rows = Rows(setup.n_boot, setup.seed)
        self._step("clean runs")
        self.clean = clean_run(setup)
        self.whole = {how: cut(setup, how, [places.picture]) for how in self.hows}
        facts = self._worth()
        self._step("attention")
        add_attention(setup, self.rows)
        self._step("overlap with the labels")
        add_overlap(setup, self.rows, k)
        self._step("blocks of the picture")
        block_rows = self._blocks(blocks, n_pairs)
        apart = self._taken_apart(blocks, block_rows, refine)
        self._step("single positions")
        carrying = self._singles(apart, n_pairs)
        curves: list[pd.DataFrame] = []
        found: dict[str, dict[str, Any]] = {}
        fine = {p for one in apart for p in one}
        rest = [p for one in blocks for p in one if p not in fine]
        for how in self.hows:
            self._step(f"sets, {how}")
            singles = sorted(fine | set(carrying))
            one, curve = smallest_set(setup, how, self.clean, self.whole[how], singles, carrying, rest, limit)
            found[how] = one | {"damage": self._damage(how, carrying)}
            curves.append(curve)
        chosen = found[self.hows[0]]["places"] if facts["worth"] >= gate_verdict.LEAST_WORTH else []
        chosen = chosen if chosen and len(chosen) <= limit else [self._best_patched()]
        self._step("layers")
        layers, confirmed = self._confirm(chosen, n_pairs)
        settings = {
            "n": setup.n, "n_pairs": n_pairs, "how": list(self.hows), "seed": setup.seed, "narrow": limit,
            "k": k, "overlap_by_chance": overlap_by_chance(torch.tensor(setup.labels)),
            "n_picture": len(places.picture), "n_behind": len(places.behind), "block": len(blocks[0]),
            "taken_apart": len(apart), "part": PART, **facts, **confirmed,
        }  # fmt: skip
        measures = self.rows.table()
        said = gate_verdict.gate_verdict(places.all, measures, found, settings)
        return GateSearch(
            name, setup.examples[0].prompt, places.all, measures, block_rows,
            pd.concat(curves, ignore_index=True), layers, settings, said,
        )  # fmt: skip

    def _step(self, label: str) -> None:
        self.bar.step(f"find the gate, {label}", self.unit)

    def _worth(self) -> dict[str, Any]:
        """What the picture is worth: accuracy above the floor, and information about the label."""
        setup = self.setup
        chance = 1 / len(setup.tokens)
        none, floor = self.clean.prob[0], self.whole[self.hows[0]].prob[0]
        information = label_information(self.clean.label_log_probs, setup.labels)
        low, high = bootstrap_interval(information, setup.n_boot, setup.seed)
        least = max(float(floor.mean()), chance)
        worth = bootstrap_interval(none - floor, setup.n_boot, setup.seed)
        return {
            "chance": chance, "accuracy": float(self.clean.right.mean()), "probability": float(none.mean()),
            "floor": least, "worth": float(none.mean()) - least,
            "worth_low": min(worth[0], float(none.mean()) - least), "worth_high": worth[1],
            "information": float(information.mean()), "information_low": low, "information_high": high,
            "naming_p": naming_p_value(self.clean.label_log_probs, setup.labels, seed=setup.seed),
        }  # fmt: skip

    def _whole_drop(self, how: How) -> float:
        """Nats lost with the whole picture cut; never 0, as it is divided by."""
        return max(float((self.clean.log_prob - self.whole[how].log_prob).mean()), 1e-9)

    def _blocks(self, blocks: list[list[int]], n_pairs: int) -> pd.DataFrame:
        """Each block knocked out and patched as a whole: the measures' columns, and the block's ``last`` place."""
        setup, rows = self.setup, Rows(self.setup.n_boot, self.setup.seed)
        for how in self.hows:
            left = cut(setup, how, blocks)
            for b, one in enumerate(blocks):
                rows.add_cut(one[0], how, self.clean, left, b)
        moved = patched(setup, self.clean.answers, blocks, n_pairs)
        for b, one in enumerate(blocks):
            rows.add_patch(one[0], moved, b)
        out = rows.table()
        out["last"] = out.place.map({one[0]: one[-1] for one in blocks})
        return out

    def _taken_apart(self, blocks: list[list[int]], rows: pd.DataFrame, refine: int) -> list[list[int]]:
        """The blocks whose places are measured one by one, strongest first."""
        whole = {f"{how} log_prob": self._whole_drop(how) for how in self.hows} | {"target overlap": 1.0}
        strength: dict[int, float] = {}
        for row in rows.itertuples():
            if row.measure in whole and row.low > 0:
                size = float(row.mean) / whole[row.measure]
                if size >= MATTERS:
                    strength[int(row.place)] = max(size, strength.get(int(row.place), 0.0))
        strongest = sorted(strength, key=lambda p: -strength[p])[:refine]
        by_first = {one[0]: one for one in blocks}
        return [by_first[p] for p in strongest]

    def _singles(self, apart: list[list[int]], n_pairs: int) -> list[int]:
        """Places knocked out and patched one by one; gives those behind the picture that carry something of it."""
        setup, behind = self.setup, self.setup.places.behind
        singles = sorted({p for one in apart for p in one} | set(behind))
        if not singles:
            return []
        has = setup.has()
        for how in self.hows:
            left = cut(setup, how, [[p] for p in singles])
            for s, p in enumerate(singles):
                self.rows.add_cut(p, how, self.clean, left, s, has[:, p])
        moved = patched(setup, self.clean.answers, [[p] for p in singles], n_pairs)
        for s, p in enumerate(singles):
            self.rows.add_patch(p, moved, s)
        table = self.rows.table()
        gain = table[table.measure == "target overlap"].set_index("place")
        return [p for p in behind if p in gain.index and gain.low[p] > 0 and gain["mean"][p] >= MATTERS]

    def _damage(self, how: How, carrying: list[int]) -> list[int]:
        """Places behind the picture that carry nothing of it, and still hurt when they are cut."""
        least = MATTERS * self._whole_drop(how)
        others = (p for p in self.setup.places.behind if p not in carrying)
        return [p for p in others if self.rows.mean(p, f"{how} log_prob") > least]

    def _best_patched(self) -> int:
        found = [r for r in self.rows.found if r["measure"] == "target overlap"]
        return max(found, key=lambda r: r["mean"])["place"] if found else self.setup.places.picture[0]

    def _confirm(self, chosen: list[int], n_pairs: int) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The chosen set patched in each layer (a table) and in all; and what passes around it when it alone
        reads on."""
        setup, rows = self.setup, Rows(self.setup.n_boot, self.setup.seed)
        sets = [chosen] * (setup.n_layers + 1)
        moved = patched(setup, self.clean.answers, sets, n_pairs, [None, *range(setup.n_layers)])
        rows.add(0, "joint", moved.flipped[0][moved.flippable])
        joint = {f"joint_{c}": rows.found[0][c] for c in ("mean", "low", "high")} if rows.found else {}
        rows.found.clear()
        for layer in range(setup.n_layers):
            rows.add_patch(0, moved, layer + 1, layer)
        layers = rows.table()[["measure", "layer", "mean", "low", "high", "n"]]
        others = [p for p in setup.places.picture if p not in chosen]
        around = cut(setup, self.hows[0], [others], spare=chosen)
        drop = self.clean.right[0] - around.right[0]
        low, high = bootstrap_interval(drop, setup.n_boot, setup.seed)
        passed = {"around": float(drop.mean()), "around_low": low, "around_high": high}
        return layers, {"patched": chosen, **joint, **passed}
