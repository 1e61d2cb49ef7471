"""Plants against transformers itself: what carries the picture is what was declared, and nothing else."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.bench import KINDS, Plant, Refused, check, declare, make, plant
from gatelens.bench.pictures import joint_value
from gatelens.bench.plants import Slot
from gatelens.bench.truth import tensors
from gatelens.engine import last_logits
from gatelens.examples import prepare


@cache
def planted(kind: str, family: str) -> Plant:
    return make(
        declare(np.random.default_rng([4, KINDS.index(kind)]), kind, family), f"{kind} {family}", 7, 32
    )


def accuracy(one: Plant, logits: torch.Tensor) -> float:
    answers = [one.shell.words[str(e.label)] for e in one.questions[0].data.examples()]
    return float((logits.argmax(-1) == torch.tensor(answers)).float().mean())


@pytest.mark.parametrize(("kind", "family"), [("redundant", "llava"), ("bits", "chameleon")])
def test_the_answer_comes_through_the_carriers_alone_in_plain_transformers(kind: str, family: str) -> None:
    one = make(declare(np.random.default_rng([5, 1]), kind, family), "one", 3, 32)  # not wrapped by gatelens
    question, hf = one.questions[0], one.shell.hf
    inputs = tensors(one.shell.processor, question.data.examples())
    n, pos = inputs["input_ids"].shape
    hf.set_attn_implementation("eager")

    def run(hidden: list[int]) -> torch.Tensor:
        mask = torch.zeros(n, 1, pos, pos).masked_fill(torch.ones(pos, pos).triu(1).bool(), -1e30)
        mask[:, :, -1, hidden] = -1e30
        with torch.no_grad():
            return hf(**{**inputs, "attention_mask": mask}).logits[:, -1]

    rest = [p for p in question.candidates if p not in question.carriers + question.decoys.get("anchor", ())]
    assert accuracy(one, run([])) > 0.9
    assert accuracy(one, run(rest)) > 0.9
    assert accuracy(one, run(list(question.carriers))) <= 1 / len(question.data.names) + 0.1
    alone = accuracy(one, run([p for p in question.carriers if p != question.carriers[0]]))
    assert alone > 0.9 if kind == "redundant" else alone < 0.6
    plain = one.plain(question)
    assert torch.allclose(plain.logits(rest, "mask"), run(rest), atol=1e-3)


def test_the_plain_passes_do_what_interventions_of_gatelens_do() -> None:
    one = planted("attributes", "chameleon")
    question = one.questions[1]
    plain = one.plain(question)
    carriers = list(question.carriers)
    partner = torch.arange(len(plain.ids)).roll(1)
    zeroed, moved = plain.logits(carriers, "zero"), plain.resampled(carriers, partner)
    examples = question.data.examples()
    inputs = prepare(one.model, examples)
    assert torch.equal(inputs.tokens.mask(question.selector)[0].nonzero()[:, 0], torch.tensor(carriers))
    _, theirs = one.model.run_with_cache(prepare(one.model, [examples[i] for i in partner]))
    cut = gl.knockout("last", question.selector, how="zero")
    patch = gl.patch(theirs, at=question.selector, site="resid_pre")
    ours = last_logits(one.model, inputs, [cut, patch])
    answers = [one.shell.words[name] for name in question.data.names]  # image tokens are impossible words
    for mine, theirs_ in zip(ours, (zeroed, moved), strict=True):
        assert torch.allclose(mine[:, answers], theirs_[:, answers], atol=1e-3)


def test_a_plant_that_does_not_do_what_was_declared_is_refused() -> None:
    one = planted("gate", "llava")
    assert check(one).holds.all()
    question = one.questions[0]
    other = next(p for p in question.candidates if p not in question.carriers)
    wrong = dataclasses.replace(one, questions=(dataclasses.replace(question, carriers=(other,)),))
    with pytest.raises(Refused, match="'gate llava' does not do what was declared: carriers alone zero"):
        check(wrong)


def test_blind_and_random_plants_read_nothing_and_say_so() -> None:
    for kind in ("blind", "random"):
        one = planted(kind, "llava")
        assert one.questions[0].carriers == () and check(one).holds.all()


def test_a_plant_is_its_seed() -> None:
    first, again = (make(declare(np.random.default_rng(6), "gate", "llava"), "x", 1, 2) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.shell.hf.parameters(), again.shell.hf.parameters(), strict=True)
    )
    assert first.declared == again.declared
    drawn = [np.asarray(one.questions[0].data.examples()[1].image) for one in (first, again)]
    assert np.array_equal(*drawn)
    with pytest.raises(gl.errors.InputError, match="split='train': give 'dev' or 'heldout'"):
        plant("train", 0)


def test_declared_sets_are_of_every_size_and_no_slot_is_given_twice() -> None:
    sizes, layouts = set(), set()
    for seed in range(120):
        declared = declare(np.random.default_rng(seed), KINDS[seed % 5], "chameleon")
        slots = [slot for asked in declared.questions for slot in asked.carriers] + list(declared.decoys)
        assert len(set(slots)) == len(slots)
        sizes |= {len(asked.carriers) for asked in declared.questions}
        layouts.add(declared.layout)
        assert 0 <= declared.gathers < declared.reads < 4
        if declared.kind == "redundant" and declared.layout == "contiguous":
            numbers = [s.number for s in declared.questions[0].carriers if s.in_picture]
            assert numbers == list(range(min(numbers, default=0), min(numbers, default=0) + len(numbers)))
    assert sizes == set(range(1, 9)) and layouts == {"", "contiguous", "spread"}
    assert Slot(True, 3) != Slot(False, 3)


def test_the_class_is_the_joint_value_of_what_is_asked() -> None:
    assert joint_value({"a": 2, "b": 3}, ("a",)) == 2
    assert joint_value({"a": 2, "b": 3}, ("a1", "b0", "a0")) == 0b011
