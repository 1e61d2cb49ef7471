"""Neighbours, intrinsic dimension, density and Advanced Density Peaks against brute force and DADApy's
stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.clusters import DensityPeaks, adaptive_k, density_peaks, knn_density
from gatelens.measures.intrinsic_dimension import gride, gride_by_scale, two_nn
from gatelens.measures.modality_gap import homogeneity, modality_clusters
from gatelens.measures.neighbours import Neighbours, distinct, nearest

STORED = Path(__file__).parent / "stored"
PLAIN = ["plane", "five", "ten", "moons", "roll", "one", "apart", "mixed"]


def stored(name: str) -> tuple[dict[str, np.ndarray], Neighbours]:
    with np.load(STORED / f"density_{name}.npz") as file:
        reference = dict(file)
    x = torch.from_numpy(reference["x"].astype(np.float64))
    return reference, nearest(x, 128, str(reference["metric"]))  # type: ignore[arg-type]


def clusters(reference: dict[str, np.ndarray], near: Neighbours, kind: str) -> DensityPeaks:
    dimension = float(reference["dimension"])
    k = 16 if kind == "fixed" else adaptive_k(near, dimension)
    return density_peaks(near, *knn_density(near, dimension, k), k, z=1.65)


# --- neighbours ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("cells", [1, 300, 8_000_000])
def test_nearest_is_brute_force_whatever_the_block(metric: str, cells: int) -> None:
    x = 5 + torch.randn(61, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if metric == "euclidean":
        full = (x[:, None] - x).square().sum(-1).sqrt()
    else:
        full = 1 - torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1)
    full.fill_diagonal_(float("inf"))
    value, index = full.sort(-1)
    found = nearest(x, 12, metric, cells=cells)  # type: ignore[arg-type]
    assert (found.n, found.k) == (61, 12)
    assert torch.equal(found.indices, index[:, :12])
    np.testing.assert_allclose(found.distances, value[:, :12], rtol=1e-9)


def test_nearest_puts_ties_in_order_of_index_and_coinciding_points_at_exactly_zero() -> None:
    x = torch.tensor([[0.0], [1], [-1], [1], [0], [5]])
    found = nearest(x, 4)
    assert found.indices[0].tolist() == [4, 1, 2, 3]
    assert found.distances[0].tolist() == [0, 1, 1, 1]
    assert nearest(x, 2).indices[0].tolist() == [4, 1]  # three tie for the second place
    assert nearest(x, 5).indices[5].tolist() == [1, 3, 0, 4, 2]  # all the others
    far = 1e4 * torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) + torch.zeros(3, 50)
    assert nearest(torch.cat([far, 4 * far, -far]), 5, "cosine").distances[:6].max() == 0


def test_nearest_keeps_close_neighbours_of_far_points_apart() -> None:
    x = 1e6 + torch.tensor([[0.0], [1e-3], [3e-3], [6e-3]], dtype=torch.float64)
    np.testing.assert_allclose(nearest(x, 1).distances[:, 0], [1e-3, 1e-3, 2e-3, 3e-3], rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "k", "metric", "says"),
    [
        (torch.randn(5, 2), 5, "euclidean", "k=5"),
        (torch.randn(5, 2), 0, "euclidean", "k=0"),
        (torch.randn(5, 2), 2, "manhattan", "manhattan"),
        (torch.tensor([[1.0, 0], [0, 0], [0, 1]]), 1, "cosine", "row 1 is all zeros"),
        (torch.tensor([[1.0], [2], [float("nan")]]), 1, "euclidean", "row 2"),
        (torch.randn(5), 2, "euclidean", "matrix"),
    ],
)
def test_nearest_refuses(x: torch.Tensor, k: int, metric: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        nearest(x, k, metric)  # type: ignore[arg-type]


def test_distinct_gives_every_row_back() -> None:
    x = torch.tensor([[3.0, 1], [0, 0], [3, 1], [-1, 2], [0, 0], [3, 1]])
    kept, place = distinct(x)
    assert kept.tolist() == [0, 1, 3]
    assert torch.equal(x[kept][place], x)


# --- intrinsic dimension ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_dimensions_are_dadapys(name: str) -> None:
    reference, near = stored(name)
    assert two_nn(near.distances).value == pytest.approx(float(reference["two_nn"]), rel=1e-7)
    assert two_nn(near.distances, keep=1).value == pytest.approx(float(reference["two_nn_ml"]), rel=1e-9)
    scales = gride_by_scale(near.distances)
    assert list(scales) == [1, 2, 4, 8, 16, 32, 64]
    for k, theirs, error, scale in zip(
        scales, reference["gride"], reference["gride_error"], reference["gride_scale"], strict=True
    ):
        assert scales[k] == gride(near.distances, k)
        assert scales[k].value == pytest.approx(theirs, rel=1e-6)  # their bisection stops at 1e-7
        assert scales[k].error == pytest.approx(error, rel=1e-6)
        assert scales[k].scale == pytest.approx(scale, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_gride_and_two_nn_find_the_dimension_of_a_sheet_in_a_larger_space(dimension: int) -> None:
    generator = torch.Generator().manual_seed(dimension)
    flat = torch.rand(3000, dimension, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0][:dimension]
    near = nearest(flat @ turn, 8)
    for k in (1, 4):
        found = gride(near.distances, k)
        assert abs(found.value - dimension) < 4 * found.error + 0.08 * dimension
    assert gride(near.distances, 1).value == pytest.approx(two_nn(near.distances, keep=1).value, rel=1e-12)
    assert two_nn(near.distances).value == pytest.approx(dimension, rel=0.1)


def test_gride_is_where_the_likelihood_is_highest() -> None:
    near = nearest(torch.randn(200, 3, generator=torch.Generator().manual_seed(3)), 16)
    mu = (near.distances[:, 15] / near.distances[:, 7]).numpy()

    def log_likelihood(d: float) -> float:  # with N − 1 for N, as the docstring says
        return 199 * np.log(d) + (7 * np.log(mu**d - 1) - (15 * d + 1) * np.log(mu)).sum()

    found = gride(near.distances, 8)
    at, step = found.value, 1e-3
    assert log_likelihood(at) > max(log_likelihood(at - step), log_likelihood(at + step))
    curvature = (log_likelihood(at + step) - 2 * log_likelihood(at) + log_likelihood(at - step)) / step**2
    assert found.error == pytest.approx((-curvature) ** -0.5, rel=5e-3)  # N against N − 1


def test_dimensions_refuse() -> None:
    some = nearest(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), 6).distances
    with pytest.raises(DataError, match="need 8 neighbours"):
        gride(some, 4)
    with pytest.raises(DataError, match="keep=0"):
        two_nn(some, keep=0)
    with pytest.raises(DataError, match="equally far"):
        gride(torch.ones(5, 2), 1)
    with pytest.raises(DataError, match="3 of 20 points"):
        two_nn(torch.cat([some[:17], torch.zeros(3, 6)]))


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
    found = clusters(reference, near, kind)
    assert found.centers.tolist() == reference[f"{kind}_centers"].tolist()
    assert found.n_clusters == len(found.centers)
    # Both number the clusters by the index of their peak, so renaming is the identity.
    assert found.labels.tolist() == reference[f"{kind}_labels"].tolist()
    assert found.halo.tolist() == reference[f"{kind}_halo"].tolist()
    theirs, points = reference[f"{kind}_saddles"], reference[f"{kind}_saddle_points"]
    touching = {(a, b) for a, b in zip(*np.nonzero(points >= 0), strict=True) if a < b}
    assert {tuple(pair) for pair in found.saddle_pairs.tolist()} == touching
    for (a, b), point, level in zip(
        found.saddle_pairs.tolist(),
        found.saddle_points.tolist(),
        found.saddle_log_density.tolist(),
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
    found = clusters(reference, near, kind)
    assert torch.equal(found.labels[::2], found.labels[1::2])  # rows 2i and 2i + 1 coincide
    theirs = reference[f"{kind}_labels"]
    lonely = np.bincount(theirs) == 1
    assert lonely.any()
    if kind == "fixed":
        whole = ~lonely[theirs]
        pairs = set(zip(found.labels[whole].tolist(), theirs[whole].tolist(), strict=True))
        assert len(pairs) == found.n_clusters == (~lonely).sum()


def test_clusters_do_not_hang_on_the_order_of_points() -> None:
    reference, _ = stored("plane")
    x = torch.from_numpy(reference["x"].astype(np.float64))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    found = clusters(reference, nearest(x[order], 128), "fixed")
    assert set(order[found.centers].tolist()) == set(reference["fixed_centers"].tolist())
    pairs = set(zip(found.labels.tolist(), reference["fixed_labels"][order.numpy()].tolist(), strict=True))
    assert len(pairs) == found.n_clusters


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
    found = density_peaks(near, density, torch.full((7,), 0.1), k=2, z=1)
    assert found.centers.tolist() == [1, 5]
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]  # 3 lies as near to 2 as to 4: the lower index
    assert found.saddle_pairs.tolist() == [[0, 1]]
    # 3 and its nearest foreign point 4 are each other's border; 4 has the higher g.
    assert found.saddle_points.tolist() == [4]
    assert found.saddle_log_density.tolist() == [2]
    assert found.halo.tolist() == [True, False, False, True, False, False, True]
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
    found = density_peaks(nearest(x, 4), density, torch.full((30,), 0.1), k)
    assert found.centers.tolist() == [0, 4]
    assert found.labels.tolist() == [0] * 4 + [1] * 6 + [0] * 20


def test_such_a_peak_joins_a_lower_peak_that_is_near() -> None:
    """Point 4 (at 0) is held by the denser point 0, but a peak (at −1.5) is among its neighbours kept."""
    x = torch.tensor([50, 51, 52, 53.5, 0, -1, -1.1, -1.5, -1.6, -1.65], dtype=torch.float64)[:, None]
    density = torch.tensor([10, 9, 8.5, 8.2, 5, 1, 1, 4, 2, 1.5])
    k = torch.tensor([4] + [2] * 9)
    found = density_peaks(nearest(x, 4), density, torch.full((10,), 0.1), k)
    assert found.centers.tolist() == [0, 7]
    assert found.labels.tolist() == [0] * 4 + [1] * 6


def test_a_peak_is_no_border() -> None:
    """Peak 1 is the nearest of its cluster to point 2 across, yet the saddle is point 2."""
    x = torch.tensor([0, 1, 2.2, 3.2, 4.0])[:, None]
    found = density_peaks(nearest(x, 4), torch.tensor([1, 4, 1.5, 5, 1]), torch.full((5,), 0.1), k=2)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    assert found.saddle_points.tolist() == [2]


# --- modality -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apart", "mixed"])
def test_modality_clusters_are_dadapys(name: str) -> None:
    reference, _ = stored(name)
    x = torch.from_numpy(reference["x"].astype(np.float32))
    found = modality_clusters(x, torch.from_numpy(reference["modality"]))
    assert found.homogeneity == pytest.approx(float(reference["fixed_homogeneity"]), abs=1e-9)
    assert found.labels.tolist() == reference["fixed_labels"].tolist()
    assert found.dimension == pytest.approx(float(reference["dimension"]), rel=1e-6)
    assert found.halo == pytest.approx(reference["fixed_halo"].mean())
    assert found.repeats == 0


def test_modality_clusters_take_copies() -> None:
    reference, _ = stored("mixed")
    x = torch.from_numpy(reference["x"].astype(np.float32))
    modality = torch.from_numpy(reference["modality"])
    once = modality_clusters(x, modality)
    copies = torch.cat([torch.arange(len(x)), torch.zeros(400, dtype=torch.int64)])
    many = modality_clusters(x[copies], modality[copies])
    assert many.repeats == 400
    assert torch.equal(many.labels, once.labels[copies])
    assert many.homogeneity == pytest.approx(homogeneity(modality[copies], once.labels[copies]))
    with pytest.raises(DataError, match="16 distinct points of 50"):
        modality_clusters(x[:16].repeat(4, 1)[:50], modality[:50])
    with pytest.raises(DataError, match="one a point"):
        modality_clusters(x, modality[:-1])
