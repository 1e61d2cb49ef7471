"""One prompt as a view shows it: its pictures as panels, its other tokens as chips, and keys in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gatelens.errors import DataError
from gatelens.inputs import VLMInputs
from gatelens.plots.overlay import Part, parts_of
from gatelens.plots.pictures import picture_uri
from gatelens.tokens import Role, TokenMap
from gatelens.views.packing import geometry

SHOWN = 448  # pixels along the longer side of a picture
SHOWN_OF_SEVERAL = 288
SMALL = 144  # pictures up to here are enlarged by whole numbers, and keep every pixel
MOST_OF_A_TOKEN = 24  # characters


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt of a batch.

    Attributes:
        tokens: of the batch.
        example: which prompt.
        pictures: its pictures; a blank one where none was given.
        given: whether they were.
        parts: the image tokens by picture, and by whole and tiles where one is cut up.
    """

    tokens: TokenMap
    example: int
    pictures: list[Image.Image]
    given: bool
    parts: list[Part]

    @property
    def words(self) -> list[int]:
        """Positions that are neither of a picture nor padding."""
        roles = self.tokens.roles[self.example].tolist()
        return [p for p, role in enumerate(roles) if role not in (Role.PAD, Role.IMAGE, Role.ROW_BREAK)]

    @property
    def unplaced(self) -> dict[str, list[int]]:
        """Positions of pictures without a place on them, by kind."""
        placed = {p for part in self.parts for p in part.positions}
        roles = self.tokens.roles[self.example].tolist()
        found: dict[str, list[int]] = {}
        for p, role in enumerate(roles):
            if role in (Role.IMAGE, Role.ROW_BREAK) and p not in placed:
                kind = "row breaks" if role == Role.ROW_BREAK else "image tokens without a place"
                found.setdefault(kind, []).append(p)
        return found

    def word(self, position: int) -> str:
        """A token as text: its spaces made visible as TokenMap has them, shortened."""
        said = self.tokens.strings[self.example][position] or f"#{position}"
        said = said.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎").replace("\n", "⏎").strip() or "␣"
        return said if len(said) <= MOST_OF_A_TOKEN else f"{said[: MOST_OF_A_TOKEN - 1]}…"

    def name(self, part: Part) -> str:
        """What a panel is called."""
        name = "picture" if len(self.pictures) == 1 else f"picture {part.image + 1}"
        return f"{name}, {part.name}" if part.name else name

    def panel(self, part: Part, longest: int | None = None) -> dict[str, Any]:
        """A panel for a page, at most ``longest`` pixels wide and high: its picture and where its cells are."""
        picture = self.pictures[part.image]
        shown = enlarged(picture, longest or (SHOWN if len(self.parts) == 1 else SHOWN_OF_SEVERAL))
        photo = max(picture.size) > SMALL
        return {
            "name": self.name(part),
            "image": part.image,
            "picture": picture_uri(shown, kind="JPEG" if photo else "PNG"),
            "width": shown.width,
            "height": shown.height,
            **geometry(part, picture.size, shown.size),
        }

    def stretches(self) -> list[int | tuple[int, int]]:
        """The prompt in order: positions of words, and (number, image tokens) of each picture where it begins."""
        roles, index = (
            self.tokens.roles[self.example].tolist(),
            self.tokens.image_index[self.example].tolist(),
        )
        words, shown = set(self.words), list[int | tuple[int, int]]()
        seen: set[int] = set()
        for p in range(len(roles)):
            if p in words:
                shown.append(p)
            elif roles[p] == Role.IMAGE and index[p] not in seen:
                seen.add(index[p])
                n = sum(i == index[p] and r == Role.IMAGE for i, r in zip(index, roles, strict=True))
                shown.append((index[p], n))
        return shown


def prompt_of(who: str, tokens: TokenMap | VLMInputs, example: int, images: Any) -> Prompt:
    """One prompt with its pictures.

    Args:
        who: the view, for errors.
        tokens: the token map, or the inputs, which have pictures.
        example: which prompt of the batch.
        images: ``inputs.images``, the pictures of this prompt, or its only one; None takes those of the inputs.

    Raises:
        DataError: no such example or no image, or pictures that are not those of the prompt.
    """
    if not isinstance(tokens, TokenMap):
        images = getattr(tokens, "images", None) if images is None else images
        tokens = tokens.tokens
    if not 0 <= example < tokens.batch_size:
        raise DataError(f"{who}: example {example} does not exist, the batch has {tokens.batch_size}")
    sizes = tokens.image_sizes[example]
    if not sizes:
        raise DataError(f"{who}: prompt {example} has no picture; this view shows where one is looked at")
    given = _pictures(who, images, example)
    if given and [picture.size for picture in given] != list(sizes):
        raise DataError(
            f"{who}: pictures of {_sizes([p.size for p in given])} pixels, and the prompt has {_sizes(sizes)}: "
            "give images=inputs.images"
        )
    pictures = given or [Image.new("RGB", size, "#e8eaee") for size in sizes]
    parts = [part for i in range(len(sizes)) for part in parts_of(tokens, example, i)]
    return Prompt(tokens, example, pictures, bool(given), parts)


def _pictures(who: str, images: Any, example: int) -> list[Image.Image]:
    if images is None:
        return []
    if isinstance(images, Image.Image):
        return [images]
    each: list[Any] = list(images) if isinstance(images, Sequence) else [None]
    if each and all(isinstance(one, Sequence) for one in each):
        each = list(each[example]) if example < len(each) else []
    if not all(isinstance(one, Image.Image) for one in each):
        raise DataError(
            f"{who}: images= is neither a picture nor a list of pictures: give images=inputs.images"
        )
    return each


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{width}×{height}" for width, height in sizes)


def enlarged(picture: Image.Image, longest: int = SHOWN) -> Image.Image:
    """A picture in the size a view shows."""
    small = max(picture.size) <= SMALL
    factor = longest // max(picture.size) if small else longest / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.convert("RGB").resize(
        size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    )
