"""Prompts and comparisons that the tests of the model and of its hooks share."""

from __future__ import annotations

from torch import Tensor

from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from tiny_models import make_picture

TOLERANCE = 1e-5
TEXTS = ["this <image> and <image> what color", "<image> is it ?", "what is it"]
PICTURES = [[make_picture(20, 30), make_picture(16, 16, 2)], [make_picture(24, 16, 4)], []]
CASES = {
    "one image": (PICTURES[1], TEXTS[1]),
    "two images": (PICTURES[0], TEXTS[0]),
    "text alone": (None, TEXTS[2]),
    "left-padded batch": (PICTURES, TEXTS),
}


def close(got: Tensor, want: Tensor, inputs: VLMInputs | None = None) -> bool:
    """Equal to TOLERANCE; with ``inputs``, at its real positions.

    A padding row sees nothing: what it attends to then is up to the kernel, in transformers as well.
    """
    difference = (got - want).abs()
    if inputs is not None:
        difference = difference[inputs.tensors["attention_mask"].bool()]
    return bool(difference.max() <= TOLERANCE)


def no_hook_left(model: HookedVLM) -> bool:
    points = model.bridge.hook_dict.values()
    return not any(p.fwd_hooks or p.bwd_hooks or p._forward_hooks or p._backward_hooks for p in points)
