"""Attention by blocks of rows, sinks and subsets, each against loops or planted numbers."""

from __future__ import annotations

import pytest
import torch

from gatelens.errors import DataError
from gatelens.measures.heads import (
    LARGE,
    ROWS_AFTER,
    QueryMeans,
    Received,
    norm_growth,
    sink_origins,
    subset_regression,
)


def patterns(n: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """Two padded examples, causal: Float[batch, head, query, key] and what is real."""
    generator = torch.Generator().manual_seed(0)
    real = torch.arange(n) >= torch.tensor([[0], [3]])
    allowed = torch.ones(n, n).tril().bool() & real[:, None, :]
    scores = torch.randn(2, 3, n, n, generator=generator) * 3
    pattern = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1).nan_to_num(0)
    return pattern, real


@pytest.mark.parametrize("block", [1, 4, 14])
def test_rows_and_what_positions_receive_come_in_blocks(block: int) -> None:
    pattern, real = patterns()
    queries = torch.zeros(2, 14, dtype=torch.bool)
    queries[0, [5, 13]] = queries[1, [4, 11, 12]] = True
    means, received = QueryMeans(queries), Received(real)
    for layer in (1, 0):
        for low in range(0, 14, block):
            for sums in (means, received):
                sums(layer, pattern[:, :, low : low + block] * (layer + 1) / 2, low)
    for b in range(2):
        for h in range(3):
            rows = pattern[b, h, queries[b]]
            entropy = torch.stack([-(r[r > 0] * r[r > 0].log()).sum() for r in rows]).mean()
            torch.testing.assert_close(means.rows()[b, 1, h], rows.mean(0))
            torch.testing.assert_close(means.entropy()[b, 1, h], entropy)
            for key in range(14):
                after = [q for q in range(key + 1, 14) if real[b, q]]
                judged = bool(real[b, key]) and len(after) >= ROWS_AFTER
                want = pattern[b, h, after, key].mean() if judged else torch.tensor(0.0)
                torch.testing.assert_close(received.weights()[b, 1, h, key], want)


def test_an_example_without_query_rows_is_named() -> None:
    with pytest.raises(DataError, match="no position in example 1"):
        QueryMeans(torch.tensor([[True, False], [False, False]]))


def test_where_a_large_norm_comes_from() -> None:
    """An image token large from the tower, one that grows in the decoder, a word that does, and one large as a word."""
    norms = torch.ones(1, 4, 8)
    image, real = torch.zeros(1, 8, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    image[0, 1:5] = True
    real[0, 0] = False
    norms[0, :, 0] = 100  # padding
    norms[0, :, 2] = LARGE + 1
    norms[0, 2:, 3] = LARGE + 1
    norms[0, 3, 5] = LARGE + 1
    norms[0, 0, 6] = LARGE + 1  # an embedding alone is neither
    entering, inside = norm_growth(norms, image, real)
    assert entering[0].tolist() == [0, 1, LARGE + 1, 1, 1, 0, 0, 0]
    assert inside[0].tolist() == [0, 1, LARGE + 1, LARGE + 1, 1, LARGE + 1, 1, 1]
    tower, decoder = sink_origins(entering, inside)
    assert tower[0].nonzero().flatten().tolist() == [2]
    assert decoder[0].nonzero().flatten().tolist() == [3, 5]
    none = torch.zeros_like(image)
    assert not norm_growth(norms, none, real)[0].any()
    assert not norm_growth(norms[:, :1], image, real)[1].any()  # one block: nothing grows


def test_a_regression_finds_what_was_added_up() -> None:
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(60, 6, generator=generator) > 0.3
    worth = torch.tensor([[2.0, 0, -1, 0, 0.5, 0], [0.0, 3, 0, 0, 0, 1]])
    fit = subset_regression(kept, 4 + kept.float() @ worth.T)
    torch.testing.assert_close(fit.worth.float(), worth, atol=1e-5, rtol=0)
    assert fit.r2 == pytest.approx(1) and fit.held_out == pytest.approx(1) and fit.error.max() < 1e-6
    noise = torch.randn(60, 40, generator=generator)
    poor = subset_regression(kept, noise)
    assert poor.held_out < 0.1 < 0.3 and poor.r2 < 0.3  # 6 of 60 numbers are fitted, so a tenth
    assert subset_regression(kept, 4 + kept.float() @ worth.T, ridge=1e3).worth.abs().max() < 1
    with pytest.raises(DataError, match="give 10 subsets or more"):
        subset_regression(kept[:9], noise[:9])


def test_fewer_subsets_than_parts_need_a_penalty() -> None:
    kept = torch.rand(12, 20, generator=torch.Generator().manual_seed(0)) > 0.3
    values = kept.float().sum(1, keepdim=True)
    with pytest.raises(DataError, match="12 subsets cannot tell 20 parts apart: draw more"):
        subset_regression(kept, values)
    assert subset_regression(kept, values, ridge=1.0).worth.isfinite().all()


def test_the_error_of_a_regression_covers_the_draw_of_subsets() -> None:
    """Of parts that stand in for each other: the best linear weights are known from all 64 subsets."""
    parts, keep, n = 6, 0.8, 96

    def value(kept: torch.Tensor) -> torch.Tensor:
        k = kept.double()
        return (2 * k[:, 0].maximum(k[:, 1]) + k[:, 2] * k[:, 3] - k[:, 4])[:, None]

    every = torch.cartesian_prod(*[torch.tensor([False, True])] * parts)
    chance = torch.where(every, keep, 1 - keep).prod(1).double()
    x = torch.cat([every.double(), torch.ones(64, 1, dtype=torch.float64)], 1)
    truth = torch.linalg.solve(x.T @ (chance[:, None] * x), x.T @ (chance[:, None] * value(every)))[:parts, 0]
    whole, alone = torch.ones(1, parts).bool(), ~torch.eye(parts).bool()[:2]
    assert (
        (value(whole) - value(alone)).max() == 0 < truth[:2].min()
    )  # taking one away says that neither matters
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(parts)
    for _ in range(300):
        kept = torch.rand(n, parts, generator=generator) < keep
        fit = subset_regression(kept, value(kept))
        held += (fit.worth[0] - truth).abs() <= 1.96 * fit.error + 1e-9
    assert (held / 300).min() > 0.9, held / 300
