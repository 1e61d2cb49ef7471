"""A linear probe: how well one linear map reads a class off an activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.neighbours import check_points
from gatelens.measures.stats import wilson_interval


@dataclass(frozen=True)
class LinearClassifier:
    """Weights and bias of a multinomial logistic regression; column c speaks for ``classes[c]``."""

    weight: Float[Tensor, "feature class"]
    bias: Float[Tensor, " class"]
    classes: Int[Tensor, " class"]

    def probabilities(self, x: Float[Tensor, "point feature"]) -> Float[Tensor, "point class"]:
        """p(class | x)."""
        return (x.detach().cpu().double() @ self.weight + self.bias).softmax(-1)

    def predict(self, x: Float[Tensor, "point feature"]) -> Int[Tensor, " point"]:
        """The likeliest class of every row."""
        return self.classes[self.probabilities(x).argmax(-1)]


@dataclass(frozen=True)
class Probe:
    """Cross-validated accuracy, its interval, and what a guess of the commonest class would score."""

    accuracy: float
    interval: tuple[float, float]
    correct: Bool[Tensor, " point"]
    majority: float


@torch.inference_mode(False)  # it needs gradients of its own, also when called where none are kept
def fit_linear(
    x: Float[Tensor, "point feature"],
    labels: Int[Tensor, " point"],
    ridge: float = 1e-2,
    max_iter: int = 1000,
    tolerance: float = 1e-9,
) -> LinearClassifier:
    """Multinomial logistic regression with a ridge: minimises mean cross-entropy + ridge/2 · |weight|².

    The bias is free. This is scikit-learn's ``LogisticRegression`` with ``C = 1 / (ridge · points)``. Solved by
    L-BFGS in float64 from zero, so the answer is the same every time. It stops where no part of the gradient
    exceeds ``tolerance``. Which class is likeliest is settled long before the default is met.

    Raises:
        DataError: a ridge that is not positive, fewer than two classes, rows not finite, no convergence.
    """
    check_points(x, "fit_linear")
    if not ridge > 0:
        raise DataError(
            f"fit_linear: ridge={ridge} must be positive, else separable classes have no solution"
        )
    if labels.shape != x.shape[:1]:
        raise DataError(f"fit_linear: {len(x)} points but labels {tuple(labels.shape)}; give one a point")
    classes, target = labels.cpu().unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError("fit_linear: all points have one label; a probe needs at least two classes")
    points = x.detach().cpu().double().clone()
    weight = torch.zeros(points.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        tolerance_grad=tolerance,
        tolerance_change=1e-15,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = torch.nn.functional.cross_entropy(points @ weight + bias, target)
            value = value + ridge / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)
    loss()
    slope = max(float(p.grad.abs().max()) for p in (weight, bias) if p.grad is not None)
    if not slope <= max(1e-5, tolerance):
        raise DataError(
            f"fit_linear: no convergence in {max_iter} steps (gradient {slope:.0e}); standardise the features, "
            f"raise ridge or max_iter"
        )
    return LinearClassifier(weight.detach(), bias.detach(), classes)


def linear_probe(
    x: Float[Tensor, "point feature"],
    labels: Int[Tensor, " point"],
    folds: int = 5,
    ridge: float = 1e-2,
    seed: int = 0,
    level: float = 0.95,
    tolerance: float = 1e-9,
) -> Probe:
    """Accuracy of :func:`fit_linear` on points it was not fitted on, by ``folds``-fold cross-validation.

    Every class is dealt evenly over the folds, in an order drawn from ``seed``. Features are centred and
    scaled by the fold's own training points. The interval is Wilson's (1927) for a proportion, which keeps a
    width at an accuracy of 0 or 1; it takes the points as independent, which shared training points make
    only nearly true.

    Raises:
        DataError: fewer than two folds, a class with fewer points than folds; see :func:`fit_linear`.
    """
    check_points(x, "linear_probe")
    if labels.shape != x.shape[:1]:
        raise DataError(f"linear_probe: {len(x)} points but labels {tuple(labels.shape)}; give one a point")
    labels = labels.cpu()
    classes, count = labels.unique(return_counts=True)
    if folds < 2:
        raise DataError(f"linear_probe: folds={folds} leaves nothing to test on; give at least 2")
    if int(count.min()) < folds:
        raise DataError(
            f"linear_probe: class {classes[count.argmin()].item()} has {int(count.min())} points for {folds} folds; "
            f"drop it or take fewer folds"
        )
    points = x.detach().cpu().double()
    fold = _deal(labels, folds, seed)
    correct = torch.zeros(len(points), dtype=torch.bool)
    for held in range(folds):
        train = fold != held
        mean = points[train].mean(0)
        scale = points[train].std(0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        fitted = fit_linear((points[train] - mean) / scale, labels[train], ridge, tolerance=tolerance)
        correct[~train] = fitted.predict((points[~train] - mean) / scale) == labels[~train]
    right = int(correct.sum())
    return Probe(
        accuracy=right / len(points),
        interval=wilson_interval(right, len(points), level),
        correct=correct,
        majority=int(count.max()) / len(points),
    )


def _deal(labels: Int[Tensor, " point"], folds: int, seed: int) -> Int[Tensor, " point"]:
    """A fold for every point, each class spread evenly; one class goes on where the last one stopped."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty(len(labels), dtype=torch.int64)
    fold[by_class] = torch.arange(len(labels)) % folds
    return fold
