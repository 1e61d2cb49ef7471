"""The search for a gate, step by step: four measures, blocks before single positions, and growing sets.

:func:`gatelens.studies.find_gate` says what each of them is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.engine import last_logits, look
from gatelens.measures.concentration import (
    Carriers,
    greedy_order,
    label_information,
    naming_p_value,
    prune,
    set_sizes,
    share_removed,
    smallest_carrying,
)
from gatelens.measures.overlap import distribution_overlap, neighbourhood_overlap, overlap_by_chance
from gatelens.measures.stats import bootstrap_interval
from gatelens.studies.common import Labels, Progress, auto_batch_size, labels_of, prepare
from gatelens.studies.gate_finder import verdict as gate_verdict
from gatelens.studies.gate_finder.places import Batch, Places, find_places

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM

How = Literal["zero", "mask"]
MATTERS = 0.02  # of the whole effect: what a block must be worth to be taken apart, a place to carry anything
PART = 0.9  # of what the picture is worth: a set that takes this much carries it
FINE_SIZES = 128  # sets up to this size are all measured, larger ones in steps of a quarter
_CACHE = 1 << 27  # numbers of a cache held at once
_LAYERS = 8  # layers at which the overlap with the labels is measured, at most


@dataclass
class Effects:
    """Outcomes of knockouts, one row a set: whether the answer was right, and its log-probability."""

    right: Float[np.ndarray, "set example"]
    log_prob: Float[np.ndarray, "set example"]

    @property
    def prob(self) -> Float[np.ndarray, "set example"]:
        """The right answer's probability: an accuracy that lucky hits do not make jump."""
        return np.exp(self.log_prob)


@dataclass
class Search:
    """One search: the examples in two halves, and what is asked of them."""

    model: HookedVLM
    examples: Sequence[Example]
    hows: tuple[How, ...]
    seed: int
    n_boot: int
    batch_size: int | None
    progress: bool
    bar: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.bar = Progress(6 + len(self.hows), self.progress)
        labels = Labels(self.model)
        names = [labels_of(e)[0] for e in self.examples]
        ids = [labels.first_token(e.prompt, name) for e, name in zip(self.examples, names, strict=True)]
        self.tokens = sorted(set(ids))
        self.labels = np.array([self.tokens.index(i) for i in ids])
        self.n = len(self.examples)
        order = np.random.default_rng([self.seed, 5]).permutation(self.n)
        self.halves = [sorted(order[: self.n // 2].tolist()), sorted(order[self.n // 2 :].tolist())]
        size = self.batch_size or auto_batch_size(self.model, self.examples[0])
        self.places: Places = find_places(self.model, self.examples, self.halves, size)
        self.rows: list[dict[str, Any]] = []

    def run(
        self, name: str, n_pairs: int, block: int | None, refine: int, narrow: int, k: int | None
    ) -> dict[str, Any]:
        """The whole search: the fields of a GateSearch."""
        picture, behind = self.places.picture, self.places.behind
        self.blocks = self.places.blocks(block)
        limit = max(1, min(narrow, len(picture) // 8))
        self.bar.step("clean runs")
        clean = self._clean()
        whole = {how: self._cut(how, [picture]) for how in self.hows}
        facts = self._facts(clean, whole)
        k = k or max(1, min(30, round(self.n / len(self.tokens)) - 1))
        self._attention()
        self._overlap(k)
        block_rows = self._block_effects(whole, clean, n_pairs)
        fine = self._taken_apart(block_rows, refine)
        self._single_effects(fine, clean, n_pairs)
        curves: list[pd.DataFrame] = []
        found: dict[str, dict[str, Any]] = {}
        for how in self.hows:
            self.bar.step(f"sets, {how}")
            found[how], curve = self._sets(how, clean, whole[how], fine, limit, facts)
            curves.append(curve)
        chosen = found[self.hows[0]]["places"] if facts["worth"] >= gate_verdict.LEAST_WORTH else []
        chosen = chosen if chosen and len(chosen) <= limit else [self._best_patched()]
        self.bar.step("layers")
        facts |= self._confirm(chosen, clean, n_pairs)
        settings = {
            "n": self.n, "n_pairs": n_pairs, "how": list(self.hows), "seed": self.seed, "narrow": limit,
            "k": k, "overlap_by_chance": overlap_by_chance(torch.tensor(self.labels)),
            "n_picture": len(picture), "n_behind": len(behind), "block": len(self.blocks[0]),
            "taken_apart": len(fine), "part": PART, **facts,
        }  # fmt: skip
        measures = pd.DataFrame(self.rows)
        said = gate_verdict.gate_verdict(self.places.all, measures, found, settings)
        layers = settings.pop("layers")
        return {
            "model": name,
            "prompt": self.examples[0].prompt,
            "places": self.places.all,
            "measures": measures,
            "blocks": block_rows,
            "curves": pd.concat(curves, ignore_index=True),
            "layers": layers,
            "settings": settings,
            "verdict": said,
        }

    # what the model says

    def _clean(self) -> Effects:
        """Outcomes with nothing cut, and the answers' distribution over the labels kept for the information."""
        self.label_log_probs = np.zeros((self.n, len(self.tokens)))
        self.answers: dict[int, Float[Tensor, " d_vocab"]] = {}
        out = Effects(np.zeros((1, self.n)), np.zeros((1, self.n)))
        for batch in self.places.batches:
            logits = last_logits(self.model, batch.inputs, [None])[0].float().cpu()
            rows = list(batch.examples)
            self.label_log_probs[rows] = logits.log_softmax(-1)[:, self.tokens].double().numpy()
            for row, i in enumerate(rows):
                self.answers[i] = logits[row].softmax(-1)
            self._note(out, 0, rows, logits)
        return out

    def _note(self, out: Effects, at: int, rows: list[int], logits: Float[Tensor, "batch d_vocab"]) -> None:
        wanted = torch.tensor([self.tokens[c] for c in self.labels[rows]])
        out.right[at, rows] = (logits.argmax(-1) == wanted).double().numpy()
        out.log_prob[at, rows] = (
            logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].double().clamp_min(-1e4).numpy()
        )

    def _cut(
        self, how: How, sets: Sequence[Iterable[int]], half: int | None = None, spare: Iterable[int] = ()
    ) -> Effects:
        """Outcomes when the places of each set are read by nothing behind; ``spare`` places go on reading."""
        out = Effects(np.full((len(sets), self.n), np.nan), np.full((len(sets), self.n), np.nan))
        for batch in self._of(half):
            runs = [knockouts(batch, self.places, one, how, spare) for one in sets]
            for at, logits in enumerate(last_logits(self.model, batch.inputs, runs)):
                self._note(out, at, list(batch.examples), logits.float().cpu())
        chosen = np.array(sorted(i for b in self._of(half) for i in b.examples))
        return Effects(out.right[:, chosen], out.log_prob[:, chosen])

    def _of(self, half: int | None) -> list[Batch]:
        wanted = None if half is None else set(self.halves[half])
        return [b for b in self.places.batches if wanted is None or b.examples[0] in wanted]

    def _facts(self, clean: Effects, whole: dict[How, Effects]) -> dict[str, Any]:
        """What the picture is worth: accuracy above the floor, and information about the label."""
        chance = 1 / len(self.tokens)
        none, floor = clean.prob[0], whole[self.hows[0]].prob[0]
        information = label_information(self.label_log_probs, self.labels)
        low, high = bootstrap_interval(information, self.n_boot, self.seed)
        least = max(float(floor.mean()), chance)
        worth = bootstrap_interval(none - floor, self.n_boot, self.seed)
        return {
            "chance": chance, "accuracy": float(clean.right.mean()), "probability": float(none.mean()),
            "floor": least, "worth": float(none.mean()) - least,
            "worth_low": min(worth[0], float(none.mean()) - least), "worth_high": worth[1],
            "information": float(information.mean()), "information_low": low, "information_high": high,
            "naming_p": naming_p_value(self.label_log_probs, self.labels, seed=self.seed),
        }  # fmt: skip

    # the four measures

    def _attention(self) -> None:
        self.bar.step("attention")
        n_layers, n_places = int(self.model.cfg.n_layers), len(self.places.all)
        share = np.zeros((self.n, n_layers, n_places))
        for batch in self.places.batches:
            rows = batch.behind
            readers = torch.stack([_readers(batch, p).sum(1) for p in range(n_places)], dim=1)
            mass = torch.zeros(len(rows), n_layers, rows.shape[1])

            def see(layer: int, pattern: Tensor, low: int, rows: Tensor = rows, mass: Tensor = mass) -> None:
                few = slice(low, low + pattern.shape[2])
                mean = pattern.float().mean(1).cpu() * rows[:, few, None]
                own = torch.arange(few.start, few.stop)
                mean[:, torch.arange(mean.shape[1]), own] = (
                    0  # a position's reading of itself is no passing on
                )
                mass[:, layer] += mean.sum(1)

            look(self.model, batch.inputs, rows, see)
            index = batch.columns.clamp_min(0)[:, None].expand(-1, n_layers, -1)
            got = mass.gather(2, index) * (batch.columns >= 0)[:, None] / readers.clamp_min(1)[:, None]
            total = got.sum(-1, keepdim=True)
            share[list(batch.examples)] = torch.where(total > 0, got / total.clamp_min(1e-30), got).numpy()
        has = self._has()
        for p in range(n_places):
            mine = share[has[:, p], :, p]
            self._add(p, "attention", mine.mean(1), int(mine.mean(0).argmax()))

    def _overlap(self, k: int) -> None:
        self.bar.step("overlap with the labels")
        n_layers, n_places, d = (
            int(self.model.cfg.n_layers),
            len(self.places.all),
            int(self.model.cfg.d_model),
        )
        chosen = sorted({round(x) for x in np.linspace(0, n_layers - 1, min(n_layers, _LAYERS))})
        group = max(1, _CACHE // (self.n * n_places * d))
        best: dict[int, tuple[float, int, np.ndarray]] = {}
        has, labels = self._has(), torch.tensor(self.labels)
        for start in range(0, len(chosen), group):
            layers = chosen[start : start + group]
            kept = torch.zeros(len(layers), n_places, self.n, d)
            for batch in self.places.batches:
                values = self._stream(batch, range(n_places), layers)
                kept[:, :, list(batch.examples)] = values.permute(0, 2, 1, 3)
            for at, layer in enumerate(layers):
                for p in range(n_places):
                    mine = torch.tensor(has[:, p])
                    if int(mine.sum()) > k:
                        found = neighbourhood_overlap(kept[at, p][mine], labels[mine], k).double().numpy()
                        if p not in best or found.mean() > best[p][0]:
                            best[p] = (float(found.mean()), layer, found)
        for p, (_, layer, found) in best.items():
            self._add(p, "overlap", found, layer)

    def _stream(
        self, batch: Batch, places: Iterable[int], layers: Sequence[int]
    ) -> Float[Tensor, "layer batch place d"]:
        """The residual stream entering some layers at some places, 0 where an example lacks one."""
        places = list(places)
        names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
        _, cache = self._cached(batch.inputs, batch.mask(places), names)
        columns = batch.columns[:, places]
        index = columns.clamp_min(0)
        if cache.kept is not None:
            index = cache.kept.place.gather(1, index).clamp_min(0)
        rows = torch.arange(len(columns))[:, None]
        return torch.stack(
            [cache[name].float().cpu()[rows, index] * (columns >= 0)[..., None] for name in names]
        )

    def _cached(
        self, inputs: Any, mask: Bool[Tensor, "batch pos"], names: Sequence[str]
    ) -> tuple[Tensor, Any]:
        """A run's logits and cache, of the masked rows alone where every example has as many."""
        alike = len(set(mask.sum(1).tolist())) == 1 and bool(mask.any())
        return self.model.run_with_cache(inputs, names_filter=names, positions=mask if alike else None)

    def _patched(
        self, sets: Sequence[Sequence[int]], n_pairs: int, layers: Sequence[Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Outcomes when sets of places are patched from examples of another class, pair by pair.

        ``flippable`` [pair]; ``flipped`` and ``gain`` [set, pair]; ``layers``: those of each set, None is all
        of them together.
        """
        from gatelens.interventions import patch

        pairs = self._pairs(n_pairs)
        count = list(range(int(self.model.cfg.n_layers)))
        names = [f"blocks.{layer}.hook_resid_pre" for layer in count]
        flipped, gain = (np.full((len(sets), len(pairs)), np.nan) for _ in range(2))
        flippable = np.zeros(len(pairs), dtype=bool)
        for batch in self.places.batches:
            rows = [row for row, i in enumerate(batch.examples) if i in pairs]
            if not rows:
                continue
            numbers = [batch.examples[row] for row in rows]
            at = [list(pairs).index(i) for i in numbers]
            here = _some(batch, rows)
            there = self._from([pairs[i] for i in numbers])
            base, target = (
                torch.stack([self.answers[i] for i in side])
                for side in (numbers, [pairs[i] for i in numbers])
            )
            flippable[at] = (base.argmax(-1) != target.argmax(-1)).numpy()
            before = distribution_overlap(base, target)
            for some in self._groups(sets, len(rows), len(count)):
                needed = sorted({p for s in some for p in sets[s]})
                _, cache = self._cached(there.inputs, there.mask(needed), names)
                runs: list[Any] = []
                for s in some:
                    both = ((here.columns >= 0) & (there.columns >= 0)).all(1)
                    mine, theirs = here.mask(sets[s]), there.mask(sets[s])
                    if not bool(both.all()):  # places that only one of a pair has stay as they are
                        mine, theirs = _common(here, there, sets[s])
                    where = None if layers is None else layers[s]
                    one = patch(cache, mine, source=theirs, layers=where) if bool(mine.any()) else None
                    runs.append(one)
                for s, logits in zip(some, last_logits(self.model, here.inputs, runs), strict=True):
                    p = logits.float().cpu().softmax(-1)
                    flipped[s, at] = (p.argmax(-1) == target.argmax(-1)).double().numpy()
                    gain[s, at] = (distribution_overlap(p, target) - before).double().numpy()
        return {"flippable": flippable, "flipped": flipped, "gain": gain}

    def _groups(self, sets: Sequence[Sequence[int]], batch: int, n_layers: int) -> list[list[int]]:
        """Sets whose source activations fit into memory together."""
        most = max(1, _CACHE // (batch * n_layers * int(self.model.cfg.d_model)))
        out: list[list[int]] = [[]]
        held = 0
        for s, one in enumerate(sets):
            if out[-1] and held + len(one) > most:
                out.append([])
                held = 0
            out[-1].append(s)
            held += len(one)
        return out

    def _pairs(self, n_pairs: int) -> dict[int, int]:
        """For the first examples another of a different class: base to target."""
        rng = np.random.default_rng([self.seed, 77])
        out = {}
        for i in range(min(n_pairs, self.n)):
            out[i] = int(rng.choice(np.flatnonzero(self.labels != self.labels[i])))
        return out

    def _from(self, numbers: Sequence[int]) -> Batch:
        """A batch of any examples, its places found as before."""
        from gatelens.studies.gate_finder.places import keyed_columns

        inputs = prepare(self.model, [self.examples[i] for i in numbers])
        columns = keyed_columns(inputs.tokens, self.places.all)
        return Batch(inputs, tuple(numbers), columns, torch.zeros_like(inputs.tokens.roles, dtype=torch.bool))

    # blocks, then single places

    def _block_effects(self, whole: dict[How, Effects], clean: Effects, n_pairs: int) -> pd.DataFrame:
        self.bar.step("blocks of the picture")
        held, self.rows = self.rows, []
        for how in self.hows:
            cut = self._cut(how, self.blocks)
            for b, one in enumerate(self.blocks):
                self._add_cut(one[0], how, clean, cut, b)
        moved = self._patched(self.blocks, n_pairs)
        for b, one in enumerate(self.blocks):
            self._add_patch(one[0], moved, b)
        out = pd.DataFrame(self.rows)
        out["last"] = out.place.map({one[0]: one[-1] for one in self.blocks})
        self.rows = held
        self.whole_drop = {how: float((clean.log_prob - whole[how].log_prob).mean()) for how in self.hows}
        return out

    def _taken_apart(self, blocks: pd.DataFrame, refine: int) -> list[list[int]]:
        """The blocks whose places are measured one by one, strongest first."""
        strength: dict[int, float] = {}
        for row in blocks.itertuples():
            if row.measure == "target overlap":
                size = float(row.mean)
            elif row.measure.endswith("log_prob"):
                size = float(row.mean) / max(self.whole_drop[row.measure.split()[0]], 1e-9)
            else:
                continue
            if row.low > 0 and size >= MATTERS:
                strength[int(row.place)] = max(size, strength.get(int(row.place), 0.0))
        strongest = sorted(strength, key=lambda p: -strength[p])[:refine]
        by_first = {one[0]: one for one in self.blocks}
        return [by_first[p] for p in strongest]

    def _single_effects(self, fine: list[list[int]], clean: Effects, n_pairs: int) -> None:
        self.bar.step("single positions")
        singles = sorted({p for one in fine for p in one} | set(self.places.behind))
        has = self._has()
        for how in self.hows:
            cut = self._cut(how, [[p] for p in singles]) if singles else None
            for s, p in enumerate(singles):
                if cut is not None:
                    self._add_cut(p, how, clean, cut, s, has[:, p])
        moved = self._patched([[p] for p in singles], n_pairs) if singles else None
        for s, p in enumerate(singles):
            if moved is not None:
                self._add_patch(p, moved, s)
        table = pd.DataFrame(self.rows)
        gain = table[table.measure == "target overlap"].set_index("place")
        self.carrying = [
            p
            for p in self.places.behind
            if p in gain.index and gain.low[p] > 0 and gain["mean"][p] >= MATTERS
        ]

    def _has(self) -> Bool[np.ndarray, "example place"]:
        out = np.zeros((self.n, len(self.places.all)), dtype=bool)
        for batch in self.places.batches:
            out[list(batch.examples)] = (batch.columns >= 0).numpy()
        return out

    def _add(self, place: int, measure: str, values: np.ndarray, layer: int = -1) -> None:
        if not len(values):
            return
        low, high = bootstrap_interval(values, self.n_boot, self.seed)
        columns = ("place", "measure", "mean", "low", "high", "n", "layer")
        row = (place, measure, float(values.mean()), low, high, len(values), layer)
        self.rows.append(dict(zip(columns, row, strict=True)))

    def _add_cut(
        self, place: int, how: How, clean: Effects, cut: Effects, at: int, has: np.ndarray | None = None
    ) -> None:
        chosen = np.ones(self.n, dtype=bool) if has is None else has
        self._add(place, f"{how} accuracy", (clean.right[0] - cut.right[at])[chosen])
        self._add(place, f"{how} log_prob", (clean.log_prob[0] - cut.log_prob[at])[chosen])

    def _add_patch(self, place: int, moved: dict[str, np.ndarray], at: int) -> None:
        self._add(place, "flipped", moved["flipped"][at][moved["flippable"]])
        self._add(place, "target overlap", moved["gain"][at])

    # sets

    def _sets(
        self,
        how: How,
        clean: Effects,
        whole: Effects,
        fine: list[list[int]],
        limit: int,
        facts: dict[str, Any],
    ) -> tuple[dict[str, Any], pd.DataFrame]:
        """The order in which places are cut, the share each size takes, and the smallest that takes enough."""
        choose, judge = (np.array(half) for half in self.halves)
        chance = facts["chance"]
        apart = {p for one in fine for p in one}
        singles = sorted(apart | set(self.carrying))

        def remains(sets: Sequence[tuple[int, ...]]) -> list[float]:
            return list(self._cut(how, sets, 0).log_prob.mean(1))

        def carried(sets: Sequence[Sequence[int]]) -> list[bool]:
            cut = self._cut(how, sets, 0).prob
            return list(share_removed(clean.prob[0, choose], cut, whole.prob[0, choose], chance) >= PART)

        def enough(chosen: tuple[int, ...]) -> bool:
            return bool(carried([chosen])[0])

        order = greedy_order(remains, singles, limit, enough) if singles else []
        small = any(carried([order[:size] for size in range(1, min(limit, len(order)) + 1)]))
        if not small and len(self.carrying) > 1 and enough(tuple(self.carrying)):
            kept = prune(enough, self.carrying)
            order = [*kept, *(p for p in order if p not in kept)]
        rest = [p for one in self.blocks for p in one if p not in apart]
        order = [*order, *rest]
        sizes = set_sizes(len(order), every=FINE_SIZES)
        cut = self._cut(how, [order[:size] for size in sizes], 1)
        none, floor = clean.prob[0, judge], whole.prob[0, judge]
        path = dict(zip(sizes, cut.prob, strict=True))
        found = smallest_carrying(none, floor, path, chance, PART, self.n_boot, self.seed)
        shares = [
            smallest_carrying(none, floor, {size: path[size]}, chance, PART, self.n_boot, self.seed)
            for size in sizes
        ]
        curve = pd.DataFrame(
            {
                "how": how, "size": sizes, "share": [s.share for s in shares], "low": [s.share_low for s in shares],
                "high": [s.share_high for s in shares], "added": [order[size - 1] for size in sizes],
            }
        )  # fmt: skip
        return self._described(how, found, order, clean), curve

    def _described(self, how: How, found: Carriers, order: list[int], clean: Effects) -> dict[str, Any]:
        damage = [
            p for p in self.places.behind
            if p not in self.carrying and self._mean(p, f"{how} log_prob") > MATTERS * max(self.whole_drop[how], 1e-9)
        ]  # fmt: skip
        return {
            "size": found.size, "low": found.low, "high": found.high, "share": found.share,
            "share_low": found.share_low, "share_high": found.share_high,
            "places": order[: found.size or 0], "damage": damage,
        }  # fmt: skip

    def _mean(self, place: int, measure: str) -> float:
        return next((r["mean"] for r in self.rows if r["place"] == place and r["measure"] == measure), 0.0)

    def _best_patched(self) -> int:
        found = [r for r in self.rows if r["measure"] == "target overlap"]
        return max(found, key=lambda r: r["mean"])["place"] if found else self.places.picture[0]

    def _confirm(self, chosen: list[int], clean: Effects, n_pairs: int) -> dict[str, Any]:
        """The chosen set patched in all layers and in each; and what passes around it when it alone reads on."""
        n_layers = int(self.model.cfg.n_layers)
        moved = self._patched([chosen] * (n_layers + 1), n_pairs, [None, *range(n_layers)])
        held, self.rows = self.rows, []
        self._add(0, "joint", moved["flipped"][0][moved["flippable"]])
        for layer in range(n_layers):
            self._add(0, "flipped", moved["flipped"][layer + 1][moved["flippable"]], layer)
            self._add(0, "target overlap", moved["gain"][layer + 1], layer)
        rows, self.rows = self.rows, held
        table = pd.DataFrame(rows, columns=["measure", "layer", "mean", "low", "high", "n"])
        joint = table[table.measure == "joint"]
        out: dict[str, Any] = {
            "layers": table[table.measure != "joint"].reset_index(drop=True),
            "patched": chosen,
        }
        if len(joint):
            out |= {f"joint_{c}": float(joint[c].iloc[0]) for c in ("mean", "low", "high")}
        others = [p for p in self.places.picture if p not in chosen]
        around = self._cut(self.hows[0], [others], spare=chosen)
        drop = clean.right[0] - around.right[0]
        low, high = bootstrap_interval(drop, self.n_boot, self.seed)
        return out | {"around": float(drop.mean()), "around_low": low, "around_high": high}


def knockouts(
    batch: Batch, places: Places, cut: Iterable[int], how: How, spare: Iterable[int] = ()
) -> list[Any] | None:
    """Knockouts after which nothing behind the picture reads the places; None when no example has one.

    A place behind the picture goes on reading itself, and ``spare`` places read what they did.
    """
    from gatelens.interventions import knockout

    cut = list(cut)
    readers = batch.behind & ~batch.mask(spare)
    out = []
    picture = batch.mask([p for p in cut if places.all[p].in_picture])
    if bool(picture.any()):
        out.append(knockout(readers, picture, how=how))
    for p in cut:
        if not places.all[p].in_picture:
            key = batch.mask([p])
            if bool(key.any()):
                out.append(knockout(readers & ~key, key, how=how))
    return out or None


def _readers(batch: Batch, place: int) -> Bool[Tensor, "batch pos"]:
    """The positions behind the picture that can read a place: those after it, or of its two-way block."""
    from gatelens.interventions.sight import in_sight

    key = batch.mask([place])
    return batch.behind & ~key & in_sight(key, batch.inputs.tokens).bool()


def _some(batch: Batch, rows: Sequence[int]) -> Batch:
    if list(rows) == list(range(len(batch.examples))):
        return batch
    return Batch(
        batch.inputs.select(rows), tuple(batch.examples[r] for r in rows), batch.columns[list(rows)],
        batch.behind[list(rows)],
    )  # fmt: skip


def _common(here: Batch, there: Batch, places: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The positions of places that both examples of a pair have."""
    both = (here.columns >= 0) & (there.columns >= 0)
    sides = []
    for side in (here, there):
        columns = torch.where(both, side.columns, -1)
        sides.append(Batch(side.inputs, side.examples, columns, side.behind).mask(places))
    return sides[0], sides[1]
