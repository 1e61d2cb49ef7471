"""Metrics of logits against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelens.errors import GatelensError
from gatelens.measures import logits as metrics

# two examples, two positions, four tokens; only the last position counts
LOGITS = torch.tensor(
    [[[9.0, 9, 9, 9], [0.0, math.log(2), math.log(3), math.log(4)]], [[9.0, 9, 9, 9], [1.0, 1.0, 1.0, 1.0]]]
)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.logit(3), [math.log(4), 1.0]),
        (metrics.logit_diff(3, 1), [math.log(2), 0.0]),
        (metrics.logit_diff([3, 0], [0, 1]), [math.log(4), 0.0]),
        (metrics.prob(2), [0.3, 0.25]),
        (metrics.log_prob(torch.tensor([0, 3])), [math.log(0.1), math.log(0.25)]),
        (metrics.rank(1), [2.0, 0.0]),
        (metrics.top1(3), [1.0, 1.0]),
        (metrics.top1(0), [0.0, 1.0]),
        (metrics.entropy(), [-sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4)), math.log(4)]),
        (metrics.kl(LOGITS), [0.0, 0.0]),
        (metrics.kl(LOGITS.flip(0)), [sum(0.25 * math.log(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4)), None]),
        (metrics.similarity(LOGITS), [1.0, 1.0]),
        (metrics.similarity(LOGITS.flip(0)), [0.1 + 0.2 + 0.25 + 0.25, 0.8]),
        (metrics.prob(0, pos=0), [0.25, 0.25]),
    ],
)
def test_by_hand(metric: Any, expected: list[float | None]) -> None:
    got = metric(LOGITS)
    assert got.shape == (2,) and got.is_floating_point()
    for value, wanted in zip(got.tolist(), expected, strict=True):
        assert wanted is None or value == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), target=st.integers(0, 8), shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_changes_only_the_logit(seed: int, target: int, shift: float) -> None:
    logits = torch.randn(3, 2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for metric in (
        metrics.prob(target),
        metrics.logit_diff(target, 0),
        metrics.rank(target),
        metrics.entropy(),
    ):
        torch.testing.assert_close(metric(logits + shift), metric(logits))
    torch.testing.assert_close(metrics.prob(target)(logits).log(), metrics.log_prob(target)(logits))
    assert ((metrics.rank(target)(logits) == 0) == (logits[:, -1].argmax(-1) == target)).all()


def test_bfloat16_logits_are_widened_first() -> None:
    logits = torch.randn(2, 3, 1000).bfloat16()
    assert metrics.log_prob(5)(logits).dtype == torch.float32
    torch.testing.assert_close(metrics.log_prob(5)(logits), logits.float()[:, -1].log_softmax(-1)[:, 5])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: metrics.prob([1, 2, 3])(LOGITS), ["3 token ids", "batch of 2"]),
        (lambda: metrics.prob(4)(LOGITS), ["[4]", "vocabulary of 4"]),
        (lambda: metrics.prob(-1)(LOGITS), ["[-1]"]),
        (lambda: metrics.prob(1.5), ["1.5", "token id"]),
        (lambda: metrics.prob("cat")(LOGITS), ["data set", "'cat'", "to_single_token"]),
        (lambda: metrics.prob(1)(LOGITS[0]), ["(2, 4)"]),
    ],
)
def test_what_does_not_fit_says_so(make: Any, words: list[str]) -> None:
    with pytest.raises(GatelensError) as error:
        make()
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("never", [float("-inf"), torch.finfo(torch.float32).min])
def test_tokens_a_model_never_writes_count_nothing(never: float) -> None:
    masked = torch.cat([LOGITS, torch.full((2, 2, 1), never)], dim=-1)
    other = torch.cat([LOGITS.flip(0), torch.full((2, 2, 1), never)], dim=-1)
    torch.testing.assert_close(metrics.entropy()(masked), metrics.entropy()(LOGITS))
    torch.testing.assert_close(metrics.kl(other)(masked), metrics.kl(LOGITS.flip(0))(LOGITS))


def test_a_metric_knows_its_name() -> None:
    assert metrics.logit_diff(1, 2).__name__ == "logit_diff"
