"""Layout: which token ids of a family mean an image, and what its image tokens show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gatelens.families.common.plan import Picture, PicturePlan


@dataclass(frozen=True)
class Drawn:
    """Ids that are image tokens themselves (a VQ vocabulary), as in a picture the model draws.

    ``cell``: pixels a token's side shows. ``rows``, ``cols``: of a picture; ``cols`` None where row breaks
    (``Layout.inner_ids``) tell the rows, and then ``rows`` is not needed.
    """

    ids: frozenset[int] = field(repr=False)
    cell: float
    rows: int | None = None
    cols: int | None = None


@dataclass(frozen=True)
class Layout:
    """The image tokens of a family.

    ``placeholder_id`` stands once for every token of a picture; ``plan`` says what they are, in order.
    ``boi_ids``, ``eoi_ids``: markers before and after a picture. ``inner_ids``: what may stand between the
    tokens of one picture (row breaks, tile markers). ``bos_id`` is what a prompt starts with.
    ``placeholder``: what the processor looks for in a prompt; ``written``: what a person writes for a picture
    when that takes more (``<image>`` in a prompt is replaced by it). ``evidence``: names of tensors with a
    row a picture that ``plan`` reads, ``evidence_by_prompt``: with a row a prompt. ``two_way``: whether
    ``image`` tokens of a picture, or the whole ``prompt``, attend in both directions. ``pixels``: whether
    rows of ``pixel_values`` go by ``picture`` or by ``example``. ``within``: whether the ids between two
    placeholders stand inside one picture, where that takes more than being ``inner_ids``. ``process``: goes
    before ``Family.process``, for processing that needs numbers of the config.
    """

    placeholder_id: int
    plan: Callable[[Picture], PicturePlan]
    drawn: Drawn | None = None
    boi_ids: frozenset[int] = frozenset()
    eoi_ids: frozenset[int] = frozenset()
    inner_ids: frozenset[int] = frozenset()
    bos_id: int | None = None
    placeholder: str = "<image>"
    written: str | None = None
    evidence: tuple[str, ...] = ()
    evidence_by_prompt: tuple[str, ...] = ()
    two_way: str | None = None
    pixels: str = "picture"
    within: Callable[[list[int]], bool] | None = None
    process: Callable[[Any, list[list[Any]], list[str]], dict[str, Tensor]] | None = None

    @property
    def boi_id(self) -> int | None:
        """The begin-of-image marker; None without one."""
        return min(self.boi_ids, default=None)

    @property
    def eoi_id(self) -> int | None:
        """The end-of-image marker; None without one."""
        return min(self.eoi_ids, default=None)

    def joins(self, between: list[int]) -> bool:
        """Whether image tokens with these ids between them belong to one stretch."""
        if not between or self.within is None:
            return all(i in self.inner_ids for i in between)
        return self.within(between)
