"""Players of games whose shares are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatelens.studies.gate_finder.carriers import LEAST, PART, ask, carried, find_carriers

EXAMPLES = 40


@dataclass
class Made:
    """A game by a function of how many of some players are kept, with noise over examples that no player makes."""

    worth: Callable[[Tensor], Tensor]  # kept players, Bool[..., player]
    noise: Tensor = field(
        default_factory=lambda: 0.2 * torch.randn(EXAMPLES, generator=torch.Generator().manual_seed(1))
    )

    def keep(self, sets: Tensor) -> Tensor:
        return self.worth(sets).double() * (1 + self.noise)

    def take(self, sets: Tensor) -> Tensor:
        return self.keep(~sets)


def at_least(k: int, players: list[int]) -> Made:
    """Worth 1 where ``k`` of the players are kept: an OR for 1, an AND for all, a majority between."""
    return Made(lambda sets: sets[..., players].sum(-1) >= k)


@pytest.mark.parametrize(
    ("k", "players", "alone", "last"),
    [
        (1, [3], 1, 1),
        (1, [1, 4, 6], 1, 0),
        (3, [1, 4, 6], 0, 1),
        (2, [0, 1, 2], 0, 0),
        (3, [0, 2, 4, 5, 7], 0, 0),
    ],
)
def test_an_or_an_and_and_majorities(k: int, players: list[int], alone: int, last: int) -> None:
    """By symmetry each player has the Shapley value of 1 / n, whatever the rule is."""
    one = find_carriers((at_least(k, players), at_least(k, players)), EXAMPLES, 8)
    assert list(one.chosen) == players
    assert one.low <= len(players) <= one.high
    rest = [p for p in range(8) if p not in players]
    assert np.abs(one.share[:, rest]).max() < 1e-6
    assert one.share[0, players] == pytest.approx(alone, abs=0.05)
    assert one.share[1, players] == pytest.approx(last, abs=0.05)
    assert one.share[2, players].mean() == pytest.approx(1 / len(players), abs=0.02)
    assert one.redundant == (players if alone > last else [])
    assert one.complementary == (players if last > alone else [])


def test_shares_over_orders_add_up_to_the_whole() -> None:
    """The walk from the empty set to all players is divided among the players, in each pair."""
    weights = torch.tensor([0.5, 0.0, 1.5, 0.2])
    game = Made(lambda sets: (sets.float() @ weights) ** 2)
    asked = ask(game, EXAMPLES, 4, range(4), 2, seed=0)
    torch.testing.assert_close(asked.added[2].sum(0), asked.whole)
    # of (Σ w)² a player's Shapley value is w · Σ w; forwards and backwards together give it exactly
    wanted = (weights * weights.sum())[:, None].double() * (1 + game.noise)
    torch.testing.assert_close(asked.added[2], wanted)


def test_nothing_is_found_where_nothing_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for seed in range(40):
        noise = torch.randn(400, EXAMPLES, generator=generator)
        game = Made(lambda sets, noise=noise: noise[: len(sets)], torch.zeros(EXAMPLES))
        alarms += bool(find_carriers((game, game), EXAMPLES, 20, seed).chosen)
    assert alarms <= 2


@given(st.data())
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
def test_any_ways_to_win_are_found(data: st.DataObject) -> None:
    """Some sets are each enough (an OR of ANDs, none within another); their players are found, and no other."""
    ways = data.draw(
        st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=2), min_size=1, max_size=2), label="ways"
    )
    ways = [way for way in ways if not any(other < way for other in ways)]
    game = Made(lambda sets: torch.stack([sets[..., sorted(way)].all(-1) for way in ways]).any(0))
    one = find_carriers((game, game), EXAMPLES, 8)
    assert set(one.chosen) == set().union(*ways)
    assert one.low <= len(one.chosen) <= one.high
    assert (one.strength[list(one.chosen)] >= LEAST).all()


def test_players_that_are_hard_to_tell_widen_the_interval() -> None:
    """Effects near the least that counts: the number is not said to be sure."""
    weights = torch.tensor([1.0, 0.11, 0.09, 0.08, 0.07, 0.06, 0.0, 0.0])
    noise = torch.randn(EXAMPLES, 8, generator=torch.Generator().manual_seed(2)) * 0.12
    game = Made(lambda sets: (sets.float() * (weights + noise)).sum(-1), torch.zeros(EXAMPLES))
    one = find_carriers((game, game), EXAMPLES, 8)
    assert one.low < one.high and one.low <= len(one.chosen) <= one.high


def test_many_small_parts_beside_a_large_one_are_found() -> None:
    """Each is less than counts beside the strongest, and together they are half of the whole."""
    weights = torch.tensor([1.0, *[0.05] * 20, 0.0, 0.0, 0.0])
    game = Made(lambda sets: (sets.float() * weights).sum(-1))
    one = find_carriers((game, game), EXAMPLES, len(weights))
    assert one.chosen == tuple(range(21)) and one.low <= 21 <= one.high
    assert one.high < len(weights)  # players that add nothing are excluded


def test_players_too_hard_to_tell_are_not_said_to_be_few() -> None:
    """Each is worth more or less by example, so that hardly one is sure; what they carry together is plain."""
    weights = torch.zeros(EXAMPLES, 12)
    weights[:, :8] = 0.125 + 0.7 * torch.randn(EXAMPLES, 8, generator=torch.Generator().manual_seed(3))
    weights[:, 0] += 1 - weights.sum(1)  # the whole is 1 in every example
    game = Made(lambda sets: (sets.float() * weights).sum(-1), torch.zeros(EXAMPLES))
    one = find_carriers((game, game), EXAMPLES, 12)
    (share,) = carried(game, EXAMPLES, 12, [one.chosen])
    assert share >= PART and one.low < 4 and one.low <= 8 <= one.high


def test_a_player_that_moves_the_answer_both_ways_is_not_excluded() -> None:
    """It adds nothing on average, as a switch does that says how strongly another player counts."""
    sign = torch.ones(EXAMPLES).double()
    sign[::2] = -1
    game = Made(lambda sets: sets[..., 0].double() * (1 + 0.5 * sign * sets[..., 3]), torch.zeros(EXAMPLES))
    one = find_carriers((game, game), EXAMPLES, 6)
    assert one.chosen == (0,) and (one.low, one.high) == (1, 2)
