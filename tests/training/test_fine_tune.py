"""Training under interventions, against gradients and steps of plain transformers and torch."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import gatelens as gl
from gatelens.errors import DataError, OutputError
from gatelens.model import HookedVLM
from gatelens.model.checkpoints import put_weights, weights
from gatelens.training import OthersGate, fine_tune
from gatelens.training.batches import IGNORED, training_batch
from gatelens.training.loop import Checkpoint, loss_of, schedule
from study_helpers import TinyData
from tiny_models import make_chameleon_processor, make_llava_processor

GATE = gl.knockout(queries="text - gate", keys="gate")


@pytest.fixture
def examples() -> list[Any]:
    data = TinyData()
    return [e for task in data.tasks for e in data.examples(task)]


@pytest.fixture
def fresh(tiny: HookedVLM, oracle: Any) -> HookedVLM:
    """A copy of the tiny model that a test may train."""
    processor = {"chameleon": make_chameleon_processor, "llava": make_llava_processor}[tiny.family.name]()
    return HookedVLM.from_module(copy.deepcopy(oracle), processor)


def plain_loss(hf: Any, model: HookedVLM, batch: Any) -> torch.Tensor:
    """The same loss by transformers alone: a 4-D mask, all logits, each answer's token by hand."""
    inputs = batch.inputs
    n = inputs.tokens.n_pos
    real = inputs.tensors["attention_mask"].bool()
    seen = torch.ones(n, n, dtype=torch.bool).tril() & real[:, None, :]
    rows, gate = inputs.tokens.mask("text - gate"), inputs.tokens.mask("gate")
    seen = seen & ~(rows[:, :, None] & gate[:, None, :])
    seen |= torch.eye(n, dtype=torch.bool) & ~real[:, :, None]  # padding rows must see something
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    out = hf(**{**inputs.tensors, "attention_mask": bias})
    log_p = out.logits.float().log_softmax(-1)
    total, count = torch.zeros(()), 0
    for b, row in enumerate(batch.targets.tolist()):
        for i, token in enumerate(row):
            if token != IGNORED:
                total = total - log_p[b, n - len(row) + i, token]
                count += 1
    return total / count


def test_gradients_under_a_knockout_are_those_of_a_4d_mask(
    fresh: HookedVLM, oracle: Any, examples: list[Any]
) -> None:
    batch = training_batch(fresh, examples[::4])
    plain = copy.deepcopy(oracle).requires_grad_(True)
    want = plain_loss(plain, fresh, batch)
    want.backward()
    fresh.hf.requires_grad_(True)
    got = loss_of(fresh, batch, GATE)
    got.backward()
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    compared = 0
    with torch.no_grad():  # wrapping renames parameters: they are found by what is in them
        by_value = {
            (tuple(p.shape), p.sum().item(), p.square().sum().item()): p.grad for p in plain.parameters()
        }
        values = [
            (p, (tuple(p.shape), p.sum().item(), p.square().sum().item())) for p in fresh.hf.parameters()
        ]
    for p, value in values:
        grad = by_value[value]
        if grad is None:
            assert p.grad is None
            continue
        assert torch.allclose(p.grad, grad, atol=1e-5), tuple(p.shape)
        compared += int(grad.abs().max() > 1e-4)
    assert compared > 10


def test_documents_predict_the_answer_and_its_end_and_nothing_else(
    tiny: HookedVLM, examples: list[Any]
) -> None:
    chosen = [examples[0], examples[12], examples[24]]
    batch = training_batch(tiny, chosen)
    end = int(tiny.tokenizer.eos_token_id)
    for e, row, ids in zip(chosen, batch.targets, batch.inputs.tensors["input_ids"], strict=True):
        words = tiny.tokenizer(e.answers[0], add_special_tokens=False)["input_ids"]
        counted = [int(t) for t in row if t != IGNORED]
        assert counted in ([*words, end], words)  # without an end of sequence there is none to predict
        assert ids[-len(words) :].tolist() == words
        # the row before the answer predicts its first token
        assert row[len(row) - 1 - len(words)] == words[0]


def test_a_training_cut_short_goes_on_to_the_same_weights(
    fresh: HookedVLM, oracle: Any, examples: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 4, "batch_size": 4, "lr": 1e-2, "warmup": 1, "save_every": 0, "progress": False}
    start = {k: v.clone() for k, v in weights(fresh).items()}
    log = fine_tune(fresh, examples, GATE, **settings)
    through = {k: v.clone() for k, v in weights(fresh).items()}
    assert any(not torch.equal(through[k], start[k]) for k in start)
    assert not any(p.requires_grad or p.grad is not None for p in fresh.hf.parameters())

    put_weights(fresh, start)
    from gatelens.training import loop as module

    real, calls = module.loss_of, []

    def failing(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "loss_of", failing)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(fresh, examples, GATE, out=tmp_path, **settings)
    monkeypatch.setattr(module, "loss_of", real)
    put_weights(fresh, start)
    calls.clear()
    monkeypatch.setattr(module, "loss_of", lambda *args: (calls.append(1), real(*args))[1])
    again = fine_tune(fresh, examples, GATE, out=tmp_path, **settings)
    assert len(calls) == 1  # a checkpoint after each step
    assert again.loss.tolist() == log.loss.tolist()
    assert all(torch.equal(v, through[k]) for k, v in weights(fresh).items())
    with pytest.raises(OutputError, match="other settings \\(lr\\)"):
        fine_tune(fresh, examples, GATE, out=tmp_path, **{**settings, "lr": 1e-3})


def test_checkpoints_are_written_by_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every ten seconds, and seldom enough that writing takes a tenth of the time at most."""
    now = 0.0
    monkeypatch.setattr("gatelens.training.loop.time.monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path, {}, every=10.0)
    now = 9.0
    assert not checkpoint.due()
    now = 10.0
    assert checkpoint.due()
    checkpoint._saved, checkpoint._took = 10.0, 4.0
    now = 45.0
    assert not checkpoint.due()
    now = 46.0
    assert checkpoint.due()
    assert Checkpoint(tmp_path, {}, every=0.0).due()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_a_damaged_checkpoint_says_what_to_delete(
    fresh: HookedVLM, examples: list[Any], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(OutputError, match=r"training_state\.pt' is damaged; delete it"):
        fine_tune(fresh, examples, GATE, steps=1, batch_size=2, out=tmp_path, progress=False)


def test_the_loss_falls_and_only_named_parameters_move(fresh: HookedVLM, examples: list[Any]) -> None:
    before = {k: v.clone() for k, v in fresh.hf.named_parameters()}
    log = fine_tune(
        fresh,
        examples,
        GATE,
        parameters=r"\.mlp\.",
        steps=30,
        batch_size=8,
        lr=3e-3,
        warmup=2,
        progress=False,
    )
    assert log.loss.tail(5).mean() < 0.8 * log.loss.head(5).mean()
    for name, p in fresh.hf.named_parameters():
        assert torch.equal(p, before[name]) == (".mlp." not in name) or "vision" in name, name


def test_the_gate_of_another(fresh: HookedVLM, examples: list[Any]) -> None:
    """Keys and values as a plain run of the other example has them, put in place by hand."""
    batch = training_batch(fresh, examples[:3])
    layers = range(int(fresh.cfg.n_layers))
    cache = fresh.run_with_cache(batch.inputs)[1]
    gate = batch.inputs.tokens.mask("gate").nonzero()
    assert len(gate) == 3

    def swap(tensor: Any, hook: Any) -> Any:
        other = cache[hook.name]
        out = tensor.clone()
        for example, position in gate.tolist():
            following = (example + 1) % 3
            out[example, position] = other[following, int(gate[following, 1])]
        return out

    hooks = [(f"blocks.{i}.attn.hook_{s}", swap) for i in layers for s in ("k", "v")]
    logits = fresh.run_with_hooks(batch.inputs, hooks)[:, -batch.targets.shape[1] :]
    want = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
    got = loss_of(fresh, batch, OthersGate())
    assert got.item() == pytest.approx(want.item(), abs=1e-5)
    assert got.item() != pytest.approx(loss_of(fresh, batch).item(), abs=1e-6)
    with pytest.raises(DataError, match="batch_size must be 2"):
        loss_of(fresh, training_batch(fresh, examples[:1]), OthersGate())


def test_bad_input(fresh: HookedVLM, examples: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        fine_tune(fresh, [])
    for name, value in (("steps", 0), ("steps", 1.5), ("seed", -1), ("seed", "a"), ("batch_size", True)):
        with pytest.raises(DataError, match=f"^{name}={value!r}: give a whole number"):
            fine_tune(fresh, examples, **{name: value})
    with pytest.raises(DataError, match="no parameter's name"):
        fine_tune(fresh, examples, parameters="no such", steps=1)
    mute = copy.copy(examples[0])
    mute.answers, mute.label = (), None
    with pytest.raises(DataError, match="'class-0' has no answer"):
        training_batch(fresh, [mute])


def test_schedule() -> None:
    rates = [schedule(i, 100, 10) for i in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[55] == pytest.approx(0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 0.01
