"""Nearest neighbours against brute force, with ties and coinciding points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.neighbours import distinct, nearest


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
    near = nearest(x, 12, metric, cells=cells)  # type: ignore[arg-type]
    assert (near.n, near.k) == (61, 12)
    assert torch.equal(near.indices, index[:, :12])
    np.testing.assert_allclose(near.distances, value[:, :12], rtol=1e-9)


def test_nearest_puts_ties_in_order_of_index_and_coinciding_points_at_exactly_zero() -> None:
    x = torch.tensor([[0.0], [1], [-1], [1], [0], [5]])
    near = nearest(x, 4)
    assert near.indices[0].tolist() == [4, 1, 2, 3]
    assert near.distances[0].tolist() == [0, 1, 1, 1]
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
