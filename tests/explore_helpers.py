"""What tests of the explorer send it: states of the page, and files."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from gatelens.explore.state import State, read_state


def asked(**changes: Any) -> dict[str, Any]:
    """What the page sends at first, with these controls moved."""
    return {
        "picture": "sample:1",
        "second": "sample:2",
        "prompt": "<image>this is a",
        "how": "zero",
        **changes,
    }


def state(**changes: Any) -> State:
    """The same, read."""
    return read_state(asked(**changes))


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    """A picture of one colour as a file."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()
