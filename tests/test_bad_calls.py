"""Absurd arguments to public functions: each is one line of GatelensError that names the offender.

A row is (name, call, words): the call gets what it needs as :class:`Tools`, and the message holds every word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.errors import GatelensError
from gatelens.interventions import hook_name
from gatelens.interventions.compile import compile_hooks

INF, NAN = float("inf"), float("nan")
VECTOR = torch.ones(32)
LOGITS = torch.zeros(1, 3, 5)
OBJECTS = np.array([object(), None], dtype=object)


@dataclass
class Tools:
    """A tiny model, a prompt of one picture, its token map and the cache of its run; another model of equal shapes."""

    model: Any
    inputs: Any
    cache: Any
    other: Any

    @property
    def tokens(self) -> Any:
        return self.inputs.tokens

    def run(self, *specs: Any) -> Any:
        return self.model.run(self.inputs, list(specs))


Row = tuple[str, Callable[[Tools], Any], str]


def each(name: str, values: list[Any], call: Callable[[Tools, Any], Any], words: str = "") -> list[Row]:
    """A row for each bad value of one argument."""
    return [(f"{name}={_short(value)}", lambda t, v=value: call(t, v), words) for value in values]


def _short(value: Any) -> str:
    text = type(value).__name__ if " at 0x" in repr(value) else repr(value)
    return " ".join(text[:30].split())


def _same(rows: Any, where: Any = None, hook: Any = None) -> Any:
    return rows


# what no whole number, no number, no name and no selector is
NO_INDEX: list[Any] = [
    "1",
    b"\x01",
    True,
    1.5,
    NAN,
    None,
    {0: 1},
    [[0]],
    [0.5],
    [True],
    object(),
    {1: 2}.items(),
]
NO_INDEX += [torch.tensor([0.5]), [torch.tensor(1.5)], torch.tensor([True]), np.array(["a"]), OBJECTS, 10**30]
NO_NUMBER: list[Any] = [
    "big",
    INF,
    -INF,
    NAN,
    1j,
    None,
    True,
    [1.0],
    (),
    {},
    torch.ones(2),
    np.array("x"),
    object,
]
NO_NAME: list[Any] = [
    ["mask"],
    None,
    3,
    np.array(["mask", "zero"]),
    {},
    object,
    "drop",
    torch.ones(2),
    b"mask",
]
NO_SELECTOR: list[Any] = [
    None,
    3,
    1.5,
    object(),
    [1.5],
    ["image"],
    OBJECTS,
    np.array([0.5]),
    {0: 1},
    {1, 2},
    [True],
]
NO_SELECTOR += [
    np.array([[0, 1]]),
    torch.ones(2, 2),
    torch.ones(4, dtype=torch.bool),
    b"image",
    [None],
    10**30,
]
NO_TENSOR: list[Any] = [
    "cat",
    None,
    3,
    [1.0],
    (1, 2),
    np.ones(32),
    object(),
    {"a": VECTOR},
    {0.5: VECTOR},
    {0: "a"},
    {},
]
NO_DIRECTION = [
    VECTOR * NAN,
    VECTOR * INF,
    VECTOR * 1j,
    VECTOR.bool(),
    torch.ones(31),
    torch.ones(()),
    torch.ones(0),
]
NO_DIRECTION += [torch.ones(1, 1, 32), torch.ones(7, 32)]
NO_IDS: list[Any] = [
    "cat",
    None,
    1.5,
    NAN,
    True,
    [],
    [1.5],
    ["a"],
    [[1]],
    object(),
    1j,
    -1,
    10**9,
    10**30,
    [1, 2, 3],
]
NO_IDS += [torch.tensor([0.5]), torch.tensor([1j]), np.array(["a"]), OBJECTS, {}, {1, 2}, b"cat", [None], 5]
NO_POS: list[Any] = ["last", None, 1.5, True, [0], 3, -4, 10**30, torch.tensor([0, 1]), slice(None), object()]
NO_LOGITS: list[Any] = [
    None,
    "x",
    torch.zeros(3, 5),
    [[1.0]],
    np.zeros((1, 3, 5)),
    torch.zeros(1, 0, 5),
    object(),
]

TEXTS = [
    ("imgae", "did you mean 'image'"),
    ("", "ends too early"),
    ("image &", "ends too early"),
    ("random_image:3@-1", "random_image:3@-1"),
    ("random_image:3@a", "random_image:3@a"),
    ("random_image:3@1.5", "random_image:3@1.5"),
    ("random_image:-3", "random_image:-3"),
    ("random_image:3.5", "random_image:3.5"),
    ("random_image:", "random_image:"),
    ("random_image", "random_image:K"),
    ("random_image:99", "has 16 image"),
    ("random_image:" + "9" * 30, "random_image:9"),
    ("(" * 3000 + "image" + ")" * 3000, "nested too deeply"),
    ("~" * 3000 + "image", "nested too deeply"),
    ("image" + " | image" * 3000, "too many parts"),
    ("image[5]", "image[5]"),
    ("image[-1]", "image[-1]"),
    ("image[a]", "image[a]"),
    ("image[0:1]", "image[0:1]"),
    ("image.box(1)", "four numbers"),
    ("image.box(nan,0,1,1)", "four numbers"),
    ("image.box(0,0,1e999,1)", "finite"),
    ("image.box(3,3,1,1)", "empty box"),
    ("image.mask()", "names no mask"),
    ("image.mask(cat)", "no pixel mask named 'cat'"),
    ("pos[999]", "position 999"),
    ("pos[-999]", "position -999"),
    ("pos[]", "pos[]"),
    ("pos[1:2:3]", "pos[1:2:3]"),
    ("pos[1.5]", "pos[1.5]"),
    ("image ^ eoi", "'^'"),
    ('word("cup")', "does not occur"),
    ('word("a")[1]', "occurs 1 time"),
    ('word("a")[x]', "word"),
    ('word("a"', "word"),
    ("word(a)", "word"),
    ("word", "word"),
    ('word("")', "word"),
    ("word('a\")", "word"),
    ("generated[0]", "0 generated"),
    ("generated[-1]", "generated[-1]"),
    ("generated[]", "generated[]"),
    ("generated[a]", "generated[a]"),
    ("image\udc80", "image\\udc80"),
    ("imag\x00e", "'imag\\x00e'"),
]

ROWS: list[Row] = [
    *[(f"mask {text[:30]!a}", lambda t, text=text: t.tokens.mask(text), words) for text, words in TEXTS],
    *each("mask", NO_SELECTOR, lambda t, v: t.tokens.mask(v)),
    *each("positions", NO_SELECTOR, lambda t, v: t.tokens.positions(v)),
    *each(
        "positions example",
        [1, -2, "a", None, 0.5, True],
        lambda t, v: t.tokens.positions("image", v),
        "example",
    ),
    *each("masks", [3, "cat", [1], None], lambda t, v: t.tokens.mask("image.mask(cat)", masks=v), "mask"),
    *each(
        "masks cat",
        [
            None,
            "x",
            3,
            np.ones(4),
            np.ones((2, 2)),
            [np.ones((2, 2))] * 2,
            OBJECTS,
            object(),
            np.ones((16, 16)) * NAN,
        ],
        lambda t, v: t.tokens.mask("image.mask(cat)", masks={"cat": v}),
        "mask 'cat'",
    ),
    *each("Selection", [5, None, b"image", ["image"], 1.5], lambda t, v: gl.Selection.parse(v), "give text"),
    *each(
        "Selection |",
        [5, None, b"image", ["image"]],
        lambda t, v: gl.Selection.parse("image") | v,
        "give text",
    ),
    *each(
        "select",
        [[], [5], [-2], "a", [True], [0.5], None, 0, {}, object()],
        lambda t, v: t.tokens.select(v),
        "example",
    ),
    *each(
        "inputs.select",
        [[], [5], [-2], "a", [True], [0.5], None, 0],
        lambda t, v: t.inputs.select(v),
        "example",
    ),
    *each("extend", [-1, "a", 1.5, None, True], lambda t, v: t.tokens.extend(v), "n_generated"),
    # knockouts
    *each("knockout how", NO_NAME, lambda t, v: gl.knockout("text", "image", how=v), "how="),
    *each(
        "knockout layers",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.knockout("text", "image", v)),
        "layer",
    ),
    *each(
        "knockout heads",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.knockout("text", "image", heads=v)),
        "head",
    ),
    *each("knockout queries", NO_SELECTOR, lambda t, v: t.run(gl.knockout(v, "image"))),
    *each("knockout keys", NO_SELECTOR, lambda t, v: t.run(gl.knockout("text", v))),
    *each(
        "knockout layers",
        [slice(0, 3, 0), slice("a"), slice(7, 9), -9, 3],
        lambda t, v: t.run(gl.knockout("text", "image", v)),
        "layer",
    ),
    # patches
    *each(
        "patch cache",
        [None, {}, 3, "cache", VECTOR, object],
        lambda t, v: gl.patch(v, "last"),
        "run_with_cache",
    ),
    *each("patch site", NO_NAME, lambda t, v: gl.patch(t.cache, "last", v), "site="),
    *each("patch at", NO_SELECTOR, lambda t, v: t.run(gl.patch(t.cache, v))),
    *each(
        "patch source",
        [v for v in NO_SELECTOR if v is not None],
        lambda t, v: t.run(gl.patch(t.cache, "last", source=v)),
    ),
    *each(
        "patch layers",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.patch(t.cache, "last", layers=v)),
        "layer",
    ),
    *each(
        "patch heads",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.patch(t.cache, "last", "z", heads=v)),
        "head",
    ),
    *each(
        "patch broadcast",
        ["yes", 1, None, []],
        lambda t, v: gl.patch(t.cache, "last", broadcast=v),
        "broadcast=",
    ),
    *each(
        "patch other_model",
        ["yes", 1, None, []],
        lambda t, v: gl.patch(t.cache, "last", other_model=v),
        "other_model=",
    ),
    (
        "patch of another model",
        lambda t: t.other.run(t.inputs, gl.patch(t.cache, "last")),
        "other_model=True",
    ),
    # steering and ablation
    *each("steer direction", NO_TENSOR, lambda t, v: gl.steer(v, "last"), "direction"),
    *each("steer direction", NO_DIRECTION, lambda t, v: t.run(gl.steer(v, "last"))),
    ("steer direction by layer", lambda t: gl.steer({0: VECTOR * NAN}, "last"), "layer 0"),
    *each("steer scale", NO_NUMBER, lambda t, v: gl.steer(VECTOR, "last", scale=v), "scale="),
    *each(
        "steer normalize",
        ["yes", 1, None, []],
        lambda t, v: gl.steer(VECTOR, "last", normalize=v),
        "normalize=",
    ),
    *each("steer site", NO_NAME, lambda t, v: gl.steer(VECTOR, "last", v), "site="),
    *each("steer at", NO_SELECTOR, lambda t, v: t.run(gl.steer(VECTOR, v))),
    *each(
        "steer layers",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.steer(VECTOR, "last", layers=v)),
        "layer",
    ),
    ("steer length 0", lambda t: gl.steer(VECTOR * 0, "last", normalize=True), "length 0"),
    *each(
        "ablate with_",
        ["median", None, 3, np.ones(32), [1.0], {}, object(), b"zero", torch.ones(32).bool()],
        lambda t, v: gl.ablate("last", with_=v),
        "with_",
    ),
    *each("ablate with_", NO_DIRECTION, lambda t, v: t.run(gl.ablate("last", with_=v))),
    *each(
        "ablate over",
        [v for v in NO_SELECTOR if v is not None],
        lambda t, v: t.run(gl.ablate("last", with_="mean", over=v)),
    ),
    *each(
        "ablate reference",
        [{}, 3, "cache", VECTOR],
        lambda t, v: gl.ablate("last", with_="mean", reference=v),
        "run_with_cache",
    ),
    (
        "ablate reference of another model",
        lambda t: t.other.run(t.inputs, gl.ablate("last", with_="mean", over="image", reference=t.cache)),
        "another model",
    ),
    *each("ablate site", NO_NAME, lambda t, v: gl.ablate("last", v), "site="),
    *each(
        "ablate layers",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.ablate("last", layers=v)),
        "layer",
    ),
    *each("hook_name layer", ["a", 1.5, None, True, -1], lambda t, v: hook_name("z", v), "layer"),
    *each(
        "ablate pattern",
        ["mean", VECTOR, "projection"],
        lambda t, v: gl.ablate("last", "pattern", with_=v),
        "pattern",
    ),
    *each(
        "ablate seed",
        NO_INDEX[:-1],
        lambda t, v: gl.ablate("last", "pattern", with_="random", seed=v),
        "seed=",
    ),
    ("ablate uniform stream", lambda t: gl.ablate("last", with_="uniform"), "site='pattern'"),
    ("ablate direction without projection", lambda t: gl.ablate("last", direction=VECTOR), "projection"),
    ("ablate projection without direction", lambda t: gl.ablate("last", with_="projection"), "direction="),
    *each(
        "projection",
        NO_TENSOR[:-3] + NO_DIRECTION,
        lambda t, v: t.run(gl.ablate("last", with_="projection", direction=v)),
        "",
    ),
    (
        "projection of length 0",
        lambda t: gl.ablate("last", with_="projection", direction=VECTOR * 0),
        "length 0",
    ),
    *each(
        "edit function", [None, 3, "f", [len], object, VECTOR], lambda t, v: gl.edit(v, "last"), "function="
    ),
    *each("edit site", NO_NAME, lambda t, v: gl.edit(_same, "last", v), "site="),
    ("edit scores", lambda t: gl.edit(_same, "last", "scores"), "site="),
    *each("edit at", NO_SELECTOR, lambda t, v: t.run(gl.edit(_same, v))),
    *each(
        "edit heads",
        [v for v in NO_INDEX if v is not None],
        lambda t, v: t.run(gl.edit(_same, "last", "pattern", heads=v)),
        "head",
    ),
    *each(
        "edit gives",
        [None, 3, "x", VECTOR, VECTOR[None, None], [VECTOR]],
        lambda t, v: t.run(gl.edit(lambda rows, where: v, "last")),
        "shape",
    ),
    ("edit heads of the stream", lambda t: t.run(gl.edit(_same, "last", heads=1)), "has no heads"),
    ("edit of one argument", lambda t: gl.edit(lambda rows: rows, "last"), "not a function of (rows, where)"),
    ("edit of C", lambda t: gl.edit(torch.relu, "last"), "lambda rows, where: …"),
    ("edit nan", lambda t: t.run(gl.edit(lambda rows, where: rows / 0, "last")), "not finite in layer 0"),
    ("edit complex", lambda t: t.run(gl.edit(lambda rows, where: rows * 1j, "last")), "complex"),
    (
        "pair of one argument",
        lambda t: t.run(("blocks.0.hook_resid_pre", lambda x: x)),
        "not a function of (tensor, hook)",
    ),
    ("pair of no hook", lambda t: t.run(("blocks.7.hook_resid_pre", _same)), "blocks.7.hook_resid_pre"),
    ("pair of a filter", lambda t: t.run((lambda name: True, _same)), "not a hook name"),
    ("pair of no function", lambda t: t.run(("blocks.0.hook_resid_pre", None)), "not an intervention"),
    *each("drop layer", [*NO_INDEX[:-1], -1], lambda t, v: gl.drop("image", v), "layer="),
    *each("drop layer", [3, 10**30], lambda t, v: t.run(gl.drop("image", v)), "layer"),
    *each("drop at", NO_SELECTOR, lambda t, v: t.run(gl.drop(v, 1))),
    ("drop what nobody reads", lambda t: t.run(gl.drop("last", 1)), "nothing to cut"),
    *each(
        "knockout masks",
        [3, "cat", [1], None, {}],
        lambda t, v: t.run(gl.knockout("text", "image.mask(cat)", masks=v)),
        "mask",
    ),
    # lists of interventions
    *each(
        "run",
        ["knockout", 3, gl.knockout, {"a": 1}, [object()], b"x", [1.5], VECTOR, OBJECTS],
        lambda t, v: t.model.run(t.inputs, v),
        "not an intervention",
    ),
    *each(
        "hooks tokens",
        [None, 3, "image", VECTOR],
        lambda t, v: gl.hooks([gl.ablate("last", layers=0)], v),
        "tokens",
    ),
    *each(
        "spec.hooks tokens", [None, 3, "image"], lambda t, v: gl.ablate("last", layers=0).hooks(v), "tokens"
    ),
    *each("compile_hooks tokens", [None, 3], lambda t, v: compile_hooks([], v), "tokens"),
    # metrics
    *each("logit", NO_IDS, lambda t, v: gl.metrics.logit(v)(LOGITS), "id"),
    *each("logit_diff", NO_IDS, lambda t, v: gl.metrics.logit_diff(0, v)(LOGITS), "id"),
    *each("prob", [None, 1.5], lambda t, v: gl.metrics.prob(v), "target="),
    *each("log_prob", [None, 1.5], lambda t, v: gl.metrics.log_prob(v), "target="),
    *each("rank", [None, 1.5], lambda t, v: gl.metrics.rank(v), "target="),
    *each("top1", [None, 1.5], lambda t, v: gl.metrics.top1(v), "target="),
    *each("entropy pos", NO_POS, lambda t, v: gl.metrics.entropy(v)(LOGITS), "pos"),
    *each("logit pos", NO_POS, lambda t, v: gl.metrics.logit(0, v)(LOGITS), "pos"),
    *each("entropy logits", NO_LOGITS, lambda t, v: gl.metrics.entropy()(v), "logits"),
    *each(
        "kl reference",
        [*NO_LOGITS, torch.zeros(1, 3, 4), torch.zeros(2, 3, 5)],
        lambda t, v: gl.metrics.kl(v)(LOGITS),
    ),
]


@pytest.fixture(scope="module")
def tools(tiny_chameleon: Any, hf_chameleon: Any) -> Tools:
    inputs = tiny_chameleon.prepare(_picture(), "this <image> animal is a")
    _, cache = tiny_chameleon.run_with_cache(inputs)
    other = gl.HookedVLM.from_module(copy.deepcopy(hf_chameleon), tiny_chameleon.processor)
    return Tools(tiny_chameleon, inputs, cache, other)


def _picture() -> Any:
    return np.zeros((16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("call", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_bad_call_is_one_line(tools: Tools, call: Callable[[Tools], Any], words: str) -> None:
    with pytest.raises(GatelensError) as error:
        call(tools)
    message = str(error.value)
    assert "\n" not in message and words in message, message
    assert len(message) < 600
