"""What is searched: a model, examples of one prompt in two halves, the right answers and the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from gatelens.errors import DataError
from gatelens.studies.common import Labels, auto_batch_size, labels_of
from gatelens.studies.gate_finder.places import Batch, Places, find_places

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM

FEWEST = 20  # examples


def why_not(examples: Sequence[Example]) -> str | None:
    """Why these examples cannot be searched, in words that go on after the name of their data; None if they can."""
    prompts = sorted({e.prompt for e in examples})
    if len(prompts) > 1:
        return f"asks {len(prompts)} prompts ({prompts[0]!r}, {prompts[1]!r}, …), and places are those of one prompt"
    if len(examples) < FEWEST:
        return f"gives {len(examples)} examples of the task class, {FEWEST} are needed"
    if len({labels_of(e)[0] for e in examples}) < 2:
        return "has examples of one class alone, and two are needed"
    return None


@dataclass
class Setup:
    """What every step of the search works with.

    Attributes:
        model, examples: what is searched; all examples have the same prompt.
        seed: draws halves, pairs and bootstrap samples.
        n_boot: bootstrap replicates of an interval.
        batch_size: None fits the length of the prompts.
        tokens: first tokens of the class names, each once.
        labels: the right one of each example, as a number into ``tokens``.
        halves: numbers of the examples that choose sets, and of those that judge them.
        places: the candidates.

    Raises:
        DataError: the classes' names begin with one token, the input never varies, or nothing stands behind the
            picture.
    """

    model: HookedVLM
    examples: Sequence[Example]
    seed: int
    n_boot: int
    batch_size: int | None = None
    tokens: list[int] = field(init=False)
    labels: Int[np.ndarray, " example"] = field(init=False)
    halves: list[list[int]] = field(init=False)
    places: Places = field(init=False)

    def __post_init__(self) -> None:
        known = Labels(self.model)
        names = [labels_of(e)[0] for e in self.examples]
        ids = [known.first_token(e.prompt, name) for e, name in zip(self.examples, names, strict=True)]
        self.tokens = sorted(set(ids))
        if len(self.tokens) < 2:
            raise DataError(
                f"find_gate: the class names {', '.join(sorted(set(names))[:3])} begin with the same token, so that "
                "no answer tells them apart; give classes whose names begin differently"
            )
        self.labels = np.array([self.tokens.index(i) for i in ids])
        order = np.random.default_rng([self.seed, 5]).permutation(self.n)
        self.halves = [sorted(order[: self.n // 2].tolist()), sorted(order[self.n // 2 :].tolist())]
        size = self.batch_size or auto_batch_size(self.model, self.examples[0])
        self.places = find_places(self.model, self.examples, self.halves, size)

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.examples)

    @property
    def n_layers(self) -> int:
        """The decoder's layers."""
        return int(self.model.cfg.n_layers)

    def batches(self, half: int | None = None) -> list[Batch]:
        """The batches of one half of the examples, or of all."""
        wanted = None if half is None else set(self.halves[half])
        return [b for b in self.places.batches if wanted is None or b.examples[0] in wanted]

    def has(self) -> Bool[np.ndarray, "example place"]:
        """Which examples have which place: a small picture lacks the last places of a large one."""
        out = np.zeros((self.n, len(self.places.all)), dtype=bool)
        for batch in self.places.batches:
            out[list(batch.examples)] = (batch.columns >= 0).numpy()
        return out
