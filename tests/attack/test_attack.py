"""A small share of the attack (``python -m attack``), and that it can fail."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from attack import compositions, generations
from attack.compositions import Outcome, compare, subject
from gatelens.interventions import compile as compiling

FAMILIES = ("chameleon", "chameleon-34b", "gemma3", "llava", "qwen2-vl", "vila-u")


def total(outcomes: Any) -> Outcome:
    out = Outcome()
    for outcome in outcomes:
        out.add(outcome)
    return out


def test_compositions_equal_plain_transformers() -> None:
    outcome = total(compositions.attack(FAMILIES, 96, seed=1))
    assert outcome.wrong == []
    assert outcome.counts["run"] > 48 and outcome.counts["refused"] > 4


def test_generations_equal_plain_transformers() -> None:
    outcome = total(generations.attack(FAMILIES, 36, seed=1))
    assert outcome.wrong == []
    assert outcome.counts["run"] > 18


def test_a_dropped_intervention_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compiling.as_interventions

    def without_the_last(specs: Any) -> Any:
        return whole(specs)[:-1]

    monkeypatch.setattr("gatelens.engine.full_run.as_interventions", without_the_last, raising=False)
    monkeypatch.setattr("gatelens.engine.run_batch.as_interventions", without_the_last)
    outcome = total(compositions.attack_once(subject("llava"), random.Random(i), 4, "") for i in range(4))
    assert any("| last |" in line for line in outcome.wrong)


def test_a_wrong_number_is_seen_beside_tokens_that_are_never_written() -> None:
    want = torch.tensor([[[1.0, torch.finfo(torch.float32).min, 2.0]]])
    outcome = Outcome()
    compare(outcome, want + torch.tensor([0.0, 0.0, 0.01]), want, torch.ones(1, 1, dtype=torch.bool), "here")
    assert len(outcome.wrong) == 1
