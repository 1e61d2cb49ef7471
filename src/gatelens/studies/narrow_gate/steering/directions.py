"""Steering directions: differences of class means, the layer they act in, and the pushes made of them.

The direction of a pair is the mean of the residual stream over pictures of the target class minus that over
pictures of the base class (the difference of means of Marks and Tegmark, arXiv 2310.06824; Turner et al., arXiv
2308.10248, add one such difference to steer). It is fitted on one half of the pictures; nothing here sees the half that
is steered later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import Example
from gatelens.directions import activations_at, random_like
from gatelens.engine import last_logits
from gatelens.errors import DataError
from gatelens.examples import Labels, consecutive, labels_of, prepare
from gatelens.interventions import steer
from gatelens.interventions.base import Intervention
from gatelens.interventions.sites import Site
from gatelens.model import HookedVLM
from gatelens.studies.narrow_gate.class_pairs import ClassPair, by_class, given_pairs, ring_of_pairs

SITE: Site = "resid_pre"
FEWEST_A_HALF = 2  # pictures of a class in each half
PLACES = ("gate", "last")
MEANS, RANDOM, OTHER, NOTHING = "class means", "random", "another pair", "none"
REFERENCE = "class means, last position"
Halves = Mapping[str, tuple[Sequence[Example], Sequence[Example]]]
Way = tuple[str, int, float]  # direction, repeat, dose


@dataclass(frozen=True)
class Item:
    """A picture of a base class and the pair it is steered along."""

    pair: ClassPair
    example: Example


def halves(
    examples: Sequence[Example], seed: int, asked: str | Sequence[object] | None = None
) -> dict[str, tuple[list[Example], list[Example]]]:
    """Each class's examples in two seeded halves, (to fit on, to steer); classes with too few are left out.

    Raises:
        DataError: a class with too few is among the pairs ``asked`` for.
    """
    rng = np.random.default_rng([seed, 78])
    classes, split = by_class(examples), {}
    for name in {n for pair in given_pairs(asked, list(classes)) for n in pair} if asked is not None else ():
        if len(classes[name]) < 2 * FEWEST_A_HALF:
            raise DataError(
                f"class {name!r} has {len(classes[name])} picture(s) of those drawn, steering needs "
                f"{2 * FEWEST_A_HALF}; raise n_class or the limit"
            )
    for name, mine in classes.items():
        order = [mine[int(i)] for i in rng.permutation(len(mine))]
        if len(order) >= 2 * FEWEST_A_HALF:
            split[name] = (order[: len(order) // 2], order[len(order) // 2 :])
    return split


def choose_pairs(split: Halves, asked: str | Sequence[object] | None, n: int, seed: int) -> list[ClassPair]:
    """The class pairs given, or ``n`` drawn ones; none where fewer than two classes have pictures enough.

    Raises:
        DataError: a given class has no picture in one of the halves.
    """
    if asked is not None:
        return given_pairs(asked, list(split))
    return ring_of_pairs(list(split), n, np.random.default_rng([seed, 79]))


def gate_means(
    model: HookedVLM, examples: Sequence[Example], layers: Sequence[int], size: int
) -> dict[str, Float[Tensor, "layer d_model"]]:
    """Mean residual stream entering each layer, at the gate and at the last position, over the examples."""
    by_place = activations_at(model, examples, PLACES, SITE, layers, size)
    return {
        place: torch.stack([by_layer[n].mean(0) for n in layers]).float()
        for place, by_layer in zip(PLACES, by_place, strict=True)
    }


def fit(
    model: HookedVLM,
    pairs: Sequence[ClassPair],
    split: Halves,
    layers: Sequence[int],
    size: int,
    labels: Labels,
) -> pd.DataFrame:
    """One row per pair, place and layer: the direction, and what adding it once does to the fitting half itself.

    Columns ``place (gate | last), base, target, layer, direction (list of d_model numbers), success, probability,
    n, n_fit``: over the ``n`` base pictures answered correctly, the share that becomes the target's class, and the mean
    probability of the target's label; ``n_fit`` pictures of the rarer class made the direction.
    """
    names = sorted({name for pair in pairs for name in pair})
    means = {name: gate_means(model, split[name][0], layers, size) for name in names}
    directions = {
        (place, pair): means[pair[1]][place] - means[pair[0]][place] for place in PLACES for pair in pairs
    }
    items = [Item(pair, example) for pair in pairs for example in split[pair[0]][0]]
    outcomes = []
    for _, start, part in consecutive(items, size):
        keys = [(place, i) for place in PLACES for i in range(len(layers))]
        runs = [
            push(torch.stack([directions[place, item.pair][i] for item in part]), layers[i], 1.0, place)
            for place, i in keys
        ]
        inputs = prepare(model, [item.example for item in part], start)
        clean, *steered = last_logits(model, inputs, [None, *runs])
        judged = [answers(part, x, labels) for x in (clean, *steered)]
        for (place, i), one in zip(keys, judged[1:], strict=True):
            outcomes.append(one.assign(place=place, layer=layers[i], right=judged[0].is_base))
    said = pd.concat(outcomes, ignore_index=True)
    said = said[said.right].groupby(["place", "base", "target", "layer"])
    stats = said.agg(success=("is_target", "mean"), probability=("p_target", "mean"), n=("right", "size"))
    rows = []
    for (place, pair), direction in directions.items():
        n_fit = min(len(split[name][0]) for name in pair)
        rows += [(place, *pair, layer, direction[i].tolist(), n_fit) for i, layer in enumerate(layers)]
    where = ["place", "base", "target", "layer"]
    fitted = pd.DataFrame(rows, columns=[*where, "direction", "n_fit"])
    out = fitted.merge(stats.reset_index(), how="left", on=where, validate="one_to_one")
    return out.fillna({"success": 0.0, "probability": 0.0, "n": 0}).astype({"n": int})


def push(direction: Tensor, layer: int, dose: float, place: str = "gate") -> Intervention:
    """Add ``dose`` times the direction (one per example, or one for all) to the residual stream of one layer."""
    return steer(direction, at=place, site="resid_pre", layers=[layer], scale=dose)


def answers(items: Sequence[Item], logits: Float[Tensor, "batch d_vocab"], labels: Labels) -> pd.DataFrame:
    """``id, base, target, is_base, is_target, p_base, p_target`` of next-token logits, one row an item."""
    p = logits.float().softmax(-1).cpu()
    rows = []
    for item, mine in zip(items, p, strict=True):
        prompt = item.example.prompt
        own = {labels.first_token(prompt, w) for w in labels_of(item.example)}
        other = {labels.first_token(prompt, item.pair[1])}
        best = int(mine.argmax())
        masses = [float(mine[sorted(ids)].sum()) for ids in (own, other)]
        rows.append((item.example.id, *item.pair, best in own, best in other - own, *masses))
    columns = ["id", "base", "target", "is_base", "is_target", "p_base", "p_target"]
    return pd.DataFrame(rows, columns=columns)


def chosen_layer(fitted: pd.DataFrame, place: str = "gate") -> int:
    """The layer in which the directions change most answers of the fitting half, over all pairs; of equals, the one
    that makes the target more likely, then the first.

    Raises:
        DataError: nothing was fitted at that place.
    """
    part = fitted[fitted.place == place]
    if part.empty:
        raise DataError(f"no direction was fitted at {place!r}; fit it first")
    best = layer_scores(fitted, place).sort_values(
        ["success", "probability", "layer"], ascending=[False, False, True]
    )
    return int(best.layer.iloc[0])


def layer_scores(fitted: pd.DataFrame, place: str = "gate") -> pd.DataFrame:
    """``layer, success, probability, n, n_fit`` on the fitting half, every picture counting once."""
    rows = []
    for layer, part in fitted[fitted.place == place].groupby("layer"):
        n = int(part.n.sum())
        means = [float((part[c] * part.n).sum() / n) if n else 0.0 for c in ("success", "probability")]
        rows.append((int(layer), *means, n, int(part.n_fit.min())))
    return pd.DataFrame(rows, columns=["layer", "success", "probability", "n", "n_fit"])


def directions_at(
    fitted: pd.DataFrame, layer: int, place: str = "gate"
) -> dict[ClassPair, Float[Tensor, " d_model"]]:
    """The direction of each pair in a layer."""
    part = fitted[(fitted.place == place) & (fitted.layer == layer)]
    return {
        (r.base, r.target): torch.tensor(np.asarray(r.direction, dtype=np.float32)) for r in part.itertuples()
    }


@dataclass(frozen=True)
class Pushes:
    """The directions of a run by kind, and the interventions made of them.

    Attributes:
        fitted: from :func:`fit`.
        doses: multiples of the difference of means, above 0.
        n_random: how many random directions a pair has.
        seed: draws them.
    """

    fitted: pd.DataFrame
    doses: Sequence[float]
    n_random: int
    seed: int

    @cached_property
    def layers(self) -> dict[str, int]:
        """The layer chosen at each place."""
        return {place: chosen_layer(self.fitted, place) for place in PLACES}

    @cached_property
    def means(self) -> dict[str, dict[ClassPair, Float[Tensor, " d_model"]]]:
        """The direction of each pair at each place, in the layer chosen there."""
        return {place: directions_at(self.fitted, layer, place) for place, layer in self.layers.items()}

    @property
    def pairs(self) -> list[ClassPair]:
        """Pairs with a direction."""
        return list(self.means["gate"])

    def direction(self, kind: str, repeat: int, pair: ClassPair) -> Float[Tensor, " d_model"] | None:
        """The direction of a kind for a pair; None where there is no other pair to take one from."""
        own = self.means["last" if kind == REFERENCE else "gate"][pair]
        if kind == RANDOM:
            return random_like(own, self.seed, self.pairs.index(pair), repeat)
        if kind == OTHER:
            i = self.pairs.index(pair)
            foreign = [p for p in self.pairs[i:] + self.pairs[:i] if not {*p} & {*pair}]
            if not foreign:
                return None
            other = self.means["gate"][foreign[0]]
            return other * (own.norm() / other.norm().clamp_min(1e-12))
        return own

    def ways(self, kinds: Sequence[str]) -> list[Way]:
        """Every direction and dose of these kinds; the reference at dose 1 alone."""
        ways: list[Way] = []
        for kind in kinds:
            if all(self.direction(kind, 0, pair) is None for pair in self.pairs):
                continue
            doses = [1.0] if kind == REFERENCE else self.doses
            repeats = self.n_random if kind == RANDOM else 1
            ways += [(kind, repeat, dose) for repeat in range(repeats) for dose in doses]
        return ways

    def run(self, way: Way, pairs: Sequence[ClassPair]) -> Intervention:
        """The intervention on a batch whose examples are steered along these pairs, by nothing where there is no
        direction."""
        kind, repeat, dose = way
        place = "last" if kind == REFERENCE else "gate"
        directions = []
        for pair in pairs:
            own = self.direction(kind, repeat, pair)
            directions.append(torch.zeros_like(self.means[place][pair]) if own is None else own)
        return push(torch.stack(directions), self.layers[place], dose, place)

    def runs(
        self, kinds: Sequence[str], pairs: Sequence[ClassPair]
    ) -> tuple[list[Way], list[Intervention | None]]:
        """The unsteered run and every way of these kinds, with their interventions."""
        ways = self.ways(kinds)
        return [(NOTHING, 0, 0.0), *ways], [None, *(self.run(way, pairs) for way in ways)]
