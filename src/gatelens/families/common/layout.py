"""Layout: which token ids of a family mean an image, and what its image tokens show."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gatelens.errors import ModelError
from gatelens.families.common.plan import Picture, PicturePlan


@dataclass(frozen=True)
class Drawn:
    """Ids that are image tokens themselves (a VQ vocabulary), as in a picture the model draws.

    Attributes:
        ids: the image tokens.
        cell: pixels a token's side shows.
        rows: rows of a picture; not needed where row breaks tell them.
        cols: columns of a picture; None where row breaks (``Layout.inner_ids``) tell the rows.

    Example:
        >>> drawn = gl.families.Drawn(ids=frozenset(range(100, 164)), cell=16.0, rows=8, cols=8)
        >>> drawn.rows * drawn.cols, drawn.cols * drawn.cell  # tokens of a picture, its width in pixels
        (64, 128.0)
    """

    ids: frozenset[int] = field(repr=False)
    cell: float
    rows: int | None = None
    cols: int | None = None


@dataclass(frozen=True)
class Layout:
    """The image tokens of a family.

    Attributes:
        placeholder_id: occurs once for every token of a picture.
        plan: says what the placeholders of a picture are, in order.
        drawn: ids that are image tokens themselves.
        boi_ids: markers before a picture.
        eoi_ids: markers after a picture.
        inner_ids: what may occur between the tokens of one picture (row breaks, tile markers).
        bos_id: what a prompt starts with.
        placeholder: what the processor looks for in a prompt.
        written: what a user writes for a picture if it takes more than that (``<image>`` in a prompt is replaced by
            it).
        evidence: names of tensors with a row per picture that ``plan`` reads.
        evidence_by_prompt: names of such tensors with a row per prompt.
        two_way: ``image`` where the tokens of a picture attend in both directions, ``prompt`` where all do.
        pixels: whether a row of ``pixel_values`` is a ``picture`` or an ``example``.
        within: whether the ids between two placeholders are inside one picture, where this takes more than
            being ``inner_ids``.
        process: takes precedence over ``Family.process``, for processing that needs numbers of the config.

    Raises:
        ModelError: invalid ids, or a word that is not one of those above.

    Example:
        >>> geometry = gl.Geometry((64, 64), exact=(64, 64))
        >>> layout = gl.Layout(placeholder_id=5, plan=gl.FixedGrid(8, 8, geometry), boi_ids=frozenset({6}))
        >>> layout.placeholder, layout.boi_id
        ('<image>', 6)
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

    def __post_init__(self) -> None:
        named = {"placeholder_id": {self.placeholder_id}}
        named |= {name: getattr(self, name) for name in ("boi_ids", "eoi_ids", "inner_ids")}
        for name, ids in named.items():
            if not isinstance(ids, Set) or not all(isinstance(i, int) for i in ids):
                raise ModelError(
                    f"the layout's {name} is {getattr(self, name)!r}: give token ids, whole numbers"
                )
        if not callable(self.plan):
            raise ModelError(
                f"the layout's plan is {self.plan!r}: give a function of a Picture, such as FixedGrid"
            )
        if not isinstance(self.placeholder, str) or not self.placeholder:
            raise ModelError(
                f"the layout's placeholder is {self.placeholder!r}: give the text that represents a picture"
            )
        for name, known in {"pixels": ("picture", "example"), "two_way": (None, "image", "prompt")}.items():
            if getattr(self, name) not in known:
                raise ModelError(f"the layout's {name} is {getattr(self, name)!r}: give one of {known}")

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
