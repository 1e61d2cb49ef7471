"""The selector language against brute-force set algebra, and its error messages."""

from __future__ import annotations

import contextlib
import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelens.errors import SelectorError
from gatelens.tokens import Role, Selection, TokenMap

ROLES = list(Role)


def make_map(
    roles: list[list[int]],
    index: list[list[int]] | None = None,
    prompt: int | None = None,
    strings: list[list[str]] | None = None,
) -> TokenMap:
    """A map with given roles; image tokens belong to image 0 unless told, each 10 pixels wide."""
    r = torch.tensor(roles)
    image = r == Role.IMAGE
    i = torch.where(image, 0, -1) if index is None else torch.tensor(index)
    column = torch.arange(r.shape[1]).expand_as(r)
    box = torch.stack([column * 10, column * 0, column * 10 + 10, column * 0 + 10], dim=-1).float()
    box = torch.where(image[..., None], box, torch.nan)
    place = torch.where(image, column, -1)
    sizes = tuple(((r.shape[1] * 10, 10),) * (int(row.max()) + 1) for row in i)
    words = tuple(map(tuple, strings or [["t" for _ in row] for row in roles]))
    return TokenMap(r, i, torch.where(image, 0, -1), place, box, sizes, words, prompt or r.shape[1])


@st.composite
def maps(draw: st.DrawFn) -> TokenMap:
    n_pos, n_pad = draw(st.integers(1, 12)), draw(st.integers(0, 3))
    roles = draw(st.lists(st.sampled_from(ROLES[1:]), min_size=n_pos, max_size=n_pos))
    row = [Role.PAD] * n_pad + [int(r) for r in roles]
    words = draw(st.lists(st.sampled_from(["red", "cup", "cups"]), min_size=len(row), max_size=len(row)))
    return make_map([row], prompt=draw(st.integers(1, len(row))), strings=[words])


NAMES = ["pad", "system", "boi", "image", "row_break", "eoi", "query", "generated"]
NAMES += ["text", "last", "first_image", "last_image", "all", "prompt"]
ATOMS = [
    'word("cup")',
    "word('red')[0]",
    'word("cup")[-1]',
    'word("red cup")',
    "generated[0]",
    "generated[1:3]",
]


class Missing(Exception):
    """What the selector must raise an error for."""


def brute_atom(atom: str, t: TokenMap) -> set[int]:
    roles, words = t.roles[0].tolist(), t.strings[0]
    if atom.startswith("generated"):
        places = [0] if atom == "generated[0]" else [1, 2]
        if places == [0] and t.n_pos == t.prompt_length:
            raise Missing
        return {t.prompt_length + n for n in places if t.prompt_length + n < t.n_pos} & {
            p for p, role in enumerate(roles) if role == Role.GENERATED
        }
    wanted = atom.split(atom[5])[1].split()
    text = [p for p, role in enumerate(roles) if role in (Role.SYSTEM, Role.QUERY, Role.GENERATED)]
    found = [
        set(range(p, p + len(wanted)))
        for p in text
        if list(words[p : p + len(wanted)]) == wanted and set(range(p, p + len(wanted))) <= set(text)
    ]
    if not found:
        raise Missing
    return set().union(*found) if atom.endswith(")") else found[int(atom.split("[")[1][:-1])]


def brute(name: str, t: TokenMap) -> set[int]:
    if name in ATOMS:
        return brute_atom(name, t)
    roles = t.roles[0].tolist()
    real = {p for p, r in enumerate(roles) if r != Role.PAD}
    image = [p for p, r in enumerate(roles) if r == Role.IMAGE]
    derived = {
        "text": {p for p in real if roles[p] in (Role.QUERY, Role.GENERATED)},
        "last": {t.prompt_length - 1} & real,
        "first_image": set(image[:1]),
        "last_image": set(image[-1:]),
        "all": real,
        "prompt": {p for p in real if p < t.prompt_length},
    }
    return (
        derived[name] if name in derived else {p for p, r in enumerate(roles) if Role(r).name.lower() == name}
    )


# an expression is a name, ("~", e), or (op, left, right)
EXPRESSIONS = st.recursive(
    st.sampled_from(NAMES + ATOMS),
    lambda e: st.one_of(st.tuples(st.just("~"), e), st.tuples(st.sampled_from("|&-"), e, e)),
    max_leaves=8,
)


def text_of(e: object) -> str:
    """With parentheses round everything, so that precedence plays no part."""
    if isinstance(e, str):
        return e
    assert isinstance(e, tuple)
    return f"~({text_of(e[1])})" if e[0] == "~" else f"({text_of(e[1])}) {e[0]}({text_of(e[2])})"


def set_of(e: object, t: TokenMap) -> set[int]:
    if isinstance(e, str):
        return brute(e, t)
    assert isinstance(e, tuple)
    if e[0] == "~":
        return brute("all", t) - set_of(e[1], t)
    a, b = set_of(e[1], t), set_of(e[2], t)
    return a | b if e[0] == "|" else a & b if e[0] == "&" else a - b


def agrees(selector: str | Selection, e: object, t: TokenMap) -> None:
    """The selector is the set of the expression, or an error where the expression names what is not there."""
    try:
        want = set_of(e, t)
    except Missing:
        with pytest.raises(SelectorError, match=r"does not occur|is not there"):
            t.mask(selector)
        return
    assert set(t.positions(selector)) == want


@given(maps(), EXPRESSIONS)
@settings(max_examples=200, deadline=None)
def test_any_expression_is_set_algebra(t: TokenMap, e: object) -> None:
    agrees(text_of(e), e, t)


def bare_text_of(e: object, binding: int = 0) -> str:
    """With no more parentheses than Python needs."""
    if isinstance(e, str):
        return e
    assert isinstance(e, tuple)
    own = {"|": 1, "&": 2, "-": 3, "~": 4}[e[0]]
    if e[0] == "~":
        text = f"~{bare_text_of(e[1], own)}"
    else:
        text = f"{bare_text_of(e[1], own)} {e[0]} {bare_text_of(e[2], own + 1)}"
    return text if own >= binding else f"({text})"


def object_of(e: object) -> Selection:
    if isinstance(e, str):
        return Selection.parse(e)
    assert isinstance(e, tuple)
    if e[0] == "~":
        return ~object_of(e[1])
    a, b = object_of(e[1]), object_of(e[2])
    return a | b if e[0] == "|" else a & b if e[0] == "&" else a - b


@given(maps(), EXPRESSIONS)
@settings(max_examples=200, deadline=None)
def test_text_objects_and_sets_agree(t: TokenMap, e: object) -> None:
    made, written = object_of(e), bare_text_of(e)
    agrees(made, e, t)
    agrees(written, e, t)
    assert str(made) == written
    again = Selection.parse(str(made))
    assert again == made and again.node == made.node


@given(maps(), st.lists(st.sampled_from(NAMES), min_size=2, max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_precedence_is_pythons(t: TokenMap, names: list[str], data: st.DataObject) -> None:
    """The same line as text, as Python's own sets and as Python's own operators on selections."""
    ops = data.draw(st.lists(st.sampled_from("|&-"), min_size=len(names) - 1, max_size=len(names) - 1))
    text = names[0] + "".join(f" {op} {name}" for op, name in zip(ops, names[1:], strict=True))
    sets = {name: brute(name, t) for name in NAMES}
    objects = {name: Selection.parse(name) for name in NAMES}
    scope = {"__builtins__": {}}
    assert set(t.positions(text)) == eval(text, scope, sets)
    assert set(t.positions(eval(text, scope, objects))) == set(t.positions(text))


def test_what_a_mixed_line_means() -> None:
    t = make_map([[S, X, X, Q, Q]])
    assert t.positions("image | query - last_image") == [1, 2, 3, 4]
    assert t.positions("(image | query) - last_image") == [1, 3, 4]
    assert t.positions("image - last_image & first_image") == [1]
    assert t.positions("~image - last") == [0, 3]
    assert t.positions("image" - Selection.parse("last_image")) == [1]
    assert str("query" | Selection.parse("image") - "last_image") == "query | image - last_image"


@given(maps(), EXPRESSIONS)
@settings(max_examples=100, deadline=None)
def test_padding_only_through_pad(t: TokenMap, e: object) -> None:
    with contextlib.suppress(SelectorError):
        if "pad" in text_of(e):
            return
        assert not set(t.positions(text_of(e))) & brute("pad", t)


@given(maps(), EXPRESSIONS, EXPRESSIONS)
@settings(max_examples=50, deadline=None)
def test_selection_objects_combine_like_text(t: TokenMap, a: object, b: object) -> None:
    x, y = Selection.parse(text_of(a)), Selection.parse(text_of(b))
    with contextlib.suppress(Missing):
        set_of(a, t), set_of(b, t)
        combine(x, y, t)


def combine(x: Selection, y: Selection, t: TokenMap) -> None:
    for made, written in [(x | y, "|"), (x & y, "&"), (x - y, "-")]:
        want = t.mask(f"({x}) {written} ({y})")
        assert torch.equal(t.mask(made), want)
        assert torch.equal(t.mask(str(made)), want)
    assert torch.equal(t.mask(~x), t.mask(str(~x)))


S, B, X, E, Q, P = Role.SYSTEM, Role.BOI, Role.IMAGE, Role.EOI, Role.QUERY, Role.PAD


def test_gate_literal_and_first_text() -> None:
    literal = make_map([[P, S, B, X, X, E, Q, Q]], [[-1, -1, 0, 0, 0, 0, -1, -1]])
    assert literal.positions("gate") == [5]
    assert literal.positions("text - gate") == [6, 7]
    bare = make_map([[S, X, X, Q, X, X, Q, Q]], [[-1, 0, 0, -1, 1, 1, -1, -1]])
    assert bare.positions("gate") == [3, 6]  # one per image
    assert bare.positions("text - gate") == [7]
    at_the_end = make_map([[S, X, X]])
    assert at_the_end.positions("gate") == []
    assert at_the_end.extend(2).positions("gate") == [3]


@given(st.integers(0, 9), st.integers(0, 6), st.integers(0, 3))
def test_random_image_is_seeded(n_image: int, k: int, seed: int) -> None:
    t = make_map([[S] + [X] * n_image + [Q]])
    if k > n_image:
        with pytest.raises(SelectorError, match=f"random_image:{k}.*has {n_image} image"):
            t.mask(f"random_image:{k}")
        return
    drawn = t.positions(f"random_image:{k}@{seed}")
    assert len(drawn) == k and set(drawn) <= set(t.positions("image"))
    assert drawn == t.positions(f"random_image:{k}@{seed}")
    assert t.positions(f"random_image:{k}") == t.positions(f"random_image:{k}@0")


def test_random_image_stays_with_its_example() -> None:
    t = make_map([[S] + [X] * 50, [S] + [X] * 50])
    both = t.mask("random_image:10")
    assert not torch.equal(both[0], both[1])
    assert torch.equal(t.select([1]).mask("random_image:10")[0], both[1])
    assert not torch.equal(t.mask("random_image:10@1"), both)


def test_random_image_is_numpys_draw_for_seed_and_example() -> None:
    """Numbers of an earlier run are found again only if the draw stays this one."""
    t = make_map([[S] + [X] * 40 + [Q], [P, S] + [X] * 38 + [Q, Q]])
    for seed in (0, 3):
        for b, number in enumerate(t.example_ids):
            image = [p for p, role in enumerate(t.roles[b].tolist()) if role == Role.IMAGE]
            drawn = np.random.default_rng([seed, number]).choice(image, 7, replace=False)
            assert t.positions(f"random_image:7@{seed}", b) == sorted(drawn.tolist())


def test_positions_of_each_example_are_its_own() -> None:
    t = make_map([[P, P, S, X, Q], [S, X, X, X, Q], [S, X, X, Q, Q]])
    assert [t.positions("last_image", b) for b in range(3)] == [[3], [3], [2]]
    assert [t.positions("first_image", b) for b in range(3)] == [[3], [1], [1]]


def test_gate_after_a_row_break() -> None:
    """A picture may end with a row break: that is still the picture."""
    roles = [S, X, X, Role.ROW_BREAK, X, X, Role.ROW_BREAK, Q, Q]
    t = make_map([roles], [[-1, 0, 0, 0, 0, 0, 0, -1, -1]])
    assert t.positions("gate") == [7]


def gridded(rows: int, cols: int, width: int, height: int) -> TokenMap:
    """One picture of ``rows`` x ``cols`` cells, whose edges need not fall on pixels."""
    n = rows * cols
    t = make_map([[S] + [X] * n + [Q]])
    box = t.box.clone()
    for i in range(n):
        r, c = divmod(i, cols)
        edges = [c * width / cols, r * height / rows, (c + 1) * width / cols, (r + 1) * height / rows]
        box[0, 1 + i] = torch.tensor(edges)
    return dataclasses.replace(t, box=box, image_sizes=(((width, height),),))


def cells_that_meet(
    rows: int, cols: int, width: int, height: int, box: tuple[float, float, float, float]
) -> list[int]:
    """Positions of the cells that share more than an edge with a box, in exact fractions."""
    x0, y0, x1, y1 = (Fraction(v) for v in box)
    meeting = []
    for i in range(rows * cols):
        r, c = divmod(i, cols)
        wide = min(x1, Fraction((c + 1) * width, cols)) - max(x0, Fraction(c * width, cols))
        high = min(y1, Fraction((r + 1) * height, rows)) - max(y0, Fraction(r * height, rows))
        if wide > 0 and high > 0:
            meeting.append(1 + i)
    return meeting


GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(3, 12), st.integers(3, 12))


@given(GRIDS, st.tuples(*[st.integers(0, 24)] * 4))
@settings(max_examples=100, deadline=None)
def test_boxes_meet_cells_in_both_directions(
    grid: tuple[int, int, int, int], halves: tuple[int, int, int, int]
) -> None:
    x0, x1, y0, y1 = (h / 2 for h in halves)
    box = (min(x0, x1), min(y0, y1), max(x0, x1) + 0.5, max(y0, y1) + 0.5)
    want = cells_that_meet(*grid, box)
    assert gridded(*grid).positions("image.box({},{},{},{})".format(*box)) == want


@given(GRIDS, st.data())
@settings(max_examples=100, deadline=None)
def test_a_masked_pixel_names_every_cell_that_meets_it(
    grid: tuple[int, int, int, int], data: st.DataObject
) -> None:
    _, _, width, height = grid
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    pixels = np.zeros((height, width), dtype=bool)
    pixels[y, x] = True
    marked = gridded(*grid).mask("image.mask(one)", masks={"one": pixels})[0].nonzero().flatten().tolist()
    assert marked == cells_that_meet(*grid, (x, y, x + 1, y + 1))


def test_numbered_images_boxes_positions() -> None:
    t = make_map([[S, X, X, Q, X, X, Q]], [[-1, 0, 0, -1, 1, 1, -1]])
    assert t.positions("image[1]") == [4, 5]
    assert t.positions("image[0] | image[1]") == t.positions("image")
    assert t.positions("image.box(12, 0, 20, 5)") == [1]  # touching an edge is not an overlap
    assert t.positions("image.box(12, 0, 20.5, 5)") == [1, 2]
    assert t.positions("image[1].box(0,0,100,10)") == [4, 5]
    assert t.positions("pos[2]") == [2] and t.positions("pos[-1]") == [6]
    grown = t.extend(3)
    assert grown.positions("pos[-1]") == [6] and grown.positions("pos[-2:]") == [5, 6, 7, 8, 9]
    assert grown.positions("pos[:-5]") == [0, 1] and grown.positions([-1, 8]) == [6, 8]
    assert t.positions("pos[2:5]") == [2, 3, 4]
    assert t.positions("pos[:2]") == [0, 1] and t.positions("pos[5:]") == [5, 6]


@given(st.lists(st.lists(st.booleans(), min_size=30, max_size=30), min_size=10, max_size=10))
@settings(max_examples=25, deadline=None)
def test_pixel_mask_against_every_pixel(pixels: list[list[bool]]) -> None:
    t = make_map([[X, X, X]])
    want = [p for p in range(3) if any(pixels[y][x] for y in range(10) for x in range(p * 10, p * 10 + 10))]
    assert (
        t.mask("image.mask(dog)", masks={"dog": torch.tensor(pixels)})[0].nonzero().flatten().tolist() == want
    )


def test_several_pictures_have_a_pixel_mask_each() -> None:
    t = make_map([[X, X, X]] * 2)
    left, right = np.zeros((2, 10, 30), dtype=bool)
    left[:, :10], right[:, 20:] = True, True
    assert t.mask("image.mask(dog)", masks={"dog": [left, right]}).nonzero().tolist() == [[0, 0], [1, 2]]
    with pytest.raises(SelectorError, match=r"one array for 2 examples: give a list of 2.*\[mask\] \* 2"):
        t.mask("image.mask(dog)", masks={"dog": left})
    assert int(t.select([0, 0]).mask("image.mask(dog)", masks={"dog": left}).sum()) == 2  # one prompt twice


def test_prompts_that_are_examples_know_their_masks() -> None:
    t = make_map([[X, X, X]] * 2)
    left, right = np.zeros((2, 10, 30), dtype=bool)
    left[:, :10], right[:, 20:] = True, True
    t = dataclasses.replace(t, pixel_masks=(lambda: {"dog": left, "cat": left}, lambda: {"dog": right}))
    assert t.mask("image.mask(dog)").nonzero().tolist() == [[0, 0], [1, 2]]
    assert t.select([1]).mask("image.mask(dog)").nonzero().tolist() == [[0, 2]]
    assert t.mask("image.mask(dog)", masks={"dog": [right, left]}).nonzero().tolist() == [[0, 2], [1, 0]]
    with pytest.raises(
        SelectorError, match=r"example 1 of the batch has no pixel mask named 'cat' \(it has: dog\)"
    ):
        t.mask("image.mask(cat)")


@pytest.mark.parametrize(
    "text, message",
    [
        ("imgae", "'imgae'.*did you mean 'image'"),
        ("image - eio", "'eio'.*did you mean 'eoi'"),
        ("last_imag", "did you mean 'last_image'"),
        ("image | end-of-image", "unknown word 'end-of-image' .*did you mean 'eoi'.* or 'gate'"),
        ("", "ends too early"),
        ("image &", "ends too early"),
        ("image image", "'image' is out of place"),
        ("(image", "closing parenthesis"),
        ("image)", "'\\)' is out of place"),
        ("| image", "'\\|' where a name"),
        ("image $ eoi", r"cannot read '\$' at character 6"),
        ("image.box(1,2,3)", "four numbers"),
        ("image.box(3,0,3,9)", "empty box"),
        ("image.mask()", "names no mask"),
        ("image.mask(cat)", r"no pixel mask named 'cat' \(given: none\)"),
        ("image[2]", r"image\[2\] is not in the prompt: it has 1"),
        ("pos[9]", "position 9 is outside the 3 positions"),
        ("pos[]", "'pos\\[\\]'"),
        ("random_image:x", "'random_image:x'"),
        ("random_image:" + "9" * 5000, "unknown word 'random_image:9"),
        ("image ^ eoi", r"cannot read '\^' at character 6"),
        ("image * eoi", r"cannot read '\*'"),
        ("-image", "'-' where a name"),
        ("image.box", "unknown word 'image'|out of place|cannot read"),
        ("()", "'\\)' where a name"),
        ("image (eoi)", "'\\(' is out of place"),
        ("image\nimage", "'image' is out of place"),
        ("(" * 5000 + "image" + ")" * 5000, "nested too deeply"),
        ("~" * 20000 + "image", "nested too deeply"),
        (" - ".join(["image"] * 20000), "nested too deeply"),
    ],
)
def test_errors_name_the_offender(text: str, message: str) -> None:
    with pytest.raises(SelectorError, match=message) as caught:
        make_map([[S, X, Q]]).mask(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [5, None, b"image", ["image"]])
def test_a_selection_is_made_of_text(text: object) -> None:
    with pytest.raises(SelectorError, match=f"is a {type(text).__name__}: give text"):
        Selection.parse(text)  # type: ignore[arg-type]
    with pytest.raises(SelectorError, match="give text"):
        Selection.parse("image") | text  # type: ignore[operator]


def test_many_selections_joined_in_python() -> None:
    t = make_map([[S, X, Q]])
    joined = Selection.parse("image")
    for _ in range(100):
        joined = joined | "query" if len(joined.text) % 2 else ~(joined - "last")
    assert torch.equal(t.mask(str(joined)), t.mask(joined))
    for _ in range(20000):
        joined = joined | "query"
    with pytest.raises(SelectorError, match="nested too deeply"):
        t.mask(joined)


def test_a_words_positions_whatever_the_tokenizer_makes_of_it() -> None:
    """SentencePiece, byte-level BPE, WordPiece and whole words; a word in two pieces has both positions."""
    roles = [[S, X, Q, Q, Q, Q, Q]]

    def at(pieces: list[str], selector: str) -> list[int]:
        return make_map(roles, strings=[pieces]).positions(selector)

    spm = ["<s>", "<image>", "▁a", "▁red", "dish", "▁red", "<0x2E>"]
    assert at(spm, 'word("reddish")') == [3, 4] and at(spm, 'word("red")') == [5]
    assert at(spm, 'word("red.")') == [5, 6] and at(spm, 'word("a reddish")[0]') == [2, 3, 4]
    bpe = ["<s>", "<image>", "Two", "Ġcaf", "Ã", "©s", "Ġcup"]  # é in two tokens
    assert at(bpe, 'word("cafés")') == [3, 4, 5] and at(bpe, 'word("Two")') == [2]
    assert at(bpe, 'word("cafés cup")') == [3, 4, 5, 6]
    pieces = ["[CLS]", "<image>", "cup", "##s", "and", "cup", "!"]
    assert at(pieces, 'word("cups")') == [2, 3] and at(pieces, 'word("cup")') == [5]
    words = ["<s>", "<image>", "the", "cup", "the", "cups", "the"]
    assert at(words, 'word("the")') == [2, 4, 6] and at(words, 'word("the")[1] | word("cup")') == [3, 4]
    assert at(words, "word('the')[-1]") == [6]
    assert at(["s", "i", "it)", "-", "|", "(a", "b"], 'word("it) - | (a") - last') == [2, 3, 4, 5]
    with pytest.raises(SelectorError, match="occurs 3 time"):
        at(words, 'word("the")[3]')
    with pytest.raises(SelectorError, match=r"word\('The'\) does not occur in the text of example 0"):
        at(words, 'word("The")')
    with pytest.raises(SelectorError, match="does not occur"):
        at(["cup", "cup", *["t"] * 5], 'word("cup cup")')  # a picture stands between


def test_each_example_has_its_own_occurrences() -> None:
    t = make_map([[S, X, Q, Q], [S, X, Q, Q]], strings=[["s", "i", "a", "cup"], ["s", "i", "cup", "cup"]])
    assert [t.positions('word("cup")', b) for b in (0, 1)] == [[3], [2, 3]]
    assert [t.positions('word("cup")[0]', b) for b in (0, 1)] == [[3], [2]]
    with pytest.raises(SelectorError, match="example 1"):
        t.mask('word("a")')


def test_the_nth_generated_position() -> None:
    t = make_map([[S, X, Q]]).extend(3, strings=[["a", "cup", "cup"]])
    assert t.positions("generated[1]") == [4] and t.positions("generated[1:]") == [4, 5]
    assert t.positions("generated[:2] | image") == [1, 3, 4] and t.positions('word("cup")[1]') == [5]
    with pytest.raises(SelectorError, match=r"generated\[3\] is not there: 3 generated"):
        t.mask("generated[3]")


@given(st.text(alphabet="imagetxwordgen|&-~()[]:.,@\"' 019_p", max_size=25))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_says_why(text: str) -> None:
    with contextlib.suppress(SelectorError):
        make_map([[S, X, Q]]).mask(text)


def test_whole_numbers_of_numpy_and_torch_are_positions_and_examples() -> None:
    t = make_map([[S, X, Q], [S, X, Q]])
    for whole in (
        [np.int64(1), 2],
        np.array([1, 2]),
        torch.tensor([1, 2]),
        [torch.tensor(1), torch.tensor(2)],
    ):
        assert t.positions(whole) == [1, 2]  # type: ignore[arg-type]
    assert t.examples([np.int64(-1)]) == [1] and t.examples(torch.tensor([1, 0])) == [1, 0]  # type: ignore[arg-type]
    assert t.extend(np.int64(2)).n_pos == 5  # type: ignore[arg-type]
