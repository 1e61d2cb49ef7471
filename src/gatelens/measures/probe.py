"""A linear probe: how well one linear map reads a class off an activation."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.neighbours import check_one_each, check_points
from gatelens.measures.stats import wilson_interval

# of one fit at a time: both what BLAS may use and what a warning does are the process's, not a thread's
_FITTING = threading.Lock()


@dataclass(frozen=True)
class Probe:
    """What :func:`linear_probe` gives.

    Attributes:
        accuracy: share of the points that are classified correctly, each by a fit that did not see it.
        interval: of the accuracy, low and high (95 % as it stands).
        correct: whether each point is.
        majority: share of the commonest class: what a guess of it would score.

    Example:
        >>> x = torch.cat([torch.linspace(-2, -1, 20), torch.linspace(1, 2, 20)])[:, None]
        >>> probe = gl.measures.linear_probe(x, ["cat"] * 20 + ["dog"] * 20)
        >>> probe.accuracy, probe.majority, int(probe.correct.sum())
        (1.0, 0.5, 40)
    """

    accuracy: float
    interval: tuple[float, float]
    correct: Bool[Tensor, " point"]
    majority: float


def linear_probe(
    x: Float[Tensor, "point feature"],
    labels: Int[Tensor, " point"] | Sequence[Any],
    folds: int = 5,
    ridge: float = 1e-2,
    seed: int = 0,
    level: float = 0.95,
    tolerance: float = 1e-9,
    max_iter: int = 1000,
) -> Probe:
    """Accuracy of a logistic regression on points it was not fitted on, by stratified cross-validation.

    Fitted is scikit-learn's ``make_pipeline(StandardScaler(), LogisticRegression(C))`` in float64, with C such that
    the mean cross-entropy of the softmax over classes + ``ridge/2 · |weight|²`` is least; the bias is free. Folds
    are those of ``StratifiedKFold(folds, shuffle=True, random_state=seed)``; features are scaled by a fold's own
    training points. The interval is Wilson's (1927) for a proportion, which takes the points as independent.

    Args:
        x: the activations.
        labels: the class of each point, as numbers or words.
        folds: of the cross-validation.
        ridge: the penalty on squared weights, per point.
        seed: draws the folds.
        level: 0.95 means a 95 % interval.
        tolerance, max_iter: the solver stops at a gradient below ``tolerance``, and fails after ``max_iter`` steps.

    Raises:
        DataError: fewer than two folds or classes, a class with fewer points than folds, a ridge that is not
            positive, rows not finite, no convergence.

    Example:
        >>> x = torch.cat([torch.linspace(-2, -1, 20), torch.linspace(1, 2, 20)])[:, None]
        >>> probe = gl.measures.linear_probe(x, (x[:, 0] > 0).long())
        >>> probe.accuracy, probe.majority
        (1.0, 0.5)
    """
    check_points(x, "linear_probe")
    names, numbered = _numbered(x, labels)
    classes, count = _check_labels(x, names, numbered, folds)
    if not ridge > 0:
        raise DataError(
            f"linear_probe: ridge={ridge} must be positive, else separable classes have no solution"
        )
    n = len(x)
    # scikit-learn gives two classes one weight vector, the difference of the softmax's two: its square is twice theirs
    strength = (2 if len(classes) == 2 else 1) / (ridge * (n - n / folds))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=tolerance, max_iter=max_iter))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    points, target = x.detach().cpu().double().numpy(), numbered.numpy()
    with _fitting("linear_probe", max_iter):
        predicted = cross_val_predict(model, points, target, cv=split)
    correct = predicted == target
    return Probe(
        accuracy=float(np.mean(correct)),
        interval=wilson_interval(int(correct.sum()), n, level),
        correct=torch.from_numpy(correct),
        majority=int(count.max()) / n,
    )


def probe_normal(
    x: Float[Tensor, "point feature"],
    positive: Bool[Tensor, " point"],
    ridge: float = 1e-2,
    tolerance: float = 1e-9,
    max_iter: int = 1000,
) -> Float[Tensor, " feature"]:
    """The unit normal (float64) of the plane of a logistic regression, towards the ``positive`` points.

    Fitted as :func:`linear_probe` is, to all points; the normal is in the units of ``x``, not of the scaled features.

    Raises:
        DataError: all points on one side, rows not finite, no convergence.
    """
    check_points(x, "probe_normal")
    labels = positive.cpu().numpy()
    if labels.all() or not labels.any():
        raise DataError("probe_normal: all points are on one side; a probe needs points on both")
    scaler = StandardScaler()
    # one weight vector stands for the softmax's two: its square is twice theirs
    strength = 2 / (ridge * len(x))
    probe = LogisticRegression(C=strength, tol=tolerance, max_iter=max_iter)
    with _fitting("probe_normal", max_iter):
        probe.fit(scaler.fit_transform(x.detach().cpu().double().numpy()), labels)
    normal = torch.from_numpy(probe.coef_[0] / scaler.scale_)
    return normal / normal.norm()


@contextmanager
def _fitting(who: str, max_iter: int) -> Iterator[None]:
    """While a solver runs: BLAS has one thread, and no convergence is an error.

    A step multiplies small matrices, hundreds of times. With more threads BLAS waits for them longer than it computes:
    on 2 cores a fit of 400 points took 8 times as long at 192 features, 4 times as long at 4,096.
    """
    with _FITTING, threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            yield
        except ConvergenceWarning:
            raise DataError(
                f"{who}: no convergence in {max_iter} steps; raise ridge, tolerance or max_iter"
            ) from None


def _numbered(x: Float[Tensor, "point feature"], labels: Any) -> tuple[list[Any], Int[Tensor, " point"]]:
    """The classes in order, and the number of each point's."""
    if hasattr(labels, "shape"):
        check_one_each(x, labels, "linear_probe")
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(given) != len(x):
        raise DataError(f"linear_probe: {len(x)} points but labels of {len(given)}; give one per point")
    known = sorted(set(given), key=lambda label: (str(type(label)), label))
    number = {label: i for i, label in enumerate(known)}
    return known, torch.tensor([number[label] for label in given], dtype=torch.long)


def _check_labels(
    x: Float[Tensor, "point feature"], names: Sequence[Any], labels: Int[Tensor, " point"], folds: int
) -> tuple[Int[Tensor, " class"], Int[Tensor, " class"]]:
    """The classes and how many points each has."""
    check_one_each(x, labels, "linear_probe")
    if folds < 2:
        raise DataError(f"linear_probe: folds={folds} leaves nothing to test on; give at least 2")
    classes, count = labels.unique(return_counts=True)
    if len(classes) < 2:
        raise DataError("linear_probe: all points have one label; a probe needs at least two classes")
    if int(count.min()) < folds:
        rarest = f"class {names[int(count.argmin())]} has {int(count.min())} points"
        raise DataError(f"linear_probe: {rarest} for {folds} folds; drop it or take fewer folds")
    return classes, count
