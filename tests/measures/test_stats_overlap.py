"""Bootstrap intervals and overlaps against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures import (
    bootstrap_interval,
    bootstrap_replicates,
    distribution_overlap,
    median_cosine,
    neighbourhood_overlap,
)


def test_interval_matches_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(0).binomial(1, 0.3, size=2000)
    low, high = bootstrap_interval(values, n_boot=4000, seed=1)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=2e-3)
    assert high == pytest.approx(values.mean() + half, abs=2e-3)


def test_interval_is_seeded_and_widens_with_level() -> None:
    values = [0, 1, 1, 0, 1, 0.5]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval([1, 1, 1]) == (1.0, 1.0)


def test_replicates_keep_columns_paired() -> None:
    a = np.arange(50.0)
    ratio = bootstrap_replicates(lambda x, y: x.mean(-1) / y.mean(-1), a + 1, 2 * (a + 1), n_boot=20)
    assert ratio.shape == (20,)
    np.testing.assert_allclose(ratio, 0.5)


@pytest.mark.parametrize("columns", [([],), ([1.0, float("nan")],), ([1.0], [1.0, 2.0])])
def test_replicates_refuse(columns: tuple[list[float], ...]) -> None:
    with pytest.raises(DataError, match="bootstrap"):
        bootstrap_replicates(lambda *c: c[0].mean(-1), *columns)
    with pytest.raises(DataError, match="level"):
        bootstrap_interval([1.0], level=95)


def test_distribution_overlap_is_one_minus_total_variation() -> None:
    p, q = torch.rand(2, 5, 17).softmax(-1)
    np.testing.assert_allclose(distribution_overlap(p, q), 1 - 0.5 * (p - q).abs().sum(-1), atol=1e-6)
    np.testing.assert_allclose(distribution_overlap(p, p), 1, atol=1e-6)
    one = torch.eye(3)
    assert distribution_overlap(one[0], one[1]) == 0
    with pytest.raises(DataError, match="softmax"):
        distribution_overlap(p, torch.randn(5, 17))


def test_neighbourhood_overlap_brute_force() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(20, 4), torch.randint(0, 3, (20,))
    got = neighbourhood_overlap(x, labels, k=5)
    for i in range(20):
        near = sorted((j for j in range(20) if j != i), key=lambda j: float((x[i] - x[j]).norm()))[:5]
        assert got[i] == pytest.approx(sum(bool(labels[j] == labels[i]) for j in near) / 5)
    with pytest.raises(DataError, match="k=20"):
        neighbourhood_overlap(x, labels, k=20)


def test_median_cosine() -> None:
    assert median_cosine(torch.eye(3)[:2], torch.eye(3)[2:]) == 0
    assert float(median_cosine(torch.ones(2, 3), -2 * torch.ones(4, 3))) == pytest.approx(1)
