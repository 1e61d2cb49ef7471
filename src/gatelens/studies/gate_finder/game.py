"""What sets of positions are worth to an answer: keep them and give all others another picture's, or take them away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.engine.spliced_runs import SplicedRuns
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM

Sets = Bool[Tensor, "run pair player"]
Read = Callable[[Float[Tensor, "run pair d_vocab"]], Tensor]  # of logits, numbers [..., run, pair]


class PositionGame:
    """Players are places of a prompt or blocks of them; values are log-odds of its answer against its partner's.

    Places before ``first`` have the residual stream of one of the two clean runs in every layer. Later ones are
    computed, except where a set pins them. With ``first`` at the last position, values tell what the answering row
    reads; at the first one after the picture, what all rows from there on read.

    Args:
        inputs: prompts of one template.
        pairs: row numbers of prompts and partners, Int[pair, 2].
        answers: tokens of the right answer by prompt.
        columns: by prompt and place its position, −1 where a prompt lacks it.
        players: the number of the player that each place belongs to.
        first: see above.

    Attributes:
        clean: logits of each prompt, unmodified.
    """

    def __init__(
        self,
        model: HookedVLM,
        inputs: VLMInputs,
        pairs: Int[Tensor, "pair 2"],
        answers: Int[Tensor, " prompt"],
        columns: Int[Tensor, "prompt place"],
        players: Int[Tensor, " place"],
        first: int,
    ) -> None:
        self.runs, self.n_pos = SplicedRuns(model, inputs, first), inputs.tokens.n_pos
        self.pairs, self.answers, self.columns, self.players = pairs, answers, columns, players
        self.before = torch.arange(self.n_pos) < first
        self.clean: Float[Tensor, "prompt d_vocab"] = self.runs.clean.float().cpu()

    def some(self, pairs: slice) -> PositionGame:
        """The game in some of the pairs; nothing is run again."""
        part: Any = object.__new__(type(self))
        part.__dict__ |= self.__dict__ | {"pairs": self.pairs[pairs]}
        return part

    def keep(self, sets: Sets, read: Read | None = None) -> Float[Tensor, "... run pair"]:
        """The sets keep their own; all other players before ``first`` are the partner's, later ones are computed."""
        return self._read(self._positions(sets) & ~self.before, self._positions(~sets) & self.before, read)

    def take(self, sets: Sets, read: Read | None = None) -> Float[Tensor, "... run pair"]:
        """The sets are the partner's; all other players before ``first`` keep their own, later ones are computed."""
        taken = self._positions(sets)
        return self._read(torch.zeros_like(taken), taken, read)

    def log_odds(self, logits: Float[Tensor, "run pair d_vocab"]) -> Float[Tensor, "run pair"]:
        """Of the own answer against the partner's."""
        rows = torch.arange(len(self.pairs))
        mine, theirs = (self.answers[self.pairs[:, side]] for side in (0, 1))
        return logits[:, rows, mine] - logits[:, rows, theirs]

    def _positions(self, sets: Sets) -> Bool[Tensor, "run pair pos"]:
        columns = self.columns[self.pairs[:, 0]]
        columns = torch.where(columns < 0, self.n_pos, columns).expand(len(sets), -1, -1)
        positions = torch.zeros(*sets.shape[:2], self.n_pos + 1, dtype=torch.bool)
        return positions.scatter_(2, columns, sets[..., self.players])[..., : self.n_pos]

    def _read(self, own: Tensor, other: Tensor, read: Read | None) -> Float[Tensor, "... run pair"]:
        read = read or self.log_odds
        parts = self.runs.each(self.pairs, own, other)
        return torch.cat([read(logits.float().cpu()) for logits in parts], dim=-2)
