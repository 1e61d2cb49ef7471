"""Every argument of a run that makes no sense is one line: what was given, and what to give."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens import engine
from gatelens.engine.compression import compress, describe
from gatelens.engine.drawing import draw, draw_many
from gatelens.errors import GatelensError
from gatelens.hooked_model import HookedModel

CUT = gl.knockout("text", "image")
NAME = "blocks.1.hook_resid_pre"
NESTED: list[Any] = []
NESTED.append(NESTED)


def keep(tensor: Any, hook: Any = None) -> None:
    """A hook that changes nothing."""


def last(logits: torch.Tensor) -> torch.Tensor:
    """A metric."""
    return logits[:, -1, 0]


NO_MODELS = [None, "organism:gated", 5, torch.nn.Linear(2, 2)]
NO_INPUTS = [None, 5, 1.5, {"input_ids": torch.ones(1, 2).long()}, torch.ones(1, 3), [], [5], object()]
NO_INTERVENTIONS = [
    5,
    "knockout",
    b"ab",
    [CUT, 5],
    [[CUT, [None, "x"]]],
    {"a": CUT},
    torch.ones(20, 20),
    np.array([CUT, 3], dtype=object),
    np.ones((40, 40)),
    gl.knockout,
    type(CUT),
    NESTED,
    object(),
    range(3),
]  # fmt: skip
NO_COUNTS = [0, -3, 1.5, math.nan, math.inf, True, "5", None, [5], torch.tensor(2.0), torch.tensor([1, 2])]
NO_HOOKS = [
    None,
    5,
    NAME,
    (NAME, keep),
    [NAME],
    [(NAME,)],
    [(NAME, keep, keep)],
    [(NAME, None)],
    [(NAME, "fn")],
    [(5, keep)],
    [(None, keep)],
    [("blocks.1.hook_resid_per", keep)],
    [(["blocks.1.hook_resid_pre"], keep)],
    [(lambda name: False, keep)],
    [keep],
    keep,
    {NAME: keep},
    [[CUT]],
    CUT,
]  # fmt: skip
NO_ACTIVATIONS = [
    5,
    "x",
    [1.0],
    torch.ones(1),
    torch.ones(1, 1, 32),
    torch.ones(2, 21, 32),
    np.ones((1, 21, 32)),
]
NO_SELECTORS = [
    5,
    "nothing_so",
    "",
    object(),
    torch.ones(1, 2),
    torch.ones(1, 2, dtype=torch.bool),
    ["image"],
    b"x",
]
NO_RUNS = [None, 5, "ab", CUT, {"a": CUT}, [5], [CUT, "x"], torch.ones(2)]
NO_GRIDS = [
    None,
    5,
    "start",
    [CUT],
    CUT,
    [("start", [CUT])],
    {"x": 5},
    {"x": None},
    {"x": CUT},
    {"x": "ab"},
    {"x": []},
    {"x": {}},
    {"x": [5]},
    {"x": {"a": 5}},
    {"x": torch.ones(3)},
    {"x": np.ones((2, 2))},
    {"example": [CUT]},
    {"value": [CUT]},
    {5: [CUT]},
    {None: [CUT]},
]  # fmt: skip
NO_METRICS = [
    None,
    5,
    "logit_diff",
    {},
    [last],
    [],
    {"a": None},
    {"a": "x"},
    {"a": last, "b": 3},
    {5: last},
    {"example": last},
    {"x": last},
    torch.ones(3),
]  # fmt: skip
NO_VALUES = [
    lambda logits: logits,
    lambda logits: logits[:, -1],
    lambda logits: logits[0, -1, 0],
    lambda logits: logits[:, -1, 0].tolist(),
    lambda logits: logits[:, -1, 0].numpy(),
    lambda logits: 1.5,
    lambda logits: None,
    lambda logits: "high",
    lambda logits: logits[:, -1, 0].to(torch.complex64),
    lambda logits: logits[:1, -1, 0].expand(7),
]  # fmt: skip
NO_SHARES = [-0.1, 1.1, math.nan, math.inf, True, "0.5", None, [0.5], torch.ones(2)]
NO_NUMBERS = [math.nan, math.inf, -math.inf, "hot", None, True, [1.0], 1j]
NO_SEEDS = [-1, 1.5, "a", None, True, [0], 2**70]
NO_QUESTIONS = [
    None,
    5,
    "",
    [],
    [""],
    [5],
    [[]],
    [["a"], []],
    [["what", 5]],
    {"a": "b"},
    "<image> what",
    b"what",
    [None],
]
NO_DEVICES = ["cuda:7", "nowhere", 5.5, "meta", [], "cpu:x"]
NO_DTYPES = ["float99", 5, "int", [], torch.int64, "float32 "]


def rows() -> list[tuple[str, Callable[[Any], Any]]]:
    """(what is called with what, the call)."""
    out: list[tuple[str, Callable[[Any], Any]]] = []

    def add(name: str, values: list[Any], call: Callable[[Any, Any], Any]) -> None:
        out.extend((f"{name} {i}", lambda c, value=value: call(c, value)) for i, value in enumerate(values))

    for name, function in {
        "run": lambda model, inputs: engine.run(model, inputs, CUT),
        "generate": lambda model, inputs: engine.generate(model, inputs, CUT),
        "generate_many": lambda model, inputs: engine.generate_many(model, inputs, [CUT]),
        "last_logits": lambda model, inputs: engine.last_logits(model, inputs, [CUT]),
        "look": lambda model, inputs: engine.look(model, inputs, "last", lambda *a: None),
        "sweep": lambda model, inputs: gl.sweep(model, inputs, {"x": [CUT]}, last, progress=False),
        "explain": lambda model, inputs: gl.explain(model, inputs, CUT),
        "draw": lambda model, inputs: draw(model, inputs),
        "describe": lambda model, inputs: describe(model, inputs, 1),
        "compress": lambda model, inputs: compress(model, inputs, 0.0),
    }.items():
        add(f"{name} model", NO_MODELS, lambda c, model, f=function: f(model, c.inputs))
        add(
            f"{name} inputs",
            NO_INPUTS,
            lambda c, inputs, f=function: f(c.drawing if f is draw else c.model, inputs),
        )
    for name, method in {
        "call": lambda model, inputs: model(inputs),
        "model.run": lambda model, inputs: model.run(inputs, CUT),
        "model.generate": lambda model, inputs: model.generate(inputs),
        "run_with_hooks": lambda model, inputs: model.run_with_hooks(inputs),
        "run_with_cache": lambda model, inputs: model.run_with_cache(inputs),
    }.items():
        add(f"{name} inputs", NO_INPUTS, lambda c, inputs, f=method: f(c.model, inputs))
    add("run interventions", NO_INTERVENTIONS, lambda c, v: c.model.run(c.inputs, v))
    add("generate interventions", NO_INTERVENTIONS, lambda c, v: c.model.generate(c.inputs, v))
    add("look interventions", NO_INTERVENTIONS, lambda c, v: look(c, interventions=v))
    add("draw interventions", NO_INTERVENTIONS, lambda c, v: draw(c.drawing, c.prompt, v))
    add("explain", NO_INTERVENTIONS[:7], lambda c, v: gl.explain(c.model, c.inputs, v))
    add("max_new_tokens", NO_COUNTS, lambda c, v: c.model.generate(c.inputs, CUT, max_new_tokens=v))
    add(
        "generate_many max_new_tokens",
        NO_COUNTS,
        lambda c, v: engine.generate_many(c.model, c.inputs, [CUT], v),
    )
    add("describe max_new_tokens", NO_COUNTS[1:], lambda c, v: describe(c.model, c.inputs, v))
    add("answer max_new_tokens", NO_COUNTS, lambda c, v: c.context.answer("what", max_new_tokens=v))
    add("answer batch_size", NO_COUNTS, lambda c, v: c.context.answer("what", batch_size=v))
    add("return_type", [None, "text", 5, ["str"]], lambda c, v: c.model.generate(c.inputs, return_type=v))
    add("generate see", [5, "see"], lambda c, v: engine.generate(c.model, c.inputs, see=v))
    add("runs of generate_many", NO_RUNS, lambda c, v: engine.generate_many(c.model, c.inputs, v, 2))
    add("runs of last_logits", NO_RUNS, lambda c, v: engine.last_logits(c.model, c.inputs, v))
    add("runs of draw_many", NO_RUNS, lambda c, v: draw_many(c.drawing, c.prompt, v))
    add("fwd_hooks of run_with_hooks", NO_HOOKS, lambda c, v: c.model.run_with_hooks(c.inputs, v))
    add("fwd_hooks of run_with_cache", NO_HOOKS, lambda c, v: c.model.run_with_cache(c.inputs, NAME, v))
    add("fwd_hooks of hooks", NO_HOOKS, lambda c, v: standing(c, v, ()))
    add("bwd_hooks of hooks", NO_HOOKS, lambda c, v: standing(c, (), v))
    add("fwd_hooks of forward_step", NO_HOOKS, lambda c, v: c.model.forward_step(c.inputs.tensors, v))
    add(
        "add_hook",
        [(5, keep), (NAME, None), (NAME, 5), (None, keep), (NAME, keep, "both")],
        lambda c, v: c.model.add_hook(*v),
    )
    add(
        "forward_step tensors",
        [None, 5, {}, {"attention_mask": torch.ones(1, 2)}, [1]],
        lambda c, v: c.model.forward_step(v),
    )
    add(
        "forward_step past",
        [5, "cache", [1], (1, 2)],
        lambda c, v: c.model.forward_step(c.inputs.tensors, past=v),
    )
    add(
        "what a hook gives",
        NO_ACTIVATIONS,
        lambda c, v: c.model.run_with_hooks(c.inputs, [(NAME, lambda x, hook: v)]),
    )
    add("names_filter", [5, 1.5, [5], [None], "blocks.1.hook_nowhere", ["blocks.1.hook_nowhere"]],
        lambda c, v: c.model.run_with_cache(c.inputs, v))  # fmt: skip
    add("cache device", NO_DEVICES, lambda c, v: c.model.run_with_cache(c.inputs, NAME, device=v))
    add("cache dtype", NO_DTYPES, lambda c, v: c.model.run_with_cache(c.inputs, NAME, dtype=v))
    add("cache positions", NO_SELECTORS, lambda c, v: c.model.run_with_cache(c.inputs, NAME, positions=v))
    add("layers of a pass", ["a", 1.5, 99, -99, True, [1]], lambda c, v: c.model(c.inputs, stop_at_layer=v))
    add(
        "first layer of a pass",
        ["a", 1.5, 99, True],
        lambda c, v: c.model(torch.ones(1, 3, 32), start_at_layer=v),
    )
    add("attention", [5, None, "flash", ["fused"]], lambda c, v: setattr(c.model, "attention", v))
    add("grid", NO_GRIDS, lambda c, v: gl.sweep(c.model, c.inputs, v, last, progress=False))
    add("metric", NO_METRICS, lambda c, v: gl.sweep(c.model, c.inputs, {"x": [CUT]}, v, progress=False))
    add("values", NO_VALUES, lambda c, v: gl.sweep(c.model, c.inputs, {"x": [CUT]}, v, progress=False))
    add("look rows", [*NO_SELECTORS, None, "generated"], lambda c, v: look(c, rows=v))
    add("look see", [None, 5, "see"], lambda c, v: look(c, see=v))
    add(
        "look layers",
        [5.5, "a", [99], [-99], [1.5], ["a"], [], [None], [True]],
        lambda c, v: look(c, layers=v),
    )
    add("draw temperature", [-1, *NO_NUMBERS], lambda c, v: draw(c.drawing, c.prompt, temperature=v))
    add("draw guidance", NO_NUMBERS, lambda c, v: draw(c.drawing, c.prompt, guidance=v))
    add("draw seed", NO_SEEDS, lambda c, v: draw(c.drawing, c.prompt, seed=v))
    add("keep", NO_SHARES, lambda c, v: compress(c.model, c.inputs, v, 1))
    add("described keep", NO_SHARES, lambda c, v: c.described.compress(v))
    add("always", [*NO_SELECTORS, None], lambda c, v: c.described.compress(0.0, always=v))
    add("among", [*NO_SELECTORS, None], lambda c, v: c.described.compress(1.0, among=v))
    add("questions", NO_QUESTIONS, lambda c, v: c.context.answer(v))
    add("questions of logits", NO_QUESTIONS, lambda c, v: c.context.logits(v))
    return out


def standing(c: Any, fwd_hooks: Any, bwd_hooks: Any) -> None:
    with c.model.hooks(fwd_hooks, bwd_hooks):
        pass


def look(c: Any, **given: Any) -> Any:
    arguments = {"rows": "last", "see": lambda layer, pattern, low: None, **given}
    return engine.look(c.model, c.inputs, **arguments)


@pytest.fixture(scope="module")
def calls(tiny_llava: HookedModel, tiny_chameleon: HookedModel, picture: Any) -> SimpleNamespace:
    inputs = tiny_llava.prepare(picture, "this <image> animal is a")  # type: ignore[attr-defined]
    described = describe(tiny_llava, inputs, 1)
    prompt = tiny_chameleon.prepare(text="a red dog")  # type: ignore[attr-defined]
    return SimpleNamespace(
        model=tiny_llava, inputs=inputs, described=described, context=described.compress(0.0),
        drawing=tiny_chameleon, prompt=prompt,
    )  # fmt: skip


ROWS = rows()


def test_there_are_many() -> None:
    assert len(ROWS) >= 200 and len({name for name, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize("call", [call for _, call in ROWS], ids=[name for name, _ in ROWS])
def test_a_bad_call_is_one_line(calls: SimpleNamespace, call: Callable[[Any], Any]) -> None:
    with pytest.raises(GatelensError) as caught:
        call(calls)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    assert all(not point.fwd_hooks for point in calls.model.hook_points())
