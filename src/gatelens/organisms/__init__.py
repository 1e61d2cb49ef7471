"""Model organisms: small VLMs of the real transformers classes whose answer is known, and how they were trained.

Their folders are in ``weights/``, each with its card. The recipes, readable top to bottom, are ``train_codec``,
``train`` (with ``recipes`` and ``objectives``), ``measure`` and ``truth``; ``draw`` lets a native organism draw.

>>> gl.organisms.names()
['gated', 'llava', 'open', 'varied']
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from gatelens.drawing.pictures import draw_pictures
from gatelens.model import HookedVLM
from gatelens.shipped_organisms import organism_folder as folder
from gatelens.shipped_organisms import organism_names as names

__all__ = ["draw", "folder", "names"]


def draw(model: HookedVLM, text: str | Sequence[str], **options: Any) -> list[Image.Image]:
    """Pictures a native organism draws from prompts; see :func:`gatelens.drawing.pictures.draw_pictures`.

    Args:
        model: a native organism, such as ``organism:gated``.
        text: one prompt or several.
        options: of :func:`gatelens.drawing.pictures.draw_pictures`: ``interventions``, ``temperature``, ``guidance``,
            ``seed``.

    Example:
        >>> (picture,) = gl.organisms.draw(model, "this is a sunflower", temperature=0)
        >>> picture.size
        (64, 64)
    """
    return draw_pictures(model, [text] if isinstance(text, str) else text, **options)
