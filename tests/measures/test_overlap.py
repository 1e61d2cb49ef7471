"""Overlaps of distributions and of neighbourhoods against brute force and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.overlap import (
    distribution_overlap,
    neighbourhood_overlap,
    overlap_by_chance,
    representation_overlap,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_representation_overlap_is_brute_force() -> None:
    a = torch.randn(40, 6, generator=seeded(5))
    b = torch.cat([a[:, :3], torch.randn(40, 2, generator=seeded(6))], dim=1)
    k = 7
    got = representation_overlap(a, b, k)
    for i in range(40):
        near = [
            set(sorted((j for j in range(40) if j != i), key=lambda j: float((x[i] - x[j]).norm()))[:k])
            for x in (a, b)
        ]
        assert got[i] == pytest.approx(len(near[0] & near[1]) / k)
    assert bool((representation_overlap(a, 3 * a + 1, k) == 1).all())  # shift and scale keep neighbours
    assert bool((representation_overlap(a, a * torch.arange(1, 41)[:, None], k, "cosine") == 1).all())
    with pytest.raises(DataError, match="40 and 39 samples"):
        representation_overlap(a, b[:39], k)


def test_overlaps_of_the_unrelated_are_at_chance() -> None:
    x, y = torch.randn(1500, 3, generator=seeded(7)), torch.randn(1500, 3, generator=seeded(8))
    labels = torch.randint(0, 4, (1500,), generator=seeded(9)).clamp_min(1)
    chance = overlap_by_chance(labels)
    pairs = labels[:, None] == labels
    assert chance == pytest.approx((int(pairs.sum()) - 1500) / (1500 * 1499))
    assert float(neighbourhood_overlap(x, labels).mean()) == pytest.approx(chance, abs=0.02)
    assert float(representation_overlap(x, y).mean()) == pytest.approx(30 / 1499, abs=0.004)


def test_neighbourhood_overlap_of_separate_classes_is_one() -> None:
    labels = torch.arange(120) % 3
    x = 100.0 * labels[:, None] + torch.randn(120, 2, generator=seeded(10))
    assert float(neighbourhood_overlap(x, labels).min()) == 1
    with pytest.raises(DataError, match="120 samples but labels"):
        neighbourhood_overlap(x, labels[:-1])
    with pytest.raises(DataError, match="at least two"):
        overlap_by_chance(labels[:1])
