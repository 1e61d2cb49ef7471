"""From token ids to a TokenMap: whose pictures are where, by the family's layout alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.errors import InputError
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, Plan
from gatelens.tokens import Role, TokenMap

Sizes = Sequence[Sequence[tuple[int, int]]]
# how far before the first image token its marker may stand: Emu3 writes the picture's size in between
_HEADER = 24


@dataclass
class _Found:
    """The tokens of one picture in a prompt: image tokens or placeholders, and what stands between."""

    positions: list[int]
    plan: Plan
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

    ``image_sizes``: (width, height) of the original pictures, per example, for placeholders only; without
    it boxes are in processed pixels. ``tensors``: what else goes to the model, for ``layout.evidence``.
    Raises InputError when padding is not on the left, or placeholders do not make whole pictures, or their
    number differs from the pictures given.
    """
    return read(layout, input_ids, attention_mask, image_sizes, strings, tensors)[0]


def read(
    layout: Layout,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    image_sizes: Sizes | None = None,
    strings: Sequence[Sequence[str]] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> tuple[TokenMap, list[list[Plan]]]:
    """:func:`token_map`, and the plans of the pictures that came as placeholders, per example."""
    ids = input_ids.tolist()
    batch, n_pos = len(ids), len(ids[0]) if ids else 0
    mask = [[1] * n_pos] * batch if attention_mask is None else attention_mask.tolist()
    roles = torch.zeros(batch, n_pos, dtype=torch.long)
    image_index, row, col, tile, block = (torch.full((batch, n_pos), -1) for _ in range(5))
    box = torch.full((batch, n_pos, 4), float("nan"))
    evidence = {name: (tensors or {})[name] for name in layout.evidence if name in (tensors or {})}
    sizes, plans = [], []
    seen = 0
    for b in range(batch):
        start = mask[b].index(1) if 1 in mask[b] else n_pos
        if 0 in mask[b][start:]:
            raise InputError(f"prompt {b} is padded on its right or inside: pad on the left only")
        given = None if image_sizes is None else list(image_sizes[b])
        own = _row_of_prompt(layout, tensors or {}, b, batch)
        pictures = _pictures(layout, ids[b], start, b, given, evidence, seen, own)
        plans.append([one.plan for one in pictures if not one.drawn])
        seen += len(plans[-1])
        for i, one in enumerate(pictures):
            where = torch.tensor(one.positions)
            roles[b, where] = torch.where(one.plan.breaks, int(Role.ROW_BREAK), int(Role.IMAGE))
            image_index[b, where] = i
            row[b, where], col[b, where], tile[b, where] = one.plan.row, one.plan.col, one.plan.tile
            box[b, where] = one.plan.box
        sizes.append(tuple(one.plan.size for one in pictures))
        _markers(layout, ids[b], start, [one.positions for one in pictures], roles[b], image_index[b])
        _text(layout, ids[b], start, roles[b], image_index[b])
        if layout.two_way is not None:
            types = (tensors or {}).get("token_type_ids")
            block[b] = _two_way(layout, roles[b], image_index[b], None if types is None else types[b])
    names = strings if strings is not None else [[str(t) for t in example] for example in ids]
    return (
        TokenMap(
            roles,
            image_index,
            row,
            col,
            box,
            tuple(sizes),
            tuple(tuple(s) for s in names),
            n_pos,
            tile=tile,
            two_way=block,
        ),
        plans,
    )


def _two_way(layout: Layout, roles: Tensor, image_index: Tensor, types: Tensor | None) -> Tensor:
    """Numbers of the blocks that attend both ways. ``types``: transformers' token types, where given.

    They are 1 at pictures where those attend both ways, and 0 in a prompt that does (1 in what follows it).
    """
    if layout.two_way == "image":
        mine, number = roles == Role.IMAGE, image_index
        return torch.where(mine if types is None else mine & (types.cpu() == 1), number, -1)
    mine = roles != Role.PAD
    return torch.where(mine if types is None else mine & (types.cpu() == 0), 0, -1)


def _row_of_prompt(layout: Layout, tensors: Mapping[str, Tensor], b: int, batch: int) -> dict[str, Tensor]:
    """The row of prompt ``b`` of each tensor in ``layout.evidence_by_prompt``. Raises InputError."""
    found = {name: tensors[name] for name in layout.evidence_by_prompt if name in tensors}
    for name, tensor in found.items():
        if len(tensor) != batch:
            raise InputError(f"{name} has {len(tensor)} rows for {batch} prompts: give one a prompt")
    return {name: tensor[b] for name, tensor in found.items()}


def _runs(layout: Layout, ids: list[int], start: int) -> list[tuple[bool, list[int]]]:
    """Stretches of image tokens of one kind, which nothing but inner ids and markers interrupts."""
    drawn_ids = layout.drawn.ids if layout.drawn is not None else frozenset()
    runs: list[tuple[bool, list[int]]] = []
    for p in range(start, len(ids)):
        drawn = ids[p] in drawn_ids
        if drawn or ids[p] == layout.placeholder_id:
            if not runs or runs[-1][0] != drawn or not layout.joins(ids[runs[-1][1][-1] + 1 : p]):
                runs.append((drawn, []))
            runs[-1][1].append(p)
    return runs


def _pictures(
    layout: Layout,
    ids: list[int],
    start: int,
    b: int,
    given: list[tuple[int, int]] | None,
    evidence: Mapping[str, Tensor],
    seen: int,
    own: Mapping[str, Tensor],
) -> list[_Found]:
    """A drawn picture may be unfinished; placeholders must make whole pictures."""
    out: list[_Found] = []
    n_given = 0
    for drawn, positions in _runs(layout, ids, start):
        at = 0
        while at < len(positions):
            if drawn:
                plan = _drawn_plan(layout, ids, positions[at:])
            else:
                size = given[n_given] if given is not None and n_given < len(given) else None
                rows = {k: v[seen + n_given] for k, v in evidence.items() if seen + n_given < len(v)}
                if given is not None and size is None:
                    raise InputError(
                        f"prompt {b} has placeholders for more than the {len(given)} picture(s) given"
                    )
                stretch = tuple(ids[positions[at] : positions[-1] + 1])
                plan = layout.plan(Picture(size, len(positions) - at, {**rows, **own}, stretch))
                n_given += 1
                if len(plan) > len(positions) - at or not len(plan):
                    raise InputError(
                        f"prompt {b} has {len(positions)} image placeholders from position {positions[0]}, "
                        f"and one picture takes {len(plan)}: give whole pictures"
                    )
            out.append(_Found(positions[at : at + len(plan)], plan, drawn))
            at += len(plan)
    if given is not None and len(given) != n_given:
        raise InputError(f"prompt {b} has placeholders for {n_given} picture(s), and {len(given)} were given")
    return out


def _drawn_plan(layout: Layout, ids: list[int], positions: list[int]) -> Plan:
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
        first = torch.tensor(
            [int((row == r).nonzero()[0]) if (row == r).any() else 0 for r in range(int(row[-1]) + 1)]
        )
        col = torch.arange(len(positions)) - first[row]
        shape = (int(row.max()) + 1, int(col.max()) + 1)
    box = torch.stack([col, row, col + 1, row + 1], dim=1).float() * drawn.cell
    size = (round(shape[1] * drawn.cell), round(shape[0] * drawn.cell))
    return Plan(row, col, torch.zeros_like(row), box, torch.zeros_like(row, dtype=torch.bool), size)


def _markers(
    layout: Layout, ids: list[int], start: int, pictures: list[list[int]], roles: Tensor, image_index: Tensor
) -> None:
    """What stands before, between and after the tokens of each picture."""
    taken = start
    for i, positions in enumerate(pictures):
        first, last = positions[0], positions[-1]
        own = set(positions)
        for p in range(first, last):
            if p not in own:
                roles[p], image_index[p] = Role.ROW_BREAK, i
        begins = [p for p in range(max(taken, first - _HEADER), first) if ids[p] in layout.boi_ids]
        if begins:
            # markers in a row are one marker (tile names after it); else the one nearest to the picture
            begin = begins[-1]
            while begin - 1 >= taken and ids[begin - 1] in layout.boi_ids:
                begin -= 1
            roles[begin:first], image_index[begin:first] = Role.BOI, i
        end = last + 1
        while end < len(ids) and ids[end] in layout.inner_ids and ids[end] not in layout.eoi_ids:
            end += 1
        if end < len(ids) and ids[end] in layout.eoi_ids:
            roles[last + 1 : end], image_index[last + 1 : end] = Role.ROW_BREAK, i
            roles[end], image_index[end] = Role.EOI, i
            taken = end + 1
        else:
            taken = last + 1


def _text(layout: Layout, ids: list[int], start: int, roles: Tensor, image_index: Tensor) -> None:
    """Roles of everything that is no image token. Without an image, all text but BOS is the query."""
    image = ((roles == Role.IMAGE) | (roles == Role.ROW_BREAK)).tolist()
    first_image = image.index(True) if True in image else start
    seen = 0
    for p in range(start, len(ids)):
        if image[p]:
            seen = int(image_index[p]) + 1
        elif roles[p] in (Role.BOI, Role.EOI):
            continue
        elif ids[p] in layout.boi_ids and ids[p] not in layout.eoi_ids:
            roles[p], image_index[p] = Role.BOI, seen  # a picture is about to be drawn
        elif ids[p] in layout.eoi_ids and ids[p] not in layout.boi_ids:
            roles[p] = Role.EOI
        else:
            leading_bos = p == start and ids[p] == layout.bos_id
            roles[p] = Role.SYSTEM if p < first_image or leading_bos else Role.QUERY
