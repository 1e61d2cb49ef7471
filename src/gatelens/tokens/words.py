"""Where a word is among tokens, whatever pieces the tokenizer makes of it."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def occurrences(word: str, pieces: Sequence[str], in_text: Sequence[bool]) -> list[list[int]]:
    """The positions of each occurrence of a word, in order.

    A word is found as it is written, upper and lower case apart, and not within a longer one. It may be several
    words; a picture ends the text.

    Args:
        pieces: the tokenizer's own name of each token, with its mark for a space (``▁``, ``Ġ``); where no piece
            has one, each token is a word, and ``##`` goes on with the last.
        in_text: which positions are text.
    """
    edges = (r"(?<!\w)" if re.match(r"\w", word) else "", r"(?!\w)" if re.search(r"\w$", word) else "")
    pattern = re.compile(edges[0] + re.escape(word) + edges[1])
    marks = {mark for mark in "▁Ġ" if any(mark in piece for piece in pieces)}
    found = []
    for text, group in groupby(range(len(pieces)), key=in_text.__getitem__):
        if text:
            written, places = _written([(p, pieces[p]) for p in group], marks)
            for match in pattern.finditer(written):
                of_match = places[match.start() : match.end()]
                found.append(sorted({p for place in of_match for p in place}))
    return found


def _written(pieces: Sequence[tuple[int, str]], marks: set[str]) -> tuple[str, list[set[int]]]:
    """The text of tokens, and of which positions each character is."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text: list[str] = []
    places: list[set[int]] = []
    waiting: set[int] = set()  # positions of a character that is not yet whole
    for position, piece in pieces:
        for byte in _bytes_of(piece, marks):
            waiting.add(position)
            for character in decoder.decode(bytes([byte])):
                text.append(character)
                places.append(waiting)
                waiting = set()
    return "".join(text), places


def _bytes_of(piece: str, marks: set[str]) -> Iterator[int]:
    if match := _BYTE.fullmatch(piece):
        yield int(match[1], 16)
    elif "Ġ" in marks:
        table = _byte_level()
        for character in piece:
            yield from [table[character]] if character in table else character.encode()
    elif "▁" in marks:
        yield from piece.replace("▁", " ").encode("utf-8", errors="replace")
    elif piece.startswith("##"):
        yield from piece[2:].encode("utf-8", errors="replace")
    else:
        yield from f" {piece}".encode("utf-8", errors="replace")


@functools.cache
def _byte_level() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (Radford et al. 2019, GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
