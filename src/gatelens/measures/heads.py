"""What a head of attention does, from its pattern and from what is lost without it: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.errors import DataError

SINK = 0.3  # the mean weight from which a position is a sink of a head (Gu et al. 2024, arXiv 2410.10781)
ROWS_AFTER = 8  # rows that must follow a position before anybody can say what it draws
LARGE = 3.0  # times the median norm: what counts as a large norm


class QueryMeans:
    """The mean of chosen rows of attention by layer and head, and of their entropies, from blocks of rows.

    Args:
        queries: the rows.

    Raises:
        DataError: an example without any.
    """

    def __init__(self, queries: Bool[Tensor, "batch pos"]) -> None:
        n = queries.sum(1, keepdim=True)
        if not bool(n.all()):
            example = int((n == 0).nonzero()[0, 0])
            raise DataError(
                f"queries select no position in example {example} of a batch: name some that all have"
            )
        self.weight = queries.float() / n
        self._rows: dict[int, Float[Tensor, "batch head key"]] = {}
        self._entropy: dict[int, Float[Tensor, "batch head"]] = {}

    def __call__(self, layer: int, pattern: Float[Tensor, "batch head some key"], low: int) -> None:
        """Add some rows of a layer, the first of them at position ``low``."""
        weight = self.weight[:, low : low + pattern.shape[2]].to(pattern.device)
        pattern = pattern.float()
        rows = torch.einsum("bhqk,bq->bhk", pattern, weight).cpu()
        entropy = torch.einsum("bhq,bq->bh", torch.special.entr(pattern).sum(-1), weight).cpu()
        self._rows[layer] = self._rows.get(layer, 0) + rows
        self._entropy[layer] = self._entropy.get(layer, 0) + entropy

    def rows(self) -> Float[Tensor, "batch layer head key"]:
        """Mean attention on each key."""
        return torch.stack([self._rows[layer] for layer in sorted(self._rows)], 1)

    def entropy(self) -> Float[Tensor, "batch layer head"]:
        """In nats."""
        return torch.stack([self._entropy[layer] for layer in sorted(self._entropy)], 1)


class Received:
    """What each position receives from the rows after it, mean over them: α of Gu et al. 2024, without its own row.

    Args:
        real: the positions that are no padding.
    """

    def __init__(self, real: Bool[Tensor, "batch pos"]) -> None:
        self.real = real
        after = real.flip(1).cumsum(1).flip(1) - real.long()
        self.after = after * real  # rows after each position
        self._sums: dict[int, Float[Tensor, "batch head pos"]] = {}

    def __call__(self, layer: int, pattern: Float[Tensor, "batch head some key"], low: int) -> None:
        """Add some rows of a layer, the first of them at position ``low``."""
        n_rows, n_keys = pattern.shape[2:]
        row, key = torch.arange(low, low + n_rows)[:, None], torch.arange(n_keys)
        counted = (row > key) & self.real[:, low : low + n_rows, None]
        rows = torch.einsum("bhqk,bqk->bhk", pattern.float(), counted.float().to(pattern.device)).cpu()
        self._sums[layer] = self._sums.get(layer, torch.zeros_like(rows)) + rows

    def weights(self) -> Float[Tensor, "batch layer head pos"]:
        """By layer and head; 0 where fewer than :data:`ROWS_AFTER` rows follow."""
        sums = torch.stack([self._sums[layer] for layer in sorted(self._sums)], 1)
        judged = self.after >= ROWS_AFTER
        return sums / self.after.clamp(min=1)[:, None, None] * judged[:, None, None]


def sink_origins(
    norms: Float[Tensor, "batch layer pos"], image: Bool[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Which positions have a large norm from the tower, and which get one in the decoder.

    From the tower: image tokens whose norm entering block 0 is above :data:`LARGE` times the median of their
    picture's tokens (the registers of Darcet et al. 2023, arXiv 2309.16588). From the decoder: all others whose norm
    entering some later block is above as many times the median of all positions there (Sun et al. 2024, arXiv
    2402.17762; Kang et al. 2025, arXiv 2503.03321).

    Args:
        norms: of the stream entering each block, at every position.
    """
    first, later = norms[:, 0], norms[:, 1:]
    tower = image & (first > LARGE * _median(first, image))
    grown = (later > LARGE * _median(later, real[:, None].expand_as(later))).any(1)
    return tower, grown & real & ~tower


def _median(values: Float[Tensor, "*rows pos"], of: Bool[Tensor, "*rows pos"]) -> Float[Tensor, "*rows 1"]:
    """Of the chosen positions; infinite where none is."""
    return values.where(of, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(torch.inf)


@dataclass(frozen=True)
class Regression:
    """What each part is worth by a linear model of random subsets.

    Attributes:
        worth: how much the value grows with a part there, one row an example.
        r2: share of the variance over subsets that the model explains, mean over examples, for subsets it was
            fitted to; held_out: for a fifth of them that it was not.
    """

    worth: Float[Tensor, "example part"]
    r2: float
    held_out: float


def subset_regression(
    kept: Bool[Tensor, "subset part"], values: Float[Tensor, "subset example"], ridge: float = 1.0
) -> Regression:
    """A ridge regression of a value on which parts are kept, for each example (as in arXiv 2509.17588).

    Args:
        kept: which parts are there in each subset.
        values: of each subset, for each example.
        ridge: the penalty on squared weights, none on the intercept; of sums over subsets of values as they are.

    Raises:
        DataError: fewer than 10 subsets, or shapes that do not fit.
    """
    if kept.ndim != 2 or values.ndim != 2 or len(kept) != len(values) or len(kept) < 10:
        raise DataError(
            f"subset_regression: {tuple(kept.shape)} subsets and {tuple(values.shape)} values; give 10 subsets or "
            "more, and a row of values for each"
        )
    test = torch.arange(len(kept)) % 5 == 4
    fitted = _ridge(kept, values, ridge)
    apart = _ridge(kept[~test], values[~test], ridge)
    return Regression(
        fitted[1].T, _explained(fitted, kept, values), _explained(apart, kept[test], values[test])
    )


def _ridge(kept: Tensor, values: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Intercept Float[example] and weights Float[part, example]."""
    x, y = kept.double(), values.double()
    middle, level = x.mean(0), y.mean(0)
    x, y = x - middle, y - level
    weights = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    return level - middle @ weights, weights


def _explained(fitted: tuple[Tensor, Tensor], kept: Tensor, values: Tensor) -> float:
    intercept, weights = fitted
    y = values.double()
    left = (y - kept.double() @ weights - intercept).square().sum(0)
    whole = (y - y.mean(0)).square().sum(0)
    return float(torch.where(whole > 0, 1 - left / whole.clamp(min=1e-30), 0.0).mean())
