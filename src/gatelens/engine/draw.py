"""Drawing: image tokens sampled one by one with a KV cache, interventions holding at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.decode import finish, write_plainly
from gatelens.engine.many import Many, runs_of
from gatelens.engine.replay import Step
from gatelens.engine.run import Whole
from gatelens.errors import InputError, ModelError
from gatelens.interventions.hooks import HookPair

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

_UNEMBEDDED = "unembed.hook_out"
_DERIVED = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a model drew, before it is decoded to pixels.

    Attributes:
        token_ids: the image tokens of each picture, row by row, as ids of the model's vocabulary; on the CPU.
        rows, cols: of the grid they fill.
        tokens: the prompt's map with the begin-of-image marker and the image tokens (role ``generated``).
    """

    token_ids: Int[Tensor, "batch cell"]
    rows: int
    cols: int
    tokens: TokenMap


def draw(
    model: HookedVLM,
    inputs: VLMInputs,
    interventions: Any = (),
    *,
    temperature: float = 1.0,
    guidance: float = 1.0,
    seed: int = 0,
) -> Drawing:
    """One picture a prompt; each step is the same as running the grown prompt again under the interventions.

    The begin-of-image marker is put behind a prompt that does not end with it: it is position ``last``, whose row
    draws the first image token. Drawn tokens have role ``generated``, so ``queries="last | generated"`` is the
    whole drawing. Only image tokens compete.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) moves log p(token | prompt) away from log p(token
    | no prompt). The unprompted stream is the model's idea of any picture: it holds beginning of sequence, marker
    and the tokens drawn so far, and runs without interventions, whose selectors name positions that it does not
    have. So guidance scales what the interventions change along with what the prompt says.

    Args:
        model: a model whose vocabulary holds image tokens.
        inputs: prompts with or without pictures, padded on the left.
        interventions: an intervention, a (nested) list of them, or None.
        temperature: of the sampling; 0 takes the likeliest token.
        guidance: 1 is none.
        seed: of the sampling. Runs of one seed and batch share their random numbers: what differs between two
            drawings is what the interventions did.

    Raises:
        ModelError: the model cannot draw.
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    return draw_many(model, inputs, [interventions], temperature=temperature, guidance=guidance, seed=seed)[0]


@torch.no_grad()
def draw_many(
    model: HookedVLM,
    inputs: VLMInputs,
    runs: Sequence[Any],
    *,
    temperature: float = 1.0,
    guidance: float = 1.0,
    seed: int = 0,
) -> list[Drawing]:
    """:func:`draw` under each of several runs; what they have in common is computed once.

    Args:
        model, inputs, temperature, guidance, seed: see :func:`draw`.
        runs: each an intervention, a (nested) list of them, or None.

    Raises:
        ModelError: the model cannot draw.
        InterventionError: an intervention cannot act as written, or has no effect in this model.
    """
    rows, cols = canvas(model)
    if temperature < 0:
        raise InputError(f"temperature={temperature} is below 0; 0 takes the likeliest token")
    inputs = begun(model, inputs)
    sampler = _Sampler(model, rows * cols, temperature, guidance, seed)
    many = Many(model, inputs, runs_of(runs), logits=False, max_new_tokens=rows * cols)

    def plainly(run: Any) -> Tensor:
        return write_plainly(
            model, inputs, run, rows * cols, sampler.of(inputs.batch_size), reading=sampler.reading
        )

    found = many.write(
        lambda replay: replay.write(sampler.of(inputs.batch_size), reading=sampler.reading), plainly
    )
    return [Drawing(ids, rows, cols, finish(model, inputs.tokens, ids, []).tokens) for ids in found]


def canvas(model: HookedVLM) -> tuple[int, int]:
    """Rows and columns of the pictures the model draws.

    Raises:
        ModelError: it cannot draw.
    """
    drawn = model.layout.drawn
    if drawn is None:
        raise ModelError(f"{model!r} cannot draw: its vocabulary has no image tokens; use a native model")
    if drawn.rows is None or drawn.cols is None or model.layout.boi_id is None:
        raise ModelError(
            f"{model!r} cannot draw here: its pictures have no fixed grid behind a begin-of-image marker; generate "
            "with transformers and give the ids to model.inputs"
        )
    return drawn.rows, drawn.cols


def begun(model: HookedVLM, inputs: VLMInputs) -> VLMInputs:
    """The prompts with the marker that begins a picture as their last token."""
    ids, boi = inputs.tensors["input_ids"], model.layout.boi_id
    assert boi is not None
    if bool(torch.isin(ids[:, -1].cpu(), torch.tensor(sorted(model.layout.boi_ids))).all()):
        return inputs
    marker = ids.new_full((len(ids), 1), boi)
    mask = inputs.tensors.get("attention_mask")
    mask = (inputs.tokens.roles != 0).long().to(ids.device) if mask is None else mask
    built = model.inputs(
        torch.cat([ids, marker], dim=1),
        torch.cat([mask, torch.ones_like(marker)], dim=1),
        images=inputs.images if any(inputs.images) else None,
        **{name: value for name, value in inputs.tensors.items() if name not in _DERIVED},
    )
    tokens = dataclasses.replace(built.tokens, example_ids=inputs.tokens.example_ids)
    return dataclasses.replace(built, tokens=tokens, texts=inputs.texts, single=inputs.single)


class _Sampler:
    """Chooses image tokens. ``reading``: the hook by which it sees the logits."""

    def __init__(
        self, model: HookedVLM, n_cells: int, temperature: float, guidance: float, seed: int
    ) -> None:
        assert model.layout.drawn is not None
        self.model, self.n_cells = model, n_cells
        self.temperature, self.guidance, self.seed = temperature, guidance, seed
        self.ids = torch.tensor(sorted(model.layout.drawn.ids))
        self.reading: list[HookPair] = [(_UNEMBEDDED, self._read)]

    def of(self, n_prompts: int) -> Any:
        """Draws a batch of ``n_prompts``, or several such batches stacked, with the same random numbers each."""

        def write(logits: Tensor, step: Step) -> Int[Tensor, "batch cell"]:
            # what is handed on has been through transformers, which masks image tokens out of Chameleon's logits
            mine = self.logits
            free = None if self.guidance == 1.0 else _Unprompted(self.model, len(mine), self)
            generator = torch.Generator().manual_seed(self.seed)
            drawn: list[Tensor] = []
            for n in range(self.n_cells):
                if n:
                    step(n - 1, drawn[-1])
                    mine = self.logits
                log_p = mine.log_softmax(-1)
                if free is not None:
                    other = free.step(drawn[-1] if drawn else None)
                    log_p = other + self.guidance * (log_p - other)
                drawn.append(self.ids[self._choose(log_p, n_prompts, generator)])
            return torch.stack(drawn, dim=1)

        return write

    def _read(self, logits: Tensor, hook: Any) -> None:
        # copied: transformers goes on to write into the same tensor
        self.logits = logits[:, -1].float().cpu()[:, self.ids]

    def _choose(
        self, log_p: Float[Tensor, "batch code"], n_prompts: int, generator: torch.Generator
    ) -> Int[Tensor, " batch"]:
        if self.temperature == 0:
            return log_p.argmax(-1)
        p = (log_p / self.temperature).softmax(-1).view(-1, n_prompts, log_p.shape[-1])
        # a race of exponential clocks with rates p draws from p: what torch.multinomial does, but with one draw of
        # the clocks for all runs
        clocks = torch.empty(n_prompts, log_p.shape[-1]).exponential_(generator=generator)
        return (p / clocks).argmax(-1).flatten()


class _Unprompted:
    """Beginning of sequence, begin-of-image marker and the tokens drawn so far, without interventions."""

    def __init__(self, model: HookedVLM, batch: int, sampler: _Sampler) -> None:
        bos, boi = model.layout.bos_id, model.layout.boi_id
        if bos is None or boi is None:
            raise ModelError(
                f"{model!r} has no beginning-of-sequence token to draw without a prompt: guidance=1"
            )
        self.model, self.sampler = model, sampler
        self.inputs = model.inputs(torch.tensor([[bos, boi]] * batch))
        self.whole = Whole(model, (), self.inputs.tokens.extend(sampler.n_cells))
        self.past, self.n = DynamicCache(), 0

    def step(self, token: Int[Tensor, " batch"] | None) -> Float[Tensor, "batch code"]:
        """Log-probabilities of the next image token, after ``token`` (none at the start)."""
        ids = self.inputs.tensors["input_ids"] if token is None else token[:, None].to(self.model.device)
        start, self.n = self.n, self.n + ids.shape[1]
        self.whole.at(start, self.n)
        tensors = {
            "input_ids": ids,
            "attention_mask": ids.new_ones(len(ids), self.n),
            "position_ids": torch.arange(start, self.n, device=ids.device).expand(len(ids), -1),
        }
        # cuts of the prompted stream, from within which this is called, stand aside meanwhile
        with self.whole.acting() as pairs:
            self.model.forward_step(
                {**tensors, "logits_to_keep": 1}, [*pairs, *self.sampler.reading], past=self.past
            )
        return self.sampler.logits.log_softmax(-1)
