"""What every check works on: the wrapped model, the plain one, and a few prompts with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image, ImageOps
from torch import Tensor

from gatelens.data import load
from gatelens.errors import GatelensError, ModelError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from gatelens.tokens import Role
from gatelens.verification.bounds import bound_of, distance, nearest
from gatelens.verification.plain import WAYS, Plain
from gatelens.verification.row import FAIL, NOT_APPLICABLE, PASS

SHORT = "<image> this is a"
LONG = "this <image> is what color and left of the animal"
TWO = "<image> and <image> left of"
_PART = 1 << 21  # words summed at once


class NotApplicable(Exception):
    """Why a check says nothing of this model."""


@dataclass(frozen=True)
class Outcome:
    """What a check found: ``measured`` must be at most ``bound``; ``effect`` is what the edit does to plain logits."""

    status: str
    reason: str = ""
    measured: float | None = None
    bound: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Check:
    """One check: its name, its group, what is compared, and the function that does it."""

    group: str
    name: str
    what: str
    measure: Callable[[Bench], Outcome] = field(repr=False)

    @property
    def key(self) -> str:
        """What a result file knows it by."""
        return f"{self.group}/{self.name}"


def default_pictures() -> list[Image.Image]:
    """Two pictures of the shipped scenes."""
    return [e.image for e in load("emoji-scenes").examples("class", limit=2) if e.image is not None]


class Bench:
    """Both models and the prompts.

    Attributes:
        model: the wrapped one.
        plain: transformers', with the same weights.
        pictures: two of one size.
        sums: of the bits of every weight, before wrapping where that was possible.
    """

    def __init__(
        self,
        model: HookedVLM,
        plain: Plain,
        pictures: Sequence[Image.Image] | None = None,
        sums: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        if model.processor is None:
            raise ModelError(
                "the model has no processor, which makes the prompts that are compared: give one"
            )
        given = list(pictures or default_pictures())
        self.model, self.plain, self.sums = model, plain, sums or weight_sums(plain.hf)
        self.pictures = [given[0].convert("RGB"), given[-1].convert("RGB")]
        if len(given) == 1:
            self.pictures[1] = ImageOps.mirror(self.pictures[0])
        self.n_layers = int(model.cfg.n_layers)
        self.middle = self.n_layers // 2
        self._ways: dict[int, list[Tensor]] = {}

    # --- prompts

    @cached_property
    def one(self) -> VLMInputs:
        """One picture and a short text."""
        return self.model.prepare(self.pictures[0], SHORT)

    @cached_property
    def batch(self) -> VLMInputs:
        """Two prompts; the first, which is ``one``, with padding on its left."""
        return self.model.prepare([[picture] for picture in self.pictures], [SHORT, LONG])

    @cached_property
    def two(self) -> VLMInputs:
        """Two pictures in one prompt."""
        try:
            return self.model.prepare(self.pictures, TWO)
        except GatelensError as error:
            raise NotApplicable(f"it takes no two pictures here: {error}") from error

    @cached_property
    def others(self) -> VLMInputs:
        """The batch with other pictures: the same with their colours inverted."""
        inverted = [[ImageOps.invert(picture)] for picture in self.pictures]
        return self.model.prepare(inverted, [SHORT, LONG])

    # --- what both models give

    def ways(self, inputs: VLMInputs) -> list[Tensor]:
        """The plain logits in every way that should give the same."""
        if id(inputs) not in self._ways:
            self._ways[id(inputs)] = [self.plain.logits(inputs.tensors, way) for way in WAYS]
        return self._ways[id(inputs)]

    def compare(
        self,
        got: Sequence[Tensor],
        ways: Sequence[Tensor],
        where: Bool[Tensor, "batch pos"],
        clean: Tensor | None = None,
    ) -> Outcome:
        """Each of ``got`` against plain logits; with ``clean``, what plain transformers gives without the edit.

        Raises NotApplicable where the edit moves no plain logit by more than the bound: then a lost one would not show.
        """
        bound = bound_of(ways, where)
        effect = None if clean is None else distance(ways[0], clean, where)
        if effect is not None and effect <= bound:
            raise NotApplicable(
                f"the edit moves plain logits by {effect:.2g}, which is within rounding ({bound:.2g})"
            )
        measured = max(nearest(ways, one, where) for one in got)
        return judged(measured, bound, effect)


def judged(measured: float, bound: float, effect: float | None = None, reason: str = "") -> Outcome:
    """Pass or fail by the bound."""
    return Outcome(PASS if measured <= bound else FAIL, reason, measured, bound, effect)


def counted(wrong: Sequence[str], n: int, things: str, fault: str) -> Outcome:
    """Pass where none of ``n`` things is wrong; the reason names the first that are."""
    if not wrong:
        return Outcome(PASS, f"{n} {things}, none {fault}", 0.0, 0.0)
    named = f"{', '.join(wrong[:4])}{' …' if len(wrong) > 4 else ''}"
    return Outcome(FAIL, f"{len(wrong)} of {n} {things} {fault}: {named}", float(len(wrong)), 0.0)


def outcome_of(check: Check, bench: Bench) -> Outcome:
    """What a check finds; an exception in it is a failure with its name."""
    try:
        return check.measure(bench)
    except NotApplicable as why:
        return Outcome(NOT_APPLICABLE, str(why))
    except Exception as error:  # whatever goes wrong in either model is what is asked
        return Outcome(FAIL, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def weight_sums(hf: Any) -> dict[str, tuple[str, int]]:
    """By name the dtype and a sum over the bits of every parameter; another weight, or two swapped, give another."""
    found = {}
    for name, value in hf.named_parameters():
        if value.device.type == "meta":
            continue
        bits = value.detach().reshape(-1).contiguous().view(torch.uint8)
        whole = len(bits) // 4 * 4
        total = int(bits[whole:].long().sum())
        for part in bits[:whole].view(torch.int32).split(_PART):
            places = torch.arange(len(part), device=bits.device).remainder_(1021).add_(1)
            total += int((part * places).sum())
        found[name] = (str(value.dtype), total)
    return found


def real(inputs: VLMInputs) -> Bool[Tensor, "batch pos"]:
    """Where a batch holds no padding: values at padding are meaningless."""
    return inputs.tokens.roles != Role.PAD
