"""Which players of a game carry its value: shares of each, alone, last and on average over random orders.

A game says what a set of players is worth, in each of several pairs of examples: here players are positions of a
prompt, and a set is worth the log-odds of the answer against the other picture's when only the set keeps its own
activations and all others have the other picture's. Each player has three measures, as shares of the
difference between the empty set and all players:

- *alone*: what it adds to the empty set. Players that can replace each other are seen here;
- *last*: what it adds to all others. Players that only work together are seen here;
- *shared*: what it adds on average over random orders of the players, its Shapley value (Castro et al. 2009, by
  permutations; each is also gone through backwards). Players of which some are enough are seen here.

All are asked first, and those that seem to add anything again, in new pairs and orders. Those that are sure to add
enough are then kept and taken together: where they carry too little, others are too weak or too hard to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Sets = Bool[Tensor, "run pair player"]

QUESTIONS = ("alone", "last", "shared")
# standard errors from 0: to be asked again; of an interval; to carry
AGAIN, SEEMS, SURE = 1.5, 2.0, 3.5
LEAST, LEAST_BESIDE = (
    0.02,
    0.08,
)  # what a player must add to carry: of the whole, and of what the strongest adds
BOTH_WAYS = 0.25  # of the whole: what a player moves in single pairs that may carry, whatever its mean
PART = 0.9  # of the whole: what a set carries that is enough
SCREEN = 2  # random orders, each second one the one before it backwards
CONFIRM, MOST_ORDERS = 96, 16  # sets on the orders of those that are asked again; orders at most


class Game(Protocol):
    """Values of sets of players, by run and pair of examples."""

    def keep(self, sets: Sets) -> Float[Tensor, "run pair"]:
        """Of the sets alone."""

    def take(self, sets: Sets) -> Float[Tensor, "run pair"]:
        """Of all players without the sets."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What players add in each pair: alone, last, and on average over orders; and what all do together."""

    added: Float[Tensor, "3 player pair"]
    whole: Float[Tensor, " pair"]
    orders: int


@dataclass(frozen=True, eq=False)
class Carriers:
    """What each player adds.

    Attributes:
        share: by question and player, of the whole, mean over examples; ``error`` is its standard error.
        chosen: the players that carry.
        low, high: an interval of their number. Players that move the answer both ways, and so add nothing on average,
            are not chosen and may carry.
    """

    share: Float[np.ndarray, "3 player"]
    error: Float[np.ndarray, "3 player"]
    chosen: tuple[int, ...]
    low: int
    high: int

    @property
    def strength(self) -> Float[np.ndarray, " player"]:
        """The largest share of each player."""
        return np.asarray(self.share.max(0))

    @property
    def redundant(self) -> list[int]:
        """Chosen players that add clearly more alone than last: others can replace them."""
        return self._more(0, 1)

    @property
    def complementary(self) -> list[int]:
        """Chosen players that add clearly more last than alone: they need others."""
        return self._more(1, 0)

    def _more(self, one: int, other: int) -> list[int]:
        gap = self.share[one] - self.share[other]
        sure = SEEMS * np.hypot(self.error[one], self.error[other])
        return [p for p in self.chosen if gap[p] > max(LEAST, sure[p])]


def find_carriers(games: tuple[Game, Game], n_examples: int, n_players: int, seed: int = 0) -> Carriers:
    """Ask all players in a first game, and those that seem to carry in a second one: the same with other partners.

    Where the players that are sure to add enough carry less than :data:`PART` of the whole together, the limit of what
    counts is lowered, to half of what each of the others adds if all add alike. If the players that are sure to add so
    much carry too little as well, the strongest others follow until the set carries enough. The interval is then of
    all players that cannot be excluded.
    """
    first = ask(games[0], n_examples, n_players, range(n_players), SCREEN, seed)
    players = likely(first)
    again = ask(games[1], n_examples, n_players, players, n_orders(players), seed + 1) if players else None
    found = judge(first, players, again)
    whole = first.whole.double()
    if float(whole.mean()) <= SURE * float(whole.std()) / n_examples**0.5:
        return found
    (share,) = carried(games[1], n_examples, n_players, [found.chosen])
    if share >= PART:
        return found
    found = judge(first, players, again, (1 - share) / max(1, n_players - len(found.chosen)) / 2)
    others = sorted(set(range(n_players)) - set(found.chosen), key=lambda p: -found.share[:, p].mean())
    sets = [(*found.chosen, *others[:size]) for size in range(len(others) + 1)]
    shares = carried(games[1], n_examples, n_players, sets)
    enough = next((one for one, share in zip(sets, shares, strict=True) if share >= PART), sets[-1])
    return replace(found, chosen=tuple(sorted(enough)), high=max(found.high, len(enough)))


def carried(game: Game, n_pairs: int, n_players: int, sets: Sequence[Sequence[int]]) -> list[float]:
    """The share of the whole that each set carries: mean of what is there with it kept, and lost with it taken."""
    masks = torch.zeros(len(sets) + 1, 1, n_players, dtype=torch.bool)
    for row, one in enumerate(sets, start=1):
        masks[row, 0, list(one)] = True
    masks = masks.expand(-1, n_pairs, -1)
    kept, taken = (values.double().mean(-1) for values in (game.keep(masks), game.take(masks)))
    shares = (kept[1:] - kept[0] + taken[0] - taken[1:]) / 2 / (taken[0] - kept[0])
    return [float(share) for share in shares]


def ask(game: Game, n_pairs: int, n_players: int, players: Sequence[int], orders: int, seed: int) -> Asked:
    """Ask some of the players; in random orders the others are kept or not at random.

    Args:
        orders: how many, each second one the one before it backwards.
        seed: draws the orders.
    """
    generator, n = torch.Generator().manual_seed(seed), len(players)
    empty = torch.zeros(1, n_pairs, n_players, dtype=torch.bool)
    single = torch.eye(n_players, dtype=torch.bool)[list(players), None].expand(-1, n_pairs, -1)
    walks, ranks = [], list[Int[Tensor, "pair some"]]()
    for number in range(orders):
        new = torch.rand(n_pairs, n, generator=generator).argsort(1) if number % 2 == 0 else n - 1 - ranks[-1]
        ranks.append(new)
        walk = (torch.rand(n_pairs, n_players, generator=generator) < 0.5).expand(n + 1, -1, -1).clone()
        walk[:, :, list(players)] = torch.stack([new < size for size in range(n + 1)])
        walks.append(walk)
    kept, taken = game.keep(torch.cat([empty, single, *walks])), game.take(torch.cat([empty, single]))
    walked = kept[1 + n :].unflatten(0, (orders, n + 1)).diff(dim=1)  # order, step, pair
    shared = [step.gather(0, rank.T) for step, rank in zip(walked, ranks, strict=True)]
    alone, last = kept[1 : 1 + n] - kept[0], taken[0] - taken[1:]
    return Asked(torch.stack([alone, last, torch.stack(shared).mean(0)]), taken[0] - kept[0], orders)


def likely(asked: Asked) -> list[int]:
    """The players that seem to add something."""
    share, error = _shares(asked)
    return [int(p) for p in np.flatnonzero(((share > AGAIN * error) & (share > LEAST / 2)).any(0))]


def n_orders(players: Sequence[int]) -> int:
    """In which players are asked again: more where they are few."""
    return 2 * max(2, min(MOST_ORDERS, CONFIRM // (len(players) + 1)) // 2)


def judge(
    first: Asked, players: Sequence[int] = (), again: Asked | None = None, least: float | None = None
) -> Carriers:
    """Which players carry.

    Args:
        first: all players, asked once.
        players, again: those that were asked again.
        least: what a player must add; None is :data:`LEAST`, and of what the strongest adds :data:`LEAST_BESIDE`.
            Where it is given, the interval is of all players that may add so much, whether they seem to or not.
    """
    asked = first
    if again is not None:
        added, new = first.added.clone(), again.orders / (first.orders + again.orders)
        weight = torch.tensor([0.5, 0.5, new])[:, None, None]
        added[:, list(players)] = (1 - weight) * added[:, list(players)] + weight * again.added
        asked = Asked(added, (first.whole + again.whole) / 2, first.orders + again.orders)
    share, error = _shares(asked)
    sure, seems = share > SURE * error, share > SEEMS * error
    limit = np.maximum(LEAST, LEAST_BESIDE * share.max(1, keepdims=True)) if least is None else least
    seems |= least is not None
    moves = asked.added[:2].double().square().mean(-1).sqrt().numpy() / _whole(asked)
    chosen = tuple(np.flatnonzero((sure & (share >= limit)).any(0)).tolist())
    low = int((sure & (share - SEEMS * error >= limit)).any(0).sum())
    may = (seems & (share + SEEMS * error >= limit)).any(0) | (moves >= BOTH_WAYS).any(0)
    high = int(may.sum())
    return Carriers(share, error, chosen, min(low, len(chosen)), max(high, len(chosen)))


def _shares(asked: Asked) -> tuple[Float[np.ndarray, "3 player"], Float[np.ndarray, "3 player"]]:
    """Mean over examples as a share of the whole, and its standard error."""
    added, whole = asked.added.double().numpy(), _whole(asked)
    return added.mean(-1) / whole, added.std(-1, ddof=1) / added.shape[-1] ** 0.5 / whole + 1e-12


def _whole(asked: Asked) -> float:
    """What all players add together, mean over examples; never 0, as it is divided by."""
    return max(float(asked.whole.double().mean()), 1e-9)
