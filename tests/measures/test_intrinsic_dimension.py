"""2NN and Gride against DADApy's stored outputs and on sheets of known dimension."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from density_helpers import PLAIN, stored
from gatelens.errors import DataError
from gatelens.measures.intrinsic_dimension import gride, gride_by_scale, two_nn
from gatelens.measures.neighbours import nearest


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
        estimate = gride(near.distances, k)
        assert abs(estimate.value - dimension) < 4 * estimate.error + 0.08 * dimension
    assert gride(near.distances, 1).value == pytest.approx(two_nn(near.distances, keep=1).value, rel=1e-12)
    assert two_nn(near.distances).value == pytest.approx(dimension, rel=0.1)


def test_gride_is_where_the_likelihood_is_highest() -> None:
    near = nearest(torch.randn(200, 3, generator=torch.Generator().manual_seed(3)), 16)
    mu = (near.distances[:, 15] / near.distances[:, 7]).numpy()

    def log_likelihood(d: float) -> float:  # with N − 1 for N, as the docstring says
        return 199 * np.log(d) + (7 * np.log(mu**d - 1) - (15 * d + 1) * np.log(mu)).sum()

    estimate = gride(near.distances, 8)
    at, step = estimate.value, 1e-3
    assert log_likelihood(at) > max(log_likelihood(at - step), log_likelihood(at + step))
    curvature = (log_likelihood(at + step) - 2 * log_likelihood(at) + log_likelihood(at - step)) / step**2
    assert estimate.error == pytest.approx((-curvature) ** -0.5, rel=5e-3)  # N against N − 1


def test_dimensions_refuse() -> None:
    near = nearest(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), 6)
    for refuse in (two_nn, gride_by_scale, lambda given: gride(given, 1)):
        with pytest.raises(DataError, match=r": got Neighbours; give their distances, nearest\(x, k\)"):
            refuse(near)
        with pytest.raises(DataError, match=r"give distances \[point, neighbour\]"):
            refuse(near.distances[0])
    some = nearest(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), 6).distances
    with pytest.raises(DataError, match="need 8 neighbours"):
        gride(some, 4)
    with pytest.raises(DataError, match=r"not distances.*give nearest\(x, k=2\)"):
        two_nn(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(DataError, match="keep=0"):
        two_nn(some, keep=0)
    with pytest.raises(DataError, match="equally far"):
        gride(torch.ones(5, 2), 1)
    with pytest.raises(DataError, match="3 of 20 points"):
        two_nn(torch.cat([some[:17], torch.zeros(3, 6)]))
