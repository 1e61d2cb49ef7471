"""Densities and Advanced Density Peaks against DADApy's stored outputs and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from density_helpers import PLAIN, stored
from gatelens.errors import DataError
from gatelens.measures.clusters import DensityPeaks, adaptive_k, density_peaks, knn_density
from gatelens.measures.neighbours import Neighbours, nearest


def clusters(reference: dict[str, np.ndarray], near: Neighbours, kind: str) -> DensityPeaks:
    dimension = float(reference["dimension"])
    k = 16 if kind == "fixed" else adaptive_k(near, dimension)
    return density_peaks(near, *knn_density(near, dimension, k), k, z=1.65)


# --- density ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PLAIN, "twins"])
def test_densities_and_k_star_are_dadapys(name: str) -> None:
    reference, near = stored(name)
    dimension = float(reference["dimension"])
    density, error = knn_density(near, dimension)
    np.testing.assert_allclose(density, reference["fixed_log_density"], atol=2e-6)  # stored in float32
    assert error.unique().tolist() == [0.25]
    star = adaptive_k(near, dimension)
    assert star.tolist() == reference["star_k"].tolist()
    np.testing.assert_allclose(
        knn_density(near, dimension, star)[0], reference["star_log_density"], atol=2e-6
    )


def test_density_of_an_even_line_is_one() -> None:
    x = torch.arange(0, 1, 1e-3, dtype=torch.float64)[:, None]
    density, _ = knn_density(nearest(x, 16), dimension=1, k=16)
    np.testing.assert_allclose(density[100:-100].exp(), 1, rtol=1e-6)


def test_densities_refuse() -> None:
    near = nearest(torch.tensor([[0.0], [0], [0], [1], [2], [4]]), 4)
    with pytest.raises(DataError, match="3 points have their k-th neighbour at distance 0"):
        knn_density(near, 1.0, k=2)
    with pytest.raises(DataError, match="4 neighbours kept"):
        knn_density(near, 1.0, k=5)
    with pytest.raises(DataError, match="not positive"):
        knn_density(near, 0.0, k=3)
    with pytest.raises(DataError, match="keep at least 4"):
        adaptive_k(nearest(torch.randn(9, 1), 3), 1.0)
    with pytest.raises(DataError, match="not finite"):
        density_peaks(near, torch.full((6,), float("nan")), torch.ones(6), 3)
    with pytest.raises(DataError, match="6 points"):
        density_peaks(near, torch.ones(5), torch.ones(5), 3)
    with pytest.raises(DataError, match="k up to 5"):
        density_peaks(near, torch.ones(6), torch.ones(6), 5)


# --- density peaks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "star"])
@pytest.mark.parametrize("name", PLAIN)
def test_clusters_are_dadapys(name: str, kind: str) -> None:
    reference, near = stored(name)
    peaks = clusters(reference, near, kind)
    assert peaks.centers.tolist() == reference[f"{kind}_centers"].tolist()
    assert peaks.n_clusters == len(peaks.centers)
    # Both number the clusters by the index of their peak, so renaming is the identity.
    assert peaks.labels.tolist() == reference[f"{kind}_labels"].tolist()
    assert peaks.halo.tolist() == reference[f"{kind}_halo"].tolist()
    theirs, points = reference[f"{kind}_saddles"], reference[f"{kind}_saddle_points"]
    touching = {(a, b) for a, b in zip(*np.nonzero(points >= 0), strict=True) if a < b}
    assert {tuple(pair) for pair in peaks.saddle_pairs.tolist()} == touching
    for (a, b), point, level in zip(
        peaks.saddle_pairs.tolist(),
        peaks.saddle_points.tolist(),
        peaks.saddle_log_density.tolist(),
        strict=True,
    ):
        assert point == points[a, b]
        assert level == pytest.approx(theirs[a, b], abs=1e-6)


def test_the_stored_sets_try_what_they_should() -> None:
    counts = {name: len(stored(name)[0]["fixed_centers"]) for name in PLAIN}
    assert counts["one"] == 1
    assert sum(count > 1 for count in counts.values()) >= 5
    assert 0.05 < stored("mixed")[0]["fixed_homogeneity"] < 0.95


@pytest.mark.parametrize("kind", ["fixed", "star"])
def test_of_coinciding_points_one_is_the_peak(kind: str) -> None:
    """DADApy makes both of two coinciding peaks a cluster, one of which keeps a single point."""
    reference, near = stored("twins")
    peaks = clusters(reference, near, kind)
    assert torch.equal(peaks.labels[::2], peaks.labels[1::2])  # rows 2i and 2i + 1 coincide
    theirs = reference[f"{kind}_labels"]
    lonely = np.bincount(theirs) == 1
    assert lonely.any()
    if kind == "fixed":
        whole = ~lonely[theirs]
        pairs = set(zip(peaks.labels[whole].tolist(), theirs[whole].tolist(), strict=True))
        assert len(pairs) == peaks.n_clusters == (~lonely).sum()


def test_clusters_do_not_hang_on_the_order_of_points() -> None:
    reference, _ = stored("plane")
    x = torch.from_numpy(reference["x"].astype(np.float64))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    peaks = clusters(reference, nearest(x[order], 128), "fixed")
    assert set(order[peaks.centers].tolist()) == set(reference["fixed_centers"].tolist())
    pairs = set(zip(peaks.labels.tolist(), reference["fixed_labels"][order.numpy()].tolist(), strict=True))
    assert len(pairs) == peaks.n_clusters


def test_z_merges_more_and_more() -> None:
    reference, near = stored("moons")
    density, error = knn_density(near, float(reference["dimension"]))
    counts = [density_peaks(near, density, error, z=z).n_clusters for z in (0, 0.5, 1.65, 3, 100)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[-1] >= 1


def test_two_places_by_hand() -> None:
    """Seven points on a line, k = 2: peaks at 1 and 5, the saddle at 3 which is nearest to the other side."""
    x = torch.tensor([[0.0], [1], [2], [3.5], [5], [6], [7]])
    near = nearest(x, 5)
    density = torch.tensor([1.0, 3, 2, 0.5, 2, 4, 1])
    peaks = density_peaks(near, density, torch.full((7,), 0.1), k=2, z=1)
    assert peaks.centers.tolist() == [1, 5]
    assert peaks.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]  # 3 lies as near to 2 as to 4: the lower index
    assert peaks.saddle_pairs.tolist() == [[0, 1]]
    # 3 and its nearest foreign point 4 are each other's border; 4 has the higher g.
    assert peaks.saddle_points.tolist() == [4]
    assert peaks.saddle_log_density.tolist() == [2]
    assert peaks.halo.tolist() == [True, False, False, True, False, False, True]
    # The lower peak rises 1 above the saddle, against z · 0.2.
    assert density_peaks(near, density, torch.full((7,), 0.1), k=2, z=4.9).n_clusters == 2
    merged = density_peaks(near, density, torch.full((7,), 0.1), k=2, z=5.1)
    assert merged.centers.tolist() == [5]
    assert not len(merged.saddle_pairs) and not merged.halo.any()


def test_a_peak_within_a_denser_neighbourhood_joins_it() -> None:
    """The end of the first line tops all neighbours kept, but is the fourth neighbour of a denser point.

    DADApy's compiled clustering ends in an error here (its table of such peaks is off by one row); its
    Python version says what ours says.
    """
    line = torch.arange(20, dtype=torch.float64)
    x = torch.cat([torch.tensor([60, 61, 62, 63.5]), -500 - line[:6], line + 0.01 * line**1.5])[:, None]
    density = torch.cat([torch.tensor([10, 9, 8.5, 8.2]), torch.arange(7.0, 1, -1), torch.linspace(0, 3, 20)])
    k = torch.full((30,), 2)
    k[0] = 4
    peaks = density_peaks(nearest(x, 4), density, torch.full((30,), 0.1), k)
    assert peaks.centers.tolist() == [0, 4]
    assert peaks.labels.tolist() == [0] * 4 + [1] * 6 + [0] * 20


def test_such_a_peak_joins_a_lower_peak_that_is_near() -> None:
    """Point 4 (at 0) is held by the denser point 0, but a peak (at −1.5) is among its neighbours kept."""
    x = torch.tensor([50, 51, 52, 53.5, 0, -1, -1.1, -1.5, -1.6, -1.65], dtype=torch.float64)[:, None]
    density = torch.tensor([10, 9, 8.5, 8.2, 5, 1, 1, 4, 2, 1.5])
    k = torch.tensor([4] + [2] * 9)
    peaks = density_peaks(nearest(x, 4), density, torch.full((10,), 0.1), k)
    assert peaks.centers.tolist() == [0, 7]
    assert peaks.labels.tolist() == [0] * 4 + [1] * 6


def test_a_peak_is_no_border() -> None:
    """Peak 1 is the nearest of its cluster to point 2 across, yet the saddle is point 2."""
    x = torch.tensor([0, 1, 2.2, 3.2, 4.0])[:, None]
    peaks = density_peaks(nearest(x, 4), torch.tensor([1, 4, 1.5, 5, 1]), torch.full((5,), 0.1), k=2)
    assert peaks.labels.tolist() == [0, 0, 1, 1, 1]
    assert peaks.saddle_points.tolist() == [2]
