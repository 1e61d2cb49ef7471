"""What a head of attention does, from its pattern and from what is lost without it: pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.errors import DataError

SINK = 0.3  # the mean weight from which a position is a sink of a head (Gu et al. 2024, arXiv 2410.10781)
ROWS_AFTER = 8  # rows that must follow a position before what it draws can be told
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
        real: the positions that are not padding.
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


def norm_growth(
    norms: Float[Tensor, "batch layer pos"], image: Bool[Tensor, "batch pos"], real: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
    """How large each position is as it enters the decoder, and how large it gets in there.

    Args:
        norms: of the stream entering each block.
        image: the image tokens.
        real: the positions that are not padding.

    Returns:
        Of an image token, its norm entering block 0 over the median of all image tokens there (0 for the others); of
        every position, its norm entering a later block over the median of all positions there, in the block where that
        is largest (0 for padding, and in a decoder of one block).
    """
    first, later = norms[:, 0], norms[:, 1:]
    entering = (first / _median(first, image)).where(image, 0.0)
    grown = later / _median(later, real[:, None].expand_as(later))
    inside = grown.amax(1) if grown.shape[1] else torch.zeros_like(first)
    return entering, inside.where(real, 0.0)


def sink_origins(
    entering: Float[Tensor, "batch pos"], inside: Float[Tensor, "batch pos"]
) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Which positions have a large norm from the tower, and which get one in the decoder; from :func:`norm_growth`.

    Large is :data:`LARGE` times the median. From the tower come image tokens that enter the decoder large (the
    registers of Darcet et al. 2023, arXiv 2309.16588); from the decoder all others that become large in it (Sun et al.
    2024, arXiv 2402.17762; Kang et al. 2025, arXiv 2503.03321). A sink may be neither: a head can be drawn by a
    direction of ordinary size.
    """
    tower = entering > LARGE
    return tower, (inside > LARGE) & ~tower


def _median(values: Float[Tensor, "*rows pos"], of: Bool[Tensor, "*rows pos"]) -> Float[Tensor, "*rows 1"]:
    """Of the chosen positions; infinite where none is."""
    return values.where(of, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(torch.inf)


@dataclass(frozen=True)
class Regression:
    """What each part is worth by a linear model of random subsets.

    Attributes:
        worth: how much the value grows with a part there, one row per example.
        error: standard error of the mean of ``worth`` over examples that comes from which subsets were drawn: 0 where
            the value is a sum of what its parts are worth. Heteroskedasticity-consistent (HC3, MacKinnon and White
            1985), because interactions of parts are not noise of one size.
        r2: share of the variance over subsets that the model explains, mean over examples, for subsets it was
            fitted to; held_out: for a fifth of them that it was not.
    """

    worth: Float[Tensor, "example part"]
    error: Float[Tensor, " part"]
    r2: float
    held_out: float


def subset_regression(
    kept: Bool[Tensor, "subset part"], values: Float[Tensor, "subset example"], ridge: float = 0.0
) -> Regression:
    """A linear model of a value on which parts are there, for each example: least squares, or ridge regression.

    Args:
        kept: which parts are there in each subset.
        values: of each subset, for each example.
        ridge: the penalty on squared weights, none on the intercept; of sums over subsets of values as they are. It
            draws all weights towards 0.

    Raises:
        DataError: fewer than 10 subsets, shapes that do not fit, or subsets that cannot tell the parts apart without a
            penalty.

    Example:
        >>> kept = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) > 0.5
        >>> values = 1.0 + kept.float() @ torch.tensor([[2.0], [0.5], [1.0]])  # what the three parts add
        >>> gl.measures.subset_regression(kept, values).worth.round(decimals=3)
        tensor([[2.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    if kept.ndim != 2 or values.ndim != 2 or len(kept) != len(values) or len(kept) < 10:
        raise DataError(
            f"subset_regression: {tuple(kept.shape)} subsets and {tuple(values.shape)} values; give 10 subsets or "
            "more, and a row of values for each"
        )
    check_apart(kept, ridge)
    test = torch.arange(len(kept)) % 5 == 4
    fitted = _fit(kept, values, ridge)
    apart = _fit(kept[~test], values[~test], ridge)
    return Regression(
        fitted.weights.T,
        fitted.error(values),
        fitted.explained(kept, values),
        apart.explained(kept[test], values[test]),
    )


def check_apart(kept: Bool[Tensor, "subset part"], ridge: float) -> None:
    """Raise DataError if the subsets cannot tell the parts apart and no penalty decides."""
    number, parts = kept.shape
    x = kept.double()
    if not ridge and int(torch.linalg.matrix_rank(x - x.mean(0))) < parts:
        raise DataError(
            f"{number} subsets cannot tell {parts} parts apart: draw more of them (twice the parts), or give a ridge"
        )


@dataclass(frozen=True)
class _Fit:
    """The linear model ``level + x @ weights``; ``x`` is centred, and ``of @ values`` are the weights."""

    x: Float[Tensor, "subset part"]
    middle: Float[Tensor, " part"]
    of: Float[Tensor, "part subset"]
    level: Float[Tensor, " example"]
    weights: Float[Tensor, "part example"]

    def explained(self, kept: Tensor, values: Tensor) -> float:
        """Share of the variance of some values over subsets, mean over examples."""
        y = values.double()
        left = (y - self.level - (kept.double() - self.middle) @ self.weights).square().sum(0)
        whole = (y - y.mean(0)).square().sum(0)
        return float(torch.where(whole > 0, 1 - left / whole.clamp(min=1e-30), 0.0).mean())

    def error(self, values: Tensor) -> Float[Tensor, " part"]:
        """See :class:`Regression`: what each subset's residual, mean over examples, does to the weights."""
        left = (values.double() - self.level - self.x @ self.weights).mean(1)
        leverage = (self.x * self.of.T).sum(1) + 1 / len(self.x)
        # a subset that alone decides a weight leaves no residual to judge it by
        left = left / (1 - leverage).clamp(min=1e-6)
        return (self.of * left).square().sum(1).sqrt()


def _fit(kept: Tensor, values: Tensor, ridge: float) -> _Fit:
    x, y = kept.double(), values.double()
    middle, level = x.mean(0), y.mean(0)
    x = x - middle
    # a fifth less than all may not tell the parts apart: the pseudo-inverse then takes the smallest weights
    of = torch.linalg.pinv(x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), hermitian=True) @ x.T
    return _Fit(x, middle, of, level, of @ (y - level))
