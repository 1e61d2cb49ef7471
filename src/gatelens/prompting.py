"""From pictures and text, or from tensors, to a batch whose every position is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.errors import InputError, ModelError
from gatelens.families import Family, Layout
from gatelens.families.common.reading import read as read_layout
from gatelens.inputs import PER_PICTURE, Images, VLMInputs, match_images
from gatelens.tokens import position_ids
from gatelens.words import Words


class Prompting(Words):
    """What HookedVLM can do with its processor and its layout."""

    hf: Any
    cfg: Any
    family: Family
    layout: Layout
    processor: Any

    @property
    def dtype(self) -> torch.dtype:
        raise NotImplementedError

    def prepare(self, images: Images = None, text: str | Sequence[str] = "", chat: bool = False) -> VLMInputs:
        """Images and prompts as a left-padded batch; each placeholder in a prompt takes one image, in order.

        ``images``: one (PIL image, path or array), a list, or a list of lists, one a prompt. ``<image>`` in a
        prompt stands for a picture in every family; the family's own markers may be written out instead.
        ``chat``: make each prompt one user turn by the tokenizer's chat template, else the family's.
        Raises InputError when they do not match or cannot be read, ModelError without a processor.
        """
        if self.processor is None:
            raise ModelError(
                "this model has no processor: pass processor= to from_module, or use inputs(...)"
            )
        texts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
        if not texts or not all(isinstance(one, str) for one in texts):
            raise InputError("text must be a string or a list of strings, at least one")
        written = [self._written(one, chat) for one in texts]
        pictures = match_images(images, written, self.layout.placeholder)
        if len(texts) > 1 and self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = (
                self.tokenizer.eos_token
            )  # padding is told by the mask, any token will do
        process = self.layout.process or self.family.process
        if process is not None:
            tensors = process(self.processor, pictures, written)
        else:
            tensors = dict(
                self.processor(
                    images=[picture for one in pictures for picture in one] or None,
                    text=written,
                    padding=len(texts) > 1,
                    padding_side="left",
                    return_tensors="pt",
                    **self.family.processor_kwargs,
                )
            )
        built = self.inputs(images=pictures, **tensors)
        return dataclasses.replace(built, texts=tuple(texts), single=isinstance(text, str))

    def as_turn(self, text: str) -> str:
        """A prompt as one user turn, ``<image>`` still in it: by the tokenizer's chat template, else the family's.

        Raises ModelError when the template leaves the prompt out.
        """
        if getattr(self.tokenizer, "chat_template", None):
            return _user_turn(self.tokenizer, text)
        return self.family.turn.format(text)

    def _written(self, text: str, chat: bool) -> str:
        """A prompt as the processor takes it."""
        text = self.as_turn(text) if chat else text
        wanted = self.layout.written or self.layout.placeholder
        if "<image>" not in self.layout.placeholder:
            text = text.replace("<image>", wanted)
        return text

    def inputs(
        self,
        input_ids: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        pixel_values: Tensor | None = None,
        images: Sequence[Sequence[Any]] | None = None,
        **rest: Tensor,
    ) -> VLMInputs:
        """A batch from tensors, its TokenMap read off the ids.

        ``images``: the PIL originals, one list a prompt; without them pixel boxes are in processed pixels.
        ``rest``: what else this family's forward takes (``image_grid_thw``, ``image_sizes`` …). Without
        ``attention_mask`` leading padding ids are masked. Raises InputError when ids, padding and pictures
        do not fit together.
        """
        ids = torch.as_tensor(input_ids)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.is_floating_point() or 0 in ids.shape:
            raise InputError(
                f"input_ids of shape {tuple(ids.shape)}, {ids.dtype}: give whole numbers [batch, pos]"
            )
        n_ids = max(int(self.cfg.d_vocab), self.layout.placeholder_id + 1)
        if int(ids.min()) < 0 or int(ids.max()) >= n_ids:
            low, high = int(ids.min()), int(ids.max())
            raise InputError(f"input_ids hold {low}..{high}: the vocabulary ends at {n_ids - 1}")
        mask = (
            self._leading_pad_mask(ids) if attention_mask is None else torch.as_tensor(attention_mask).long()
        )
        if mask.shape != ids.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}: make them alike"
            )
        sizes = None if images is None else [[picture.size for picture in one] for one in images]
        rest = {name: torch.as_tensor(value) for name, value in rest.items() if value is not None}
        tokens, plans = read_layout(self.layout, ids, mask, sizes, self._strings(ids), rest)
        owned = self._owned_rows(plans, pixel_values, rest)
        tensors = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), **rest}
        if pixel_values is not None:
            tensors["pixel_values"] = torch.as_tensor(pixel_values).to(self.dtype)
        if self.family.complete is not None:
            tensors = {**tensors, **self.family.complete(self.hf, tensors)}
        originals = tuple(tuple(one) for one in images) if images is not None else ((),) * len(ids)
        moved = {name: value.to(self.device) for name, value in tensors.items()}
        return VLMInputs(moved, tokens, originals, ("",) * len(ids), rows=owned)

    def _owned_rows(
        self, plans: list[list[Any]], pixel_values: Tensor | None, rest: dict[str, Tensor]
    ) -> dict[str, tuple[int, ...]]:
        """How many rows of the tensors that go by picture belong to each example. Raises InputError."""
        counts = tuple(len(one) for one in plans)
        if self.layout.pixels == "example":
            if sum(counts) and pixel_values is None:
                raise InputError(
                    f"input_ids have placeholders for {sum(counts)} picture(s): give pixel_values"
                )
            return {}
        wanted = tuple(sum(plan.pixel_rows for plan in one) for one in plans)
        given = 0 if pixel_values is None else int(pixel_values.shape[0])
        if sum(wanted) != given:
            rows = "" if sum(wanted) == sum(counts) else f" of {sum(wanted)} rows"
            raise InputError(
                f"input_ids have placeholders for {sum(counts)} picture(s){rows}, pixel_values hold {given}"
            )
        owned = {"pixel_values": wanted} if pixel_values is not None else {}
        return owned | {name: counts for name in rest if name in PER_PICTURE}

    def _leading_pad_mask(self, ids: Tensor) -> Tensor:
        pad = getattr(self.tokenizer, "pad_token_id", None)
        pad = self.hf.config.get_text_config().pad_token_id if pad is None else pad
        if pad is None:
            return torch.ones_like(ids)
        eos = self.hf.config.get_text_config().eos_token_id
        ends = [*(eos if isinstance(eos, list) else [eos]), getattr(self.tokenizer, "eos_token_id", None)]
        late = (ids[:, -1] == pad) & (ids != pad).any(dim=1)
        if pad not in ends and bool(late.any()):  # where padding is the end token, one may be meant
            row = int(late.nonzero()[0])
            raise InputError(
                f"prompt {row} ends in padding (id {pad}): pad on the left, or give attention_mask"
            )
        return (ids != pad).long().cummax(dim=1).values

    def _strings(self, ids: Tensor) -> list[list[str]] | None:
        if self.tokenizer is None:
            return None
        return [self.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]


def _user_turn(tokenizer: Any, text: str) -> str:
    """A prompt by the chat template. Many image-text templates want typed pieces and lose a plain string."""
    for content in (text, [{"type": "text", "text": text}]):
        turn = [{"role": "user", "content": content}]
        written = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        if text.strip() in written:
            return written
    raise ModelError(
        "the tokenizer's chat template leaves the prompt out: write the turn yourself, without chat"
    )
