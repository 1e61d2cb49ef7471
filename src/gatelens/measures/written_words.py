"""The words of a text that a model wrote, and the tokens that spell them."""

from __future__ import annotations

import re
from collections.abc import Callable

from gatelens.measures.localisation import token_edges

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]+")


class Words:
    """The words of a text, and the rows that wrote them.

    A word is written by the row before it: the prompt's last row writes the first token, a generated row the one
    after itself. So row ``k``, counted from the prompt's last, writes new token ``k``.

    Attributes:
        text: the text; it may differ at its ends from what stands in tables.
        spans: first character of each word, and the one after its last.
    """

    def __init__(self, ids: list[int], decode: Callable[[list[int]], str]) -> None:
        self.text = decode(ids) if ids else ""
        self._edges = token_edges(ids, decode) if ids else [0]
        self.spans = [(m.start(), m.end()) for m in _WORD.finditer(self.text) if self.rows(*m.span())]

    def rows(self, start: int, stop: int) -> list[int]:
        """Numbers of the new tokens that spell ``text[start:stop]``: the rows that write them have the same."""
        pairs = enumerate(zip(self._edges, self._edges[1:], strict=False))
        return [k for k, (a, b) in pairs if b > a and a < stop and b > start]
