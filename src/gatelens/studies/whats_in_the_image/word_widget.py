"""What the report shows of one picture: its description whose words can be pointed at, and what the cuts change."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

from gatelens.plots.overlay import painted
from gatelens.plots.pictures import opened, picture_uri
from gatelens.studies.whats_in_the_image.configurations import FROM, NONE

THUMBS = 4  # objects of a picture drawn for readers without scripts, and for print
CANVAS = 512  # pixels along the longer side of the picture
THUMB = 168


def shown_example(example: Mapping[str, Any], predictions: pd.DataFrame, band: str) -> dict[str, Any]:
    """What the template ``look.html.j2`` needs of one picture.

    Args:
        example: one of the run's ``examples``.
        predictions: the table of that name; its first kind of knockout is shown. It may be empty.
        band: name of the layers shown first; all layers where the example has no such band.
    """
    words, bands = example["words"], example["bands"]
    shown = bands.index(band) if band in bands else 0
    first = next((i for i, word in enumerate(words) if word["object"]), 0 if words else None)
    payload = {
        **{key: example[key] for key in ("grid", "bands", "marks")},
        "words": [{key: word[key] for key in ("text", "object", "values", "mass")} for word in words],
        "first": first,
        "band": shown,
    }
    named = {word["object"]: i for i, word in reversed(list(enumerate(words))) if word["object"]}
    picture = opened(example["picture"])
    scale = CANVAS / max(picture.size)
    return {
        **example,
        "payload": Markup(json.dumps(payload, ensure_ascii=False).replace("<", "\\u003c")),
        "first": first,
        "band": shown,
        "thumbs": [
            {"name": words[i]["text"], "picture": _thumb(picture, words[i]["values"], example["grid"], shown)}
            for i in sorted(named.values())[:THUMBS]
        ],
        "rows": _rows(example["id"], predictions),
        "width": round(picture.width * scale),
        "height": round(picture.height * scale),
        "is_live": bool(words),
    }


def _rows(example_id: str, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """What is written of a picture under the main cuts, and which objects that loses and adds."""
    if predictions.empty:
        return []
    first = predictions[(predictions.how == predictions.how.iloc[0]) & (predictions.scope != FROM)]
    part = first[first.id == example_id]
    objects = [set(filter(None, text.split("|"))) for text in part.objects]
    unmodified = list(part.row).index(NONE)
    return [
        {
            "row": row,
            "text": text,
            "lost": sorted(objects[unmodified] - names),
            "new": sorted(names - objects[unmodified]),
            "same": text == part.text.iloc[unmodified],
        }
        for row, text, names in zip(part.row, part.text, objects, strict=True)
    ]


def _thumb(picture: Image.Image, values: str, grid: tuple[int, int], band: int) -> str:
    """The picture under the attention of a word, as a small JPEG."""
    small = picture.copy()
    small.thumbnail((THUMB, THUMB))
    columns, rows = grid
    level = np.frombuffer(base64.b64decode(values), np.uint8).reshape(-1, rows * columns)[band]
    cells = [(column, row, column + 1, row + 1) for row in range(rows) for column in range(columns)]
    boxes = np.array(cells) * np.array([small.width / columns, small.height / rows] * 2)
    return picture_uri(painted(small, boxes, level, 255.0), kind="JPEG")
