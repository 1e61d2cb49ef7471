"""Cosine spread, homogeneity, overlaps and the linear probe against brute force and scikit-learn's stored
outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures import (
    cosine_spread,
    fit_linear,
    homogeneity,
    linear_probe,
    neighbourhood_overlap,
    overlap_by_chance,
    representation_overlap,
    wilson_interval,
)

SCORES = Path(__file__).parent / "stored" / "scores.npz"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- cosine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 100, 8_000_000])
def test_cosine_spread_is_numpys(cells: int) -> None:
    a, b = torch.randn(37, 5, generator=seeded(0)), 0.3 + torch.randn(24, 5, generator=seeded(1))
    cos = torch.nn.functional.cosine_similarity(a[:, None].double(), b.double(), dim=-1).numpy().ravel()
    size = np.abs(cos)
    found = cosine_spread(a, b, quantiles=(0, 0.25, 0.9, 1), bins=10, cells=cells)
    assert found.pairs == 37 * 24
    assert found.median == pytest.approx(np.quantile(size, 0.5, method="lower"), abs=1e-6)
    for q, value in found.quantiles.items():
        assert value == pytest.approx(np.quantile(size, q, method="lower"), abs=1e-6)
    assert found.histogram.tolist() == np.histogram(size, bins=10, range=(0, 1))[0].tolist()
    assert found.mean == pytest.approx(size.mean(), abs=1e-6)
    assert found.signed_mean == pytest.approx(cos.mean(), abs=1e-6)


def test_cosine_spread_within_one_group_leaves_out_self() -> None:
    a = torch.randn(19, 4, generator=seeded(2))
    cos = torch.nn.functional.cosine_similarity(a[:, None], a, dim=-1).abs()
    pairs = cos[torch.triu(torch.ones(19, 19, dtype=torch.bool), 1)]
    for cells in (1, 8_000_000):
        found = cosine_spread(a, cells=cells)
        assert found.pairs == len(pairs) == 19 * 18 // 2
        assert found.median == pytest.approx(float(pairs.median()), abs=1e-6)
        assert int(found.histogram.sum()) == found.pairs


def test_cosine_spread_is_exact_at_the_ends_and_blind_to_length() -> None:
    assert cosine_spread(torch.eye(4)[:2], torch.eye(4)[2:]).median == 0
    one = cosine_spread(torch.ones(2, 3), -7 * torch.ones(4, 3))
    assert (one.median, one.signed_mean) == (1, pytest.approx(-1))
    assert int(one.histogram[-1]) == 8


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        (torch.tensor([[1.0, 0], [0, 0]]), torch.ones(1, 2), {}, "row 1 is all zeros"),
        (torch.ones(2, 2), torch.tensor([[1.0, float("inf")]]), {}, "row 0"),
        (torch.ones(2, 2), torch.ones(2, 3), {}, "widths 2 and 3"),
        (torch.ones(1, 2), None, {}, "no pair"),
        (torch.ones(2, 2), None, {"quantiles": (50,)}, "quantile 50"),
        (torch.ones(2, 2), None, {"bins": 0}, "bins=0"),
    ],
)
def test_cosine_spread_refuses(a: torch.Tensor, b: torch.Tensor | None, options: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cosine_spread(a, b, **options)


# --- homogeneity --------------------------------------------------------------------------------------------


def test_homogeneity_is_scikit_learns() -> None:
    with np.load(SCORES) as stored:
        rows = zip(stored["classes"], stored["clusters"], stored["homogeneity"], strict=True)
        for classes, clusters, theirs in rows:
            ours = homogeneity(torch.from_numpy(classes), torch.from_numpy(clusters))
            assert ours == pytest.approx(float(theirs), abs=1e-12)


def test_homogeneity_by_hand() -> None:
    modality = torch.tensor([0, 0, 1, 1])
    assert homogeneity(modality, torch.tensor([7, 7, -1, -1])) == 1
    assert homogeneity(modality, torch.tensor([1, 2, 3, 4])) == 1  # homogeneous, if not complete
    assert homogeneity(modality, torch.tensor([0, 1, 0, 1])) == 0
    assert homogeneity(torch.zeros(4), modality) == 1  # one class: nothing to mix
    # Three of one class with one of the other, in two clusters of 2: H(C|K) = ½ log 2, H(C) = −¾ log ¾ − ¼ log ¼.
    h = 1 - 0.5 * np.log(2) / -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert homogeneity(torch.tensor([0, 0, 0, 1]), modality) == pytest.approx(h)
    with pytest.raises(DataError, match="one label"):
        homogeneity(modality, modality[:3])


# --- overlaps -----------------------------------------------------------------------------------------------


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


# --- probe --------------------------------------------------------------------------------------------------


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


def test_wilson_interval() -> None:
    # Solving |p̂ − p| = z √(p (1 − p) / n) for p gives the interval: its ends satisfy the square of that.
    z = 1.959963984540054
    for successes, n in ((7, 20), (0, 10), (10, 10), (310, 1000)):
        for p in wilson_interval(successes, n):
            assert (successes / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, abs=1e-14)
    assert wilson_interval(10, 10)[0] == pytest.approx(10 / (10 + z * z))
    with pytest.raises(DataError, match="proportion"):
        wilson_interval(3, 2)
    with pytest.raises(DataError, match="level"):
        wilson_interval(1, 2, level=95)
