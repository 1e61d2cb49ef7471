"""What sets of positions are worth to an answer: keep them and give all others another picture's, or take them away."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.engine import SplicedRuns
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM

Sets = Bool[Tensor, "run pair player"]


class PositionGame:
    """Players are positions or blocks of them; values are log-odds of a prompt's answer against that of its partner.

    Positions before ``first`` have the residual stream of one of the two clean runs in every layer. Later ones are
    computed, except where a set pins them. With ``first`` at the last position, values tell what the answering row
    reads; at the first one after the picture, what all rows from there on read.

    Args:
        inputs: prompts of one template.
        pairs: row numbers of prompts and partners, Int[pair, 2].
        answers: tokens of the right answer by prompt.
        players: by prompt and player its positions, Bool[prompt, player, pos].
        first: see above.
    """

    def __init__(
        self,
        model: HookedVLM,
        inputs: VLMInputs,
        pairs: Int[Tensor, "pair 2"],
        answers: Int[Tensor, " prompt"],
        players: Bool[Tensor, "prompt player pos"],
        first: int,
    ) -> None:
        self.runs = SplicedRuns(model, inputs, first)
        self.pairs, self.answers, self.first = pairs, answers, first
        self.players = players[pairs[:, 0]].float()
        self.before = torch.arange(inputs.tokens.n_pos) < first

    @cached_property
    def clean(self) -> Float[Tensor, "prompt d_vocab"]:
        """Logits of each prompt, unmodified."""
        return self.runs.clean.float().cpu()

    def some(self, pairs: Sequence[int] | slice) -> PositionGame:
        """The game in some of the pairs; nothing is run again."""
        part = object.__new__(type(self))
        part.__dict__ |= self.__dict__
        part.pairs, part.players = self.pairs[pairs], self.players[pairs]
        return part

    def keep(self, sets: Sets) -> Float[Tensor, "run pair"]:
        """The sets keep their own; all other players before ``first`` are the partner's, later ones are computed."""
        return self._log_odds(
            own=self._positions(sets) & ~self.before, other=self._positions(~sets) & self.before
        )

    def take(self, sets: Sets) -> Float[Tensor, "run pair"]:
        """The sets are the partner's; all other players before ``first`` keep their own, later ones are computed."""
        return self._log_odds(own=torch.zeros_like(sets[..., :1]), other=self._positions(sets))

    def _positions(self, sets: Sets) -> Bool[Tensor, "run pair pos"]:
        return torch.einsum("rpk,pkc->rpc", sets.float(), self.players) > 0

    def _log_odds(self, own: Tensor, other: Tensor) -> Float[Tensor, "run pair"]:
        logits = self.runs.logits(self.pairs, own.expand_as(other), other).float().cpu()
        rows = torch.arange(len(self.pairs))
        mine, theirs = (self.answers[self.pairs[:, side]] for side in (0, 1))
        return logits[:, rows, mine] - logits[:, rows, theirs]
