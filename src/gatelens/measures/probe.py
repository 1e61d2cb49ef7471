"""A linear probe: how well one linear map reads a class off an activation."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

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

Points: TypeAlias = Float[Tensor, "point feature"] | Float[np.ndarray, "point feature"]
TestPoints: TypeAlias = Float[Tensor, "test feature"] | Float[np.ndarray, "test feature"]

# of one fit at a time: both what BLAS may use and what a warning does are the process's, not a thread's
_FITTING = threading.Lock()


@dataclass(frozen=True)
class Probe:
    """What :func:`linear_probe` gives.

    Attributes:
        accuracy: share of the points that are classified correctly, each by a fit to other points.
        interval: of the accuracy, low and high (95 % as it stands).
        correct: whether each point is, or each of ``test``.
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
    x: Points,
    labels: Int[Tensor, " point"] | Sequence[Any],
    folds: int = 5,
    ridge: float = 1e-2,
    seed: int = 0,
    level: float = 0.95,
    tolerance: float = 1e-9,
    max_iter: int = 1000,
    *,
    test: tuple[TestPoints, Int[Tensor, " test"] | Sequence[Any]] | None = None,
) -> Probe:
    """Accuracy of a logistic regression on points it was not fitted on: ``test``, or by stratified cross-validation.

    Fitted is scikit-learn's ``make_pipeline(StandardScaler(), LogisticRegression(C))`` in float64, with C such that
    the mean cross-entropy of the softmax over classes + ``ridge/2 · |weight|²`` is least; the bias is free. Folds
    are those of ``StratifiedKFold(folds, shuffle=True, random_state=seed)``; features are scaled by a fold's own
    training points. The interval is Wilson's (1927) for a proportion, which takes the points as independent.

    Args:
        x: the activations, a tensor or an array.
        labels: the class of each point, as numbers or words.
        folds: of the cross-validation; unused with ``test``.
        ridge: the penalty on squared weights, per point.
        seed: draws the folds.
        level: 0.95 means a 95 % interval.
        tolerance, max_iter: the solver stops at a gradient below ``tolerance``, and fails after ``max_iter`` steps.
        test: other points with their labels. The probe is then fitted to all of ``x``, and scored on these.

    Raises:
        DataError: fewer than two folds or classes, a class with fewer points than folds, a ridge that is not
            positive, rows not finite, test points of another width, no convergence.

    Example:
        >>> x = torch.cat([torch.linspace(-2, -1, 20), torch.linspace(1, 2, 20)])[:, None]
        >>> probe = gl.measures.linear_probe(x, (x[:, 0] > 0).long())
        >>> probe.accuracy, probe.majority
        (1.0, 0.5)
        >>> gl.measures.linear_probe(x, ["cat"] * 20 + ["dog"] * 20, test=(x[:5] + 0.1, ["cat"] * 5)).accuracy
        1.0
    """
    points, given = _labelled(x, labels)
    classes = _check_labels(given, folds if test is None else None)
    _check_ridge(ridge)
    number = {label: i for i, label in enumerate(classes)}
    target = np.array([number[label] for label in given])
    held, truth = (points, given) if test is None else _labelled(*test)
    if held.shape[1] != points.shape[1]:
        raise DataError(f"linear_probe: {points.shape[1]} features, and test points of {held.shape[1]}")
    n_fitted = len(points) - (len(points) / folds if test is None else 0)
    # scikit-learn gives two classes one weight vector, the difference of the softmax's two: its square is twice theirs
    strength = (2 if len(classes) == 2 else 1) / (ridge * n_fitted)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=tolerance, max_iter=max_iter))
    with _fitting("linear_probe", max_iter):
        if test is None:
            split = StratifiedKFold(folds, shuffle=True, random_state=seed)
            predicted = cross_val_predict(model, points, target, cv=split)
        else:
            predicted = model.fit(points, target).predict(held)
    return _scored(predicted == np.array([number.get(label, -1) for label in truth]), truth, level)


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


def _scored(correct: Bool[np.ndarray, " point"], labels: Sequence[Any], level: float) -> Probe:
    n = len(correct)
    return Probe(
        accuracy=float(np.mean(correct)),
        interval=wilson_interval(int(correct.sum()), n, level),
        correct=torch.from_numpy(correct),
        majority=max(Counter(labels).values()) / n,
    )


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


def _labelled(x: Points, labels: Any) -> tuple[Float[np.ndarray, "point feature"], list[Any]]:
    """Points and labels that can be fitted, one label per point."""
    points = torch.as_tensor(x)
    check_points(points, "linear_probe")
    if hasattr(labels, "shape"):
        check_one_each(points, labels, "linear_probe")
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(given) != len(points):
        raise DataError(f"linear_probe: {len(points)} points but labels of {len(given)}; give one per point")
    return points.detach().cpu().double().numpy(), given


def _check_ridge(ridge: float) -> None:
    if not ridge > 0:
        raise DataError(
            f"linear_probe: ridge={ridge} must be positive, else separable classes have no solution"
        )


def _check_labels(labels: Sequence[Any], folds: int | None) -> list[Any]:
    """The classes, in order."""
    if folds is not None and folds < 2:
        raise DataError(f"linear_probe: folds={folds} leaves nothing to test on; give at least 2")
    count = Counter(labels)
    if len(count) < 2:
        raise DataError("linear_probe: all points have one label; a probe needs at least two classes")
    rarest = min(count, key=lambda label: count[label])
    if folds is not None and count[rarest] < folds:
        raise DataError(
            f"linear_probe: class {rarest} has {count[rarest]} points for {folds} folds; drop it or take fewer folds"
        )
    return sorted(count, key=lambda label: (str(type(label)), label))
