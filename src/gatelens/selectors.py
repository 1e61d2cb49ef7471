"""The selector language: naming token positions by what they are.

Grammar, tightest first: ``~`` (not), then ``&``, then ``|`` and ``-`` on one level, left to right::

    expr   := term (("|" | "-") term)*
    term   := factor ("&" factor)*
    factor := "~" factor | "(" expr ")" | atom
    atom   := NAME | "random_image:" K ["@" SEED] | "pos[" i [":" j] "]"
            | "image" ["[" i "]"] [".box(" x0 "," y0 "," x1 "," y1 ")" | ".mask(" NAME ")"]

No selector but ``pad`` ever yields a padding position: ``~x`` means "every real position but x".
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool
from torch import Tensor

from gatelens.errors import SelectorError
from gatelens.positions import DERIVED, ROLE_NAMES, Both, Image, Masks, Name, Node, Not, Pos, RandomImage

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

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
)


@dataclass(frozen=True)
class Selection:
    """A parsed selector; selections combine with ``| & - ~`` as their text does."""

    text: str
    node: Node

    @staticmethod
    def parse(text: str) -> Selection:
        """Raises SelectorError naming the word that cannot be read."""
        return _parse(text)

    def mask(self, tokens: TokenMap, masks: Masks | None = None) -> Bool[Tensor, "batch pos"]:
        """Positions it names. ``masks``: pixel masks by the names used in ``image.mask(name)``."""
        return self.node.mask(tokens, masks or {})

    def _with(self, op: str, other: Selection | str) -> Selection:
        right = other if isinstance(other, Selection) else Selection.parse(other)
        return Selection(f"({self.text}) {op} ({right.text})", Both(op, self.node, right.node))

    def __or__(self, other: Selection | str) -> Selection:
        return self._with("|", other)

    def __and__(self, other: Selection | str) -> Selection:
        return self._with("&", other)

    def __sub__(self, other: Selection | str) -> Selection:
        return self._with("-", other)

    def __invert__(self) -> Selection:
        return Selection(f"~({self.text})", Not(self.node))

    def __str__(self) -> str:
        return self.text


SelectorLike = str | Selection | Bool[Tensor, "batch pos"] | Sequence[int]


# --------------------------------------------------------------------------- parsing
_SCAN = re.compile(
    r"\s*(?:([|&~()-])|((?:[A-Za-z_]\w*)(?::\w*(?:@\w*)?|(?:\[[^\]]*\])?(?:\.\w+\([^)]*\))?)?)|(\S))"
)
_NUMBER = r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
_RANDOM = re.compile(r"random_image:(\d+)(?:@(\d+))?")
_POS = re.compile(r"pos\[\s*(-?\d+)?\s*(:?)\s*(-?\d+)?\s*\]")
_IMAGE = re.compile(r"image(?:\[\s*(\d+)\s*\])?(?:\.(box|mask)\(([^)]*)\))?")
_BOX = re.compile(",".join([_NUMBER] * 4))


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Selection:
    words: list[str] = []
    at = 0
    while text[at:].strip():
        match = _SCAN.match(text, at)
        assert match is not None
        if match.group(3):
            raise SelectorError(
                f"cannot read '{match.group(3)}' at character {match.start(3)} of selector '{text}'"
            )
        words.append(match.group(1) or match.group(2))
        at = match.end()
    node, rest = _expr(words, 0, text)
    if rest < len(words):
        raise SelectorError(f"'{words[rest]}' is out of place in selector '{text}': join parts with | & or -")
    return Selection(text.strip(), node)


def _expr(words: list[str], at: int, text: str) -> tuple[Node, int]:
    node, at = _term(words, at, text)
    while at < len(words) and words[at] in "|-":
        right, after = _term(words, at + 1, text)
        node, at = Both(words[at], node, right), after
    return node, at


def _term(words: list[str], at: int, text: str) -> tuple[Node, int]:
    node, at = _factor(words, at, text)
    while at < len(words) and words[at] == "&":
        right, at = _factor(words, at + 1, text)
        node = Both("&", node, right)
    return node, at


def _factor(words: list[str], at: int, text: str) -> tuple[Node, int]:
    if at >= len(words):
        raise SelectorError(f"selector '{text}' ends too early: a name is missing at its end")
    word = words[at]
    if word == "~":
        node, at = _factor(words, at + 1, text)
        return Not(node), at
    if word == "(":
        node, at = _expr(words, at + 1, text)
        if at >= len(words) or words[at] != ")":
            raise SelectorError(f"selector '{text}' lacks a closing parenthesis")
        return node, at + 1
    if word in "|&-)":
        raise SelectorError(f"selector '{text}' has '{word}' where a name should stand")
    return _atom(word, text), at + 1


def _atom(word: str, text: str) -> Node:
    if word in NAMES:
        return Image(None) if word == "image" else Name(word)
    if match := _RANDOM.fullmatch(word):
        return RandomImage(int(match[1]), int(match[2] or 0))
    if (match := _POS.fullmatch(word)) and (match[2] or match[1]):
        start, stop = (int(g) if g is not None else None for g in (match[1], match[3]))
        return Pos(start, stop, single=not match[2])
    if match := _IMAGE.fullmatch(word):
        return _image_atom(match, word, text)
    stem = re.split(r"[\[.:]", word)[0]
    near = difflib.get_close_matches(stem, [*NAMES, "random_image", "pos"], n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near and near[0] != word else ""
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
        if x1 <= x0 or y1 <= y0:
            raise SelectorError(f"'{word}' in selector '{text}' is an empty box: give x0 < x1 and y0 < y1")
        return Image(index, box=(x0, y0, x1, y1))
    if match[2] == "mask":
        if not match[3].strip():
            raise SelectorError(f"'{word}' in selector '{text}' names no mask: write image.mask(name)")
        return Image(index, named=match[3].strip())
    return Image(index)
