"""What a pair is: the same prompt over two pictures, clean and corrupt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from PIL import Image, ImageDraw, ImageFont

from gatelens.data.base import Example
from gatelens.errors import DataError, shown

SHOWN = 6  # pairs of a repr


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """Two examples with one prompt.

    Attributes:
        clean: the example whose answer is ``target``.
        corrupt: the example with the same prompt and another answer, or with noise on the same picture.
        differ: what differs between their pictures, in words.
        target: what is right for the clean picture, a word (its first token is what is measured).
        base: what is right for the corrupt one; None where it is unknown.
        noise: what is added to the image tokens' embeddings of the corrupt run, as a multiple of their standard
            deviation; 0 is nothing. The picture is then the same.
        note: what else should be known of it (:class:`Pairs` says which there are); else empty.

    Example:
        >>> pair = pairs[0]
        >>> pair.target, pair.base, pair.differ
        ('sunflower', 'panda', 'class')
        >>> pair.clean.prompt == pair.corrupt.prompt
        True
    """

    clean: Example
    corrupt: Example
    differ: str
    target: str
    base: str | None = None
    noise: float = 0.0
    note: str = ""

    def __repr__(self) -> str:
        answers = repr(self.target) + (f" → {self.base!r}" if self.base else "")
        return f"Pair({answers}, {self.clean.prompt!r}, differ in {self.differ})"


class Pairs(Sequence[Pair]):
    """A list of pairs; slices are such a list too.

    The prompt of a pair of emoji scenes asks for the fact: ``class`` is completed ("this is a"), the others are
    questions.

    ============  ============================================  ==================================
    ``differ``    prompt                                        answers, clean and corrupt
    ============  ============================================  ==================================
    ``class``     this is a                                     two classes
    ``color``     what color is the shape behind the fox?       two colours
    ``shape``     what shape is behind the fox?                 two shapes
    ``side``      which side is the fox on?                     left and right
    ``presence``  is there a fox in the image?                  yes and no
    ``relation``  what is next to the fox?                      two classes
    ``count``     how many objects are there?                   three and two
    ============  ============================================  ==================================

    Scenes of the split ``test`` show combinations of class, colour and shape that training never shows. With another
    colour or shape they are a combination of training: so in every pair of ``color`` and ``shape`` the corrupt picture
    is of a kind the model was trained on and the clean one is not. Such pairs have a ``note``; ``print(pairs)``
    counts them. Pairs of which both pictures are alike in this are those of
    ``gl.pairs(gl.data.load("emoji-scenes", split="train"), differ="color")``.

    Example:
        >>> len(pairs)
        2
        >>> [(pair.target, pair.base) for pair in pairs]
        [('sunflower', 'panda'), ('cactus', 'pig')]
    """

    def __init__(self, pairs: Sequence[Pair], name: str = "") -> None:
        self._pairs, self.name = tuple(pairs), name

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Pairs: ...
    def __getitem__(self, index: int | slice) -> Pair | Pairs:
        if isinstance(index, slice):
            return Pairs(self._pairs[index], self.name)
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    @property
    def notes(self) -> list[str]:
        """What else should be known, each with the number of pairs it is true of."""
        notes = [pair.note for pair in self._pairs if pair.note]
        return [f"{notes.count(note)} of {len(self)} pairs: {note}" for note in dict.fromkeys(notes)]

    def sel(self, target: str | None = None, base: str | None = None) -> Pairs:
        """The pairs with this answer for the clean picture, and this one for the corrupt picture; None is any.

        Raises:
            DataError: there are none.
        """
        kept = [p for p in self._pairs if target in (None, p.target) and base in (None, p.base)]
        if not kept:
            answers = ", ".join(sorted({f"{p.target} → {p.base}" for p in self._pairs})[:6])
            raise DataError(
                f"none of {len(self)} pairs has target={shown(target)} and base={shown(base)}: there are {answers} …; "
                "make more, n="
            )
        return Pairs(kept, self.name)

    def without(self, *numbers: int) -> Pairs:
        """All but the pairs with these numbers."""
        return Pairs([pair for i, pair in enumerate(self._pairs) if i not in numbers], self.name)

    def __repr__(self) -> str:
        differ = ", ".join(dict.fromkeys(pair.differ for pair in self._pairs))
        name = f" of {self.name}" if self.name else ""
        lines = [f"{len(self)} pairs{name} that differ in {differ}" if self else "no pairs"]
        for i, pair in enumerate(self._pairs[:SHOWN]):
            answers = pair.target + (f" → {pair.base}" if pair.base else "")
            lines.append(f"  {i}: {answers}   {shown(pair.clean.prompt, 90)}")
        if len(self) > SHOWN:
            lines.append(f"  … {len(self) - SHOWN} more")
        return "\n".join(lines + [f"  {said}" for said in self.notes])

    def show(self, n: int = 8, size: int = 128) -> Image.Image:
        """The first ``n`` pairs as one picture, clean and corrupt side by side; ``size`` of each in pixels."""
        some = self._pairs[:n]
        if not some:
            raise DataError("there are no pairs to show")
        across, text = min(4, len(some)), 34
        wide, high = 2 * size + 20, size + text + 14
        rows = math.ceil(len(some) / across)
        sheet = Image.new("RGB", (across * wide, rows * high), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
        for i, pair in enumerate(some):
            x, y = (i % across) * wide + 8, (i // across) * high + 6
            for side, example in enumerate((pair.clean, pair.corrupt)):
                if example.image is not None:
                    _paste(sheet, example.image, (x + side * (size + 4), y), size)
            under = pair.base or (f"noise of {pair.noise:g} sd" if pair.noise else pair.differ)
            for side, word in enumerate((pair.target, under)):
                place = (x + side * (size + 4), y + size + 3)
                draw.text(place, _fitting(word, font, size), "#1d2430", font)
            prompt = pair.clean.prompt.replace("<image>", "").strip()
            draw.text((x, y + size + 18), _fitting(prompt, font, 2 * size), "#5b6675", font)
        return sheet


def _paste(sheet: Image.Image, picture: Image.Image, place: tuple[int, int], size: int) -> None:
    scale = size / max(picture.size)
    new = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # small pictures keep their pixels, photos are reduced smoothly
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    sheet.paste(picture.convert("RGB").resize(new, way), place)


def _fitting(text: str, font: Any, width: int) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    while font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
