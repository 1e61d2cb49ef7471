"""The pushes of section *steering*: along the difference of class means, and the controls beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.studies.narrow_gate.class_pairs import ClassPair
from gatelens.studies.narrow_gate.steering_fit import chosen_layer, directions_at, push, random_like

MEANS, RANDOM, OTHER, NOTHING = "class means", "random", "another pair", "none"
REFERENCE = "class means, last position"
Way = tuple[str, int, float]  # direction, repeat, dose


class Pushes:
    """The directions of a run by kind, and the interventions made of them.

    Args:
        fitted: what :func:`gatelens.studies.narrow_gate.steering_fit.fit` found.
        doses: multiples of the difference of means, above 0.
        n_random: how many random directions a pair has.
        seed: draws them.
    """

    def __init__(self, fitted: pd.DataFrame, doses: Sequence[float], n_random: int, seed: int) -> None:
        self.layer, self.last_layer = chosen_layer(fitted), chosen_layer(fitted, "last")
        self.means, self.at_last = (
            directions_at(fitted, self.layer),
            directions_at(fitted, self.last_layer, "last"),
        )
        self.pairs, self.doses, self.n_random, self.seed = list(self.means), doses, n_random, seed

    def direction(self, kind: str, repeat: int, pair: ClassPair) -> Float[Tensor, " d_model"] | None:
        """The direction of a kind for a pair; None where there is no other pair to take one from."""
        own = self.means[pair]
        if kind == REFERENCE:
            return self.at_last[pair]
        if kind == RANDOM:
            return random_like(own, self.seed, self.pairs.index(pair), repeat)
        if kind == OTHER:
            i = self.pairs.index(pair)
            foreign = [p for p in self.pairs[i:] + self.pairs[:i] if not {*p} & {*pair}]
            if not foreign:
                return None
            other = self.means[foreign[0]]
            return other * (own.norm() / other.norm().clamp_min(1e-12))
        return own

    def ways(self, kinds: Sequence[str]) -> list[Way]:
        """Every direction and dose of these kinds; the reference at dose 1 alone."""
        found: list[Way] = []
        for kind in kinds:
            if all(self.direction(kind, 0, pair) is None for pair in self.pairs):
                continue
            doses = [1.0] if kind == REFERENCE else self.doses
            repeats = self.n_random if kind == RANDOM else 1
            found += [(kind, repeat, dose) for repeat in range(repeats) for dose in doses]
        return found

    def run(self, way: Way, pairs: Sequence[ClassPair]) -> Any:
        """The intervention on a batch whose examples are steered along these pairs, by nothing where there is no
        direction."""
        kind, repeat, dose = way
        found = [self.direction(kind, repeat, pair) for pair in pairs]
        whole = torch.stack(
            [torch.zeros_like(self.means[p]) if d is None else d for d, p in zip(found, pairs, strict=True)]
        )
        at_last = kind == REFERENCE
        return push(whole, self.last_layer if at_last else self.layer, dose, "last" if at_last else "gate")
