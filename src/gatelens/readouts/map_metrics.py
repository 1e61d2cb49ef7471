"""What a map measures of each run: one number of its logits, of what the model writes, or of activations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.data import Pair
from gatelens.engine.grid import LOGITS, TEXTS, numbers_of
from gatelens.errors import InputError, did_you_mean, shown
from gatelens.examples import Labels
from gatelens.measures import logits as metrics
from gatelens.measures.logits import Metric
from gatelens.measures.stats import SHARE, Bounds

# (logits, pair) -> one number per example; or of logits alone
PairMetric: TypeAlias = Callable[..., Tensor]
NEEDS_BASE = ("logit_diff",)
OF_TARGET: dict[str, Callable[[int], Metric]] = {
    "logit": metrics.logit,
    "prob": metrics.prob,
    "log_prob": metrics.log_prob,
    "top1": metrics.top1,
}
OF_CLEAN: dict[str, Callable[[Tensor], Metric]] = {"kl": metrics.kl, "similarity": metrics.similarity}
NAMES = (*NEEDS_BASE, *OF_TARGET, *OF_CLEAN)
IN_WORDS = {
    "logit_diff": "logit difference",
    "prob": "probability",
    "log_prob": "log-probability",
    "kl": "KL divergence",
    "top1": "top answer",
}


class MapMetric:
    """A metric by name, a function, or one of :mod:`gl.metrics <gatelens.measures.logits>`, as it is for each pair.

    Attributes:
        reads: what it is a function of: ``logits``, ``texts`` or ``cache``.

    Raises:
        InputError: an unknown name, or no function of ``(logits)`` or ``(logits, pair)``.
    """

    def __init__(self, given: str | PairMetric, labels: Labels) -> None:
        self.given, self.labels = given, labels
        self.takes_pair = False
        self.reads = getattr(given, "reads", LOGITS)
        if isinstance(given, str) and given in NAMES:
            self.name = IN_WORDS.get(given, given)
        elif self.reads != LOGITS:
            self.name = "score of the text" if self.reads == TEXTS else "activation"
        elif callable(given) and not isinstance(given, type):
            self.name = getattr(given, "__name__", "metric").replace("<lambda>", "metric")
            self.takes_pair = _takes_pair(given)
        else:
            raise InputError(
                f"metric={shown(given)}: write one of {', '.join(NAMES)}, or give a function of the logits"
                f"{did_you_mean(str(given), NAMES)}"
            )

    def of_logits(self) -> MapMetric:
        """The same. Raises InputError for a metric that reads something else."""
        if self.reads != LOGITS:
            raise InputError(
                f"the metric reads {self.reads}: give a function of logits here; gl.patch_map and gl.sweep take others"
            )
        return self

    @property
    def bounds(self) -> Bounds | None:
        """Bounds of an effect: right or wrong changes completely or not at all, other numbers have no bounds."""
        return SHARE if self.given == "top1" else None

    @property
    def needs_clean(self) -> bool:
        """Whether it compares with the clean run's logits."""
        return self.given in OF_CLEAN

    @property
    def rows(self) -> int:
        """How many of the last positions' logits are read; 0 is all."""
        return 1 if isinstance(self.given, str) or getattr(self.given, "last_only", False) else 0

    def of(
        self,
        pairs: Sequence[Pair],
        numbers: Sequence[int],
        clean: Float[Tensor, "batch 1 d_vocab"] | None = None,
    ) -> Metric:
        """The metric of a batch of pairs; ``clean`` are the last logits of their clean runs, where they are needed.

        Words that it asks of the example are those of the clean one.
        """
        if self.reads != LOGITS:
            given: Any = self.given
            return given.bind([pair.clean for pair in pairs]) if hasattr(given, "bind") else given
        each = [
            self._of_pair(pair, number, None if clean is None else clean[i : i + 1])
            for i, (pair, number) in enumerate(zip(pairs, numbers, strict=True))
        ]
        return each[0] if len(each) == 1 else _of_each(each)

    def _of_pair(self, pair: Pair, number: int, clean: Float[Tensor, "1 1 d_vocab"] | None) -> Metric:
        given: Any = self.given
        if hasattr(given, "bind"):
            bound = given.bind(
                [pair.clean], lambda example, word: self.labels.first_token(example.prompt, word)
            )
            return bound
        if not isinstance(given, str):
            if not self.takes_pair:
                return given
            function = partial(given, pair=pair)
            function.last_only = getattr(given, "last_only", False)  # type: ignore[attr-defined]
            return function
        if given in OF_CLEAN:
            assert clean is not None
            return OF_CLEAN[given](clean)
        target = self.labels.first_token(pair.clean.prompt, pair.target)
        if given in OF_TARGET:
            return OF_TARGET[given](target)
        if pair.base is None:
            raise InputError(
                f"pair {number} ({pair!r}) has no answer for its corrupt picture, so there is no logit difference: "
                f"say metric='prob' or another of {', '.join((*OF_TARGET, *OF_CLEAN))}"
            )
        base = self.labels.first_token(pair.corrupt.prompt, pair.base)
        if target == base:
            raise InputError(
                f"pair {number}: {pair.target!r} and {pair.base!r} begin with one token, so their logits do not "
                "differ: leave it out (pairs.without)"
            )
        return metrics.logit_diff(target, base)


def _of_each(several: Sequence[Metric]) -> Metric:
    """The metric of a batch from those of its examples, each of which sees its own logits alone."""

    def metric(logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        rows = zip(several, logits.split(1), strict=True)
        return torch.tensor([numbers_of(one(row), 1)[0] for one, row in rows], dtype=torch.float64)

    metric.last_only = all(getattr(one, "last_only", False) for one in several)  # type: ignore[attr-defined]
    return metric


def number_of(metric: Metric, logits: Tensor, where: str) -> float:
    """The metric of one run. Raises InputError or InterventionError where it gives no finite number."""
    (value,) = numbers_of(metric(logits), 1)
    if not math.isfinite(value):
        raise InputError(f"the metric gave {value} for {where}: give one that is finite there")
    return value


def _takes_pair(function: Any) -> bool:
    """Whether a function takes the pair in addition to the logits."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some functions written in C do not say what they take
        return False
    for arguments, takes in (((None,), False), ((None, None), True)):
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            continue
        if takes and "pair" not in parameters:
            raise InputError(f"metric={shown(function)}: call its second argument pair")
        return takes
    raise InputError(f"metric={shown(function)} is not a function of (logits) or of (logits, pair)")
