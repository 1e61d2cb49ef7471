"""From pictures and text, or from tensors, to a batch whose every position is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from gatelens.errors import GatelensError, InputError, ModelError
from gatelens.families.common.reading import read as read_layout
from gatelens.hooked_model import HookedModel, check_room
from gatelens.hub_errors import one_line
from gatelens.inputs import Images, VLMInputs, match_images
from gatelens.model.foreign_inputs import origin_of
from gatelens.model.input_checks import (
    as_tensor,
    as_text,
    as_texts,
    check_counts,
    check_finite,
    check_in_memory,
    checked_ids,
    checked_pixels,
    checked_rest,
    only_known,
)
from gatelens.pictures import load_image
from gatelens.tokens import position_ids


def prepare(model: HookedModel, images: Images, text: str | Sequence[str], chat: bool) -> VLMInputs:
    """Images and prompts as a left-padded batch; see :meth:`gatelens.model.HookedVLM.prepare`."""
    if model.processor is None:
        raise ModelError("this model has no processor: pass processor= to from_module, or use inputs(...)")
    if not isinstance(chat, bool):
        raise InputError(f"chat={chat!r}: give True or False")
    texts = as_texts(text)
    written = [as_written(model, one, chat) for one in texts]
    pictures = match_images(images, written, model.layout.placeholder)
    with model.lock:  # a tokenizer keeps how it pads between its calls
        tensors = _processed(model, pictures, written)
    built = model.inputs(images=pictures, **only_known(model, tensors))
    return dataclasses.replace(built, texts=tuple(texts), single=isinstance(text, str))


def _processed(model: HookedModel, pictures: list[list[Any]], written: list[str]) -> dict[str, Any]:
    """What the processor makes of a batch. Raises InputError where it cannot."""
    if len(written) > 1 and model.tokenizer is not None and model.tokenizer.pad_token_id is None:
        # the attention mask says what is padding, so any token will do
        model.tokenizer.pad_token = model.tokenizer.eos_token
    process = model.layout.process or model.family.process or partial(_by_the_processor, model)
    try:
        tensors = dict(process(model.processor, pictures, written))
    except GatelensError:
        raise
    except Exception as error:  # processors have no errors of their own
        raise InputError(
            f"the processor cannot take these pictures and prompts: {one_line(error)}"
        ) from error
    if "input_ids" not in tensors:
        raise ModelError(
            "the processor gives no input_ids: give from_module one that takes images= and text="
        )
    return tensors


def _by_the_processor(
    model: HookedModel, processor: Any, pictures: list[list[Any]], written: list[str]
) -> Any:
    return processor(
        images=[picture for one in pictures for picture in one] or None,
        text=written,
        padding=len(written) > 1,
        padding_side="left",
        return_tensors="pt",
        **model.family.processor_kwargs,
    )


def as_turn(model: HookedModel, text: str) -> str:
    """A prompt as one user turn; see :meth:`gatelens.model.HookedVLM.as_turn`."""
    text = as_text(text)
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
    check_in_memory(model)
    ids = checked_ids(model, input_ids)
    mask = (
        _leading_pad_mask(model, ids)
        if attention_mask is None
        else as_tensor("attention_mask", attention_mask)
    )
    if mask.ndim == 1 and len(ids) == 1:
        mask = mask.unsqueeze(0)
    pixels, rest = checked_pixels(model, pixel_values), checked_rest(model, ids, rest)
    originals = _originals(images, len(ids))
    sizes = None if images is None else [[picture.size for picture in one] for one in originals]
    strings = None
    if model.tokenizer is not None:
        strings = [model.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    tokens, plans = read_layout(model.layout, ids, mask, sizes, strings, rest)
    mask = mask.long()
    rows = check_counts(model, plans, pixels, rest)
    check_finite(model, plans, pixels)
    tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), **rest}
    if pixels is not None:
        tensors["pixel_values"] = pixels
    if model.family.complete is not None:
        tensors = {**tensors, **model.family.complete(model.hf, tensors)}
    check_room(model, tensors["position_ids"])
    moved = {name: value.to(model.device) for name, value in tensors.items()}
    return VLMInputs(moved, tokens, originals, ("",) * len(ids), rows=rows, made_for=origin_of(model))


def _originals(images: Any, batch: int) -> tuple[tuple[Image.Image, ...], ...]:
    """The original pictures of each prompt. Raises InputError unless there is one list a prompt."""
    if images is None:
        return ((),) * batch
    lists = isinstance(images, (list, tuple)) and all(isinstance(one, (list, tuple)) for one in images)
    if not lists or len(images) != batch:
        raise InputError(f"images must be a list of {batch} list(s) of pictures, one per prompt")
    return tuple(
        tuple(load_image(picture, f"picture {i} of prompt {b}") for i, picture in enumerate(one))
        for b, one in enumerate(images)
    )


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
