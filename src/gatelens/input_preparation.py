"""From pictures and text, or from tensors, to a batch whose every position is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.errors import InputError, ModelError
from gatelens.families import Layout
from gatelens.families.common.reading import read as read_layout
from gatelens.hooked_model import HookedModel, check_room
from gatelens.inputs import PER_PICTURE, Images, VLMInputs, match_images
from gatelens.tokens import position_ids


def prepare(model: HookedModel, images: Images, text: str | Sequence[str], chat: bool) -> VLMInputs:
    """Images and prompts as a left-padded batch; see :meth:`gatelens.model.HookedVLM.prepare`."""
    if model.processor is None:
        raise ModelError("this model has no processor: pass processor= to from_module, or use inputs(...)")
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise InputError("text must be a string or a list of strings, at least one")
    written = [as_written(model, one, chat) for one in texts]
    pictures = match_images(images, written, model.layout.placeholder)
    with model.lock:  # a tokenizer keeps how it pads between its calls
        tensors = _processed(model, pictures, written)
    built = model.inputs(images=pictures, **tensors)
    return dataclasses.replace(built, texts=tuple(texts), single=isinstance(text, str))


def _processed(model: HookedModel, pictures: list[list[Any]], written: list[str]) -> dict[str, Any]:
    if len(written) > 1 and model.tokenizer.pad_token_id is None:
        # the attention mask says what is padding, so any token will do
        model.tokenizer.pad_token = model.tokenizer.eos_token
    process = model.layout.process or model.family.process
    if process is not None:
        return process(model.processor, pictures, written)
    return dict(
        model.processor(
            images=[picture for one in pictures for picture in one] or None,
            text=written,
            padding=len(written) > 1,
            padding_side="left",
            return_tensors="pt",
            **model.family.processor_kwargs,
        )
    )


def as_turn(model: HookedModel, text: str) -> str:
    """A prompt as one user turn; see :meth:`gatelens.model.HookedVLM.as_turn`."""
    if not getattr(model.tokenizer, "chat_template", None):
        return model.family.turn.format(text)
    # many image-text templates want typed pieces and lose a plain string
    for content in (text, [{"type": "text", "text": text}]):
        turn = [{"role": "user", "content": content}]
        written = model.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if text.strip() in written:
            return written
    raise ModelError(
        "the tokenizer's chat template leaves the prompt out: write the turn yourself, without chat"
    )


def as_written(model: HookedModel, text: str, chat: bool) -> str:
    """A prompt as the processor takes it: one turn if ``chat``, the family's placeholders for ``<image>``."""
    text = as_turn(model, text) if chat else text
    if "<image>" in model.layout.placeholder:
        return text
    return text.replace("<image>", model.layout.written or model.layout.placeholder)


def from_tensors(
    model: HookedModel,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None,
    pixel_values: Tensor | None,
    images: Sequence[Sequence[Any]] | None,
    rest: dict[str, Any],
) -> VLMInputs:
    """A batch from tensors; see :meth:`gatelens.model.HookedVLM.inputs`."""
    ids = _checked_ids(model, input_ids)
    given = attention_mask
    mask = _leading_pad_mask(model, ids) if given is None else torch.as_tensor(given).long()
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}: make them alike"
        )
    sizes = None if images is None else [[picture.size for picture in one] for one in images]
    rest = {name: torch.as_tensor(value) for name, value in rest.items() if value is not None}
    strings = None
    if model.tokenizer is not None:
        strings = [model.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    tokens, plans = read_layout(model.layout, ids, mask, sizes, strings, rest)
    rows = _rows_by_example(model.layout, plans, pixel_values, rest)
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), **rest}
    if pixel_values is not None:
        tensors["pixel_values"] = torch.as_tensor(pixel_values).to(model.dtype)
    if model.family.complete is not None:
        tensors = {**tensors, **model.family.complete(model.hf, tensors)}
    check_room(model, tensors["position_ids"])
    originals = tuple(tuple(one) for one in images) if images is not None else ((),) * len(ids)
    moved = {name: value.to(model.device) for name, value in tensors.items()}
    return VLMInputs(moved, tokens, originals, ("",) * len(ids), rows=rows)


def _checked_ids(model: HookedModel, input_ids: Any) -> Int[Tensor, "batch pos"]:
    """Token ids of a batch. Raises InputError where they are no whole numbers of the vocabulary."""
    ids = torch.as_tensor(input_ids)
    ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
        raise InputError(
            f"input_ids of shape {tuple(ids.shape)}, {ids.dtype}: give whole numbers [batch, pos]"
        )
    n_ids = max(int(model.cfg.d_vocab), model.layout.placeholder_id + 1)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= n_ids:
        raise InputError(f"input_ids hold {low}..{high}: the vocabulary ends at {n_ids - 1}")
    return ids


def _leading_pad_mask(model: HookedModel, ids: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """0 at leading padding ids, 1 elsewhere. Raises InputError for a prompt that ends in padding."""
    text_config = model.hf.config.get_text_config()
    pad = getattr(model.tokenizer, "pad_token_id", None)
    pad = text_config.pad_token_id if pad is None else pad
    if pad is None:
        return torch.ones_like(ids)
    eos = text_config.eos_token_id
    ends = [*(eos if isinstance(eos, list) else [eos]), getattr(model.tokenizer, "eos_token_id", None)]
    late = (ids[:, -1] == pad) & (ids != pad).any(dim=1)
    if pad not in ends and bool(late.any()):  # where padding is the end token, one may be meant
        row = int(late.nonzero()[0])
        raise InputError(f"prompt {row} ends in padding (id {pad}): pad on the left, or give attention_mask")
    return (ids != pad).long().cummax(dim=1).values


def _rows_by_example(
    layout: Layout, plans: list[list[Any]], pixel_values: Tensor | None, rest: dict[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """How many rows of the tensors that go by picture belong to each example.

    Raises:
        InputError: pixel values and placeholders do not fit together.
    """
    counts = tuple(len(one) for one in plans)
    if layout.pixels == "example":
        if sum(counts) and pixel_values is None:
            raise InputError(f"input_ids have placeholders for {sum(counts)} picture(s): give pixel_values")
        return {}
    wanted = tuple(sum(plan.pixel_rows for plan in one) for one in plans)
    given = 0 if pixel_values is None else int(pixel_values.shape[0])
    if sum(wanted) != given:
        of_rows = "" if sum(wanted) == sum(counts) else f" of {sum(wanted)} rows"
        raise InputError(
            f"input_ids have placeholders for {sum(counts)} picture(s){of_rows}, pixel_values hold {given}"
        )
    rows = {"pixel_values": wanted} if pixel_values is not None else {}
    return rows | {name: counts for name in rest if name in PER_PICTURE}
