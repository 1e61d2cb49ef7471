"""Threads that share a model take turns: their results are those of one after the other, and the model stays whole."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import gatelens as gl
import gatelens.interventions as gi
from gatelens import engine
from gatelens.data.base import Example
from gatelens.engine.run_batch import RunBatch, specs_of
from gatelens.hooked_model import ModelLock
from gatelens.training import fine_tune
from gatelens.training.loop import Training
from intervention_helpers import prompts
from tiny_models import make_llava, make_llava_processor


@pytest.fixture
def inputs(tiny: Any) -> Any:
    return prompts(tiny)


def jobs(model: Any, inputs: Any) -> list[Callable[[], torch.Tensor]]:
    """Calls that differ in what stands in the model while they run, one that leaves nothing in it among them."""
    cut, other = (
        gi.knockout("text", "image", layers=[0, 2]),
        gi.knockout("last", "system | image", how="zero"),
    )
    push = gi.steer(torch.ones(32), "last", layers=1, scale=3.0)
    name = "blocks.1.hook_resid_pre"

    def swept() -> torch.Tensor:
        grid = {"start": [None, cut, [push, other], gi.knockout("last", "image", layers=2)]}
        table = gl.sweep(model, inputs, grid, lambda logits: logits[:, -1, 3], progress=False)
        return torch.tensor(table["value"].to_numpy())

    def in_context() -> torch.Tensor:
        with model.hooks([(name, lambda tensor, hook: -tensor)]):
            return model(inputs)

    def looked() -> torch.Tensor:
        seen: list[torch.Tensor] = []
        engine.look(
            model, inputs, "last", lambda layer, pattern, low: seen.append(pattern.clone()), interventions=cut
        )
        return torch.stack(seen)

    return [
        lambda: model(inputs),
        lambda: model.run(inputs, cut),
        lambda: model.run(inputs, [push, other]),
        lambda: model.run_with_hooks(inputs, [(name, lambda tensor, hook: tensor * 2)]),
        lambda: model.run_with_cache(inputs, names_filter="blocks.2.hook_resid_post")[1]["blocks.2.hook_resid_post"],
        lambda: engine.generate(model, inputs, cut, max_new_tokens=4, stop_at_eos=False).token_ids,
        lambda: torch.cat(
            [one.token_ids for one in engine.generate_many(model, inputs, [cut, push, None], 3, stop_at_eos=False)]
        ),
        lambda: torch.cat(engine.last_logits(model, inputs, [cut, other, None, push])),
        swept,
        in_context,
        looked,
    ]  # fmt: skip


def test_threads_give_the_results_of_one_after_the_other(tiny: Any, inputs: Any) -> None:
    calls = jobs(tiny, inputs)
    alone = [call() for call in calls]
    assert all(not torch.equal(alone[0], one) for one in alone[1:4])  # what stands in the model matters
    rounds = 6
    with ThreadPoolExecutor(len(calls)) as pool:
        together = list(pool.map(lambda i: calls[i % len(calls)](), range(rounds * len(calls))))
    wrong = [i % len(calls) for i, one in enumerate(together) if not torch.equal(one, alone[i % len(calls)])]
    assert wrong == []
    assert torch.equal(tiny(inputs), alone[0])


def test_a_thread_that_fails_leaves_the_model_whole_for_the_others(tiny: Any, inputs: Any) -> None:
    calls = jobs(tiny, inputs)[:4]
    alone = [call() for call in calls]

    def boom(tensor: torch.Tensor, hook: Any = None) -> None:
        raise RuntimeError("boom")

    def failing() -> None:
        with pytest.raises(RuntimeError, match="boom"), tiny.hooks([("blocks.1.hook_resid_pre", boom)]):
            tiny.run(inputs, gi.knockout("text", "image"))

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda i: failing() if i % 3 == 0 else calls[i % 4](), range(48)))
    assert all(torch.equal(one, alone[i % 4]) for i, one in enumerate(done) if i % 3)
    assert all(block.attn.cuts is None and "forward" not in block.__dict__ for block in tiny.bridge.blocks)
    assert torch.equal(tiny(inputs), alone[0])


def test_what_is_kept_between_calls_holds_the_model_for_its_thread(tiny: Any, inputs: Any) -> None:
    with ThreadPoolExecutor(1) as pool, tiny.lock:
        waiting = pool.submit(tiny, inputs)
        tiny.run(inputs, gi.knockout("text", "image"))  # taken again by the same thread
        assert not waiting.done()
        tiny.lock.__exit__()
        assert torch.equal(waiting.result(timeout=60), tiny(inputs))
        tiny.lock.__enter__()


def test_no_thread_sees_a_training_step_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> Any:
        return gl.HookedVLM.from_module(make_llava(), make_llava_processor())

    def train(model: Any) -> None:
        examples = [
            Example(None, "what color is the cat", (word,), "class", word) for word in ("red", "blue")
        ]
        fine_tune(model, examples, steps=4, batch_size=2, warmup=0, lr=0.01, progress=False)

    alone, model = make(), make()
    inputs = model.prepare(text="this is a dog")
    whole, step = [alone(inputs)], Training.step

    def recorded(training: Any, number: int) -> dict[str, float]:
        done = step(training, number)
        whole.append(alone(inputs).detach())
        return done

    with monkeypatch.context() as recording:
        recording.setattr(Training, "step", recorded)
        train(alone)
    assert not torch.allclose(whole[0], whole[-1])
    with ThreadPoolExecutor(1) as pool:
        training, seen = pool.submit(train, model), list[torch.Tensor]()
        while not training.done():
            seen.append(model(inputs).detach())
        training.result()
    assert all(any(torch.equal(one, state) for state in whole) for one in seen)
    assert torch.equal(model(inputs), whole[-1])


def test_a_suspended_iteration_of_runs_holds_nothing(tiny: Any, inputs: Any) -> None:
    cut = [gi.knockout("text", "image", layers=2), gi.knockout("last", "image", layers=1)]
    clean = tiny(inputs)
    with torch.enable_grad():
        each = RunBatch(
            tiny, inputs, specs_of([None, *cut, gi.knockout("all", "system", layers=[0], how="zero")])
        ).each()
        for _ in range(4):  # stopped after a clean run, a full one and replayed ones
            next(each)
            assert torch.is_grad_enabled()
            assert torch.equal(tiny(inputs), clean)
            with ThreadPoolExecutor(1) as pool:
                assert torch.equal(pool.submit(tiny, inputs).result(timeout=60), clean)


def test_a_standing_hook_is_put_on_between_runs(tiny: Any, inputs: Any) -> None:
    clean, added = tiny(inputs), threading.Event()

    def add() -> None:
        tiny.add_hook("blocks.2.hook_resid_pre", lambda tensor, hook: -tensor)
        added.set()

    def wait(tensor: torch.Tensor, hook: Any) -> None:
        assert not added.wait(0.2)  # the other thread has to wait for this pass

    with ThreadPoolExecutor(1) as pool:
        try:
            with tiny.lock:
                adding = pool.submit(add)
                assert torch.equal(tiny.run_with_hooks(inputs, [("blocks.0.hook_resid_pre", wait)]), clean)
            adding.result(timeout=60)
            assert not torch.equal(tiny(inputs), clean)
        finally:
            tiny.reset_hooks()
    assert torch.equal(tiny(inputs), clean)


def test_prompts_are_prepared_in_threads(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer keeps between two calls how it pads: another thread must not come between setting and using it."""
    raw = tiny.tokenizer._tokenizer
    kind, inside, seen = type(tiny.tokenizer), threading.Lock(), list[bool]()
    encode = kind._batch_encode_plus if hasattr(kind, "_batch_encode_plus") else kind._encode_plus

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inside.acquire(blocking=False))
        time.sleep(0.01)
        out = encode(self, *args, **kwargs)
        if seen[-1]:
            inside.release()
        return out

    monkeypatch.setattr(kind, encode.__name__, watched)
    texts: list[Any] = [["this is a dog", "this"], "what color", ["a", "the red cat", "no"]]
    with ThreadPoolExecutor(6) as pool:
        padded = list(pool.map(lambda i: tiny.prepare(text=texts[i % 3]), range(12)))
        list(pool.map(lambda i: tiny.to_tokens(texts[i % 3]), range(6)))
    assert len(seen) >= 18 and all(seen) and raw is tiny.tokenizer._tokenizer
    assert [one.batch_size for one in padded] == [2, 1, 3] * 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copy_has_a_lock_of_its_own(copied: Any) -> None:
    lock = ModelLock()
    with lock:
        other = copied(lock)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(other.__enter__).result(timeout=60)


def test_a_copied_model_runs_beside_the_first(tiny: Any, inputs: Any) -> None:
    other, cut = copy.deepcopy(tiny), gi.knockout("text", "image")
    with tiny.lock, ThreadPoolExecutor(1) as pool:
        there = pool.submit(other.run, inputs, cut).result(timeout=60)
    assert torch.equal(there, tiny.run(inputs, cut))
