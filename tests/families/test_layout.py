"""Token maps from ids alone: roles, image numbers, grid places and drawn pictures."""

from __future__ import annotations

import pytest
import torch

from gatelens.errors import InputError
from gatelens.families import Drawn, FixedGrid, Geometry, Layout, token_map
from gatelens.tokens import Role

PH, BOI, EOI, NL, BOS, D = 5, 6, 7, 9, 1, 100  # D.. are drawn codes
S, B, X, R, E, Q, P = Role.SYSTEM, Role.BOI, Role.IMAGE, Role.ROW_BREAK, Role.EOI, Role.QUERY, Role.PAD
MARKED = Layout(
    PH,
    FixedGrid(2, 2, Geometry((20, 20))),
    drawn=Drawn(frozenset(range(D, D + 9)), 10, 2, 2),
    boi_ids=frozenset({BOI}),
    eoi_ids=frozenset({EOI}),
    inner_ids=frozenset({NL}),
    bos_id=BOS,
)
BARE = Layout(PH, FixedGrid(2, 2, Geometry((20, 20))), bos_id=BOS)


def roles(layout: Layout, ids: list[int], mask: list[int] | None = None) -> list[int]:
    return (
        token_map(layout, torch.tensor([ids]), None if mask is None else torch.tensor([mask]))
        .roles[0]
        .tolist()
    )


def test_marked_images() -> None:
    ids = [0, BOS, 20, BOI, PH, PH, PH, PH, EOI, 21, BOI, PH, PH, PH, PH, EOI, 22]
    t = token_map(MARKED, torch.tensor([ids]), torch.tensor([[0] + [1] * 16]), [[(40, 40), (10, 20)]])
    assert t.roles[0].tolist() == [P, S, S, B, X, X, X, X, E, Q, B, X, X, X, X, E, Q]
    assert t.image_index[0].tolist() == [-1, -1, -1, 0, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1, 1, -1]
    assert t.row[0, 4:8].tolist() == [0, 0, 1, 1] and t.col[0, 4:8].tolist() == [0, 1, 0, 1]
    assert t.row[0, [0, 3, 8]].tolist() == [-1] * 3 and t.box[0, 3].isnan().all()
    assert t.image_sizes == (((40, 40), (10, 20)),)
    assert t.prompt_length == 17


def test_images_without_markers() -> None:
    ids = [BOS, PH, PH, PH, PH, PH, PH, PH, PH, 20]
    t = token_map(BARE, torch.tensor([ids]))
    assert t.roles[0].tolist() == [S, X, X, X, X, X, X, X, X, Q]
    assert t.image_index[0].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert t.positions("gate") == [5, 9]


def test_text_alone_is_query_but_bos() -> None:
    assert roles(BARE, [BOS, 20, 21]) == [S, Q, Q]
    assert roles(BARE, [0, BOS, 20], [0, 1, 1]) == [P, S, Q]
    assert roles(BARE, [20, 21]) == [Q, Q]


def test_stray_markers_belong_to_no_image() -> None:
    t = token_map(MARKED, torch.tensor([[BOS, 20, EOI, 21, BOI]]))
    assert t.roles[0].tolist() == [S, Q, E, Q, B]
    assert t.image_index[0].tolist() == [-1, -1, -1, -1, 0]  # a picture may be drawn after the last one
    assert t.positions("gate") == []


def test_drawn_pictures_are_images_and_may_be_unfinished() -> None:
    t = token_map(
        MARKED, torch.tensor([[BOS, 20, BOI, D, D + 1, D + 2, D + 3, EOI, 21, BOI, D + 4, D + 5, D + 6]])
    )
    assert t.roles[0].tolist() == [S, S, B, X, X, X, X, E, Q, B, X, X, X]
    assert t.image_index[0, 10:].tolist() == [1, 1, 1] and t.row[0, 10:].tolist() == [0, 0, 1]
    assert t.image_sizes == (((20, 20), (20, 20)),)
    assert t.box[0, 12].tolist() == [0, 10, 10, 20]
    beside = token_map(MARKED, torch.tensor([[PH, PH, PH, PH, D, D, D, D]]), None, [[(40, 40)]])
    assert beside.image_index[0].tolist() == [0] * 4 + [1] * 4
    assert beside.image_sizes == (((40, 40), (20, 20)),)  # only placeholders stand for given pictures


def test_row_breaks() -> None:
    t = token_map(MARKED, torch.tensor([[BOI, PH, PH, NL, PH, PH, NL, EOI, NL, 20]]))
    assert t.roles[0].tolist() == [B, X, X, R, X, X, R, E, Q, Q]
    assert t.image_index[0].tolist() == [0] * 8 + [-1] * 2
    assert t.row[0, [1, 2, 4, 5]].tolist() == [0, 0, 1, 1] and t.positions("gate") == [7]


@pytest.mark.parametrize("n_leading, cells", [(1, [-1, 0, 1, 2, 3]), (0, [0, 1, 2, 3]), (-1, [1, 2, 3])])
def test_class_token_has_no_place(n_leading: int, cells: list[int]) -> None:
    layout = Layout(PH, FixedGrid(2, 2, Geometry((20, 20)), n_leading))
    t = token_map(layout, torch.tensor([[PH] * len(cells)]))
    assert t.mask("image").all()
    assert t.row[0].tolist() == [c // 2 if c >= 0 else -1 for c in cells]
    assert t.col[0].tolist() == [c % 2 if c >= 0 else -1 for c in cells]
    assert t.box[0, :, 0].isnan().tolist() == [c < 0 for c in cells]
    assert set(t.positions("image.box(0,0,20,20)")) == {p for p, c in enumerate(cells) if c >= 0}


@pytest.mark.parametrize(
    "ids, mask, sizes, message",
    [
        ([PH] * 3, None, None, "prompt 0 has 3 image placeholders from position 0, and one picture takes 4"),
        ([PH] * 4, None, [[]], r"prompt 0 has placeholders for more than the 0 picture\(s\) given"),
        ([PH] * 4, None, [[(9, 9)] * 2], "and 2 were given"),
        ([1, 2, 3], [1, 1, 0], None, "prompt 0 is padded on its right"),
    ],
)
def test_what_does_not_fit_is_named(
    ids: list[int], mask: list[int] | None, sizes: list, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        token_map(BARE, torch.tensor([ids]), None if mask is None else torch.tensor([mask]), sizes)
