"""A state of the page, run on the model: answer, top tokens, attention and lens, before and after."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens import engine
from gatelens.data import Dataset, Example
from gatelens.errors import InputError
from gatelens.explore.script import DIRECTION_EXAMPLES, NEW_TOKENS, TOP, Call, Plan, plan, python
from gatelens.explore.shelf import Shelf
from gatelens.explore.state import STRONGEST, State, belonging_to
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import Intervention
from gatelens.interventions.compile import hooks
from gatelens.model import HookedVLM
from gatelens.readouts import logit_lens
from gatelens.tokens import Role

Made = TypeVar("Made")
KEPT = 24  # prompts, caches of second pictures, directions and lenses of the last states
ALSO_BEFORE = 3  # of the top tokens without interventions are shown too


class Outdated(Exception):
    """The page has asked for something newer."""


def nothing_newer() -> None:
    """For a state that nothing makes outdated."""


class Recent:
    """The last things that were made, by what they were made of."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` gave for this key, or gives now; an error is not kept."""
        if key not in self._made:
            self._made[key] = make()
        self._made.move_to_end(key)
        while len(self._made) > self._size:
            self._made.popitem(last=False)
        return self._made[key]


@dataclass(frozen=True, eq=False)
class Clean:
    """A prompt without interventions: its inputs, answer and next-token probabilities, Float[d_vocab]."""

    inputs: VLMInputs
    answer: str
    chances: Float[Tensor, " d_vocab"]


class Explorer:
    """A model and pictures, and what the page asks of them.

    Args:
        model: the model; its lock is held while a state is run.
        shelf: pictures by id.
        data: where directions between classes come from, loaded by ``data_name``.
        model_name: shown on the page.
        loading: arguments of ``from_pretrained`` as Python text, for the script.
    """

    def __init__(
        self, model: HookedVLM, shelf: Shelf, data: Dataset, data_name: str, model_name: str, loading: str
    ) -> None:
        self.model, self.shelf, self.data_name = model, shelf, data_name
        self.model_name, self.loading = model_name, loading
        self.labels = _labels(data)
        self._recent = Recent(KEPT)

    def setup(self) -> dict[str, Any]:
        """What the page has to know before it asks for anything."""
        template = getattr(self.model.tokenizer, "chat_template", None)
        samples = self.shelf.samples.items()
        return {
            "model": self.model_name,
            "family": self.model.family.name,
            "layers": int(self.model.cfg.n_layers),
            "heads": int(self.model.cfg.n_heads),
            "chat": bool(template) or self.model.family.turn != "{}",
            "strongest": STRONGEST,
            "labels": list(self.labels),
            "samples": [
                {"id": key, "label": one.label, "size": one.image.size, "prompt": one.prompt}
                for key, one in samples
            ],
        }

    def run(self, state: State, go_on: Callable[[], None] = nothing_newer) -> dict[str, Any]:
        """What the page shows of a state.

        Args:
            go_on: asked between the passes; it raises :class:`Outdated` where the page wants something else by now.

        Raises:
            ControlError: what is wrong, and at which control.
        """
        with self.model.lock, torch.no_grad():
            go_on()
            clean = self._clean(state, "picture")
            second = None if state.second is None else self._clean(state, "second")
            go_on()
            planned = plan(state, self.shelf, self.data_name, self.labels)
            specs = self._interventions(state, planned, clean)
            changed = clean
            if specs:
                with belonging_to("page"):
                    changed = self._written(clean.inputs, specs, go_on)
            go_on()
            attention = self._attention(state, clean.inputs, specs)
            go_on()
            lens = self._lens(state, clean.inputs, specs)
            return {
                "answer": {
                    "before": clean.answer,
                    "after": changed.answer,
                    "second": None if second is None else second.answer,
                },
                "changed": bool(specs),
                "top": self._top(clean, changed),
                "tokens": _tokens(clean.inputs),
                "attention": attention,
                "lens": lens,
                "python": python(state, planned, self.shelf, self.loading),
            }

    def _clean(self, state: State, control: str) -> Clean:
        """The prompt with the picture of a control, ``picture`` or ``second``; kept."""
        key = getattr(state, control)
        with belonging_to(control):
            image = self.shelf[key].image
        with belonging_to("prompt"):
            return self._recent.of(
                ("clean", key, state.prompt, state.chat),
                lambda: self._written(self.model.prepare(image, state.prompt, state.chat), []),
            )

    def _written(
        self, inputs: VLMInputs, specs: Sequence[Intervention], go_on: Callable[[], None] = nothing_newer
    ) -> Clean:
        """What is written under interventions, and the probabilities of its first token."""
        answer = engine.generate(self.model, inputs, specs, NEW_TOKENS).texts[0]
        go_on()
        chances = engine.run(self.model, inputs, specs)[0, -1].float().softmax(-1)
        return Clean(inputs, answer, chances.cpu())

    # --- interventions

    def _interventions(self, state: State, planned: Plan, clean: Clean) -> list[Intervention]:
        """The interventions of a state, each checked by itself, so that an error stands at its own control."""
        names: dict[str, Any] = {}
        if planned.direction is not None:
            with belonging_to("steer"):
                names["direction"] = self._direction(state, planned.direction)
        specs = []
        for call in planned.interventions:
            with belonging_to(call.control):
                if call.verb == "patch":
                    names["other"] = self._second_cache(state, call)
                specs.append(call.made(names))
                hooks(specs[-1], clean.inputs.tokens, self.model.cfg)
        with belonging_to("cut"):  # together they may leave a row nothing to attend to
            hooks(specs[: len(state.cut)], clean.inputs.tokens, self.model.cfg)
        return specs

    def _second_cache(self, state: State, call: Call) -> Any:
        """The activations that the patch takes, of every layer; kept."""
        at = call.arguments.get("source", call.arguments["at"])
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(int(self.model.cfg.n_layers))]
        inputs = self._clean(state, "second").inputs
        return self._recent.of(
            ("cache", state.second, state.prompt, state.chat, at),
            lambda: self.model.run_with_cache(inputs, names_filter=names, positions=at)[1],
        )

    def _direction(self, state: State, call: Call) -> Any:
        """The steering vector; kept."""
        names: dict[str, Any] = {"model": self.model}
        between = state.toward == "second"
        if between:
            text = self.model.as_turn(state.prompt) if state.chat else state.prompt
            for name, key in (("ours", state.picture), ("theirs", state.second)):
                names[name] = [Example(self.shelf[str(key)].image, text, (), "class", name)]
        pictures = (state.picture, state.second, state.prompt, state.chat) if between else None
        made = self._recent.of(("direction", pictures, str(call)), lambda: call.made(names))
        n_layers = int(self.model.cfg.n_layers)
        with belonging_to("steer_layer"):
            _check_number("layer", state.steer_layer, n_layers)
        if not bool(made[state.steer_layer].any()):
            raise InputError(
                f"at={state.steer_at!r} is the same on both sides at layer {state.steer_layer}: steer at a later one"
            )
        return made

    # --- the parts of a reply

    def _top(self, clean: Clean, changed: Clean) -> list[dict[str, Any]]:
        """The likeliest next tokens, and those that were before, with both probabilities."""
        ids = changed.chances.topk(TOP).indices.tolist()
        ids += [i for i in clean.chances.topk(ALSO_BEFORE).indices.tolist() if i not in ids]
        return [
            {
                "token": self.model.tokenizer.decode([i]),
                "before": _finite(clean.chances[i]),
                "after": _finite(changed.chances[i]),
            }
            for i in ids
        ]

    def _attention(self, state: State, inputs: VLMInputs, specs: Sequence[Intervention]) -> dict[str, Any]:
        """The attention of one row: by position in the chosen layer and head, and every head's share on the picture."""
        n_layers, n_heads = int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)
        with belonging_to("look_at"):
            position = _position(state.look_at, inputs.tokens.n_pos)
        with belonging_to("look_layer"):
            _check_number("layer", state.look_layer, n_layers)
        with belonging_to("look_head"):
            _check_number("head", state.look_head or 0, n_heads)
        on_picture = (inputs.tokens.roles[0] == Role.IMAGE).nonzero()[:, 0]
        shares: dict[int, list[float | None]] = {}
        kept: list[Float[Tensor, "head key"]] = []

        def see(layer: int, pattern: Float[Tensor, "batch head row key"], low: int) -> None:
            row = pattern[0, :, position - low].float().cpu()
            shares[layer] = [_finite(share) for share in row[:, on_picture].sum(-1)]
            if layer == state.look_layer:
                kept.append(row.clone())

        with belonging_to("page"):
            engine.look(self.model, inputs, [position], see, interventions=specs)
        row = kept[0].mean(0) if state.look_head is None else kept[0][state.look_head]
        return {
            "position": position,
            "values": [_finite(value) for value in row],
            "shares": [shares[layer] for layer in range(n_layers)],
        }

    def _lens(self, state: State, inputs: VLMInputs, specs: Sequence[Intervention]) -> list[dict[str, Any]]:
        """The top token of each layer at the row that is looked at, before and after."""
        position = _position(state.look_at, inputs.tokens.n_pos)
        with belonging_to("page"):
            before = self._recent.of(
                ("lens", state.picture, state.prompt, state.chat, position),
                lambda: self._top_by_layer(inputs, position, []),
            )
            after = self._top_by_layer(inputs, position, specs) if specs else before
        both = enumerate(zip(before, after, strict=True))
        return [{"layer": layer, "before": old, "after": new} for layer, (old, new) in both]

    def _top_by_layer(
        self, inputs: VLMInputs, position: int, specs: Sequence[Intervention]
    ) -> list[tuple[str, float | None]]:
        with self.model.hooks(fwd_hooks=hooks(list(specs), inputs.tokens, self.model.cfg)):
            table = logit_lens(self.model, inputs, at=[position], top=1).table
        return [(word, _finite(math.exp(p))) for word, p in zip(table["word"], table["value"], strict=True)]


def _labels(data: Dataset) -> list[str]:
    """The classes among the examples of which directions are made."""
    if "class" not in data.tasks:
        return []
    return sorted({e.label for e in data.examples("class", limit=DIRECTION_EXAMPLES) if e.label is not None})


def _tokens(inputs: VLMInputs) -> list[dict[str, Any]]:
    """Word, role and, for image tokens, pixel box and tile of every position."""
    tokens = inputs.tokens
    rows = zip(
        tokens.strings[0],
        tokens.roles[0].tolist(),
        tokens.box[0].tolist(),
        tokens.tile[0].tolist(),
        strict=True,
    )
    gates = set(tokens.positions("gate"))
    found = []
    for position, (word, role, box, tile) in enumerate(rows):
        one: dict[str, Any] = {"word": word, "role": Role(role).name.lower(), "gate": position in gates}
        if role == Role.IMAGE and all(math.isfinite(edge) for edge in box):
            one |= {"box": box, "tile": tile}
        found.append(one)
    return found


def _position(asked: int | None, n_pos: int) -> int:
    """The position that is looked at. Raises InputError for one that the prompt does not have."""
    if asked is not None and asked >= n_pos:
        raise InputError(f"the prompt has no position {asked}, the last is {n_pos - 1}: choose a token again")
    return n_pos - 1 if asked is None else asked


def _check_number(word: str, number: int, n: int) -> None:
    if number >= n:
        raise InputError(f"the model has no {word} {number}, the last is {n - 1}")


def _finite(value: Any) -> float | None:
    """A number that JSON can hold."""
    number = float(value)
    return number if math.isfinite(number) else None
