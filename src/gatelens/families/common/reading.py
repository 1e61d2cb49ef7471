"""From token ids to a TokenMap: whose pictures are where, by the family's layout alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.errors import InputError
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, PicturePlan, Size
from gatelens.tokens import Role, TokenMap

Sizes = Sequence[Sequence[Size]]
# how far before the first image token its marker may stand: Emu3 writes the picture's size in between
_HEADER = 24


@dataclass
class _PictureTokens:
    """The tokens of one picture in a prompt: image tokens or placeholders, and what they show."""

    positions: list[int]
    plan: PicturePlan
    drawn: bool = False


def token_map(
    layout: Layout,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    image_sizes: Sizes | None = None,
    strings: Sequence[Sequence[str]] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> TokenMap:
    """Roles, image numbers, grid places and pixel boxes of a left-padded batch.

    Args:
        layout: the image tokens of the family.
        input_ids: the prompts.
        attention_mask: 0 at padding; None without padding.
        image_sizes: (width, height) of the original pictures, per example, for placeholders only; without it
            boxes are in processed pixels.
        strings: the tokens as text, per example.
        tensors: what else goes to the model, for ``layout.evidence``.

    Raises:
        InputError: padding is not on the left, the mask is no mask, placeholders do not make whole pictures, or
            their number differs from the pictures given.

    Example:
        >>> layout = gl.Layout(placeholder_id=5, plan=gl.FixedGrid(2, 2, gl.Geometry((64, 64), exact=(64, 64))))
        >>> tokens = gl.families.token_map(layout, torch.tensor([[1, 5, 5, 5, 5, 8]]))
        >>> tokens.mask("image").int()
        tensor([[0, 1, 1, 1, 1, 0]], dtype=torch.int32)
    """
    return read(layout, input_ids, attention_mask, image_sizes, strings, tensors)[0]


def read(
    layout: Layout,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    image_sizes: Sizes | None = None,
    strings: Sequence[Sequence[str]] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[TokenMap, list[list[PicturePlan]]]:
    """:func:`token_map`, and the plans of the pictures that came as placeholders, per example."""
    _check_batch(input_ids, attention_mask, {"image_sizes": image_sizes, "strings": strings})
    ids, tensors = input_ids.tolist(), tensors or {}
    batch, n_pos = len(ids), len(ids[0]) if ids else 0
    mask = [[1] * n_pos] * batch if attention_mask is None else attention_mask.tolist()
    columns: dict[str, Any] = {
        name: torch.full((batch, n_pos), -1) for name in ("image_index", "row", "col", "tile", "two_way")
    }
    columns["roles"] = torch.zeros(batch, n_pos, dtype=torch.long)
    columns["box"] = torch.full((batch, n_pos, 4), float("nan"))
    of_pictures = {name: tensors[name] for name in layout.evidence if name in tensors}
    of_prompts = _rows_by_prompt(layout, tensors, batch)
    sizes: list[tuple[Size, ...]] = []
    plans: list[list[PicturePlan]] = []
    for b in range(batch):
        if 1 not in mask[b]:
            raise InputError(f"prompt {b} is only padding: give it a token")
        start = mask[b].index(1)
        if 0 in mask[b][start:]:
            raise InputError(f"prompt {b} is padded on its right or inside: pad on the left only")
        first = sum(map(len, plans))
        prompt = _Prompt(
            layout,
            b,
            ids[b],
            start,
            None if image_sizes is None else list(image_sizes[b]),
            {name: tensor[first:] for name, tensor in of_pictures.items()},
            {name: tensor[b] for name, tensor in of_prompts.items()},
        )
        pictures = prompt.pictures()
        plans.append([picture.plan for picture in pictures if not picture.drawn])
        sizes.append(tuple(picture.plan.size for picture in pictures))
        roles, image_index = columns["roles"][b], columns["image_index"][b]
        for number, picture in enumerate(pictures):
            where, plan = torch.tensor(picture.positions), picture.plan
            roles[where] = torch.where(plan.breaks, int(Role.ROW_BREAK), int(Role.IMAGE))
            image_index[where] = number
            for name in ("row", "col", "tile", "box"):
                columns[name][b, where] = getattr(plan, name)
        prompt.mark_around([picture.positions for picture in pictures], roles, image_index)
        prompt.mark_text(roles, image_index)
        types = tensors.get("token_type_ids")
        columns["two_way"][b] = _two_way(layout, roles, image_index, None if types is None else types[b])
    names = strings if strings is not None else [[str(t) for t in example] for example in ids]
    tokens = TokenMap(
        **columns,
        image_sizes=tuple(sizes),
        strings=tuple(tuple(example) for example in names),
        prompt_length=n_pos,
    )
    return tokens, plans


def _check_batch(ids: Any, mask: Any, by_prompt: Mapping[str, Any]) -> None:
    """Raises InputError for ids that are not batch, a mask that is none of it, or lists without an entry per prompt."""
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"input_ids are {shape}: give a tensor of whole numbers [batch, pos]")
    if mask is not None:
        if mask.shape != ids.shape:
            raise InputError(
                f"attention_mask is {tuple(mask.shape)}, input_ids {tuple(ids.shape)}: give both the same shape"
            )
        other = mask[(mask != 0) & (mask != 1)]
        if len(other):
            raise InputError(f"attention_mask holds {other[0].item()}: give 0 at padding and 1 at tokens")
    for name, entries in by_prompt.items():
        if entries is not None and len(entries) != len(ids):
            raise InputError(f"{name} has {len(entries)} entries for {len(ids)} prompts: give one per prompt")


def _rows_by_prompt(layout: Layout, tensors: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """The tensors in ``layout.evidence_by_prompt``. Raises InputError without a row for each prompt."""
    rows = {name: tensors[name] for name in layout.evidence_by_prompt if name in tensors}
    for name, tensor in rows.items():
        if len(tensor) != batch:
            raise InputError(f"{name} has {len(tensor)} rows for {batch} prompts: give one per prompt")
    return rows


def _two_way(layout: Layout, roles: Tensor, image_index: Tensor, types: Tensor | None) -> Tensor:
    """Numbers of the blocks that attend both ways. ``types``: transformers' token types, where given.

    They are 1 at pictures where those attend both ways, and 0 in a prompt that does (1 in what follows it).
    """
    if layout.two_way is None:
        return torch.full_like(roles, -1)
    of_picture = layout.two_way == "image"
    mine = roles == Role.IMAGE if of_picture else roles != Role.PAD
    if types is not None:
        mine = mine & (types.cpu() == (1 if of_picture else 0))
    return torch.where(mine, image_index if of_picture else 0, -1)


@dataclass
class _Prompt:
    """One prompt and what is known of its pictures.

    Attributes:
        layout: the image tokens of the family.
        number: its place in the batch.
        ids: its tokens.
        start: its first position that is not padding.
        sizes: (width, height) of the original pictures, where given.
        by_picture: tensors with a row for each picture, from this prompt's first on.
        by_prompt: this prompt's row of other tensors.
    """

    layout: Layout
    number: int
    ids: list[int]
    start: int
    sizes: list[Size] | None
    by_picture: Mapping[str, Tensor]
    by_prompt: Mapping[str, Tensor]

    def pictures(self) -> list[_PictureTokens]:
        """A drawn picture may be unfinished; placeholders must make whole pictures."""
        pictures: list[_PictureTokens] = []
        n_placed = 0
        for drawn, positions in self._stretches():
            at = 0
            while at < len(positions):
                if drawn:
                    plan = _drawn_plan(self.layout, self.ids, positions[at:])
                else:
                    plan = self._placed_plan(n_placed, positions, at)
                    n_placed += 1
                pictures.append(_PictureTokens(positions[at : at + len(plan)], plan, drawn))
                at += len(plan)
        if self.sizes is not None and len(self.sizes) != n_placed:
            raise InputError(
                f"prompt {self.number} has placeholders for {n_placed} picture(s), and {len(self.sizes)} were given"
            )
        return pictures

    def _stretches(self) -> list[tuple[bool, list[int]]]:
        """(whether they are drawn, positions) of image tokens that only inner ids and markers interrupt."""
        layout, ids = self.layout, self.ids
        drawn_ids = layout.drawn.ids if layout.drawn is not None else frozenset()
        stretches: list[tuple[bool, list[int]]] = []
        for p in range(self.start, len(ids)):
            drawn = ids[p] in drawn_ids
            if drawn or ids[p] == layout.placeholder_id:
                last = stretches[-1] if stretches else None
                if last is None or last[0] != drawn or not layout.joins(ids[last[1][-1] + 1 : p]):
                    stretches.append((drawn, []))
                stretches[-1][1].append(p)
        return stretches

    def _placed_plan(self, n: int, positions: list[int], at: int) -> PicturePlan:
        """The plan of the prompt's ``n``-th picture, whose placeholders begin at ``positions[at]``."""
        if self.sizes is not None and n >= len(self.sizes):
            raise InputError(
                f"prompt {self.number} has placeholders for more than the {len(self.sizes)} picture(s) given"
            )
        size = None if self.sizes is None else self.sizes[n]
        rows = {name: tensor[n] for name, tensor in self.by_picture.items() if n < len(tensor)}
        stretch = tuple(self.ids[positions[at] : positions[-1] + 1])
        left = len(positions) - at
        plan = self.layout.plan(Picture(size, left, {**rows, **self.by_prompt}, stretch))
        if len(plan) > left or not len(plan):
            raise InputError(
                f"prompt {self.number} has {len(positions)} image placeholders from position {positions[0]}, "
                f"and one picture takes {len(plan)}: give whole pictures"
            )
        return plan

    def mark_around(self, pictures: list[list[int]], roles: Tensor, image_index: Tensor) -> None:
        """What comes before, between and after the tokens of each picture."""
        ids, boi_ids, eoi_ids = self.ids, self.layout.boi_ids, self.layout.eoi_ids
        taken = self.start
        for i, positions in enumerate(pictures):
            first, last = positions[0], positions[-1]
            own = set(positions)
            for p in range(first, last):
                if p not in own:
                    roles[p], image_index[p] = Role.ROW_BREAK, i
            begins = [p for p in range(max(taken, first - _HEADER), first) if ids[p] in boi_ids]
            if begins:
                # markers in a row are one marker (tile names after it); else the one nearest to the picture
                begin = begins[-1]
                while begin - 1 >= taken and ids[begin - 1] in boi_ids:
                    begin -= 1
                roles[begin:first], image_index[begin:first] = Role.BOI, i
            end = last + 1
            while end < len(ids) and ids[end] in self.layout.inner_ids and ids[end] not in eoi_ids:
                end += 1
            taken = last + 1
            if end < len(ids) and ids[end] in eoi_ids:
                roles[taken:end], image_index[taken:end] = Role.ROW_BREAK, i
                roles[end], image_index[end] = Role.EOI, i
                taken = end + 1

    def mark_text(self, roles: Tensor, image_index: Tensor) -> None:
        """Roles of everything that is not an image token. Without an image, all text but BOS is the query."""
        ids, boi_ids, eoi_ids = self.ids, self.layout.boi_ids, self.layout.eoi_ids
        image = ((roles == Role.IMAGE) | (roles == Role.ROW_BREAK)).tolist()
        first_image = image.index(True) if True in image else self.start
        seen = 0
        for p in range(self.start, len(ids)):
            if image[p]:
                seen = int(image_index[p]) + 1
            elif roles[p] in (Role.BOI, Role.EOI):
                continue
            elif ids[p] in boi_ids and ids[p] not in eoi_ids:
                roles[p], image_index[p] = Role.BOI, seen  # a picture is about to be drawn
            elif ids[p] in eoi_ids and ids[p] not in boi_ids:
                roles[p] = Role.EOI
            else:
                leading_bos = p == self.start and ids[p] == self.layout.bos_id
                roles[p] = Role.SYSTEM if p < first_image or leading_bos else Role.QUERY


def _drawn_plan(layout: Layout, ids: list[int], positions: list[int]) -> PicturePlan:
    """Cells of a picture written as codes; its pixels are the model's own, no processor has touched them."""
    drawn = layout.drawn
    assert drawn is not None
    if drawn.cols is not None and drawn.rows is not None:
        cells = torch.arange(min(len(positions), drawn.rows * drawn.cols))
        row, col = cells // drawn.cols, cells % drawn.cols
        shape = (drawn.rows, drawn.cols)
    else:
        breaks = torch.tensor([i in layout.inner_ids for i in ids]).cumsum(0)[positions]
        row = breaks - breaks[0]
        col = torch.arange(len(positions)) - torch.searchsorted(
            row, row
        )  # from the first token of the row on
        shape = (int(row.max()) + 1, int(col.max()) + 1)
    box = torch.stack([col, row, col + 1, row + 1], dim=1).float() * drawn.cell
    size = (round(shape[1] * drawn.cell), round(shape[0] * drawn.cell))
    return PicturePlan(row, col, torch.zeros_like(row), box, torch.zeros_like(row, dtype=torch.bool), size)
