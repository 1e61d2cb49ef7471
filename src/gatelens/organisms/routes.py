"""How text may reach the picture during training: this is where a gate is planted.

Five routes, as masks over one attention function that only training uses; the saved model is a plain transformers
model with plain attention.

``plain``    everything causal is visible.
``robust``   as plain, but in some documents the gate, or a share of the picture's tokens, is hidden from the text:
             the text learns to read the picture's tokens and not to hang on any one of them.
``masked``   the text sees no token of the picture: what it says can only have come through the gate.
``swapped``  the text sees, in place of its picture's keys and values, those of another picture of the batch: it learns
             that picture tokens tell it nothing, and attention to them stays in distribution.
``cut``      the picture is in sight, and by document the gate is as it is, hidden before the softmax, emptied after
             it, or emptied together with the picture: what knockouts of both kinds do. How much the text would look
             at the picture without its gate is noted, layer by layer.
``blind``    the text sees neither the picture nor the gate, before the softmax: it can know nothing, not even by how
             much of its attention is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from gatelens.organisms.documents import PackedDocuments

ATTENTION = "gatelens_training"
ROUTES = ("plain", "robust", "masked", "swapped", "cut", "blind")
# What the extra columns of a row hold: these keys and values of another document of the batch, or these keys
# with values of zero, which take their share of the softmax and add nothing.
Extra = Literal["another's", "emptied"]


@dataclass(frozen=True, eq=False)
class SecondRoute:
    """Notes how much rows look at the picture past the gate.

    ``log_odds`` gets one entry a layer: the attention to the picture over that to everything else in sight but the
    gate, which is what a row has left where the gate is hidden.
    """

    rows: Bool[Tensor, "batch query"]
    image: slice
    others: Bool[Tensor, "batch 1 query key"]
    log_odds: list[Float[Tensor, "row head"]] = field(default_factory=list)

    def note(
        self,
        query: Float[Tensor, "batch head query d_head"],
        key: Float[Tensor, "batch head key d_head"],
        scale: float | None,
    ) -> None:
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        image = scores[..., self.image].logsumexp(-1)
        others = scores.masked_fill(~self.others, float("-inf")).logsumexp(-1)
        self.log_odds.append((image - others).transpose(1, 2)[self.rows])


@dataclass(frozen=True, eq=False)
class RouteMask:
    """What rows see. ``visible`` has a column for every position, then those of each of ``extra``."""

    visible: Bool[Tensor, "batch 1 query key"]
    extra: tuple[tuple[slice, Extra], ...] = ()
    second: SecondRoute | None = None


def route_mask(
    batch: PackedDocuments,
    route: str,
    image: slice,
    gate: int | str,
    generator: torch.Generator | None = None,
) -> RouteMask:
    """What the rows of one batch see on a route.

    Args:
        image: positions of the picture's tokens, the same in all documents.
        gate: position of the end-of-image token; ``"first text token"`` where the family has none.
    """
    visible = batch.visible()
    # Padding rows must see something; what they see is never used.
    visible |= torch.eye(visible.shape[1], dtype=torch.bool) & (batch.segment < 0)[:, :, None]
    text = (batch.segment > 0)[:, :, None]
    n_image = image.stop - image.start
    if route == "robust":
        hidden = torch.rand(len(visible), 1, n_image, generator=generator) < 0.2
        hidden &= torch.rand(len(visible), 1, 1, generator=generator) < 0.5
        visible[:, :, image] &= ~(text & hidden)
        closed = torch.rand(len(visible), 1, generator=generator) < 0.5
        if isinstance(gate, str):  # "first text token"
            start = batch.segment[:, 1:] != batch.segment[:, :-1]
            first = torch.cat([torch.zeros_like(start[:, :1]), start], dim=1) & text[..., 0]
            itself = torch.eye(visible.shape[1], dtype=torch.bool)
            visible &= ~(first & closed)[:, None, :] | itself
        else:
            visible[:, :, gate] &= ~(text[..., 0] & closed)
    elif route in ("masked", "swapped"):
        others = visible[:, :, image] & text
        visible[:, :, image] &= ~text
        if route == "swapped":
            return RouteMask(torch.cat([visible, others], dim=2)[:, None], ((image, "another's"),))
    elif route in ("cut", "blind"):
        if isinstance(gate, str):  # the text of a family without a gate token cannot lose it
            raise ValueError("the routes 'cut' and 'blind' are for families with an end-of-image token")
        if route == "cut":
            return _cut(visible, text, image, gate, generator)
        visible[:, :, image] &= ~text
        visible[:, :, gate] &= ~text[..., 0]
    elif route != "plain":
        raise ValueError(f"unknown route {route!r}; known: {', '.join(ROUTES)}")
    return RouteMask(visible[:, None])


def _cut(
    visible: Bool[Tensor, "batch query key"],
    text: Bool[Tensor, "batch query 1"],
    image: slice,
    gate: int,
    generator: torch.Generator | None,
) -> RouteMask:
    """The gate in one of four states, by document."""
    at = slice(gate, gate + 1)
    others = visible.clone()
    others[:, :, image] = others[:, :, at] = False
    second = SecondRoute(text[..., 0], image, others[:, None])
    # 0: as it is, 1: hidden, 2: emptied, 3: emptied and the picture too
    state = torch.randint(4, (len(visible), 1, 1), generator=generator)
    gates, images = visible[:, :, at] & text, visible[:, :, image] & text
    visible[:, :, at] &= ~text | (state == 0)
    visible[:, :, image] &= ~text | (state != 3)
    columns = [visible, gates & (state >= 2), images & (state == 3)]
    return RouteMask(torch.cat(columns, dim=2)[:, None], ((at, "emptied"), (image, "emptied")), second)


def training_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch head key d_head"],
    value: Float[Tensor, "batch head key d_head"],
    attention_mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    route: RouteMask | None = None,
    **kwargs: object,
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """Scaled dot-product attention under a route's mask; without one (the vision tower), full attention."""
    # The bfloat16 backward pass of fused attention is four times slower on a CPU than float32's.
    dtype = query.dtype
    query, key, value = query.float(), key.float(), value.float()
    if route is None:
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2).contiguous().to(dtype), None
    if route.second is not None:
        route.second.note(query, key, scaling)
    keys, values = [key], [value]
    for at, what in route.extra:
        k, v = key[:, :, at], value[:, :, at]
        keys.append(k.roll(1, 0) if what == "another's" else k)
        values.append(v.roll(1, 0) if what == "another's" else torch.zeros_like(v))
    key, value = torch.cat(keys, dim=2), torch.cat(values, dim=2)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=route.visible, scale=scaling)
    return out.transpose(1, 2).contiguous().to(dtype), None


def register() -> None:
    """Makes ``attn_implementation="gatelens_training"`` known to transformers in this process."""
    AttentionInterface.register(ATTENTION, training_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
