"""What a drawing shows: read by the model itself, and, apart from any model, from its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from PIL import Image

from gatelens.data import prompts, scenes
from gatelens.engine import last_logits
from gatelens.examples import Labels, consecutive
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import Intervention
from gatelens.model import HookedVLM

RGB = tuple[int, int, int]
COLOR_QUESTION = "what color is the shape behind the {}?"
SHAPE_QUESTION = "what shape is behind the {}?"
NOTHING = ""  # what the pixels say where no colour of the palette fills enough of them
FEWEST_PIXELS = 32
# Euclidean, in 0 .. 255 RGB; the palettes' colours lie farther apart
PLATE_RADIUS, BACKGROUND_RADIUS = 60.0, 28.0


def commonest(image: Image.Image) -> RGB:
    """The colour of most pixels: a scene's background."""
    colors = image.convert("RGB").getcolors(image.width * image.height)
    assert colors is not None
    _, rgb = max(colors)
    return rgb  # type: ignore[return-value]


def filled_with(image: Image.Image, palette: Mapping[str, RGB], radius: float) -> str:
    """The colour of a palette that most pixels are within ``radius`` of; ``""`` if fewer than FEWEST_PIXELS are."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(-1, 1, 3)
    distance = np.linalg.norm(pixels - np.array(list(palette.values()), dtype=np.float64), axis=-1)
    votes = np.bincount(distance.argmin(1)[distance.min(1) <= radius], minlength=len(palette))
    return list(palette)[int(votes.argmax())] if votes.max() >= FEWEST_PIXELS else NOTHING


def plate(image: Image.Image) -> str:
    """The plate colour that fills most of the picture."""
    return filled_with(image, scenes.COLORS, PLATE_RADIUS)


def background(image: Image.Image, known: Sequence[RGB]) -> str:
    """Which of the known backgrounds fills most of the picture, as ``"r,g,b"``."""
    return filled_with(image, {named(rgb): rgb for rgb in known}, BACKGROUND_RADIUS)


def named(rgb: RGB) -> str:
    """A colour as text."""
    return ",".join(map(str, rgb))


def read_back(
    model: HookedVLM, pictures: Sequence[Image.Image], classes: Sequence[str], labels: Labels, size: int
) -> pd.DataFrame:
    """``read_class, read_color, read_shape``: the model's answers about each picture, the likeliest of the possible
    ones. Colour and shape are asked of the class it named."""
    tables = []
    for _, _, part in consecutive(pictures, size):
        name = answers(model, part, [prompts.CLASS_PROMPT] * len(part), classes, labels)
        said = [name]
        for question, words in ((COLOR_QUESTION, scenes.COLORS), (SHAPE_QUESTION, scenes.SHAPES)):
            texts = [prompts.QUESTION_PROMPT.format(question=question.format(n)) for n in name]
            said.append(answers(model, part, texts, list(words), labels))
        tables.append(pd.DataFrame(dict(zip(("read_class", "read_color", "read_shape"), said, strict=True))))
    return pd.concat(tables, ignore_index=True)


def answers(
    model: HookedVLM,
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    words: Sequence[str],
    labels: Labels,
) -> list[str]:
    """The likeliest of some words as the continuation of ``<image>`` and each text."""
    inputs = model.prepare(images=list(pictures), text=[f"<image>{text}" for text in texts])
    return likeliest(model, inputs, texts[0], words, labels)


def likeliest(
    model: HookedVLM,
    inputs: VLMInputs,
    text: str,
    words: Sequence[str],
    labels: Labels,
    interventions: Sequence[Intervention] = (),
) -> list[str]:
    """The likeliest of some words after each prompt; ``text`` is what one of them ends with."""
    (logits,) = last_logits(model, inputs, [interventions])
    ids = [labels.first_token(text, word) for word in words]
    return [words[i] for i in logits[:, ids].argmax(-1).tolist()]
