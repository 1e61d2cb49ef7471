"""Plants against transformers itself: what carries the picture is what was declared, and nothing else."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.bench import KINDS, Plant, Refused, plant
from gatelens.bench.checks import check, kind_of, numbers_of
from gatelens.bench.declared import HARD, PLAIN, Slot, declare
from gatelens.bench.pictures import joint_value
from gatelens.bench.plants import make
from gatelens.engine import last_logits
from gatelens.examples import prepare
from gatelens.plain_runs import tensors


@cache
def planted(kind: str, family: str) -> Plant:
    return make(
        declare(np.random.default_rng([4, KINDS.index(kind)]), kind, family), f"{kind} {family}", 7, 32
    )


def given(one: Plant) -> dict[str, torch.Tensor]:
    """What transformers takes."""
    examples = one.questions[0].data.examples()
    return tensors(one.shell.processor, [e.image for e in examples], [e.prompt for e in examples])


def accuracy(one: Plant, logits: torch.Tensor) -> float:
    answers = [one.shell.words[str(e.label)] for e in one.questions[0].data.examples()]
    return float((logits.argmax(-1) == torch.tensor(answers)).float().mean())


@pytest.mark.parametrize(("kind", "family"), [("redundant", "llava"), ("bits", "chameleon")])
def test_the_answer_comes_through_the_carriers_alone_in_plain_transformers(kind: str, family: str) -> None:
    one = planted(kind, family)
    question, hf = one.questions[0], one.shell.hf
    inputs = given(one)
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
    assert alone > 0.9 if kind == "redundant" else alone < 0.7
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


@pytest.mark.parametrize("kind", HARD)
def test_hard_plants_do_what_is_declared(kind: str) -> None:
    family = ("llava", "chameleon")[HARD.index(kind) % 2]
    one = planted(kind, family)
    table = check(one)
    assert table.holds.all()
    question = one.questions[0]
    assert sorted(p for places in question.groups.values() for p in places) == list(question.carriers)
    if kind == "eoi":
        examples = question.data.examples(limit=1)
        gate = prepare(one.model, examples).tokens.mask("gate")[0].nonzero()[:, 0].tolist()
        assert gate == list(question.carriers)
    if kind == "layered":
        assert question.layers["gate 1"] < question.layers["gate 2"]


def entering(one: Plant, moved: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """In plain transformers: logits of the answers, with ``moved`` added to what enters the second layer that matters,
    and that stream before."""
    seen = []

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        seen.append(args[0] if args else kwargs.pop("hidden_states"))
        return (seen[0] if moved is None else seen[0] + moved, *args[1:]), kwargs

    question = one.questions[0]
    layer = one.shell.decoder.layers[one.declared.layers[1]]
    with layer.register_forward_pre_hook(hook, with_kwargs=True):
        logits = one.shell.hf(**given(one)).logits[:, -1]
    return logits[:, [one.shell.words[name] for name in question.data.names]], seen[0]


def away(stream: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor:
    """The way to the next picture's stream, at some positions."""
    way = torch.zeros_like(stream)
    way[:, list(places)] = (stream.roll(1, 0) - stream)[:, list(places)]
    return way


def test_a_relay_moves_the_answer_though_it_is_not_read() -> None:
    one = planted("hops", "chameleon")
    clean, stream = entering(one)
    moved, _ = entering(one, away(stream, one.questions[0].decoys["relay"]))
    assert (moved.argmax(-1) == clean.argmax(-1).roll(1)).float().mean() > 0.9


def test_where_a_read_saturates_gradients_say_next_to_nothing() -> None:
    for kind, least, most in (("saturated", -0.1, 0.1), ("gate", 0.5, 1.5)):
        one = planted(kind, "llava")
        clean, stream = entering(one)
        way = away(stream, one.questions[0].carriers)
        nothing = torch.zeros_like(stream, requires_grad=True)
        right = clean.argmax(-1, keepdim=True)
        (gradient,) = torch.autograd.grad(entering(one, nothing)[0].gather(1, right).sum(), nothing)
        moved, _ = entering(one, way)
        change = (clean - moved).gather(1, right).sum()
        assert least <= float((gradient * -way).sum() / change) <= most


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
        declared = declare(np.random.default_rng(seed), (*PLAIN[:5], *HARD)[seed % 13], "chameleon")
        slots = [slot for asked in declared.questions for slot in asked.carriers] + list(declared.decoys)
        assert len(set(slots)) == len(slots)
        sizes |= {len(asked.carriers) for asked in declared.questions}
        layouts.add(declared.layout)
        assert len(set(declared.layers)) == len(declared.layers) and list(declared.layers) == sorted(
            declared.layers
        )
        patches = {slot for slot in slots if slot.in_picture}
        assert all(slot.number < 25 for slot in patches) and declared.layers[-1] < 4
        if declared.kind == "redundant" and declared.layout == "contiguous":
            numbers = [s.number for s in declared.questions[0].carriers if s.in_picture]
            assert numbers == list(range(min(numbers, default=0), min(numbers, default=0) + len(numbers)))
    assert sizes == set(range(1, 9)) and layouts == {"", "contiguous", "spread"}
    assert Slot(True, 3) != Slot(False, 3)


def test_the_class_is_the_joint_value_of_what_is_asked() -> None:
    assert joint_value({"a": 2, "b": 3}, ("a",)) == 2
    assert joint_value({"a": 2, "b": 3}, ("a1", "b0", "a0")) == 0b011
    for a in range(4):
        for b in range(4):
            assert joint_value({"a": a, "b": b}, ("a0", "a1^b0")) == (a + 2 * (b % 2)) % 4


def test_numbers_name_kinds_in_turn_and_a_kind_can_be_asked_for() -> None:
    one = plant("dev", 16, 32)
    assert (one.name, one.declared.family) == ("dev 16 eoi", "llava")
    one = plant("dev", 21, 32, kind="eoi", family="chameleon")
    assert (one.declared.kind, one.declared.family, one.questions[0].selector) == ("eoi", "chameleon", "eoi")
    with pytest.raises(gl.errors.InputError, match=r"kind='eio': give gate, .* did you mean 'eoi'"):
        plant("dev", 0, kind="eio")
    numbers = numbers_of(["blind", "eoi"], 5)
    assert numbers == [6, 14, 16, 24, 38] and [kind_of(n) for n in numbers] == ["blind"] * 2 + ["eoi"] * 2 + [
        "blind"
    ]
    with pytest.raises(gl.errors.InputError, match=r"kind='eio': give gate, .* did you mean 'eoi'"):
        numbers_of(["gate", "eio"], 1)
