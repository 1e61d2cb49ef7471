"""Whether a model can run a batch: its own, or one that was made for another model and means the same here."""

from __future__ import annotations

import uuid

import torch

from gatelens.errors import InputError
from gatelens.hooked_model import HookedModel
from gatelens.inputs import Origin, VLMInputs
from gatelens.model.input_checks import check_in_memory, is_finite
from gatelens.tokens import Role

_SCALING = (
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)  # of an image processor


def origin_of(model: HookedModel) -> Origin:
    """What tells the batches made for this model, or a copy of it, from all others."""
    kept = vars(model)
    if "_origin" not in kept:
        images = getattr(model.processor, "image_processor", None)
        scaling = [(name, getattr(images, name, None)) for name in _SCALING]
        kept.setdefault(
            "_origin",
            Origin(
                uuid.uuid4().hex,
                model.family.name,
                {
                    name: list(v) if isinstance(v, (list, tuple)) else v
                    for name, v in scaling
                    if v is not None
                },
            ),
        )
    return kept["_origin"]


def fitting(model: HookedModel, inputs: VLMInputs) -> VLMInputs:
    """The inputs themselves, when the model can run them. A batch of another model fits where this one would make the
    same of it: the same words, roles and grid places, from tensors it reads.

    Raises:
        InputError: they are of a model with another vocabulary or layout, or hold NaN or inf.
        ModelError: the model has no weights.
    """
    check_in_memory(model)
    pixels = inputs.tensors.get("pixel_values")
    if inputs.made_for != origin_of(model):
        try:
            prompts = inputs[:, : inputs.tokens.prompt_length]  # what was written after them is not a prompt
            misfit = _other_origin(inputs, origin_of(model)) or _misfit(prompts, _made_again(model, prompts))
        except InputError as error:
            raise InputError(
                f"these inputs were not made for {model!r}, and do not fit it: {error}"
            ) from error
        if misfit:
            raise InputError(
                f"these inputs were not made for {model!r}, and do not fit it: {misfit}; prepare them with it"
            )
    elif pixels is not None and not is_finite(pixels):
        _made_again(model, inputs)  # names the picture
    if pixels is not None and _coarser(pixels.dtype, model.dtype):
        raise InputError(
            f"pixel_values are {pixels.dtype}, coarser than the model's {model.dtype}: prepare them with it"
        )
    return inputs


def _coarser(given: torch.dtype, computed: torch.dtype) -> bool:
    """Whether numbers of one type say less than those of another."""
    return not given.is_floating_point or torch.finfo(given).eps > torch.finfo(computed).eps


def _other_origin(inputs: VLMInputs, here: Origin) -> str | None:
    """Why a batch of the model it comes from cannot be one of this model's; None where nothing is known."""
    there = inputs.made_for
    if there is None:
        return None
    if there.family != here.family:
        return f"they are of the family {there.family}"
    for name in there.scaling if "pixel_values" in inputs.tensors else ():
        if name in here.scaling and there.scaling[name] != here.scaling[name]:
            return f"pixels were scaled with {name} {there.scaling[name]}, here with {here.scaling[name]}"
    return None


def _made_again(model: HookedModel, inputs: VLMInputs) -> VLMInputs:
    """The prompts as this model makes them from the same tensors. Raises InputError where it cannot."""
    given = {
        name: value for name, value in inputs.tensors.items() if name not in ("input_ids", "position_ids")
    }
    return model.inputs(
        inputs.tensors["input_ids"], images=inputs.images if any(inputs.images) else None, **given
    )


def _misfit(inputs: VLMInputs, again: VLMInputs) -> str | None:
    """In what a batch differs from what another model made of it; None where they are the same."""
    lacking = again.tensors.keys() - inputs.tensors.keys()
    if lacking:
        return f"{', '.join(sorted(lacking))} is missing"
    old, new = inputs.tokens, again.tokens
    for b, row in enumerate(inputs.tensors["input_ids"].tolist()):
        words = list(zip(map(str, row), old.strings[b], new.strings[b], strict=True))
        if all(i == word for i, word, _ in words) or all(i == word for i, _, word in words):
            continue  # one of the models has no tokenizer: unknown
        other = next(((i, then, now) for i, then, now in words if then != now), None)
        if other is not None:
            return f"id {other[0]} is {other[1]!r} there and {other[2]!r} here"
    for name in ("roles", "image_index", "row", "col", "tile"):
        differ = (getattr(old, name) != getattr(new, name)).nonzero()
        if len(differ):
            b, p = differ[0].tolist()
            then, now = (int(getattr(tokens, name)[b, p]) for tokens in (old, new))
            if name == "roles":
                was, is_now = (Role(role).name.lower() for role in (then, now))
                return f"position {p} of prompt {b} is {was} there and {is_now} here"
            return f"the image token at position {p} of prompt {b} has {name} {then} there and {now} here"
    return None
