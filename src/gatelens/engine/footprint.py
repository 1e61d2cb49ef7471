"""What a plan holds in memory, known before it runs: sizes of tensors, added up from the decoder's config.

Counted are weights, what the clean run leaves for the others (keys and values, the residual stream where runs start),
logits, and the largest pass: its rows' own keys and values, and what one layer has at once. Not counted are the vision
tower's activations and what a metric or a hook keeps. Against measured peaks: ``benchmarks/footprint.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gatelens.bridge.masked_attention import FUSED_ROWS
from gatelens.bridge.weights import OUTLIERS, stored_bytes
from gatelens.engine.plan import Part, Plan, Specs
from gatelens.errors import InputError, shown
from gatelens.hooked_model import HookedModel
from gatelens.interventions.knockouts import Knockout

Zeroed = frozenset[int]
_UNITS = {
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
MLP_TENSORS = 3  # of an MLP's width that live at once: gate, value, their product
STREAM_TENSORS = 4  # of the stream's width: the stream, its norm, what is added, their sum
SHARE_OF_FREE = 0.9  # of what is free on a GPU: fragments, and what is not counted
FLOAT32 = 4  # bytes: the softmax is computed in it


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder; ``width`` is the bytes of a number."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv: int
    d_head: int
    d_mlp: int
    d_vocab: int
    width: int

    @classmethod
    def of(cls, model: HookedModel) -> Decoder:
        """Those of a model."""
        cfg = model.cfg
        return cls(
            int(cfg.n_layers),
            int(cfg.d_model),
            int(cfg.n_heads),
            int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            int(cfg.d_head),
            int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model),
            int(cfg.d_vocab),
            model.dtype.itemsize,
        )

    @property
    def keys_and_values(self) -> int:
        """Bytes of one position in one layer."""
        return 2 * self.n_kv * self.d_head * self.width

    def layer(self, rows: int, n_pos: int, stepwise: int = 0) -> int:
        """Bytes that a layer holds at once while it computes this many rows over ``n_pos`` keys.

        ``stepwise``: of how many rows it builds scores and pattern.
        """
        stream = STREAM_TENSORS * rows * self.d_model * self.width
        mlp = MLP_TENSORS * rows * self.d_mlp * self.width
        heads = (
            2 * rows * (self.n_heads + self.n_kv) * self.d_head * self.width
        )  # before and after the rotation
        scores = stepwise * self.n_heads * n_pos * (self.width + FLOAT32)
        return stream + max(mlp, heads + scores)


@dataclass(frozen=True)
class Footprint:
    """Bytes at the highest point of a plan.

    Attributes:
        weights: of the whole model.
        prefix: keys, values and residual stream that the clean run leaves for the others.
        logits: that are kept: the clean run's and, for metrics of every position, those of the run just made.
        clean: what the clean run, or one computed whole, needs beside them while it runs.
        runs: the same of the largest pass of runs that start from the clean one.
        at_once: runs in that pass.
    """

    weights: int
    prefix: int
    logits: int
    clean: int
    runs: int
    at_once: int

    @property
    def working(self) -> int:
        """Beside the weights, at most."""
        return self.prefix + self.logits + max(self.clean, self.runs)

    @property
    def peak(self) -> int:
        """All of it at once, at most."""
        return self.weights + self.working

    def __str__(self) -> str:
        return (
            f"memory: weights {in_words(self.weights)}, prefix {in_words(self.prefix)}, logits "
            f"{in_words(self.logits)}, the clean run {in_words(self.clean)}, {self.at_once} run(s) at once "
            f"{in_words(self.runs)}; at most {in_words(self.peak)}"
        )


def footprint(
    model: HookedModel, plan: Plan, every_position: bool = False, new: int = 0, zeroed: Zeroed = frozenset()
) -> Footprint:
    """What a plan holds in memory.

    Args:
        model: the model; its weights need not be in memory.
        plan: of :func:`gatelens.engine.plan.make_plan`.
        every_position: whether the metric reads the logits of every position, or of the last alone.
        new: tokens that the runs decode.
        zeroed: the runs that :func:`zeroed_runs` names.
    """
    decoder = Decoder.of(model)
    prompts, n_pos = plan.batch, plan.n_pos
    rows = prompts * n_pos
    one_run = (rows if every_position else prompts) * decoder.d_vocab * decoder.width
    prefix = logits = clean = 0
    if plan.needs_clean:
        starts: dict[int, int] = {}
        for part in plan.parts:
            for layer in part.layers:
                starts[layer] = min(part.position, starts.get(layer, part.position))
        stream = sum(prompts * (n_pos - position) for position in starts.values()) * decoder.d_model
        prefix = decoder.n_layers * rows * decoder.keys_and_values + stream * decoder.width
        logits = one_run * (2 if every_position and plan.parts else 1)
        clean = decoder.layer(rows, n_pos)
    if plan.full:
        clean = max(clean, decoder.layer(rows, n_pos) + one_run)
    passes = [
        (_bytes_of_pass(decoder, plan, part, every_position, new, zeroed), len(part.runs))
        for part in plan.parts
    ]
    runs, at_once = max(passes, default=(0, 0))
    return Footprint(stored_bytes(model.hf), prefix, logits, clean, runs, at_once)


def zeroed_runs(runs: Sequence[Specs]) -> Zeroed:
    """The runs with a knockout after the softmax, which needs the pattern of its rows."""
    return frozenset(
        i for i, run in enumerate(runs) if any(isinstance(one, Knockout) and one.how == "zero" for one in run)
    )


def fitted(
    model: HookedModel,
    plan: Plan,
    every_position: bool = False,
    new: int = 0,
    memory: int | None = None,
    zeroed: Zeroed = frozenset(),
) -> Plan:
    """The plan with as many runs at once as fit: in ``memory`` bytes, weights among them.

    Without ``memory`` the model's own ``memory_limit`` counts, else what is free on its GPUs, else nothing.

    Args:
        new: tokens that the runs decode.
        zeroed: the runs that :func:`zeroed_runs` names.
    """
    memory = room_of(model) if memory is None else memory
    if memory is None or not plan.parts:
        return plan
    decoder, whole = Decoder.of(model), footprint(model, plan, every_position, new, zeroed)
    room = memory - whole.weights - whole.prefix - whole.logits
    parts: list[Part] = []
    for part in plan.parts:
        most = max(
            1, room * len(part.runs) // _bytes_of_pass(decoder, plan, part, every_position, new, zeroed)
        )
        n_passes = -(-len(part.runs) // most)
        parts += [part.some(part.runs[i::n_passes]) for i in range(n_passes)]  # layers dealt out evenly
    return replace(plan, parts=tuple(parts))


def room_of(model: HookedModel) -> int | None:
    """Bytes that the model and its runs may take: its ``memory_limit``, else what its GPUs have; None for no limit."""
    if model.memory_limit is not None:
        return model.memory_limit
    devices = {p.device for p in model.hf.parameters() if p.device.type == "cuda"}
    if not devices:
        return None
    free = min(_free_bytes(device) for device in devices) * len(devices)
    return stored_bytes(model.hf) + int(free * SHARE_OF_FREE)


def _free_bytes(device: torch.device) -> int:
    """What is free on a GPU, and what torch has reserved there without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _bytes_of_pass(
    decoder: Decoder, plan: Plan, part: Part, every_position: bool, new: int, zeroed: Zeroed
) -> int:
    """What the runs of a part hold while they are computed."""
    runs, rows = len(part.runs), plan.batch * (plan.n_pos - part.position)
    kept = rows * sum(decoder.n_layers - layer for layer in part.layers)
    if new:  # decoding reads the keys of every layer
        kept = runs * decoder.n_layers * (rows + plan.batch * new)
    logits = runs * (rows if every_position else plan.batch) * decoder.d_vocab * decoder.width
    fused = runs * (plan.n_pos - part.position) >= FUSED_ROWS
    stepwise = sum(number in zeroed for number in part.runs) if fused else runs
    layer = decoder.layer(runs * rows, plan.n_pos, stepwise * rows)
    return kept * decoder.keys_and_values + layer + logits


def inexact(model: HookedModel) -> str:
    """Why runs that share a batch can differ from the same runs alone, in a line; empty where they cannot."""
    how = model.quantisation
    if how is None or not how.inexact:
        return ""
    fix = "; llm_int8_threshold=0 rounds every column alike" if OUTLIERS in how.inexact else ""
    step = "a sweep can differ from the run of one point by about a step of 8 bits"
    return f"{how} weights: {step}, as {how.inexact}{fix}"


def as_bytes(size: Any, name: str = "memory") -> int:
    """A number of bytes, or a size in words: "80GB" (10⁹ bytes each), "24GiB" (2³⁰). Raises InputError otherwise.

    Text without a unit is refused: "24" may mean bytes or gigabytes.
    """
    if isinstance(size, (int, float)) and not isinstance(size, bool) and size > 0 and size % 1 == 0:
        return int(size)
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", size, re.I) if isinstance(size, str) else None
    )
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is not None and not found[2]:
        raise InputError(
            f"{name}={shown(size)} has no unit: give {found[1] + 'GB'!r} or '{found[1]}B', or bytes as a number"
        )
    if found is None or unit is None or float(found[1]) <= 0:
        raise InputError(f"{name}={shown(size)}: give bytes, or a size such as '80GB' or '24GiB'")
    return int(float(found[1]) * unit)


def in_words(n: float) -> str:
    """Bytes to three digits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            value = n / size
            return f"{value:,.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{int(n)} B"
