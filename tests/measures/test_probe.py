"""The linear probe against scikit-learn's stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.probe import fit_linear, linear_probe

SCORES = Path(__file__).parent / "stored" / "scores.npz"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fit_linear_is_scikit_learns() -> None:
    with np.load(SCORES) as stored:
        x, y = torch.from_numpy(stored["probe_x"]), torch.from_numpy(stored["probe_y"])
        fitted = fit_linear(x, y, ridge=float(stored["probe_ridge"]))
        np.testing.assert_allclose(fitted.probabilities(x), stored["probe_probability"], atol=1e-6)
    assert torch.equal(fitted.predict(x), fitted.classes[fitted.probabilities(x).argmax(-1)])


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
    x = torch.randn(60, 80, generator=seeded(13))  # wider than many: fits any labels it has seen
    labels = torch.arange(60) % 2
    assert bool((fit_linear(x, labels).predict(x) == labels).all())
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
        fit_linear(x, torch.zeros(20))
    with pytest.raises(DataError, match="ridge=0"):
        fit_linear(x, labels, ridge=0)
    with pytest.raises(DataError, match="20 points but labels"):
        linear_probe(x, labels[:3])
    with pytest.raises(DataError, match="no convergence in 2 steps"):
        fit_linear(100 * x, labels, max_iter=2)
