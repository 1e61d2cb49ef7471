"""A compressed context: a picture described once, then questions answered from a few of its keys and values.

Kaduri et al. 2025 (arXiv 2411.17491): the description prompt runs once; of the picture, each layer keeps the
K % of image tokens that the description attends to most; everything else of the prompt is kept whole. Later
questions go after what is kept, and never touch the picture again.

**Which tokens are kept.** All of the prompt that is no image token: system text, begin- and end-of-image
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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.clean import with_mask
from gatelens.engine.context import CompressedContext, check_windows, now
from gatelens.engine.cuts import can_conduct
from gatelens.engine.decode import Generation, eos_ids, finish
from gatelens.engine.replay import greedy
from gatelens.engine.run import Whole
from gatelens.errors import InterventionError
from gatelens.inputs import next_position_ids
from gatelens.roles import Role

if TYPE_CHECKING:
    from gatelens.inputs import VLMInputs
    from gatelens.model import HookedVLM
    from gatelens.tokens import SelectorLike, TokenMap

DESCRIPTION_TOKENS = 300  # what the paper lets a description have
ALWAYS, AMONG = "~image", "image"


def compress(
    model: HookedVLM,
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
    """
    _check_share(keep)
    return describe(model, inputs, max_new_tokens if 0 < keep < 1 else 0).compress(keep, always, among)


@torch.no_grad()
def describe(model: HookedVLM, inputs: VLMInputs, max_new_tokens: int = DESCRIPTION_TOKENS) -> Described:
    """Run description prompts once and watch what the descriptions attend to.

    Args:
        model: the model.
        inputs: description prompts, padded on the left.
        max_new_tokens: the longest description; 0 runs the prompts alone.

    Raises:
        InterventionError: in this model a cache of chosen tokens would not mean what the full context does
            (the whole prompt attends both ways, or layers look back less far than the prompt is long), or the
            decoder's attention cannot be watched.
    """
    if max_new_tokens < 0:
        raise InterventionError(f"max_new_tokens={max_new_tokens}: give 0 or more")
    if model.layout.two_way == "prompt":
        raise InterventionError(
            "this family's whole prompt attends in both directions: a question put after it is not what the model "
            "reads in a prompt, so no context can be kept for it; use a family whose text attends backwards"
        )
    if max_new_tokens and not can_conduct(model):
        raise InterventionError(
            "the attention of this decoder is not exchangeable, so a description cannot be watched: keep=0 or 1"
        )
    prompt, began = inputs.tokens, now(model)
    check_windows(model, int((prompt.roles != Role.PAD).sum(dim=1).max()))
    watch = _Watch(prompt, int(model.cfg.n_layers))
    tensors = with_mask(inputs)
    past = DynamicCache()  # every layer keeps every position, in order
    wrote: Generation | None = None
    if max_new_tokens == 0:
        model.forward_step({**tensors, "logits_to_keep": 1}, past=past)
    else:
        wrote = _write(model, inputs, tensors, past, watch, max_new_tokens)
    layers = [(x.keys[:, :, : prompt.n_pos], x.values[:, :, : prompt.n_pos]) for x in past.layers]
    after = next_position_ids(tensors["position_ids"], 0)
    streams = after.shape[0] if after.ndim == 3 else 0
    return Described(
        model, prompt, wrote, watch.mean(), layers, after.reshape(-1, prompt.batch_size)[0], streams,
        now(model) - began,
    )  # fmt: skip


def _write(
    model: HookedVLM,
    inputs: VLMInputs,
    tensors: dict[str, Tensor],
    past: DynamicCache,
    watch: _Watch,
    max_new_tokens: int,
) -> Generation:
    """The descriptions; every pass shows its last row to ``watch``."""
    prompt, ends = inputs.tokens, eos_ids(model)
    whole = Whole(model, (), prompt.extend(max_new_tokens), watch.see)
    whole.at(0, prompt.n_pos)
    mask = tensors["attention_mask"]

    def step(n: int, chosen: Int[Tensor, " batch"]) -> Tensor:
        nonlocal mask
        watch.ended(torch.isin(chosen, torch.tensor(ends, dtype=chosen.dtype)))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        whole.at(prompt.n_pos + n, prompt.n_pos + n + 1)
        new = {
            "input_ids": chosen[:, None].to(mask.device),
            "attention_mask": mask,
            "position_ids": next_position_ids(tensors["position_ids"], n),
        }
        return model.forward_step(new, pairs, past=past)[0][:, -1]

    with whole.acting() as pairs:
        logits, _ = model.forward_step({**tensors, "logits_to_keep": 1}, pairs, past=past)
        ids = greedy(logits[:, -1], step, max_new_tokens, ends)
    return finish(model, prompt, ids, ends)


class _Watch:
    """Sums the attention of the rows that write a description, over heads and rows, layer by layer.

    These are the prompt's last row, which writes the first word, and the row of every word that is then read
    again; those of an example that has ended do not count.
    """

    def __init__(self, prompt: TokenMap, n_layers: int) -> None:
        self.n_pos, self.batch, self.n_layers = prompt.n_pos, prompt.batch_size, n_layers
        self.live = torch.ones(prompt.batch_size, dtype=torch.bool)
        self.sums: dict[int, Tensor] = {}
        self.rows = torch.zeros(prompt.batch_size)

    def see(self, layer: int, pattern: Float[Tensor, "batch head row key"], position: int) -> None:
        row = pattern[:, :, -1, : self.n_pos].float().mean(dim=1)
        counted = row * self.live[:, None].to(row.device)
        self.sums[layer] = counted + self.sums[layer] if layer in self.sums else counted
        if layer == self.n_layers - 1:
            self.rows += self.live

    def ended(self, is_end: Bool[Tensor, " batch"]) -> None:
        self.live &= ~is_end

    def mean(self) -> Float[Tensor, "layer batch pos"] | None:
        if not self.sums:
            return None
        sums = torch.stack([self.sums[layer].cpu() for layer in range(self.n_layers)])
        return sums / self.rows[:, None]


@dataclass(frozen=True, eq=False)
class Described:
    """Description prompts that have run; contexts of any size can be cut from them.

    Attributes:
        model: the model.
        tokens: the prompts' map.
        description: what the model wrote; None when it was not asked to.
        attention: of the rows that wrote it, to each position of the prompt, averaged over heads and rows: the
            prompt's last row, then every word's. None without a description.
        layers: keys (after the rotary embedding) and values of the prompts by layer, [batch, kv_head, pos, d].
        next_position: position of the first token after each prompt.
        streams: of position ids (three where positions have time, height and width); 0 is one, without an axis.
        seconds: what it took.
    """

    model: HookedVLM
    tokens: TokenMap
    description: Generation | None
    attention: Float[Tensor, "layer batch pos"] | None
    layers: Sequence[tuple[Tensor, Tensor]]
    next_position: Int[Tensor, " batch"]
    streams: int
    seconds: float

    @torch.no_grad()
    def compress(
        self, keep: float = 0.05, always: SelectorLike = ALWAYS, among: SelectorLike = AMONG
    ) -> CompressedContext:
        """Keep ``always`` and, by layer, the share ``keep`` of ``among`` with the most attention.

        The number is the nearest whole one, halves up, and at least one unless ``keep`` is 0. Equal attention
        goes to the earlier token.

        Raises:
            InterventionError: a share outside 0 … 1, one between them without a description, or nothing left.
        """
        _check_share(keep)
        began = now(self.model)
        kept = self._kept(keep, always, among)
        counts = kept[0].sum(dim=1)
        if int(counts.min()) == 0:
            raise InterventionError(
                f"keep={keep} with always={str(always)!r} keeps nothing of prompt {int(counts.argmin())}: "
                "a question needs something to follow"
            )
        n = int(counts.max())
        layers = []
        for mine, (keys, values) in zip(kept, self.layers, strict=True):
            # real positions last, each example's in their order: stable on "is it kept"
            index = mine.long().sort(dim=1, stable=True).indices[:, -n:].to(keys.device)
            layers.append((_rows(keys, index), _rows(values, index)))
        mask = (torch.arange(n) >= n - counts[:, None]).long()
        return CompressedContext(self, keep, kept, layers, mask, now(self.model) - began)

    def _kept(
        self, keep: float, always: SelectorLike, among: SelectorLike
    ) -> Bool[Tensor, "layer batch pos"]:
        real = (self.tokens.roles != Role.PAD).cpu()
        whole = self.tokens.mask(always) & real
        ranked = self.tokens.mask(among) & real & ~whole
        kept = whole.expand(len(self.layers), -1, -1).clone()
        if keep == 1:
            return kept | ranked
        if keep == 0:
            return kept
        if self.attention is None:
            raise InterventionError(
                f"keep={keep} goes by attention: describe with max_new_tokens of 1 or more"
            )
        scores = self.attention.masked_fill(~ranked, -1.0)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        counts = [max(1, math.floor(keep * n + 0.5)) if n else 0 for n in ranked.sum(dim=1).tolist()]
        for b, count in enumerate(counts):
            kept[:, b].scatter_(1, order[:, b, :count], True)
        return kept


def _rows(tensor: Float[Tensor, "batch head pos d"], index: Int[Tensor, "batch kept"]) -> Tensor:
    """Other positions of each example."""
    return tensor.gather(2, index[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _check_share(keep: float) -> None:
    if isinstance(keep, bool) or not 0 <= keep <= 1:
        raise InterventionError(f"keep={keep}: give a share from 0 to 1, e.g. 0.05 for 5 %")
