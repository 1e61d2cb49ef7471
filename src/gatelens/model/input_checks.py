"""What a user gives, checked before anything is computed: texts, ids, masks, pixels and the other tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from gatelens.bridge.parts import Parts
from gatelens.errors import InputError, ModelError, did_you_mean
from gatelens.families import PicturePlan
from gatelens.hooked_model import HookedModel
from gatelens.inputs import PER_PICTURE

_COLUMNS = {"image_sizes": 2, "image_grid_thw": 3}  # (height, width); frames, rows, columns
PER_TOKEN = frozenset({"position_ids", "token_type_ids", "mm_token_type_ids"})
# of transformers' forward arguments, those that say how a pass runs rather than what it reads, or have an argument
# of their own here
_NOT_OF_A_PROMPT = frozenset(
    {
        *("input_ids", "attention_mask", "pixel_values", "inputs_embeds", "mm_encoder_outputs"),
        *("past_key_values", "use_cache", "cache_position", "labels", "logits_to_keep", "num_logits_to_keep"),
        *("output_attentions", "output_hidden_states", "return_dict", "vision_feature_layer"),
        *("vision_feature_select_strategy", "vision_aspect_ratio", "second_per_grid_ts"),
    }
)


# --- texts and ids


def as_text(text: Any, what: str = "text") -> str:
    """One string. Raises InputError for anything else, and for what no tokenizer can read."""
    if not isinstance(text, str):
        raise InputError(f"{what} is a {type(text).__name__}: give a string")
    return as_texts(text, what)[0]


def as_texts(text: Any, what: str = "text") -> list[str]:
    """A string or several, as a list. Raises InputError as :func:`as_text` does, and for no string at all."""
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, (list, tuple)) else []
    if not texts or not all(isinstance(one, str) for one in texts):
        raise InputError(f"{what} must be a string or a list of strings, at least one")
    for i, one in enumerate(texts):
        lone = next((at for at, letter in enumerate(one) if "\ud800" <= letter <= "\udfff"), None)
        if lone is not None:
            raise InputError(
                f"{what} {i} has an unpaired surrogate, {one[lone]!r}, at index {lone}: decode the text it comes from "
                "with errors='replace'"
            )
    return texts


def as_tensor(name: str, value: Any) -> Tensor:
    """What can be one tensor of numbers in memory. Raises InputError naming it otherwise."""
    try:
        tensor = torch.as_tensor(value)
    except Exception as error:  # torch and numpy raise errors of any kind, for ragged lists and for objects
        raise InputError(
            f"{name} is a {type(value).__name__}, not a tensor: give one, or a list whose rows are equally long"
        ) from error
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{name} is not a dense tensor: give {name}.to_dense()")
    if tensor.device.type == "meta":
        raise InputError(f"{name} is on the device 'meta', which holds no values: give a tensor in memory")
    if not tensor.ndim:
        raise InputError(f"{name} is a single number: give a tensor with a row for each prompt or picture")
    return tensor


def is_whole(tensor: Tensor) -> bool:
    """Whether it holds whole numbers."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def n_ids(model: HookedModel) -> int:
    """How many token ids the model has, its placeholder among them where that stands after the vocabulary."""
    return max(int(model.cfg.d_vocab), model.layout.placeholder_id + 1)


def checked_ids(model: HookedModel, input_ids: Any) -> Int[Tensor, "batch pos"]:
    """Token ids of a batch. Raises InputError where they are not whole numbers of the vocabulary."""
    ids = as_tensor("input_ids", input_ids)
    ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
    if ids.ndim != 2 or not is_whole(ids) or 0 in ids.shape:
        raise InputError(
            f"input_ids of shape {tuple(ids.shape)}, {ids.dtype}: give whole numbers [batch, pos]"
        )
    _check_vocabulary(model, ids, "input_ids")
    return ids.long()


def rows_of_ids(model: HookedModel, ids: Any) -> list[list[int]]:
    """Rows of token ids that need not be equally long; a flat list is one row. Raises InputError otherwise."""
    if (
        not isinstance(ids, (Tensor, Sequence))
        or isinstance(ids, (str, bytes))
        or getattr(ids, "ndim", 1) == 0
    ):
        raise InputError(f"ids is a {type(ids).__name__}: give token ids, as a tensor or a list")
    nested = len(ids) > 0 and (isinstance(ids[0], Sequence) or getattr(ids[0], "ndim", 0) > 0)
    rows = []
    for row in list(ids) if nested else [ids]:
        tensor = as_tensor("ids", row)
        if tensor.ndim != 1 or not (is_whole(tensor) or not len(tensor)):
            raise InputError(
                f"ids of shape {tuple(tensor.shape)}, {tensor.dtype}: give whole numbers [batch, pos]"
            )
        if len(tensor):
            _check_vocabulary(model, tensor, "ids")
        rows.append([int(i) for i in tensor.tolist()])
    return rows


def _check_vocabulary(model: HookedModel, ids: Tensor, name: str) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= n_ids(model):
        raise InputError(f"{name} hold {low}..{high}: the vocabulary ends at {n_ids(model) - 1}")


def check_in_memory(model: HookedModel) -> None:
    """Raises ModelError for a model without weights."""
    if model.device.type == "meta":
        raise ModelError(f"{model!r} has no weights (device 'meta'): load it before you run it")


# --- pixels and what goes with them


def checked_rest(model: HookedModel, ids: Tensor, rest: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors besides ids, mask and pixels. Raises InputError for names and shapes that mean nothing here.

    transformers' forward takes any keyword and drops those it does not know.
    """
    known = _known_tensors(model)
    checked = {}
    for name, value in rest.items():
        if value is None:
            continue
        if "video" in name:
            raise InputError(f"{name}: video is not supported, give pictures")
        if known is not None and name not in known:
            near = did_you_mean(name, known | {"pixel_values", "attention_mask"})
            raise InputError(
                f"{name} is not an input of {model.family.name}{near}; besides input_ids, attention_mask and "
                f"pixel_values it reads {', '.join(sorted(known)) or 'nothing'}"
            )
        checked[name] = as_tensor(name, value)
        _check_rest(model, ids, name, checked[name])
    return checked


def _check_rest(model: HookedModel, ids: Tensor, name: str, tensor: Tensor) -> None:
    """Raises InputError for numbers that this tensor cannot hold."""
    given, whole = f"{name} is {tuple(tensor.shape)}, {tensor.dtype}", is_whole(tensor)
    if name in PER_TOKEN:
        if not whole or tensor.shape[-2:] != ids.shape or tensor.ndim > 3 or int(tensor.min()) < 0:
            raise InputError(f"{given}: give whole numbers from 0 on, {list(ids.shape)}, one per token")
    elif name in PER_PICTURE:
        columns = _COLUMNS.get(name, tensor.shape[-1])
        if not whole or tensor.ndim != 2 or tensor.shape[1] != columns or bool((tensor <= 0).any()):
            raise InputError(f"{given}: give {columns} whole numbers above 0 for each picture")
    elif name in model.layout.evidence_by_prompt and not whole:
        raise InputError(f"{given}: give whole numbers, one per prompt")


def only_known(model: HookedModel, tensors: dict[str, Any]) -> dict[str, Any]:
    """Of what a processor made, what the model reads."""
    known = _known_tensors(model)
    own = ("input_ids", "attention_mask", "pixel_values")
    return {name: value for name, value in tensors.items() if known is None or name in known or name in own}


def _arguments_of_forward(model: HookedModel) -> set[str]:
    """The arguments that forward names."""
    forwards = [model.hf.forward, *([model.hf.language_model.forward] if isinstance(model.hf, Parts) else [])]
    parameters = [p for forward in forwards for p in inspect.signature(forward).parameters.values()]
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _known_tensors(model: HookedModel) -> frozenset[str] | None:
    """Names of the tensors of a prompt that forward takes besides ids, mask and pixels; None if it names nothing."""
    names = _arguments_of_forward(model)
    if not names:
        return None
    of_prompts = {name for name in names - _NOT_OF_A_PROMPT if "video" not in name}
    return frozenset(of_prompts | {*model.layout.evidence, *model.layout.evidence_by_prompt})


def checked_pixels(model: HookedModel, pixel_values: Any) -> Tensor | None:
    """Pixels as the model's vision tower reads them. Raises InputError for another type or shape, or no tower."""
    if pixel_values is None:
        return None
    names = _arguments_of_forward(model)
    if names and "pixel_values" not in names:
        raise InputError(f"{model!r} reads no pictures: leave them out of its prompts")
    pixels = as_tensor("pixel_values", pixel_values)
    if not pixels.is_floating_point():
        raise InputError(
            f"pixel_values are {pixels.dtype}: give what the image processor makes, normalised and floating point"
        )
    if 0 in pixels.shape:
        raise InputError(f"pixel_values are empty, {tuple(pixels.shape)}: leave them out without a picture")
    check_shape(model, pixels)
    return pixels.to(model.dtype)


def check_shape(model: HookedModel, pixels: Tensor) -> None:
    """Raises InputError where the vision tower would not take a picture's pixels.

    The tower's first convolution says how many channels, or how many numbers a patch has; the plan of pictures or
    tiles of one size says which.
    """
    first = next((m for m in model.hf.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))), None)
    if first is None or isinstance(model.hf, Parts):
        return
    shape, channels = tuple(pixels.shape), first.in_channels
    if isinstance(first, nn.Conv3d):
        numbers = channels * first.kernel_size[0] * first.kernel_size[1] * first.kernel_size[2]
        if pixels.ndim != 2 or shape[-1] != numbers:
            raise InputError(
                f"pixel_values are {shape}: give [patches, {numbers}], as the image processor does"
            )
        return
    size = getattr(model.layout.plan, "pixel_size", None)
    if pixels.ndim < 4 or shape[-3] != channels or (size is not None and shape[-2:] != (size[1], size[0])):
        where = f"{size[1]}, {size[0]}" if size is not None else "height, width"
        raise InputError(
            f"pixel_values are {shape}: give [pictures, {channels}, {where}], as the image processor does"
        )


def check_counts(
    model: HookedModel, plans: list[list[PicturePlan]], pixels: Tensor | None, rest: dict[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    """How many rows of the tensors with a row per picture belong to each example.

    Raises:
        InputError: pixel values, placeholders and the other tensors do not fit together.
    """
    counts = tuple(len(one) for one in plans)
    seen = rest.get("pixel_attention_mask")
    if seen is not None and (pixels is None or seen.shape != (*pixels.shape[:-3], *pixels.shape[-2:])):
        raise InputError(
            f"pixel_attention_mask is {tuple(seen.shape)}: give pixel_values' shape without channels"
        )
    for name in PER_PICTURE & rest.keys():
        if len(rest[name]) != sum(counts):
            raise InputError(
                f"{name} has {len(rest[name])} rows for {sum(counts)} picture(s): give one for each picture"
            )
    if model.layout.pixels == "example":
        if sum(counts) and pixels is None:
            raise InputError(f"input_ids have placeholders for {sum(counts)} picture(s): give pixel_values")
        if pixels is not None and not sum(counts):
            raise InputError("input_ids have no placeholders for a picture: leave pixel_values out")
        if pixels is not None and len(pixels) != len(plans):
            raise InputError(
                f"pixel_values have {len(pixels)} rows for {len(plans)} prompt(s): give one per prompt"
            )
        return {}
    wanted = tuple(sum(plan.pixel_rows for plan in one) for one in plans)
    given = 0 if pixels is None else len(pixels)
    if sum(wanted) != given:
        of_rows = "" if sum(wanted) == sum(counts) else f" of {sum(wanted)} rows"
        raise InputError(
            f"input_ids have placeholders for {sum(counts)} picture(s){of_rows}, pixel_values hold {given}"
        )
    rows = {"pixel_values": wanted} if pixels is not None else {}
    return rows | {name: counts for name in rest if name in PER_PICTURE}


def check_finite(model: HookedModel, plans: list[list[PicturePlan]], pixels: Tensor | None) -> None:
    """Raises InputError for NaN and inf in pixels, which give finite logits of something else; names the picture."""
    if pixels is None or is_finite(pixels):
        return
    owners = _owners(model, plans)
    for row, values in enumerate(pixels):
        wrong = int((~values.isfinite()).sum())
        if wrong:
            whose = owners[row] if row < len(owners) else f"row {row} of pixel_values"
            raise InputError(
                f"{whose} has {wrong} value(s) in pixel_values that are NaN or inf: prepare it again"
            )


def is_finite(values: Tensor) -> bool:
    """Whether they are free of NaN and inf: the extremes are, in one pass without a copy."""
    return all(bool(end.isfinite()) for end in values.detach().aminmax())


def _owners(model: HookedModel, plans: list[list[PicturePlan]]) -> list[str]:
    """Whose the rows of ``pixel_values`` are, in words."""
    if model.layout.pixels == "example":
        return [f"a picture of prompt {b}" for b in range(len(plans))]
    owners = [(i, b, plan.pixel_rows) for b, one in enumerate(plans) for i, plan in enumerate(one)]
    return [f"picture {i} of prompt {b}" for i, b, n in owners for _ in range(n)]
