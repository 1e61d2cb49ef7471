"""Cosine spread, homogeneity and clusters by modality against brute force and scikit-learn's stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from density_helpers import stored
from gatelens.errors import DataError
from gatelens.measures.modality_gap import cosine_spread, homogeneity, modality_clusters

SCORES = Path(__file__).parent / "stored" / "scores.npz"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- cosine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 100, 8_000_000])
def test_cosine_spread_is_numpys(cells: int) -> None:
    a, b = torch.randn(37, 5, generator=seeded(0)), 0.3 + torch.randn(24, 5, generator=seeded(1))
    cos = torch.nn.functional.cosine_similarity(a[:, None].double(), b.double(), dim=-1).numpy().ravel()
    size = np.abs(cos)
    spread = cosine_spread(a, b, quantiles=(0, 0.25, 0.9, 1), bins=10, cells=cells)
    assert spread.pairs == 37 * 24
    assert spread.median == pytest.approx(np.quantile(size, 0.5, method="lower"), abs=1e-6)
    for q, value in spread.quantiles.items():
        assert value == pytest.approx(np.quantile(size, q, method="lower"), abs=1e-6)
    assert spread.histogram.tolist() == np.histogram(size, bins=10, range=(0, 1))[0].tolist()
    assert spread.mean == pytest.approx(size.mean(), abs=1e-6)
    assert spread.signed_mean == pytest.approx(cos.mean(), abs=1e-6)


def test_cosine_spread_within_one_group_leaves_out_self() -> None:
    a = torch.randn(19, 4, generator=seeded(2))
    cos = torch.nn.functional.cosine_similarity(a[:, None], a, dim=-1).abs()
    pairs = cos[torch.triu(torch.ones(19, 19, dtype=torch.bool), 1)]
    for cells in (1, 8_000_000):
        spread = cosine_spread(a, cells=cells)
        assert spread.pairs == len(pairs) == 19 * 18 // 2
        assert spread.median == pytest.approx(float(pairs.median()), abs=1e-6)
        assert int(spread.histogram.sum()) == spread.pairs


def test_cosine_spread_is_exact_at_the_ends_and_blind_to_length() -> None:
    assert cosine_spread(torch.eye(4)[:2], torch.eye(4)[2:]).median == 0
    one = cosine_spread(torch.ones(2, 3), -7 * torch.ones(4, 3))
    assert (one.median, one.signed_mean) == (1, pytest.approx(-1))
    assert int(one.histogram[-1]) == 8
    assert cosine_spread(torch.ones(2, 3), -2 * torch.ones(4, 3)).median == pytest.approx(1)


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


# --- clusters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["apart", "mixed"])
def test_modality_clusters_are_dadapys(name: str) -> None:
    reference, _ = stored(name)
    x = torch.from_numpy(reference["x"].astype(np.float32))
    result = modality_clusters(x, torch.from_numpy(reference["modality"]))
    assert result.homogeneity == pytest.approx(float(reference["fixed_homogeneity"]), abs=1e-9)
    assert result.labels.tolist() == reference["fixed_labels"].tolist()
    assert result.dimension == pytest.approx(float(reference["dimension"]), rel=1e-6)
    assert result.halo == pytest.approx(reference["fixed_halo"].mean())
    assert result.repeats == 0


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
    with pytest.raises(DataError, match="one per point"):
        modality_clusters(x, modality[:-1])
