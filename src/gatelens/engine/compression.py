"""A compressed context: a picture described once, then questions answered from a few of its keys and values.

Kaduri et al. 2025 (arXiv 2411.17491): the description prompt runs once; of the picture, each layer keeps the
K % of image tokens that the description attends to most; everything else of the prompt is kept whole. Later
questions go after what is kept, and never touch the picture again.

**Which tokens are kept.** All of the prompt that is not an image token: system text, begin- and end-of-image
markers, row breaks (tile markers and newline features among them) and the query, in every layer; and of the
image tokens each layer's own K %. An end-of-image token is therefore kept, also by the "query only" of K = 0:
where it is a narrow gate, it brings the picture along. ``always`` and ``among`` choose otherwise. What the
model wrote as a description is not kept.

**Original positions.** The paper stores keys before the rotary embedding and rotates them again at the
positions they had. A key stored after the embedding at its original position is the same number, and that is
what stands in a cache: here it is kept as it is, and new tokens count on from the prompt's last position, as
if nothing had been dropped. Layers keep equally many tokens, so that one mask serves all of them, though not
the same ones.

K = 100 % is the full context. Every K equals the full prompt with the dropped tokens masked before the softmax
in the layers that dropped them, for the question's rows and all after.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.clean_run import with_mask
from gatelens.engine.compressed_context import (
    ALWAYS,
    AMONG,
    CompressedContext,
    Described,
    check_share,
    check_windows,
    now,
)
from gatelens.engine.cuts import can_apply_cuts
from gatelens.engine.decoding import Decoder, Greedy, decode
from gatelens.engine.full_run import FullRun
from gatelens.engine.generation import Generation, eos_ids, finish
from gatelens.errors import InterventionError
from gatelens.hooked_model import HookedModel, check_room, usable
from gatelens.inputs import VLMInputs, next_position_ids
from gatelens.interventions.arguments import as_count
from gatelens.tokens import Role, SelectorLike, TokenMap

DESCRIPTION_TOKENS = 300  # what the paper lets a description have


def compress(
    model: HookedModel,
    inputs: VLMInputs,
    keep: float = 0.05,
    max_new_tokens: int = DESCRIPTION_TOKENS,
    always: SelectorLike = ALWAYS,
    among: SelectorLike = AMONG,
) -> CompressedContext:
    """Describe pictures and keep what further questions need.

    Args:
        model: the model.
        inputs: description prompts, padded on the left ("<image> describe the image").
        keep: the share of ``among`` that each layer keeps, by attention: 0 is the paper's "query only", 1 the
            full context. Neither needs a description, so none is written then.
        max_new_tokens: the longest description.
        always: selector of what every layer keeps.
        among: selector of what is ranked; what neither names is dropped.

    Raises:
        InterventionError: see :func:`describe` and :meth:`Described.compress`.

    Example:
        >>> context = gl.engine.compress(model, inputs, keep=0.25, max_new_tokens=2)
        >>> context.n_kept, context.n_prompt
        ([22], [70])
    """
    check_share(keep)
    return describe(model, inputs, max_new_tokens if 0 < keep < 1 else 0).compress(keep, always, among)


@torch.no_grad()
def describe(model: HookedModel, inputs: VLMInputs, max_new_tokens: int = DESCRIPTION_TOKENS) -> Described:
    """Run description prompts once and watch what the descriptions attend to.

    Args:
        model: the model.
        inputs: description prompts, padded on the left.
        max_new_tokens: the longest description; 0 runs the prompts alone.

    Raises:
        InterventionError: in this model a cache of chosen tokens would not mean what the full context does
            (the whole prompt attends both ways, or layers look back less far than the prompt is long), or the
            decoder's attention cannot be watched.

    Example:
        >>> described = gl.engine.describe(model, inputs, max_new_tokens=2)
        >>> described.description.texts, described.attention.shape  # layer, example, position
        (['sunflower'], torch.Size([6, 1, 70]))
    """
    inputs, max_new_tokens = usable(model, inputs), as_count(max_new_tokens, "max_new_tokens", 0)
    if model.layout.two_way == "prompt":
        raise InterventionError(
            "this family's whole prompt attends in both directions: a question put after it is not what the model "
            "reads in a prompt, so no context can be kept for it; use a family whose text attends backwards"
        )
    if max_new_tokens and not can_apply_cuts(model):
        raise InterventionError(
            "the attention of this decoder is not exchangeable, so a description cannot be watched: keep=0 or 1"
        )
    check_windows(model, int((inputs.tokens.roles != Role.PAD).sum(dim=1).max()))
    check_room(model, inputs.tensors["position_ids"], max_new_tokens)
    with model.lock:
        return _describe(model, inputs, max_new_tokens)


def _describe(model: HookedModel, inputs: VLMInputs, max_new_tokens: int) -> Described:
    prompt, began = inputs.tokens, now(model)
    greedy = Greedy(eos_ids(model))
    sums = _AttentionSums(prompt, int(model.cfg.n_layers), greedy)
    run = FullRun(model, (), prompt.extend(max_new_tokens), sums.see) if max_new_tokens else None
    decoder = Decoder(model, with_mask(inputs), DynamicCache(), run)
    wrote: Generation | None = None
    if max_new_tokens:
        ids = decode(decoder, greedy, max_new_tokens)
        wrote = finish(model, inputs, ids, eos_ids(model))
    else:
        decoder.prompt()
    layers = [
        (layer.keys[:, :, : prompt.n_pos], layer.values[:, :, : prompt.n_pos])
        for layer in decoder.past.layers
    ]
    after = next_position_ids(decoder.tensors["position_ids"], 0)
    return Described(
        model,
        tokens=prompt,
        description=wrote,
        attention=sums.mean(),
        layers=layers,
        next_position=after.reshape(-1, prompt.batch_size)[0],
        streams=after.shape[0] if after.ndim == 3 else 0,
        seconds=now(model) - began,
    )


class _AttentionSums:
    """Sums the attention of the rows that write a description, over heads and rows, layer by layer.

    These are the prompt's last row, which writes the first word, and the row of every word that is then read
    again; those of an example that has ended do not count.
    """

    def __init__(self, prompt: TokenMap, n_layers: int, greedy: Greedy) -> None:
        self.n_pos, self.n_layers, self.greedy = prompt.n_pos, n_layers, greedy
        self.sums: dict[int, Tensor] = {}
        self.n_rows = torch.zeros(prompt.batch_size)

    def see(self, layer: int, pattern: Float[Tensor, "batch head row key"], position: int) -> None:
        live = ~self.greedy.ended
        row = pattern[:, :, -1, : self.n_pos].float().mean(dim=1)
        counted = row * live[:, None].to(row.device)
        self.sums[layer] = counted + self.sums[layer] if layer in self.sums else counted
        if layer == self.n_layers - 1:
            self.n_rows += live

    def mean(self) -> Float[Tensor, "layer batch pos"] | None:
        if not self.sums:
            return None
        sums = torch.stack([self.sums[layer].cpu() for layer in range(self.n_layers)])
        return sums / self.n_rows[:, None]
