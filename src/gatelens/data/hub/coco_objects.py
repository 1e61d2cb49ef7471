"""COCO's instance annotations: names of the objects, their boxes, and their masks in every form COCO writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

# The 80 categories in the order of their ids; ids run from 1 to 90 and leave ten numbers out (COCO 2014 and 2017).
CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_LEFT_OUT = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = tuple(i for i in range(1, 91) if i not in _LEFT_OUT)
_NAME = ("category_name", "name", "category", "categories", "classes", "label", "category_id", "category_ids")
_MASK = ("segmentation", "segmentations", "masks", "mask")
_BOX = ("bbox", "bboxes", "box", "boxes")
_CROWD = ("iscrowd", "iscrowds", "is_crowd")


@dataclass(frozen=True)
class CocoObject:
    """One object: its name and its box (x0, y0, x1, y1) in pixels."""

    name: str
    box: tuple[float, float, float, float]


def names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The different objects of a picture; a picture without any tells nothing of where objects are."""
    different = tuple(dict.fromkeys(_name(one, row.get("category_names")) for one in _records(row)))
    if not different:
        raise ValueError("no objects")
    return different


def facts(row: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """``objects`` and their ``masks`` (Bool[height, width] each), as ``emoji-scenes`` gives them."""
    objects, masks = [], []
    for one in _records(row):
        mask = decode(_first(one, _MASK), size)
        if not mask.any():
            continue  # thinner than a pixel
        rows, cols = np.nonzero(mask)
        box = _first(one, _BOX)
        x0, y0, x1, y1 = (
            (int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1)
            if box is None or len(box) != 4
            else (float(box[0]), float(box[1]), float(box[0]) + float(box[2]), float(box[1]) + float(box[3]))
        )
        objects.append(CocoObject(_name(one, row.get("category_names")), (x0, y0, x1, y1)))
        masks.append(mask)
    if not objects:
        raise ValueError("no objects with a mask")
    return {"objects": tuple(objects), "masks": tuple(masks)}


def decode(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """A mask from polygons, from run lengths, or from COCO's compressed run lengths; ``size``: width, height.

    Raises:
        ValueError: no mask, or one that does not fit the picture.
    """
    width, height = size
    if isinstance(segmentation, Mapping) and segmentation.get("counts") is not None:
        counts = segmentation["counts"]
        runs = _runs(counts) if isinstance(counts, (str, bytes)) else [int(c) for c in counts]
        rows, cols = (int(x) for x in segmentation["size"])
        if (rows, cols) != (height, width) or sum(runs) != rows * cols:
            raise ValueError(
                f"a mask of {cols}x{rows} with {sum(runs)} pixels for a picture of {width}x{height}"
            )
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape((height, width), order="F")  # COCO counts down the columns
    polygons = segmentation
    if polygons is None or isinstance(polygons, (str, bytes, Mapping)) or len(polygons) == 0:
        raise ValueError("an object without a mask")
    if not isinstance(polygons[0], (Sequence, np.ndarray)):
        polygons = [polygons]  # a single polygon without its list
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers")
        pen.polygon([float(v) for v in polygon], fill=1, outline=1)
    return np.array(canvas, dtype=bool)


def _runs(text: str | bytes) -> list[int]:
    """COCO's compressed run lengths: five bits a character, the third run on relative to the one two before."""
    codes = text if isinstance(text, bytes) else text.encode("ascii")
    runs: list[int] = []
    at = 0
    while at < len(codes):
        value, shift, more = 0, 0, True
        while more:
            if at == len(codes):
                raise ValueError("a truncated mask")
            bits = codes[at] - 48
            value |= (bits & 0x1F) << shift
            more, shift, at = bool(bits & 0x20), shift + 5, at + 1
            if not more and bits & 0x10:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _records(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects of a row but crowds, from a list of records or from a record of lists."""
    objects = row.get("objects")
    if isinstance(objects, Mapping):
        length = max((len(v) for v in objects.values() if v is not None), default=0)
        lists = {k: v for k, v in objects.items() if v is not None and len(v) == length}
        objects = [{k: v[i] for k, v in lists.items()} for i in range(length)]
    return [one for one in objects or [] if not _first(one, _CROWD)]


def _first(one: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((one[k] for k in keys if one.get(k) is not None), None)


def _name(one: Mapping[str, Any], known: Mapping[int, str] | None) -> str:
    category = _first(one, _NAME)
    if category is None:
        raise ValueError("an object without a category")
    if isinstance(category, str):
        return category
    if known is None or int(category) not in known:
        raise ValueError(f"an object of unknown category {category}")
    return known[int(category)]


def category_names(seen: set[int]) -> Mapping[int, str] | None:
    """What numbers mean that a data set uses without names: COCO's own ids, or places in the list of the 80.

    None when the numbers seen could be either; the whole COCO set never leaves that open.
    """
    as_ids, as_places = seen <= set(COCO_IDS), seen <= set(range(len(CATEGORIES)))
    if as_ids and not as_places:
        return dict(zip(COCO_IDS, CATEGORIES, strict=True))
    if as_places and not as_ids:
        return dict(enumerate(CATEGORIES))
    return None


def category_numbers(objects: Any) -> set[int]:
    """The category numbers in one value of the column ``objects``; empty when categories have names."""
    categories = (_first(one, _NAME) for one in _records({"objects": objects}))
    return {int(c) for c in categories if c is not None and not isinstance(c, str)}


def feature_names(feature: Any) -> Sequence[str] | None:
    """The category names that the ``datasets`` feature of the column ``objects`` declares, if any."""
    inner = getattr(feature, "feature", feature)
    inner = inner[0] if isinstance(inner, list) and inner else inner
    if not isinstance(inner, Mapping):
        return None
    columns = (inner.get(key) for key in ("category", "category_id", "classes", "label"))
    declared = (getattr(getattr(column, "feature", column), "names", None) for column in columns)
    return next((list(names) for names in declared if names), None)
