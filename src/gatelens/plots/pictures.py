"""Pictures as text that a page can hold."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

from PIL import Image


def picture_uri(
    picture: Image.Image,
    longest: int | None = None,
    kind: Literal["PNG", "JPEG"] = "PNG",
    *,
    enlarge: bool = False,
) -> str:
    """A picture as a data URI.

    Args:
        picture: any mode; it is stored as RGB.
        longest: the longer side is at most this many pixels; None keeps the size.
        kind: PNG keeps every pixel, JPEG is smaller.
        enlarge: multiply the pixels of a picture that fits into ``longest`` several times.
    """
    shown = picture.convert("RGB")
    if longest is not None:
        shown.thumbnail((longest, longest))
        factor = longest // max(shown.size)
        if enlarge and factor >= 2:
            size = (shown.width * factor, shown.height * factor)
            shown = shown.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 85} if kind == "JPEG" else {"optimize": True}
    shown.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def opened(uri: str) -> Image.Image:
    """The picture of a data URI, as RGB."""
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert("RGB")
