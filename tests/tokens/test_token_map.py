"""TokenMap: masks of every kind, growing, sub-batches, and what is shown."""

from __future__ import annotations

import pytest
import torch

from gatelens.errors import SelectorError
from gatelens.model import HookedVLM
from gatelens.tokens import Role, Selection
from tiny_models import make_picture


def test_mask_takes_text_selection_mask_and_positions(tiny_chameleon: HookedVLM) -> None:
    tokens = tiny_chameleon.prepare(make_picture(), "this <image> is a").tokens
    by_text = tokens.mask("eoi")
    assert by_text.dtype == torch.bool and by_text.shape == (1, tokens.n_pos)
    assert torch.equal(tokens.mask(Selection.parse("eoi")), by_text)
    assert torch.equal(tokens.mask(by_text), by_text)
    assert torch.equal(tokens.mask(tokens.positions("eoi")), by_text)
    assert torch.equal(tokens.mask(range(2)), tokens.mask([0, 1]))
    assert torch.equal(tokens.mask(torch.tensor([0, -1])), tokens.mask("pos[0] | last"))


@pytest.mark.parametrize(
    "selector, message",
    [
        (torch.ones(1, 3, dtype=torch.bool), "shape"),
        ([999], "position 999 is outside"),
        (3.5, "type float"),
        ([True, False], "type list"),
        (None, "type NoneType"),
    ],
)
def test_mask_errors(tiny_chameleon: HookedVLM, selector: object, message: str) -> None:
    tokens = tiny_chameleon.prepare(make_picture(), "this <image> is a").tokens
    with pytest.raises(SelectorError, match=message):
        tokens.mask(selector)  # type: ignore[arg-type]


def test_extend_adds_generated_positions(tiny: HookedVLM) -> None:
    tokens = tiny.prepare(make_picture(), "<image> is a").tokens
    grown = tokens.extend(2, [["dog", "."]])
    assert grown.n_pos == tokens.n_pos + 2 and grown.prompt_length == tokens.prompt_length
    assert grown.positions("generated") == [tokens.n_pos, tokens.n_pos + 1]
    assert grown.positions("last") == tokens.positions("last")
    assert set(grown.positions("text")) == {*tokens.positions("text"), *grown.positions("generated")}
    assert grown.strings[0][-2:] == ("dog", ".")
    assert grown.extend(1).strings[0][-1] == ""
    assert torch.equal(grown.roles[:, : tokens.n_pos], tokens.roles)


def test_select_keeps_the_examples(tiny: HookedVLM) -> None:
    tokens = tiny.prepare(
        [make_picture(), make_picture(20, 16)], ["<image> is", "what <image> is a dog"]
    ).tokens
    second = tokens.select([1])
    assert second.batch_size == 1 and second.image_sizes == (((20, 16),),)
    for name in ("roles", "image_index", "row", "col"):
        assert torch.equal(getattr(second, name)[0], getattr(tokens, name)[1])
    assert torch.equal(tokens.select(slice(None)).roles, tokens.roles)
    assert second.strings[0] == tokens.strings[1]


def test_every_position_has_one_role_and_padding_is_left(tiny: HookedVLM) -> None:
    tokens = tiny.prepare([make_picture(), make_picture()], ["<image> is", "what <image> is a dog"]).tokens
    roles = [r.name.lower() for r in Role]
    total = sum(tokens.mask(name).long() for name in roles)
    assert torch.equal(torch.as_tensor(total), torch.ones_like(tokens.roles))
    assert tokens.positions("pad", 0) == [0, 1, 2] and tokens.positions("pad", 1) == []
    assert not (tokens.mask("~image") & tokens.mask("pad")).any()


def test_show_is_readable_as_text_and_html(tiny_chameleon: HookedVLM) -> None:
    table = tiny_chameleon.prepare(make_picture(20, 30), "this <image> animal is a").tokens.show()
    lines = str(table).splitlines()
    assert [line.split()[0] for line in lines] == ["role", "system", "boi[0]", "image[0]", "eoi[0]", "query"]
    assert "4x4 tokens, picture of 20x30 pixels" in lines[3]
    html = table._repr_html_()
    assert html.startswith("<table>") and "&lt;racm3:break&gt;" in html and "<racm3" not in html
    both = tiny_chameleon.prepare([make_picture()] * 2, ["<image> is", "<image>"]).tokens.show()
    assert str(both).splitlines()[0].startswith("example")
