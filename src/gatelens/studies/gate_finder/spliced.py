"""What sets of places are worth, each example paired with another of a different answer: see :class:`PositionGame`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import Example
from gatelens.measures.overlap import distribution_overlap
from gatelens.model import HookedVLM
from gatelens.studies.gate_finder.carriers import Asked, ask
from gatelens.studies.gate_finder.game import PositionGame
from gatelens.studies.gate_finder.measurements import PlacedPrompts
from gatelens.studies.gate_finder.places import locate
from gatelens.studies.section import Tables

ADDED, WHOLE = "added", "whole"


@dataclass(frozen=True)
class PairedPrompts(PlacedPrompts):
    """Some of the examples, each with the one that lends it activations: of another class, its picture of one size."""

    sources: Sequence[Example]
    source_labels: tuple[int, ...]

    def games(
        self, model: HookedVLM, players: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, PositionGame]]:
        """Half of the pairs at a time, since their prompts are twice as many: numbers of the examples, the game."""
        size = -(-len(self.numbers) // 2)
        member = torch.empty(len(self.places), dtype=torch.long)
        for number, places in enumerate(players):
            member[list(places)] = number
        for start in range(0, len(self.numbers), size):
            some = slice(start, start + size)
            prompts = locate(model, [*self.examples[some], *self.sources[some]], self.places)
            n = len(self.examples[some])
            pairs = torch.stack([torch.arange(n), torch.arange(n) + n], 1)
            answers = torch.tensor(self.tokens)[[*self.labels[some], *self.source_labels[some]]]
            first = int(prompts.after.any(0).nonzero()[0])
            game = PositionGame(model, prompts.inputs, pairs, answers, prompts.columns, member, first)
            yield np.array(self.numbers[some]), game


@dataclass(frozen=True)
class AskedPlayers(PairedPrompts):
    """What some players (places or blocks) add: alone, last and in random orders; see :func:`ask`."""

    players: Sequence[Sequence[int]]  # all places, each in one of them
    some: Sequence[int]
    orders: int
    seed: int

    def measure(self, model: HookedVLM) -> Tables:
        """``added``: ``question, player, example, value`` in nats, with all together as question −1."""
        tables = []
        for numbers, game in self.games(model, self.players):
            seed = self.seed + 1000 * int(numbers[0])
            asked = ask(game, len(numbers), len(self.players), self.some, self.orders, seed)
            questions, n = len(asked.added), len(self.some)
            table = {
                "question": np.repeat(np.arange(questions), n * len(numbers)),
                "player": np.tile(np.repeat(np.array(self.some), len(numbers)), questions),
                "example": np.tile(numbers, questions * n),
                "value": asked.added.double().numpy().ravel(),
            }
            whole = {"question": -1, "player": -1, "example": numbers, "value": asked.whole.double().numpy()}
            tables += [pd.DataFrame(table), pd.DataFrame(whole)]
        return {ADDED: pd.concat(tables, ignore_index=True)}


def asked_of(table: pd.DataFrame) -> Asked:
    """What :class:`AskedPlayers` measured, its batches put together; players in their order."""
    wide = table.pivot(index=["question", "player"], columns="example", values="value").sort_index()
    added = torch.tensor(wide.loc[0:].to_numpy())
    return Asked(added.unflatten(0, (3, -1)), torch.tensor(wide.loc[-1].to_numpy()[0]), 0)


@dataclass(frozen=True)
class SplicedAnswers(PairedPrompts):
    """Answers when sets of places alone keep their own activations, and when they alone have the partner's."""

    sets: Sequence[Sequence[int]]

    def measure(self, model: HookedVLM) -> Tables:
        """``spliced``: ``kept, set, example, score, flippable, flipped, gain``.

        ``score`` is the probability of the own answer rather than the partner's. Of the others see
        :class:`~gatelens.studies.gate_finder.measurements.PatchedAnswers`.
        """
        tables = []
        for numbers, game in self.games(model, [[p] for p in range(len(self.places))]):
            n = len(numbers)
            base, wanted = game.clean.softmax(-1).split(n)
            clean = distribution_overlap(base, wanted)

            def read(
                logits: Float[Tensor, "run pair d_vocab"],
                game: PositionGame = game,
                wanted: Tensor = wanted,
                clean: Tensor = clean,
            ) -> Float[Tensor, "3 run pair"]:
                p = logits.softmax(-1)
                flipped = p.argmax(-1) == wanted.argmax(-1)
                gain = distribution_overlap(p, wanted.expand_as(p)) - clean
                return torch.stack([game.log_odds(logits).sigmoid(), flipped.float(), gain])

            sets = torch.zeros(len(self.sets), 1, len(self.places), dtype=torch.bool)
            for row, places in enumerate(self.sets):
                sets[row, 0, list(places)] = True
            sets = sets.expand(-1, n, -1)
            flippable = (base.argmax(-1) != wanted.argmax(-1)).numpy()
            for kept, values in ((True, game.keep(sets, read)), (False, game.take(sets, read))):
                score, flipped, gain = values.double().numpy().reshape(3, -1)
                rows = {
                    "kept": kept,
                    "set": np.repeat(np.arange(len(sets)), n),
                    "example": np.tile(numbers, len(sets)),
                }
                rows |= {
                    "score": score,
                    "flippable": np.tile(flippable, len(sets)),
                    "flipped": flipped,
                    "gain": gain,
                }
                tables.append(pd.DataFrame(rows))
        return {"spliced": pd.concat(tables, ignore_index=True)}
