"""The linear probe against a regression by plain gradient steps; what it reads and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_info, threadpool_limits

from gatelens.errors import DataError
from gatelens.measures.probe import linear_probe, probe_normal


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predict_by_hand(x: torch.Tensor, y: torch.Tensor, new: torch.Tensor, ridge: float) -> torch.Tensor:
    """Softmax regression with a ridge and a free bias on scaled features, by plain gradient steps."""
    mean, scale = x.mean(0), x.std(0, correction=0)
    x, new = (x - mean) / scale, (new - mean) / scale
    weight = torch.zeros(x.shape[1], int(y.max()) + 1, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(weight.shape[1], dtype=x.dtype, requires_grad=True)
    for _ in range(3000):
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + ridge / 2 * weight.square().sum()
        for parameter, slope in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            parameter.data -= 0.3 * slope
    return (new @ weight + bias).argmax(-1)


@pytest.mark.parametrize(("classes", "ridge"), [(2, 0.3), (3, 0.01), (3, 0.3)])
def test_probe_is_a_softmax_regression_with_this_ridge(classes: int, ridge: float) -> None:
    x = torch.randn(90, 4, generator=seeded(16)).double()
    y = (x[:, :classes] + torch.tensor([1.2, 0, 0])[:classes]).argmax(-1)
    y[torch.randperm(90, generator=seeded(17))[:15]] = 0
    correct = torch.zeros(90, dtype=torch.bool)
    for train, held in StratifiedKFold(3, shuffle=True, random_state=4).split(x, y):
        correct[held] = predict_by_hand(x[train], y[train], x[held], ridge) == y[held]
    got = linear_probe(x, y, folds=3, ridge=ridge, seed=4)
    assert torch.equal(got.correct, correct)
    assert got.majority == float((y == 0).double().mean())


def test_probe_reads_a_linear_class_and_not_noise() -> None:
    x = torch.randn(400, 10, generator=seeded(11))
    labels = (x[:, :3] * torch.tensor([1.0, 1, 1])).argmax(-1) * 5 + 2  # any integers name classes
    good = linear_probe(100 * x + 7, labels)
    assert good.accuracy > 0.93
    assert good.interval[0] < good.accuracy == float(good.correct.double().mean()) < good.interval[1]
    noise = linear_probe(x, labels[torch.randperm(400, generator=seeded(12))])
    assert noise.interval[0] < noise.majority
    assert noise.accuracy < 0.5


def test_probe_is_the_same_every_time_and_tests_on_points_it_did_not_see() -> None:
    x = torch.randn(60, 80, generator=seeded(13))  # wider than many: any labels it has seen could be fitted
    labels = torch.arange(60) % 2
    first, again = linear_probe(x, labels), linear_probe(x, labels)
    assert torch.equal(first.correct, again.correct)
    assert 0.25 < first.accuracy < 0.75


def test_probe_takes_a_feature_that_never_moves() -> None:
    x = torch.cat([torch.randn(40, 1, generator=seeded(14)), torch.full((40, 1), 1e4)], dim=1)
    assert linear_probe(x, (x[:, 0] > 0).long(), folds=4).accuracy > 0.85


def test_probe_refuses() -> None:
    x, labels = torch.randn(20, 3, generator=seeded(15)), torch.tensor([0] * 16 + [1] * 4)
    with pytest.raises(DataError, match="class 1 has 4 points for 5 folds"):
        linear_probe(x, labels)
    with pytest.raises(DataError, match="folds=1"):
        linear_probe(x, labels, folds=1)
    with pytest.raises(DataError, match="one label"):
        linear_probe(x, torch.zeros(20))
    with pytest.raises(DataError, match="ridge=0"):
        linear_probe(x, labels, folds=4, ridge=0)
    with pytest.raises(DataError, match="20 points but labels"):
        linear_probe(x, labels[:3])
    with pytest.raises(DataError, match="no convergence in 2 steps"):
        linear_probe(100 * x, labels, folds=4, max_iter=2)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_a_fit_gives_blas_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[int]] = []
    fit = LogisticRegression.fit

    def watched(self: LogisticRegression, *args: object, **kwargs: object) -> LogisticRegression:
        seen.append(blas_threads())
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    x = torch.randn(40, 3, generator=seeded(18))
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        linear_probe(x, (x[:, 0] > 0).long(), folds=2)
        probe_normal(x, x[:, 0] > 0)
        with pytest.raises(DataError, match="no convergence in 2 steps"):
            probe_normal(100 * x, x[:, 0] > 0, max_iter=2)
        assert blas_threads() == before
    assert seen == [{1}] * 4


def test_classes_may_be_words() -> None:
    x = torch.randn(60, 5, generator=seeded(21))
    numbers = (x[:, :3] @ torch.tensor([1.0, -1, 2]) > 0).long()
    words = [("cat", "dog")[int(i)] for i in numbers]
    assert torch.equal(linear_probe(x, words).correct, linear_probe(x, numbers).correct)
    assert linear_probe(x, words).accuracy > linear_probe(x, words).majority
    with pytest.raises(DataError, match="class fox has 1 points for 5 folds"):
        linear_probe(x, [*words[:-1], "fox"])
    with pytest.raises(DataError, match="60 points but labels"):
        linear_probe(x, words[:-1])


def test_points_to_test_on_are_given_as_tensors_or_arrays() -> None:
    x, new = (
        torch.randn(90, 4, generator=seeded(22)).double(),
        torch.randn(50, 4, generator=seeded(23)).double(),
    )
    y, truth = x[:, :3].argmax(-1), new[:, :3].argmax(-1)
    got = linear_probe(x, y, ridge=0.3, test=(new, truth))
    assert torch.equal(got.correct, predict_by_hand(x, y, new, 0.3) == truth)
    assert got.majority == int(truth.bincount().max()) / 50
    arrays = linear_probe(x.numpy(), y.numpy(), ridge=0.3, test=(new.numpy(), truth.numpy()))
    assert torch.equal(arrays.correct, got.correct)
    assert torch.equal(linear_probe(x.numpy(), np.array(list("abc"))[y]).correct, linear_probe(x, y).correct)
    never_seen = linear_probe(x, y, test=(new, ["fox"] * 50))
    assert never_seen.accuracy == 0
    with pytest.raises(DataError, match="4 features, and test points of 3"):
        linear_probe(x, y, test=(new[:, :3], truth))
