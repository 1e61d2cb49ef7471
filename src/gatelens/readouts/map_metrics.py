"""What a map measures of each run: one number of the next-token logits."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from gatelens.data import Pair
from gatelens.engine.grid import numbers_of
from gatelens.errors import InputError, did_you_mean, shown
from gatelens.examples import Labels
from gatelens.measures import logits as metrics
from gatelens.measures.logits import Metric
from gatelens.measures.stats import SHARE, Bounds

# (logits, pair) -> one number an example; or of logits alone
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
    """A metric by name, or a function of the logits, as it is for each pair.

    Raises:
        InputError: an unknown name, or no function of ``(logits)`` or ``(logits, pair)``.
    """

    def __init__(self, given: str | PairMetric, labels: Labels) -> None:
        self.given, self.labels = given, labels
        self.takes_pair = False
        if isinstance(given, str) and given in NAMES:
            self.name = IN_WORDS.get(given, given)
        elif callable(given) and not isinstance(given, type):
            self.name = getattr(given, "__name__", "metric").replace("<lambda>", "metric")
            self.takes_pair = _takes_pair(given)
        else:
            raise InputError(
                f"metric={shown(given)}: write one of {', '.join(NAMES)}, or give a function of the logits"
                f"{did_you_mean(str(given), NAMES)}"
            )

    @property
    def bounds(self) -> Bounds | None:
        """Of an effect: right or wrong turns wholly or not at all, other numbers have no bounds."""
        return SHARE if self.given == "top1" else None

    @property
    def needs_clean(self) -> bool:
        """Whether it compares with the clean run's logits."""
        return self.given in OF_CLEAN

    def of(self, pair: Pair, number: int, clean: Float[Tensor, "1 1 d_vocab"] | None) -> Metric:
        """The metric of one pair; ``clean`` are the last logits of its clean run, for a metric that needs them."""
        if not isinstance(self.given, str):
            if not self.takes_pair:
                return self.given
            function = partial(self.given, pair=pair)
            function.last_only = getattr(self.given, "last_only", False)  # type: ignore[attr-defined]
            return function
        if self.given in OF_CLEAN:
            assert clean is not None
            return OF_CLEAN[self.given](clean)
        target = self.labels.first_token(pair.clean.prompt, pair.target)
        if self.given in OF_TARGET:
            return OF_TARGET[self.given](target)
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


def number_of(metric: Metric, logits: Tensor, where: str) -> float:
    """The metric of one run. Raises InputError or InterventionError where it gives no finite number."""
    (value,) = numbers_of(metric(logits), 1)
    if not math.isfinite(value):
        raise InputError(f"the metric gave {value} for {where}: give one that is finite there")
    return value


def _takes_pair(function: Any) -> bool:
    """Whether a function wants the pair beside the logits."""
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
    raise InputError(f"metric={shown(function)} is no function of (logits) or of (logits, pair)")
