"""Pictures inside a page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_uri(image: Image.Image, longest: int = 256) -> str:
    """The picture as a PNG data URI, at most ``longest`` pixels a side; small ones are enlarged without
    blur."""
    picture = image.convert("RGB")
    scale = longest / max(picture.size)
    if scale < 1:
        picture.thumbnail((longest, longest))
    elif scale >= 2:
        factor = int(scale)
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
