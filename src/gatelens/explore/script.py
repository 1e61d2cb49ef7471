"""A state of the page as calls of gatelens: one list of them is run, and written as Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatelens.directions import direction
from gatelens.explore.shelf import Shelf, Shown
from gatelens.explore.state import KEYS, QUERIES, ControlError, State, belonging_to
from gatelens.interventions import knockout, patch, steer

VERBS: Mapping[str, Callable[..., Any]] = {
    "knockout": knockout,
    "patch": patch,
    "steer": steer,
    "direction": direction,
}
PLAIN = {  # arguments that are written without their names; they come first
    "knockout": ("queries", "keys"),
    "patch": ("cache",),
    "steer": ("direction",),
    "direction": ("model", "data"),
}
NEW_TOKENS = 16
TOP = 8
DIRECTION_EXAMPLES = 64  # of which a class and the others are compared


@dataclass(frozen=True)
class Name:
    """What a line of the script has made before."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Call:
    """A call of a public verb, ``gl.knockout(…)``, that can be made and written down.

    Attributes:
        control: where on the page it was asked for.
        verb: a key of :data:`VERBS`.
        arguments: plain values, and names for what comes before it in the script.
    """

    control: str
    verb: str
    arguments: Mapping[str, Any]

    def made(self, names: Mapping[str, Any]) -> Any:
        """The result, with these values for the names."""
        given = {k: names[v.text] if isinstance(v, Name) else v for k, v in self.arguments.items()}
        return VERBS[self.verb](**given)

    def __str__(self) -> str:
        written = [
            _literal(value) if name in PLAIN.get(self.verb, ()) else f"{name}={_literal(value)}"
            for name, value in self.arguments.items()
        ]
        return f"gl.{self.verb}({', '.join(written)})"


def _literal(value: Any) -> str:
    """A value as Python, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _layers(ends: tuple[int, int]) -> range | list[int]:
    first, last = ends
    return [first] if first == last else range(first, last + 1)


def knockout_calls(state: State, shelf: Shelf) -> list[Call]:
    """One knockout for each chosen pair of queries and keys.

    Raises:
        ControlError: one of them needs a region, and none is drawn on the picture.
    """
    calls = []
    for queries, keys in state.cut:
        named = KEYS[keys]
        if "{region}" in named:
            named = named.format(region=_region(state, shelf))
        arguments: dict[str, Any] = {"queries": QUERIES[queries], "keys": named}
        arguments["layers"] = _layers(state.cut_layers)
        if state.cut_heads is not None:
            arguments["heads"] = list(state.cut_heads)
        calls.append(Call("cut", "knockout", {**arguments, "how": state.how}))
    return calls


def patch_call(state: State, shelf: Shelf) -> Call | None:
    """The patch from the second picture; None where it is off.

    Raises:
        ControlError: no region or no second picture.
    """
    if state.patch == "off":
        return None
    _second(state)
    at = {"at": "gate"}
    if state.patch == "region":
        at = {"at": _region(state, shelf)}
        if (source := _in_second(state, shelf)) != at["at"]:
            at["source"] = source
    arguments = {"cache": Name("other"), **at, "site": "resid_pre", "layers": _layers(state.patch_layers)}
    return Call("patch", "patch", arguments)


def _region(state: State, shelf: Shelf) -> str:
    return state.region_selector(shelf[state.picture].image.size)


def _in_second(state: State, shelf: Shelf) -> str:
    """The same part of the second picture, which may have another size."""
    assert state.region is not None
    here, there = shelf[state.picture].image.size, shelf[_second(state)].image.size
    scale = (there[0] / here[0], there[1] / here[1]) * 2
    scaled = [edge * factor for edge, factor in zip(state.region, scale, strict=True)]
    return "image.box({:.10g},{:.10g},{:.10g},{:.10g})".format(*scaled)


def _second(state: State) -> str:
    if state.second is None:
        raise ControlError("second", "no second picture is chosen: choose or upload one")
    return state.second


def steering_calls(state: State, data_name: str, labels: Sequence[str]) -> tuple[Call, Call] | None:
    """The direction, and adding it; None where the dose is 0.

    Raises:
        ControlError: no second picture, or a class that the data do not have.
    """
    if state.steer == 0:
        return None
    if state.toward == "second":
        _second(state)
        between: dict[str, Any] = {"positive": Name("theirs"), "negative": Name("ours")}
    else:
        kind, _, label = state.toward.partition(":")
        if kind != "class" or label not in labels:
            raise ControlError(
                "toward", f"toward '{state.toward}': choose the second picture or a class on the page"
            )
        between = {"data": data_name, "positive": label, "task": "class", "limit": DIRECTION_EXAMPLES}
    place = {"at": state.steer_at, "site": "resid_pre"}
    made = Call("steer", "direction", {"model": Name("model"), **between, **place})  # in every layer at once
    added = {"direction": Name("direction"), **place, "layers": [state.steer_layer], "scale": state.steer}
    return made, Call("steer", "steer", added)


@dataclass(frozen=True)
class Plan:
    """What a state means: how its direction is made, and the interventions in order."""

    direction: Call | None
    interventions: tuple[Call, ...]


def plan(state: State, shelf: Shelf, data_name: str, labels: Sequence[str]) -> Plan:
    """The calls of a state.

    Raises:
        ControlError: what is asked for lacks a region, a second picture or a class.
    """
    with belonging_to("second"):
        patched = patch_call(state, shelf)
    steering = steering_calls(state, data_name, labels)
    calls = [
        *knockout_calls(state, shelf),
        *([patched] if patched else []),
        *(steering[1:] if steering else []),
    ]
    return Plan(steering[0] if steering else None, tuple(calls))


def python(state: State, planned: Plan, shelf: Shelf, loading: str, answer_row: int | None = None) -> str:
    """A script that does what the page shows, with the public names of gatelens alone.

    Args:
        loading: the arguments of ``from_pretrained``.
        answer_row: the row that is looked at, where it reads what was written after the prompt.

    Raises:
        InputError: a picture is no longer there.
    """
    verbs = {call.verb for call in planned.interventions}
    between = planned.direction is not None and "negative" in planned.direction.arguments
    lines = ["import gatelens as gl", "", f"model = gl.HookedVLM.from_pretrained({loading})"]
    lines.append(_assigned("picture", shelf[state.picture]))
    if "patch" in verbs or between:
        lines.append(_assigned("second", shelf[_second(state)]))
    lines.append(
        f"text = model.as_turn({_literal(state.prompt)})"
        if state.chat
        else f"text = {_literal(state.prompt)}"
    )
    lines.append("inputs = model.prepare(images=picture, text=text)")
    if "patch" in verbs:
        lines.append("_, other = model.run_with_cache(model.prepare(images=second, text=text))")
    if between:
        lines.append('ours = [gl.data.Example(picture, text, (), "class", "picture")]')
        lines.append('theirs = [gl.data.Example(second, text, (), "class", "second")]')
    if planned.direction is not None:
        lines.append(f"direction = {planned.direction}")
    lines += ["interventions = [", *(f"    {call}," for call in planned.interventions), "]"]
    if not planned.interventions:
        lines[-2:] = ["interventions = []"]
    return "\n".join([*lines, "", *_reading(state, answer_row)]) + "\n"


def _assigned(name: str, shown: Shown) -> str:
    return f"{name} = {shown.source}" + (f"  # {shown.comment}" if shown.comment else "")


def _reading(state: State, answer_row: int | None) -> list[str]:
    """The lines that read what the page shows: answer, top tokens, lens and attention."""
    at, read = -1 if state.look_at is None else state.look_at, "inputs"
    written = [f"answer = model.generate(inputs, interventions, max_new_tokens={NEW_TOKENS})"]
    if answer_row is not None:
        at, read = answer_row, "read"
        written = [
            f'written = model.generate(inputs, interventions, max_new_tokens={NEW_TOKENS}, return_type="map")',
            "answer = written.texts[0]",
            f"read = written.inputs[:, :{at + 1}]  # the prompt and the answer up to the row that is looked at",
        ]
    name = f"blocks.{state.look_layer}.attn.hook_pattern"
    head = f"[0, :, {at}].mean(0)" if state.look_head is None else f"[0, {state.look_head}, {at}]"
    return [
        *written,
        "chances = model.run(inputs, interventions)[0, -1].float().softmax(-1)",
        f"top = [(model.tokenizer.decode([i]), float(chances[i])) for i in chances.topk({TOP}).indices]",
        f"with model.hooks(fwd_hooks=gl.hooks(interventions, {read}.tokens, model.cfg)):",
        f"    lens = gl.logit_lens(model, {read}, at=[{at}], top=1)",
        f'    _, cache = model.run_with_cache({read}, names_filter="{name}")',
        f'attention = cache["{name}"]{head}',
        'print(answer, top, lens.table, sep="\\n")',
        f"gl.views.overlay(attention, {read}.tokens, inputs.images[0][0])",
    ]
