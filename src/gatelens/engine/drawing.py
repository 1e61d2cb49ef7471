"""Drawing: image tokens sampled one by one with a KV cache, interventions holding at every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.engine.clean_run import with_mask
from gatelens.engine.decoding import Decoder
from gatelens.engine.full_run import full_decoder
from gatelens.engine.generation import finish
from gatelens.engine.run_batch import RunBatch, specs_of
from gatelens.errors import InputError, ModelError
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.arguments import as_count, as_number
from gatelens.tokens import TokenMap

_DERIVED = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True, eq=False)
class Drawing:
    """What a model drew, before it is decoded to pixels.

    Attributes:
        token_ids: the image tokens of each picture, row by row, as ids of the model's vocabulary; on the CPU.
        rows, cols: of the grid they fill.
        tokens: the prompt's map with the begin-of-image marker and the image tokens (role ``generated``).

    Example:
        >>> drawing = gl.engine.draw(model, model.prepare(None, "this is a sunflower"), temperature=0)
        >>> drawing.rows, drawing.cols, drawing.token_ids.shape
        (8, 8, torch.Size([1, 64]))
    """

    token_ids: Int[Tensor, "batch cell"]
    rows: int
    cols: int
    tokens: TokenMap


def draw(
    model: HookedModel,
    inputs: VLMInputs,
    interventions: Any = (),
    *,
    temperature: float = 1.0,
    guidance: float = 1.0,
    seed: int = 0,
) -> Drawing:
    """One picture per prompt; each step is the same as running the grown prompt again under the interventions.

    The begin-of-image marker is put after a prompt that does not end with it: it is position ``last``, whose row
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
        InputError: prompt and new tokens take more positions than the model has.

    Example:
        >>> drawing = gl.engine.draw(model, model.prepare(None, "this is a sunflower"), temperature=0)
        >>> drawing.token_ids.shape
        torch.Size([1, 64])
    """
    return draw_many(model, inputs, [interventions], temperature=temperature, guidance=guidance, seed=seed)[0]


@torch.no_grad()
def draw_many(
    model: HookedModel,
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
        InputError: prompt and new tokens take more positions than the model has.

    Example:
        >>> prompt = model.prepare(None, "this is a sunflower")
        >>> free, cut = gl.engine.draw_many(model, prompt, [None, gl.knockout("generated", "system")], temperature=0)
        >>> torch.equal(free.token_ids, cut.token_ids)
        False
    """
    inputs = usable(model, inputs)
    rows, cols = canvas(model)
    temperature, guidance = as_number(temperature, "temperature"), as_number(guidance, "guidance")
    seed = as_count(seed, "seed", 0)
    if temperature < 0:
        raise InputError(f"temperature={temperature} is below 0; 0 takes the likeliest token")
    inputs = begun(model, inputs)
    n_cells = rows * cols
    new_sampler = partial(_Sampler, model, inputs.batch_size, n_cells, temperature, guidance, seed)
    with model.lock:
        batch = RunBatch(model, inputs, specs_of(runs), every_position=False, max_new_tokens=n_cells)
        pictures = batch.decode(new_sampler, raw_logits=True)
    return [Drawing(ids, rows, cols, finish(model, inputs, ids, []).tokens) for ids in pictures]


def canvas(model: HookedModel) -> tuple[int, int]:
    """Rows and columns of the pictures the model draws.

    Raises:
        ModelError: it cannot draw.
    """
    drawn = model.layout.drawn
    if drawn is None:
        raise ModelError(f"{model!r} cannot draw: its vocabulary has no image tokens; use a native model")
    if drawn.rows is None or drawn.cols is None or model.layout.boi_id is None:
        raise ModelError(
            f"{model!r} cannot draw here: its pictures have no fixed grid after a begin-of-image marker; generate "
            "with transformers and give the ids to model.inputs"
        )
    return drawn.rows, drawn.cols


def begun(model: HookedModel, inputs: VLMInputs) -> VLMInputs:
    """The prompts with the marker that begins a picture as their last token."""
    ids, boi = inputs.tensors["input_ids"], model.layout.boi_id
    assert boi is not None
    if bool(torch.isin(ids[:, -1].cpu(), torch.tensor(sorted(model.layout.boi_ids))).all()):
        return inputs
    marker = ids.new_full((len(ids), 1), boi)
    mask = with_mask(inputs)["attention_mask"]
    built = model.inputs(
        torch.cat([ids, marker], dim=1),
        attention_mask=torch.cat([mask, torch.ones_like(marker)], dim=1),
        images=inputs.images if any(inputs.images) else None,
        **{name: value for name, value in inputs.tensors.items() if name not in _DERIVED},
    )
    tokens = dataclasses.replace(built.tokens, example_ids=inputs.tokens.example_ids)
    return dataclasses.replace(built, tokens=tokens, texts=inputs.texts, single=inputs.single)


class _Sampler:
    """Samples image tokens, for one run or for several stacked in the batch with the same random numbers each."""

    finished = False  # a picture has as many tokens as its grid

    def __init__(
        self,
        model: HookedModel,
        n_prompts: int,
        n_cells: int,
        temperature: float,
        guidance: float,
        seed: int,
    ) -> None:
        assert model.layout.drawn is not None
        self.model, self.n_prompts, self.n_cells = model, n_prompts, n_cells
        self.temperature, self.guidance = temperature, guidance
        self.ids = torch.tensor(sorted(model.layout.drawn.ids))
        self.generator = torch.Generator().manual_seed(seed)
        self._unprompted: Decoder | None = None
        self._last: Int[Tensor, " batch"] | None = None

    def __call__(self, logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, " batch"]:
        log_p = self._log_p(logits)
        if self.guidance != 1.0:
            free = self._log_p(self._unprompted_logits(len(logits)))
            log_p = free + self.guidance * (log_p - free)
        self._last = self.ids[self._choose(log_p)]
        return self._last

    def _log_p(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch code"]:
        return logits.float().cpu()[:, self.ids].log_softmax(-1)

    def _unprompted_logits(self, batch: int) -> Float[Tensor, "batch d_vocab"]:
        """After beginning of sequence, begin-of-image marker and the tokens drawn so far, without interventions."""
        if self._unprompted is None or self._last is None:
            self._unprompted = self._begin_unprompted(batch)
            return self._unprompted.prompt()
        return self._unprompted.step(self._last)

    def _begin_unprompted(self, batch: int) -> Decoder:
        bos, boi = self.model.layout.bos_id, self.model.layout.boi_id
        if bos is None or boi is None:
            raise ModelError(
                f"{self.model!r} has no beginning-of-sequence token to draw without a prompt: guidance=1"
            )
        inputs = self.model.inputs(torch.tensor([[bos, boi]] * batch))
        return full_decoder(self.model, inputs, (), self.n_cells, raw_logits=True)

    def _choose(self, log_p: Float[Tensor, "batch code"]) -> Int[Tensor, " batch"]:
        if self.temperature == 0:
            return log_p.argmax(-1)
        p = (log_p / self.temperature).softmax(-1).view(-1, self.n_prompts, log_p.shape[-1])
        # a race of exponential clocks with rates p draws from p: what torch.multinomial does, but with one draw of
        # the clocks for all runs
        clocks = torch.empty(self.n_prompts, log_p.shape[-1]).exponential_(generator=self.generator)
        return (p / clocks).argmax(-1).flatten()
