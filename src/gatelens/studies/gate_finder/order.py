"""In which order places are cut jointly: a search in rounds, each of which asks what some sets leave.

At the first ``limit`` steps all places left are asked, and the one is taken that leaves the lowest log-probability with
those before it; then the order last found is kept. Should the ``carrying`` places together be enough while no set of
``limit`` is, they are thinned out one by one: this finds positions that stand in for each other.

The search keeps no state: it is gone through from its beginning with all answers there are, up to the first question
that has none. That question is what is to be measured next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from gatelens.measures.concentration import greedy_order, prune, share_removed
from gatelens.studies.gate_finder.measurements import PART

Places = tuple[int, ...]
LogProbs = Float[np.ndarray, "set example"]


class _Unanswered(Exception):
    """The search has come to a question without an answer."""


@dataclass
class OrderSearch:
    """The order on some examples, as far as their answers tell.

    Attributes:
        answers: log-probability of the right answer under the sets of the n-th question; None while not measured.
        clean, floor: probability of the right answer unmodified, and with the whole picture cut, by example.
        chance: of guessing it.
        singles: the places to be put in order; ``carrying`` those of them after the picture.
        limit: steps at which all are asked.
        questions: the sets that were asked at once, and last those that are to be; made by :meth:`order`.
    """

    answers: Callable[[int], LogProbs | None]
    clean: Float[np.ndarray, " example"]
    floor: Float[np.ndarray, " example"]
    chance: float
    singles: Sequence[int]
    carrying: Sequence[int]
    limit: int
    questions: list[list[Places]] = field(default_factory=list)
    _known: dict[Places, Float[np.ndarray, " example"]] = field(default_factory=dict)

    def order(self) -> list[int] | None:
        """The places, the one that is cut first in front; None while a question is open."""
        self.questions, self._known = [], {}
        try:
            return self._search()
        except _Unanswered:
            return None

    def _search(self) -> list[int]:
        order: list[int] = []
        if self.singles:
            means = lambda sets: list(self._log_probs(sets).mean(1))  # noqa: E731
            order = greedy_order(means, self.singles, self.limit, self._enough)
        first = [order[:size] for size in range(1, min(self.limit, len(order)) + 1)]
        small = any(self._enough(one) for one in first)
        if not small and len(self.carrying) > 1 and self._enough(self.carrying):
            kept = prune(self._enough, self.carrying)
            order = [*kept, *(p for p in order if p not in kept)]
        return order

    def _enough(self, places: Sequence[int]) -> bool:
        share = share_removed(self.clean, np.exp(self._log_probs([places])), self.floor, self.chance)
        return bool((share >= PART).all())

    def _log_probs(self, sets: Sequence[Sequence[int]]) -> LogProbs:
        """What each set leaves; a set that was part of an earlier question is not asked again."""
        asked = [tuple(sorted(one)) for one in sets]
        new = [one for one in dict.fromkeys(asked) if one not in self._known]
        if new:
            self.questions.append(new)
            answers = self.answers(len(self.questions) - 1)
            if answers is None:
                raise _Unanswered
            self._known.update(zip(new, answers, strict=True))
        return np.stack([self._known[one] for one in asked])
