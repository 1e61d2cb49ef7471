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
from gatelens.engine.generation import Generation
from gatelens.errors import InputError, InterventionError
from gatelens.explore.script import DIRECTION_EXAMPLES, NEW_TOKENS, TOP, Call, Plan, plan, python
from gatelens.explore.shelf import Shelf
from gatelens.explore.state import KEYS, QUERIES, ControlError, State, belonging_to
from gatelens.inputs import VLMInputs
from gatelens.interventions import knockout
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
    """The last results, by what they were made from."""

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
class Written:
    """What the model writes after a prompt, and the probabilities of the first token, Float[d_vocab]."""

    generation: Generation
    chances: Float[Tensor, " d_vocab"]

    @property
    def inputs(self) -> VLMInputs:
        """The prompt."""
        return self.generation.prompt

    @property
    def answer(self) -> str:
        """The text without the end of sequence."""
        return self.generation.texts[0]

    @property
    def n_written(self) -> int:
        """The new tokens, the end of sequence among them."""
        return int((self.generation.tokens.roles[0] == Role.GENERATED).sum())


@dataclass(frozen=True, eq=False)
class Row:
    """The row whose attention and lens are shown.

    Attributes:
        position: absolute.
        inputs: the prompt; for a row after it, with what was written up to that row.
        ids: what was written up to that row.
        note: the message where another row was asked for.
    """

    position: int
    inputs: VLMInputs
    ids: tuple[int, ...] = ()
    note: str = ""


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
            with belonging_to("look_at"):
                row = row_of(state.look_at, changed)
            attention = self._attention(state, row, specs)
            go_on()
            lens = self._lens(state, row, specs)
            return {
                "answer": {
                    "before": clean.answer,
                    "after": changed.answer,
                    "second": None if second is None else second.answer,
                },
                "changed": bool(specs),
                "top": self._top(clean, changed),
                "tokens": _tokens(clean.inputs),
                "written": _written_tokens(changed),
                "nothing_to_cut": self._nothing_to_cut(state, clean.inputs),
                "attention": attention,
                "lens": lens,
                "python": python(state, planned, self.shelf, self.loading, row.position if row.ids else None),
            }

    def _clean(self, state: State, control: str) -> Written:
        """The prompt with the picture of a control, ``picture`` or ``second``; kept."""
        key = getattr(state, control)
        with belonging_to(control):
            image = self.shelf[key].image
        if (marks := state.prompt.count("<image>")) != 1:
            many = "; the explorer shows one picture per prompt, gl.views any number" * (marks > 1)
            raise ControlError(
                "prompt", f"the prompt has <image> {marks} times: write it once, where the picture goes{many}"
            )
        with belonging_to("prompt"):
            return self._recent.of(
                ("clean", key, state.prompt, state.chat),
                lambda: self._written(self.model.prepare(image, state.prompt, state.chat), []),
            )

    def _written(
        self, inputs: VLMInputs, specs: Sequence[Intervention], go_on: Callable[[], None] = nothing_newer
    ) -> Written:
        """What is written under interventions, and the probabilities of its first token."""
        generation = engine.generate(self.model, inputs, specs, NEW_TOKENS)
        go_on()
        chances = engine.run(self.model, inputs, specs)[0, -1].float().softmax(-1)
        return Written(generation, chances.cpu())

    # --- interventions

    def _interventions(self, state: State, planned: Plan, clean: Written) -> list[Intervention]:
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

    def _nothing_to_cut(self, state: State, inputs: VLMInputs) -> list[str]:
        """The cells ``query-key`` of the knockout matrix that are refused for this prompt, with any region; kept."""

        def refused(queries: str, keys: str) -> bool:
            try:
                hooks(knockout(QUERIES[queries], KEYS[keys], layers=[0]), inputs.tokens, self.model.cfg)
            except InterventionError:
                return True
            return False

        def cells() -> list[str]:
            without = {keys: "image" if "{region}" in named else keys for keys, named in KEYS.items()}
            return [
                f"{q}-{k}" for q in QUERIES for k, stands_for in without.items() if refused(q, stands_for)
            ]

        return self._recent.of(("cells", state.picture, state.prompt, state.chat), cells)

    def _top(self, clean: Written, changed: Written) -> list[dict[str, Any]]:
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

    def _attention(self, state: State, looked: Row, specs: Sequence[Intervention]) -> dict[str, Any]:
        """The attention of one row: by position in the chosen layer and head, and every head's share on the picture."""
        n_layers, n_heads = int(self.model.cfg.n_layers), int(self.model.cfg.n_heads)
        position, inputs = looked.position, looked.inputs
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
            "note": looked.note,
            "values": [_finite(value) for value in row],
            "shares": [shares[layer] for layer in range(n_layers)],
        }

    def _lens(self, state: State, looked: Row, specs: Sequence[Intervention]) -> list[dict[str, Any]]:
        """The top token of each layer at the row that is looked at, without and with interventions, on one text."""
        with belonging_to("page"):
            before = self._recent.of(
                ("lens", state.picture, state.prompt, state.chat, looked.position, looked.ids),
                lambda: self._top_by_layer(looked, []),
            )
            after = self._top_by_layer(looked, specs) if specs else before
        both = enumerate(zip(before, after, strict=True))
        return [{"layer": layer, "before": old, "after": new} for layer, (old, new) in both]

    def _top_by_layer(self, looked: Row, specs: Sequence[Intervention]) -> list[tuple[str, float | None]]:
        with self.model.hooks(fwd_hooks=hooks(list(specs), looked.inputs.tokens, self.model.cfg)):
            table = logit_lens(self.model, looked.inputs, at=[looked.position], top=1).table
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


def _written_tokens(written: Written) -> list[dict[str, Any]]:
    """Word, position and the row that writes it, of every new token; the row is the position before it."""
    n_pos = written.inputs.tokens.n_pos
    words = written.generation.tokens.strings[0][n_pos : n_pos + written.n_written]
    return [{"word": word, "position": p, "row": p - 1} for p, word in enumerate(words, n_pos)]


def row_of(asked: int | None, written: Written) -> Row:
    """The row that is looked at: of the prompt, or one that reads a new token; None is the last of the prompt.

    Where an answer has become shorter, its last row stands in for one that is no longer there.

    Raises:
        InputError: the model wrote an image token before that row.
    """
    n_pos = written.inputs.tokens.n_pos
    if asked is None or asked < n_pos:
        return Row(n_pos - 1 if asked is None else asked, written.inputs)
    last = n_pos + written.n_written - 2  # the last new token is not read again
    position = min(asked, last)
    note = f"position {asked} does not exist: the last row that writes the answer is shown" * (asked > last)
    n_read = position + 1 - n_pos
    if n_read == 0:
        return Row(position, written.inputs, note=note)
    ids = written.generation.token_ids[0, :n_read].tolist()
    return Row(position, written.generation.inputs[:, : position + 1], tuple(ids), note)


def _check_number(word: str, number: int, n: int) -> None:
    if number >= n:
        raise InputError(f"the model has no {word} {number}, the last is {n - 1}")


def _finite(value: Any) -> float | None:
    """A number that JSON can hold."""
    number = float(value)
    return number if math.isfinite(number) else None
