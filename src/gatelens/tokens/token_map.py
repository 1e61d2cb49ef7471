"""TokenMap: the role of every position in a batch of prompts, and what every image token shows."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InputError, SelectorError, whole_number
from gatelens.tokens.positions import positions_mask
from gatelens.tokens.roles import Role
from gatelens.tokens.selectors import Selection, SelectorLike

Sizes = tuple[tuple[tuple[int, int], ...], ...]
# the tensors of a TokenMap, with their value at a generated position
_GENERATED: dict[str, float] = {
    "roles": Role.GENERATED,
    "image_index": -1,
    "row": -1,
    "col": -1,
    "box": float("nan"),
    "tile": -1,
    "two_way": -1,
}


def position_ids(attention_mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions that count real tokens only, as transformers' generate derives them from the mask."""
    return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)


@dataclass(frozen=True, eq=False, repr=False)
class TokenMap:
    """Role, image and grid place of every position of a left-padded batch. All tensors live on the CPU.

    ``example_ids`` number the examples for ``random_image``: they stay with an example in a sub-batch,
    so that its draw does not depend on which batch it is in. ``tile`` numbers the pieces of a picture
    that is cut up (0: the whole, 1..: pieces). ``two_way``: positions of one number attend to each other in
    both directions, -1 only backwards. ``pixel_masks``: where the prompts are examples of data, a function for each
    that gives its pixel masks by name.

    Example:
        >>> inputs.tokens
        TokenMap(1 x 70 positions: system 1, boi 1, image 64, eoi 1, query 3); .show() is the table
        >>> inputs.tokens.mask("image").shape, inputs.tokens.positions("gate")
        (torch.Size([1, 70]), [66])
    """

    roles: Int[Tensor, "batch pos"]
    image_index: Int[Tensor, "batch pos"]
    row: Int[Tensor, "batch pos"]
    col: Int[Tensor, "batch pos"]
    box: Float[Tensor, "batch pos 4"]
    image_sizes: Sizes
    strings: tuple[tuple[str, ...], ...]
    prompt_length: int
    example_ids: tuple[int, ...] = ()
    tile: Int[Tensor, "batch pos"] = None  # type: ignore[assignment]  # filled in below
    two_way: Int[Tensor, "batch pos"] = None  # type: ignore[assignment]
    pixel_masks: tuple[Callable[[], Mapping[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        if not self.example_ids:
            object.__setattr__(self, "example_ids", tuple(range(self.roles.shape[0])))
        if self.tile is None:
            object.__setattr__(self, "tile", torch.where(self.row >= 0, 0, -1))
        if self.two_way is None:
            object.__setattr__(self, "two_way", torch.full_like(self.roles, -1))

    def __repr__(self) -> str:
        counts = {role.name.lower(): int((self.roles == role).sum()) for role in Role}
        counted = ", ".join(f"{name} {n}" for name, n in counts.items() if n)
        return f"TokenMap({self.batch_size} x {self.n_pos} positions: {counted}); .show() is the table"

    def _repr_html_(self) -> str:
        return self.select(slice(0, 8)).show()._repr_html_()

    @property
    def batch_size(self) -> int:
        return int(self.roles.shape[0])

    @property
    def n_pos(self) -> int:
        return int(self.roles.shape[1])

    def mask(
        self, selector: SelectorLike, masks: Mapping[str, Any] | None = None
    ) -> Bool[Tensor, "batch pos"]:
        """The positions a selector names.

        ``selector``: text of the selector language, a Selection, a boolean [batch, pos] mask (taken as it
        is), or absolute positions meant for every example (padding left out; negative from the prompt's end).
        ``masks``: for ``image.mask(name)``, pixel masks of the original picture by name: an array [height, width],
        or for several prompts a list of one each. Where the prompts are examples of data, theirs are known.
        Raises SelectorError when it cannot be read or names what the prompt does not have.
        """
        if isinstance(selector, str):
            selector = Selection.parse(selector)
        if isinstance(selector, Selection):
            return selector.mask(self, masks)
        if isinstance(selector, Tensor) and selector.dtype == torch.bool:
            if tuple(selector.shape) != (self.batch_size, self.n_pos):
                raise SelectorError(
                    f"boolean selector has shape {tuple(selector.shape)}, the prompt is "
                    f"{(self.batch_size, self.n_pos)}: give one value per position"
                )
            return selector.cpu()
        positions = selector.tolist() if hasattr(selector, "tolist") else selector
        numbers = [whole_number(p) for p in positions] if isinstance(positions, Sequence) else [None]
        if isinstance(positions, str | bytes) or None in numbers:
            raise SelectorError(
                f"selector of type {type(selector).__name__} is none: give text, a boolean mask or positions"
            )
        return positions_mask(self, [p for p in numbers if p is not None])

    def positions(self, selector: SelectorLike, example: int = 0) -> list[int]:
        """Absolute positions a selector names in one example, ascending."""
        (row,) = self.examples([example])
        return self.mask(selector)[row].nonzero().flatten().tolist()

    def examples(self, which: slice | Sequence[int]) -> list[int]:
        """The numbers of examples of this batch, 0 ≤ i < batch; negative ones count from its end.

        Raises SelectorError for none, and for one that is not there.
        """
        n = self.batch_size
        values: Any = which.tolist() if hasattr(which, "tolist") else which
        try:
            numbers = list(range(n))[values] if isinstance(values, slice) else list(values)
        except (TypeError, ValueError):
            numbers = []
        for value in numbers:
            number = whole_number(value)
            if number is None or not -n <= number < n:
                raise SelectorError(f"example {value!r:.60} is not in the batch: it has {n}, counted from 0")
        if not numbers or isinstance(which, str | bytes | Mapping):
            raise SelectorError(f"{which!r:.60} names no example: give a slice or numbers from 0 to {n - 1}")
        return [int(number) % n for number in numbers]

    def extend(self, n_generated: int, strings: Sequence[Sequence[str]] | None = None) -> TokenMap:
        """This map with ``n_generated`` positions of role ``generated`` on its right."""
        n = whole_number(n_generated)
        if n is None or n < 0:
            raise SelectorError(f"n_generated={n_generated!r:.60}: give a whole number from 0 on")
        grown: dict[str, Any] = {}
        for name, value in _GENERATED.items():
            tensor = getattr(self, name)
            new = tensor.new_full((self.batch_size, n_generated, *tensor.shape[2:]), value)
            grown[name] = torch.cat([tensor, new], dim=1)
        added = strings if strings is not None else [[""] * n_generated] * self.batch_size
        words = tuple((*old, *new) for old, new in zip(self.strings, added, strict=True))
        return dataclasses.replace(self, **grown, strings=words)

    def select(self, examples: slice | Sequence[int]) -> TokenMap:
        """The map of some of the examples."""
        rows = self.examples(examples)
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[rows] for name in _GENERATED},
            image_sizes=tuple(self.image_sizes[r] for r in rows),
            strings=tuple(self.strings[r] for r in rows),
            example_ids=tuple(self.example_ids[r] for r in rows),
            pixel_masks=tuple(self.pixel_masks[r] for r in rows if self.pixel_masks),
        )

    def first(self, n_pos: int) -> TokenMap:
        """The map of the first positions.

        Raises:
            InputError: they end within a picture.
        """
        kept = []
        for b, sizes in enumerate(self.image_sizes):
            index = self.image_index[b].tolist()
            whole = [i for i in range(len(sizes)) if i not in index[n_pos:]]
            for i in set(index[:n_pos]) - {-1, *whole}:
                where = [p for p, picture in enumerate(index) if picture == i]
                raise InputError(
                    f"positions :{n_pos} cut picture {i} of prompt {b}, which stands at {where[0]}..{where[-1]}: "
                    "end before or after it"
                )
            kept.append(tuple(sizes[i] for i in whole))
        return dataclasses.replace(
            self,
            **{name: getattr(self, name)[:, :n_pos] for name in _GENERATED},
            image_sizes=tuple(kept),
            strings=tuple(words[:n_pos] for words in self.strings),
            prompt_length=min(self.prompt_length, n_pos),
        )

    def show(self) -> TokenTable:
        """Runs of one role as a table: prints as text, and as HTML in a notebook.

        Grids are rows x columns of tokens, pictures width x height in pixels.
        """
        return TokenTable(
            tuple(run for b in range(self.batch_size) for run in self._runs(b)), self.batch_size
        )

    def _runs(self, b: int) -> list[tuple[str, ...]]:
        # a picture is one line, its row breaks in it
        whole = torch.where(self.roles[b] == Role.ROW_BREAK, int(Role.IMAGE), self.roles[b])
        keys = list(zip(whole.tolist(), self.image_index[b].tolist(), strict=True))
        out: list[tuple[str, ...]] = []
        for (role, image), group in groupby(range(self.n_pos), key=keys.__getitem__):
            where = list(group)
            words = self.strings[b][where[0] : where[-1] + 1]
            shown = " ".join(words) if len(words) <= 8 and role != Role.IMAGE else f"{words[0]} … {words[-1]}"
            place = ""
            if role == Role.IMAGE:
                place = self._grid(b, where)
                if image < len(self.image_sizes[b]):
                    place += ", picture of {}x{} pixels".format(*self.image_sizes[b][image])
            span = str(where[0]) if len(where) == 1 else f"{where[0]}–{where[-1]}"
            name = Role(role).name.lower() + (f"[{image}]" if image >= 0 else "")
            out.append((str(b), name, span, str(len(where)), shown if len(words) > 1 else words[0], place))
        return out

    def _grid(self, b: int, where: list[int]) -> str:
        """The grid of one picture's tokens in words."""
        tiles = self.tile[b, where]
        whole: list[str] = []
        parts: list[str] = []
        for tile in sorted({int(t) for t in tiles if t >= 0}):
            mine = tiles == tile
            shape = "{}x{}".format(*(int(x[b, where][mine].max()) + 1 for x in (self.row, self.col)))
            (parts if tile else whole).append(shape)
        # a picture that is not cut up is its whole, without a word for it
        counted = [f"whole {shape}" if parts else shape for shape in whole]
        counted += [f"{parts.count(p)} tile{'s' * (parts.count(p) > 1)} of {p}" for p in dict.fromkeys(parts)]
        breaks = int((self.roles[b, where] == Role.ROW_BREAK).sum())
        return (
            " + ".join(counted) + " tokens" + (f", {breaks} separator{'s' * (breaks > 1)}" if breaks else "")
        )


@dataclass(frozen=True)
class TokenTable:
    """Run-length view of a TokenMap: one row per run of positions of one role."""

    rows: tuple[tuple[str, ...], ...]
    batch_size: int
    header: tuple[str, ...] = ("example", "role", "positions", "n", "tokens", "grid")

    def _table(self) -> list[tuple[str, ...]]:
        start = 0 if self.batch_size > 1 else 1  # one prompt needs no example column
        return [row[start:] for row in (self.header, *self.rows)]

    def __str__(self) -> str:
        table = [tuple(repr(cell)[1:-1] for cell in row) for row in self._table()]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            return (
                "<tr>"
                + "".join(f"<{tag} style='text-align:left'>{html.escape(c)}</{tag}>" for c in row)
                + "</tr>"
            )

        head, *body = self._table()
        return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in body)}</table>"
