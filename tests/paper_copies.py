"""Tiny local copies of the papers' data sets, with the columns and the Parquet form of the originals."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

ANIMALS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "hen", "ostrich, Struthio camelus")


def png(number: int, size: tuple[int, int] = (20, 12), form: str = "PNG") -> bytes:
    """A picture that differs from every other in its colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, ((37 * number) % 256, (91 * number) % 256, number % 256)).save(buffer, form)
    return buffer.getvalue()


def picture(number: int, **more: Any) -> dict[str, Any]:
    """A picture as the hub's Parquet files hold it."""
    return {"bytes": png(number, **more), "path": f"{number}.png"}


def vqav2(n: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "question_type": "what color",
            "multiple_choice_answer": "red",
            "answers": [
                {"answer": "red" if k < 7 else f"pink {i}", "answer_confidence": "yes", "answer_id": k + 1}
                for k in range(10)
            ],
            "image_id": 1000 + i // 3,
            "answer_type": "other",
            "question_id": 262148000 + i,
            "question": f"What is thing {i}?",
            "image": picture(i),
        }
        for i in range(n)
    ]


def flickr30k(n: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "image": picture(i),
            "caption": [f"Caption {k} of picture {i}." for k in range(5)],
            "sentids": [str(5 * i + k) for k in range(5)],
            "split": ("train", "val", "test")[i % 3],
            "img_id": str(i),
            "filename": f"{i}.jpg",
        }
        for i in range(n)
    ]


def coco(n: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "filepath": "val2014",
            "sentids": [5 * i + k for k in range(5)],
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "imgid": i,
            "split": "test",
            "sentences": [f"A thing {i} seen {k} times" for k in range(5)],
            "cocoid": 500 + i,
            "url": f"http://images.cocodataset.org/val2014/COCO_val2014_{i:012d}.jpg",
        }
        for i in range(n)
    ]


def mme() -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"{category}/{i}.png",
            "image": picture(i),
            "question": f"Is there a {what} in this image? Please answer yes or no.",
            "answer": answer,
            "category": category,
        }
        for i, category in enumerate(("existence", "OCR", "code_reasoning"))
        for what, answer in (("dog", "Yes"), ("cat", "No"))
    ]


def write(path: Path, rows: list[dict[str, Any]], row_group: int = 4) -> Path:
    """Rows as a Parquet file of small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)
    return path.parent


def imagenet(n: int = 24, names: tuple[str, ...] = ANIMALS) -> Dataset:
    """Pictures with numbered classes, their names in the features, as ``ILSVRC/imagenet-1k`` has them."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(names))})
    rows = {"image": [picture(i) for i in range(n)], "label": [i % len(names) for i in range(n)]}
    return Dataset.from_dict(rows, features=features)


def coco_objects_rows() -> list[dict[str, Any]]:
    """Two pictures of 6 x 4 with a mask each as run lengths (``ClownRat/COCO2017-Instance``)."""
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    return [
        {
            "image_id": i,
            "image": f"{i:012d}.jpg",
            "width": 6,
            "height": 4,
            "objects": {
                "areas": [6.0],
                "bboxes": [[2.0, 1.0, 3.0, 2.0]],
                "classes": [category],
                "ids": [i],
                "iscrowds": [0],
                "masks": [{"counts": compressed(mask), "size": [4, 6]}],
            },
        }
        for i, category in ((139, 90), (285, 1))
    ]


def compressed(mask: np.ndarray) -> bytes:
    """COCO's compressed run lengths, written from the description of the format, for one mask."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    bounds = [0, *edges, flat.size]
    runs = [b - a for a, b in pairwise(bounds)]
    out = bytearray()
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != -1 if bits & 0x10 else value != 0
            out.append((bits | 0x20 if more else bits) + 48)
    return bytes(out)
