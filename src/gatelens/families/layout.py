"""Layout: which token ids mean an image, and the TokenMap that follows from ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import InputError
from ..tokens import Role, TokenMap
from .geometry import Geometry

Sizes = Sequence[Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Layout:
    """The image tokens of a family.

    ``placeholder_id`` stands once for every token of a picture, ``rows`` x ``cols`` of them after
    ``n_leading`` tokens with no grid place (a class token that is kept; -1 when the first cell is dropped).
    ``drawn_ids`` are ids that are image tokens themselves (a VQ vocabulary). ``bos_id`` is what a
    prompt starts with. Ids the family lacks are None.
    """

    placeholder_id: int
    rows: int
    cols: int
    geometry: Geometry
    n_leading: int = 0
    drawn_ids: frozenset[int] = field(default=frozenset(), repr=False)
    boi_id: int | None = None
    eoi_id: int | None = None
    row_break_id: int | None = None
    bos_id: int | None = None
    placeholder: str = "<image>"

    @property
    def tokens_per_image(self) -> int:
        return self.rows * self.cols + self.n_leading


@dataclass
class _Run:
    """Consecutive image tokens of one kind."""

    drawn: bool
    positions: list[int] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)


def token_map(
    layout: Layout,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    image_sizes: Sizes | None = None,
    strings: Sequence[Sequence[str]] | None = None,
) -> TokenMap:
    """Roles, image numbers, grid places and pixel boxes of a left-padded batch.

    ``image_sizes``: (width, height) of the original pictures, per example, for placeholders only; without
    it boxes are in processed pixels. Raises InputError when padding is not on the left, or placeholders
    do not make whole pictures, or their number differs from the pictures given.
    """
    ids = input_ids.tolist()
    batch, n_pos = len(ids), len(ids[0]) if ids else 0
    mask = [[1] * n_pos] * batch if attention_mask is None else attention_mask.tolist()
    roles = torch.zeros(batch, n_pos, dtype=torch.long)
    image_index, row, col = (torch.full((batch, n_pos), -1) for _ in range(3))
    box = torch.full((batch, n_pos, 4), float("nan"))
    sizes: list[tuple[tuple[int, int], ...]] = []
    for b in range(batch):
        start = mask[b].index(1) if 1 in mask[b] else n_pos
        if 0 in mask[b][start:]:
            raise InputError(f"prompt {b} is padded on its right or inside: pad on the left only")
        runs = _runs(layout, ids[b], start)
        given = None if image_sizes is None else list(image_sizes[b])
        pictures = _pictures(layout, runs, b, given)
        out: list[tuple[int, int]] = []
        for i, (run, size) in enumerate(pictures):
            out.append(size)
            image_index[b, run.positions + run.breaks] = i
            roles[b, run.positions], roles[b, run.breaks] = Role.IMAGE, Role.ROW_BREAK
            _place(layout, run, size, row[b], col[b], box[b])
        sizes.append(tuple(out))
        _text(layout, ids[b], start, roles[b], image_index[b])
    names = strings if strings is not None else [[str(t) for t in example] for example in ids]
    return TokenMap(roles, image_index, row, col, box, tuple(sizes), tuple(tuple(s) for s in names), n_pos)


def _runs(layout: Layout, ids: list[int], start: int) -> list[_Run]:
    runs: list[_Run] = []
    inside = False
    for p in range(start, len(ids)):
        token = ids[p]
        drawn = token in layout.drawn_ids
        if drawn or token == layout.placeholder_id:
            if not inside or runs[-1].drawn != drawn:
                runs.append(_Run(drawn))
            runs[-1].positions.append(p)
            inside = True
        elif inside and token == layout.row_break_id:
            runs[-1].breaks.append(p)
        else:
            inside = False
    return runs


def _pictures(
    layout: Layout, runs: list[_Run], b: int, given: list[tuple[int, int]] | None
) -> list[tuple[_Run, tuple[int, int]]]:
    """One run a picture. A drawn picture may be unfinished; placeholders must make whole pictures."""
    out = []
    n_given = 0
    for run in runs:
        per = layout.rows * layout.cols if run.drawn else layout.tokens_per_image
        if not run.drawn and len(run.positions) % per:
            raise InputError(
                f"prompt {b} has {len(run.positions)} image placeholders from position {run.positions[0]}, "
                f"and one picture takes {per}: give a multiple of {per}"
            )
        for k in range(0, len(run.positions), per):
            positions = run.positions[k : k + per]
            after = run.positions[k + per] if k + per < len(run.positions) else len(run.positions) + 10**9
            one = _Run(run.drawn, positions, [p for p in run.breaks if positions[0] < p < after])
            size = layout.geometry.processed
            if not run.drawn:
                if given is not None and n_given < len(given):
                    size = given[n_given]
                n_given += 1
            out.append((one, size))
    if given is not None and len(given) != n_given:
        raise InputError(f"prompt {b} has placeholders for {n_given} picture(s), and {len(given)} were given")
    return out


def _place(layout: Layout, run: _Run, size: tuple[int, int], row: Tensor, col: Tensor, box: Tensor) -> None:
    """Write the grid place and pixel box of one picture's tokens."""
    # a drawn picture has been through no image processor: its pixels are the model's own
    how = Geometry(layout.geometry.processed) if run.drawn else layout.geometry
    boxes = how.boxes(size, layout.rows, layout.cols).float()
    first = 0 if run.drawn else layout.n_leading
    cells = torch.arange(len(run.positions)) - first
    where = torch.tensor(run.positions)[cells >= 0]
    cells = cells[cells >= 0]
    row[where], col[where], box[where] = cells // layout.cols, cells % layout.cols, boxes[cells]


def _text(layout: Layout, ids: list[int], start: int, roles: Tensor, image_index: Tensor) -> None:
    """Roles of everything that is no image token. Without an image, all text but BOS is the query."""
    image = ((roles == Role.IMAGE) | (roles == Role.ROW_BREAK)).tolist()
    first_image = image.index(True) if True in image else start
    seen = 0
    for p in range(start, len(ids)):
        if image[p]:
            seen = int(image_index[p]) + 1
        elif ids[p] == layout.boi_id:
            roles[p], image_index[p] = Role.BOI, seen
        elif ids[p] == layout.eoi_id:
            roles[p] = Role.EOI
            image_index[p] = seen - 1 if p > 0 and image[p - 1] else -1
        else:
            leading_bos = p == start and ids[p] == layout.bos_id
            roles[p] = Role.SYSTEM if p < first_image or leading_bos else Role.QUERY
