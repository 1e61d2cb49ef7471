"""What an experiment needs, from a model's config alone: memory, passes, and how many runs fit at once.

No weight is read: the model is built on the device "meta", and the plan is the one that the engine makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gatelens.data import load
from gatelens.engine.explanation import Explanation, explained
from gatelens.engine.footprint import as_bytes, in_words, inexact
from gatelens.engine.plan import Specs
from gatelens.errors import DataError, InputError
from gatelens.families import token_map
from gatelens.inputs import VLMInputs
from gatelens.interventions import knockout
from gatelens.model import HookedVLM, loading
from gatelens.model.input_preparation import as_written
from gatelens.studies.narrow_gate import knockout_table, progressive
from gatelens.studies.narrow_gate.asking import REPEATS
from gatelens.studies.narrow_gate.study import NarrowGateOptions
from gatelens.tokens import Role, TokenMap

STUDIES = ("narrow-gate",)
LOOKED_AT = 64  # examples of a data set whose prompts are measured
GUESSED_TEXT = 32


@dataclass(frozen=True)
class Planned:
    """One kind of work on a batch of prompts of one length.

    Attributes:
        name: of the work.
        explanation: what is computed, and what it holds in memory.
        new: tokens that every run decodes after the prompt; 0 for logits alone.
        examples: how many the study draws; None where there is no study.
    """

    name: str
    explanation: Explanation
    new: int = 0
    examples: int | None = None

    @property
    def equivalents(self) -> float:
        """Forward passes of the whole prompt that compute as many positions and layers, a batch."""
        plan = self.explanation.plan
        return plan.cells / (plan.n_pos * plan.n_layers) + self.runs * self.new / plan.n_pos

    @property
    def runs(self) -> int:
        """How many there are."""
        plan = self.explanation.plan
        return sum(len(part.runs) for part in plan.parts) + len(plan.clean) + len(plan.full)


def bare_model(name: str | Path, dtype: str | torch.dtype | None = None) -> HookedVLM:
    """The model of a name without weights. Raises ModelError where there is no config, or of no supported VLM."""
    return HookedVLM.from_module(loading.without_weights(name, dtype))


def prompt_of(image: int, text: int, batch: int = 1) -> TokenMap:
    """The map of prompts with one token before the picture, its tokens, a marker after it, and text.

    Raises InputError for numbers below 1.
    """
    for name, n in (("--image-tokens", image), ("--prompt-tokens", text), ("--batch", batch)):
        if n < 1:
            raise InputError(f"{name}={n}: give at least 1")
    roles = [Role.SYSTEM, *[Role.IMAGE] * image, Role.EOI, *[Role.QUERY] * text]
    n = len(roles)
    row = torch.tensor([0 if role == Role.IMAGE else -1 for role in roles]).repeat(batch, 1)
    col = (torch.arange(n) - 1).repeat(batch, 1).where(row >= 0, -1)
    return TokenMap(
        torch.tensor([int(role) for role in roles]).repeat(batch, 1),
        row.clone(),
        row,
        col,
        torch.full((batch, n, 4), float("nan")),
        tuple(((image, 1),) for _ in range(batch)),
        tuple(tuple("" for _ in roles) for _ in range(batch)),
        n,
    )


def check_length(model: HookedVLM, image: int, text: int) -> None:
    """Raises InputError if a prompt with this number of tokens exceeds the model's positions."""
    limit = model.cfg.position_limit
    if limit is not None and image + text > limit:
        raise InputError(
            f"a prompt of {image} image and {text} text tokens is beyond the {limit} positions of {model!r}: "
            "give fewer --image-tokens or --prompt-tokens"
        )


def longest_prompt(model: HookedVLM, name: str, data: str) -> tuple[int, int]:
    """(image tokens, text tokens) of the longest prompt among the first examples of a data set.

    Raises:
        DataError: the data has no examples, or the model no processor to read them with.
    """
    processor = loading.processor_of(name)
    if processor is None:
        raise DataError(
            f"'{name}' has no processor to read --data with: give --image-tokens and --prompt-tokens"
        )
    layout = model.family.layout(model.hf.config, processor)
    source, lengths = load(data), []
    for task in source.tasks:
        for example in source.examples(task, limit=LOOKED_AT):
            if example.image is None:
                continue
            text = as_written(model, example.prompt, chat=False)
            read = processor(images=[example.image], text=[text], return_tensors="pt")
            roles = token_map(layout, read["input_ids"]).roles[0]
            pictures = int((roles == Role.IMAGE).sum())
            lengths.append((len(roles), pictures))
    if not lengths:
        raise DataError(f"data '{data}' has no examples")
    longest, pictures = max(lengths)
    return pictures, max(1, longest - pictures - 2)


def start_layers(n_layers: int) -> list[Specs]:
    """The sweep that is planned without a study: from each layer on, text cannot read the gate or the picture."""
    return [
        [knockout(knockout_table.QUERIES, keys, layers=range(start, n_layers))]
        for keys in ("gate", "image")
        for start in range(n_layers)
    ]


def planned(
    model: HookedVLM, tokens: TokenMap, study: str | None = None, memory: int | str | None = None
) -> list[Planned]:
    """What is computed, and what it holds in memory, on one batch of prompts.

    Args:
        model: :func:`bare_model`'s, or any.
        tokens: the prompts, e.g. of :func:`prompt_of`.
        study: ``narrow-gate`` for the runs of its sections *knockouts* and *progressive*; None for one sweep.
        memory: bytes or a size such as "80GB" of the device; as many runs are computed at once as fit.

    Raises:
        InputError: the study or the memory is none.
    """
    limit = None if memory is None else as_bytes(memory, "--device-memory")
    ids = torch.zeros(tokens.batch_size, tokens.n_pos, dtype=torch.long, device="meta")
    inputs = VLMInputs({"input_ids": ids}, tokens, ((),) * tokens.batch_size, ("",) * tokens.batch_size)
    n_layers = int(model.cfg.n_layers)
    if study is None:
        return [
            Planned("sweep over start layers", explained(model, inputs, start_layers(n_layers), limit, False))
        ]
    if study not in STUDIES:
        raise InputError(f"--study {study}: only {' or '.join(STUDIES)} can be planned")
    options = NarrowGateOptions()
    rows = knockout_table.table_rows(options.random_tokens, REPEATS)
    table = [row.interventions(i, 0, "zero") for row in rows for i in range(row.repeats)]
    layers = [point.specs("zero") for point in progressive.points(n_layers)]
    shown = progressive.ProgressiveOptions()
    work = [
        ("knockouts, classes", table, 0, options.n_class),
        ("knockouts, questions", table, options.vqa_tokens, options.n_vqa),
        ("knockouts, captions", table, options.caption_tokens, options.n_caption),
        ("progressive, classes", layers, 0, shown.n),
        ("progressive, questions", layers, options.vqa_tokens, shown.n_vqa),
    ]
    return [
        Planned(name, explained(model, inputs, runs, limit, False, new), new, examples)
        for name, runs, new, examples in work
    ]


def report(model: HookedVLM, works: list[Planned], memory: int | str | None) -> list[str]:
    """The plans in words, a line each."""
    held = works[0].explanation.footprint
    plan = works[0].explanation.plan
    lines = [
        f"{model!r}, {str(model.dtype).removeprefix('torch.')}: weights {in_words(held.weights)}",
        f"{plan.batch} prompt(s) of {plan.n_pos} positions",
    ]
    for work in works:
        held, plan = work.explanation.footprint, work.explanation.plan
        decoded = f", {work.new} tokens decoded after each" if work.new else ""
        lines.append(
            f"{work.name}: {work.runs} runs{decoded}, as much work as {work.equivalents:.1f} forward passes"
        )
        lines.append(
            f"  prefix {in_words(held.prefix)}, logits {in_words(held.logits)}, the clean run {in_words(held.clean)}, "
            f"{held.at_once} run(s) at once {in_words(held.runs)}; at most {in_words(held.peak)}"
        )
        if work.examples is not None:
            batches = -(-work.examples // plan.batch)
            lines.append(
                f"  {work.examples} examples: {batches * work.equivalents:,.0f} forward passes of a batch"
            )
    if memory is not None:
        limit, peak = as_bytes(memory), max(work.explanation.footprint.peak for work in works)
        fits = "fits in" if peak <= limit else "does NOT fit in"
        lines.append(f"at most {in_words(peak)}: {fits} {in_words(limit)}")
    if inexact(model):
        lines.append(inexact(model))
    return lines
