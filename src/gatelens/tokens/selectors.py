"""The selector language: naming token positions by role.

Operators are Python's own, with Python's precedence, in text as between :class:`Selection` objects: ``~`` (not)
binds tightest, then ``-`` (but not), then ``&`` (and), then ``|`` (or). Operators of one kind go from left to right.
What they combine is::

    NAME | "random_image:" K ["@" SEED] | "pos[" i [":" j] "]" | "generated[" i [":" j] "]"
         | "word(" QUOTED ")" ["[" i "]"]
         | "image" ["[" i "]"] [".box(" x0 "," y0 "," x1 "," y1 ")" | ".mask(" NAME ")"]

No selector but ``pad`` ever yields a padding position: ``~x`` means "every real position but x".
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from gatelens.errors import SelectorError, did_you_mean
from gatelens.tokens.positions import (
    DERIVED,
    ROLE_NAMES,
    Both,
    Generated,
    Image,
    Masks,
    Name,
    Node,
    Not,
    Pos,
    PromptPositions,
    RandomImage,
    Word,
)

NAMES = (*ROLE_NAMES, *DERIVED)
KNOWN = (
    *NAMES,
    "random_image:K",
    "random_image:K@SEED",
    "image[i]",
    "image.box(x0,y0,x1,y1)",
    "image.mask(name)",
    "pos[i]",
    "pos[i:j]",
    "generated[i]",
    "generated[i:j]",
    'word("…")',
    'word("…")[i]',
)
_BINDING = {"|": 1, "&": 2, "-": 3}
_BINDING_NOT, _BINDING_ATOM = 4, 5


@dataclass(frozen=True)
class Selection:
    """A parsed selector; selections combine with ``| & - ~`` as their text does. ``str`` gives that text.

    Example:
        >>> words = gl.Selection.parse("text") - gl.Selection.parse("gate")
        >>> str(words), inputs.tokens.positions(words)
        ('text - gate', [67, 68, 69])
    """

    text: str
    node: Node = field(repr=False, compare=False)

    @staticmethod
    def parse(text: str) -> Selection:
        """Raises SelectorError naming the word that cannot be read."""
        if not isinstance(text, str):
            raise SelectorError(f"selector {text!r:.80} is a {type(text).__name__}: give text")
        text = re.sub(r"\s", " ", text)  # messages are one line
        if not text.isprintable():
            raise SelectorError(
                f"selector {text!a:.80} has characters that cannot be printed: leave them out"
            )
        try:
            return _parse(text)
        except (RecursionError, MemoryError):
            raise _too_deep(text) from None

    def mask(self, tokens: PromptPositions, masks: Masks | None = None) -> Bool[Tensor, "batch pos"]:
        """Positions it names. ``masks``: pixel masks by the names used in ``image.mask(name)``."""
        try:
            return self.node.mask(tokens, masks or {})
        except RecursionError:
            raise _too_deep(self.text) from None

    def _part(self, binding: int) -> str:
        """The text, in parentheses where it binds less tightly."""
        own = _BINDING_ATOM
        if isinstance(self.node, Both):
            own = _BINDING[self.node.op]
        elif isinstance(self.node, Not):
            own = _BINDING_NOT
        return self.text if own >= binding else f"({self.text})"

    def __or__(self, other: Selection | str) -> Selection:
        return _combined("|", self, other)

    def __ror__(self, other: Selection | str) -> Selection:
        return _combined("|", other, self)

    def __and__(self, other: Selection | str) -> Selection:
        return _combined("&", self, other)

    def __rand__(self, other: Selection | str) -> Selection:
        return _combined("&", other, self)

    def __sub__(self, other: Selection | str) -> Selection:
        return _combined("-", self, other)

    def __rsub__(self, other: Selection | str) -> Selection:
        return _combined("-", other, self)

    def __invert__(self) -> Selection:
        return Selection(f"~{self._part(_BINDING_NOT)}", Not(self.node))

    def __str__(self) -> str:
        return self.text


SelectorLike = str | Selection | Bool[Tensor, "batch pos"] | Sequence[int]


def _combined(op: str, left: Selection | str, right: Selection | str) -> Selection:
    a, b = (one if isinstance(one, Selection) else Selection.parse(one) for one in (left, right))
    binding = _BINDING[op]  # of two alike the left one goes first, so the right one needs parentheses
    return Selection(f"{a._part(binding)} {op} {b._part(binding + 1)}", Both(op, a.node, b.node))


def _too_deep(text: str) -> SelectorError:
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    return SelectorError(
        f"selector '{shown}' is nested too deeply or has too many parts: give a boolean mask or positions instead"
    )


# --------------------------------------------------------------------------- parsing
# an operator or parenthesis, something that looks like an atom, or any other character
_SCAN = re.compile(
    r"\s*(?:([|&~()-])|(word\((?:\"[^\"]*\"|'[^']*')\)(?:\[[^\]]*\])?|(?:[A-Za-z_]\w*)(?::\w*(?:@\w*)?|(?:\[[^\]]*\])?(?:\.\w+\([^)]*\))?)?)|(\S))"
)
_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
_RANDOM = re.compile(r"random_image:(\d{1,18})(?:@(\d{1,18}))?")
_POS = re.compile(r"pos\[\s*(-?\d{1,18})?\s*(:?)\s*(-?\d{1,18})?\s*\]")
_GENERATED = re.compile(r"generated\[\s*(\d{1,18})?\s*(:?)\s*(\d{1,18})?\s*\]")
_WORD = re.compile(r"word\((?:\"([^\"]+)\"|'([^']+)')\)(?:\[\s*(-?\d{1,18})\s*\])?")
_IMAGE = re.compile(r"image(?:\[\s*(\d{1,18})\s*\])?(?:\.(box|mask)\(([^)]*)\))?")
_BOX = re.compile(",".join([_NUMBER] * 4))
_SIGNS = frozenset("|&-~()")
_OPERATORS: dict[type[ast.operator], str] = {ast.BitOr: "|", ast.BitAnd: "&", ast.Sub: "-"}


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Selection:
    words = _words(text)
    _check_order(words, text)
    atoms: list[Node] = []
    for i, word in enumerate(words):
        if word not in _SIGNS:
            words[i] = f"_{len(atoms)}"
            atoms.append(_atom(word, text))
    try:
        tree = ast.parse(" ".join(words), mode="eval")
    except SyntaxError:  # the order is right, so it is Python's limit on parentheses
        raise _too_deep(text) from None
    return Selection(text.strip(), _node(tree.body, atoms))


def _words(text: str) -> list[str]:
    words: list[str] = []
    for match in _SCAN.finditer(text.rstrip()):
        if match[3]:
            raise SelectorError(
                f"cannot read '{match[3]}' at character {match.start(3)} of selector '{text}'"
            )
        words.append(match[1] or match[2])
    return words


def _check_order(words: Sequence[str], text: str) -> None:
    """Raises SelectorError for the first word that is not allowed where it is."""
    wants_name, depth = True, 0
    for word in words:
        if wants_name:
            if word in ("|", "&", "-", ")"):
                raise SelectorError(f"selector '{text}' has '{word}' where a name should stand")
            wants_name = word in ("~", "(")
            depth += word == "("
        elif word in ("|", "&", "-"):
            wants_name = True
        elif word == ")" and depth:
            depth -= 1
        else:
            raise SelectorError(f"'{word}' is out of place in selector '{text}': join parts with | & or -")
    if wants_name:
        raise SelectorError(f"selector '{text}' ends too early: a name is missing at its end")
    if depth:
        raise SelectorError(f"selector '{text}' lacks a closing parenthesis")


def _node(expression: ast.expr, atoms: Sequence[Node]) -> Node:
    if isinstance(expression, ast.BinOp):
        op = _OPERATORS[type(expression.op)]
        return Both(op, _node(expression.left, atoms), _node(expression.right, atoms))
    if isinstance(expression, ast.UnaryOp):
        return Not(_node(expression.operand, atoms))
    assert isinstance(expression, ast.Name)
    return atoms[int(expression.id[1:])]


def _atom(word: str, text: str) -> Node:
    if word in NAMES:
        return Image(None) if word == "image" else Name(word)
    if match := _RANDOM.fullmatch(word):
        return RandomImage(int(match[1]), int(match[2] or 0))
    for pattern, kind in ((_POS, Pos), (_GENERATED, Generated)):
        if (match := pattern.fullmatch(word)) and (match[2] or match[1]):
            start, stop = (int(g) if g is not None else None for g in (match[1], match[3]))
            return kind(start, stop, single=not match[2])
    if match := _WORD.fullmatch(word):
        number = None if match[3] is None else int(match[3])
        return Word(" ".join((match[1] or match[2]).split()), number)
    if match := _IMAGE.fullmatch(word):
        return _image_atom(match, word, text)
    stems = [*NAMES, "random_image", "pos", "word"]
    if said := re.search(r"end[_-]of[_-]im\w*", text, re.IGNORECASE):
        raise SelectorError(
            f"unknown word '{said[0]}' in selector '{text}'; did you mean 'eoi', the literal end-of-image token, or "
            "'gate', which every family has?"
        )
    hint = "." if word in stems else did_you_mean(re.split(r"[\[.:(]", word)[0], stems, cutoff=0.5) or "."
    raise SelectorError(f"unknown word '{word}' in selector '{text}'{hint} Known: {', '.join(KNOWN)}")


def _image_atom(match: re.Match[str], word: str, text: str) -> Image:
    index = int(match[1]) if match[1] is not None else None
    if match[2] == "box":
        numbers = _BOX.fullmatch(match[3])
        if numbers is None:
            raise SelectorError(
                f"'{word}' in selector '{text}': write box(x0,y0,x1,y1), four numbers in pixels"
            )
        x0, y0, x1, y1 = (float(g) for g in numbers.groups())
        if not all(math.isfinite(edge) for edge in (x0, y0, x1, y1)):
            raise SelectorError(f"'{word}' in selector '{text}' has an edge that is not finite: give pixels")
        if x1 <= x0 or y1 <= y0:
            raise SelectorError(f"'{word}' in selector '{text}' is an empty box: give x0 < x1 and y0 < y1")
        return Image(index, box=(x0, y0, x1, y1))
    if match[2] == "mask":
        if not match[3].strip():
            raise SelectorError(f"'{word}' in selector '{text}' names no mask: write image.mask(name)")
        return Image(index, named=match[3].strip())
    return Image(index)
