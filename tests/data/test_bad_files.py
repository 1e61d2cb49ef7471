"""Files and rows that are bad, of every kind: each is one line that names it, never a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gatelens import data
from gatelens.cli import main
from gatelens.data.hub import ENTRIES
from gatelens.errors import GatelensError

Make = Callable[[Path], Any]


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of one pixel that says it has 400 million."""
    red = file_of(Image.new("RGB", (1, 1), "red"))
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + red[24:29]
    return red[:12] + header + struct.pack(">I", zlib.crc32(header)) + red[33:]


RED = file_of(Image.new("RGB", (6, 4), "red"))
DEEP = np.full((4, 6), 60_000)
DEEP_JSON = "[" * 100_000 + "]" * 100_000


def csv(text: str | bytes) -> Make:
    """A table beside the good picture ``a.png``."""
    return lambda folder: put(folder / "data.csv", text)


def jsonl(*rows: Any) -> Make:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return lambda folder: put(folder / "data.jsonl", "\n".join(lines))


def row(**values: Any) -> Make:
    """A row that would be good without ``values``."""
    return jsonl({"image": "a.png", "label": "cat", **values})


def asked(**values: Any) -> Make:
    return jsonl({"image": "a.png", "question": "what?", **values})


def picture(content: bytes, name: str = "b.png") -> Make:
    """The picture of the second row."""

    def make(folder: Path) -> None:
        put(folder / name, content)
        put(folder / "data.csv", f"image,label\na.png,cat\n{name},dog\n")

    return make


def mask(content: bytes | None, **values: Any) -> Make:
    def make(folder: Path) -> None:
        if content is not None:
            put(folder / "m.png", content)
        row(objects=["cat"], masks={"cat": "m.png"}, **values)(folder)

    return make


def both(*makers: Make) -> Make:
    return lambda folder: [make(folder) for make in makers]


def put(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def outside(folder: Path) -> Path:
    file = folder.parent / "outside.png"
    put(file, RED)
    return file


def link(name: str, target: Callable[[Path], Path]) -> Make:
    def make(folder: Path) -> None:
        outside(folder)
        (folder / name).symlink_to(target(folder))

    return make


HEAD = "image,label\na.png,cat\n"
BAD: dict[str, tuple[Make, str]] = {
    # -- folders and tables ------------------------------------------------------------------------------------------
    "no table": (lambda folder: None, r"has no data.csv or data.jsonl"),
    "two tables": (both(csv(HEAD), row()), r"has both data.csv and data.jsonl; keep one"),
    "a table that is a folder": (lambda folder: (folder / "data.csv").mkdir(), r"data.csv cannot be read"),
    "a table that may not be read": (link("data.csv", lambda folder: folder / "nowhere"), r"has no data.csv"),
    "an empty CSV": (csv(""), r"has no column 'image' \(its first row: \)"),
    "a CSV of empty lines": (csv("\n\n\n"), r"has no column 'image'"),
    "a header alone": (csv("image,label\n"), r"gives no example \(no rows\)"),
    "an empty JSONL": (jsonl(), r"gives no example \(no rows\)"),
    "a JSONL of empty lines": (jsonl("", " ", ""), r"gives no example \(no rows\)"),
    "no header": (csv("a.png,cat\nb.png,dog\n"), r"no column 'image' \(its first row: 'a.png', 'cat'\)"),
    "semicolons": (csv("image;label\na.png;cat\n"), r"no column 'image' .*'image;label'.*commas"),
    "tabs": (csv("image\tlabel\na.png\tcat\n"), r"no column 'image'"),
    "a header in capitals": (csv("Image,Label\na.png,cat\n"), r"no column 'image'"),
    "two columns of one name": (
        csv("image,label,label\na.png,cat,dog\n"),
        r"two columns 'label'; rename one",
    ),
    "UTF-16": (
        csv(HEAD.encode("utf-16")),
        r"data.csv line 1: byte 0xff is not UTF-8; save the table as UTF-8",
    ),
    "UTF-16 without a mark": (csv(HEAD.encode("utf-16-le")), r"no column 'image'"),
    "Latin-1": (csv(HEAD.encode() + b"a.png,caf\xe9\n"), r"data.csv line 3: byte 0xe9 is not UTF-8"),
    "Latin-1 in JSONL": (lambda f: put(f / "data.jsonl", b'{"image": "\xe9.png"}'), r"line 1: byte 0xe9"),
    "a spreadsheet": (csv(b"PK\x03\x04" + bytes(range(256))), r"is not UTF-8|no column 'image'"),
    "half a quotation": (csv('image,label\na.png,"cat\n'), r"data.csv row 1 cannot be read .*quotation mark"),
    "text after a quotation": (csv('image,label\na.png,"cat"s\n'), r"row 1 cannot be read .*quotation mark"),
    "a cell beyond the limit": (
        csv(HEAD + "a.png," + "x" * 131_073 + "\n"),
        r"row 2 cannot be read .*131072",
    ),
    "too many cells": (csv("image,label\na.png,cat, or dog\n"), r"row 1: 3 cells for 2 columns; .*quotes"),
    "a cell without a column": (csv("image,label,\na.png,cat,x\n"), r"row 1: 3 cells for 2 columns"),
    # -- lines of JSON -----------------------------------------------------------------------------------------------
    "no JSON": (jsonl({"image": "a.png", "label": "x"}, "image: a.png"), r"data.jsonl row 2: not JSON"),
    "half a line": (jsonl('{"image": "a.png"'), r"row 1: not JSON"),
    "an object over several lines": (jsonl('{"image": "a.png",', '"label": "cat"}'), r"row 1: not JSON"),
    "a list": (jsonl('[{"image": "a.png"}]'), r"row 1: not a JSON object: give"),
    "a number": (jsonl("5"), r"row 1: not a JSON object"),
    "null": (jsonl("null"), r"row 1: not a JSON object"),
    "single quotes": (jsonl("{'image': 'a.png'}"), r"row 1: not JSON"),
    "NaN": (jsonl('{"image": "a.png", "label": NaN}'), r"row 1: not JSON \(NaN is not a JSON number\)"),
    "Infinity": (jsonl('{"image": "a.png", "label": -Infinity}'), r"row 1: not JSON \(-Infinity"),
    "a key twice": (jsonl('{"image": "a.png", "label": "x", "label": "y"}'), r"row 1: .*'label' twice"),
    "JSON 100,000 deep": (jsonl('{"image": ' + DEEP_JSON + "}"), r"row 1: JSON nested too deeply"),
    "a number of 5,000 digits": (
        jsonl('{"image": "a.png", "label": ' + "9" * 5000 + "}"),
        r"row 1: not JSON",
    ),
    # -- a picture's name --------------------------------------------------------------------------------------------
    "no image": (jsonl({"label": "cat"}), r"row 1: no 'image'; name a picture in"),
    "an empty image": (csv(HEAD + ",dog\n"), r"data.csv row 2: no 'image'"),
    "an image that is null": (row(image=None), r"row 1: no 'image'"),
    "an image of blanks": (row(image="  "), r"row 1: no 'image'"),
    "an image that is a number": (row(image=5), r"row 1: 'image' is a number, not text"),
    "an image that is a list": (row(image=["a.png"]), r"row 1: 'image' is a list, not text"),
    "an image that is an object": (row(image={"path": "a.png"}), r"row 1: 'image' is an object, not text"),
    "a missing picture": (csv(HEAD + "zzz.png,dog\n"), r"data.csv row 2: no picture 'zzz.png' in"),
    "a picture's address": (row(image="https://example.org/a.png"), r"row 1: no picture 'https:"),
    "NUL in a name": (row(image="a\0.png"), r"row 1: 'image' is text with a NUL"),
    "NUL in a CSV": (csv(b"image,label\na\0.png,cat\n"), r"row 1: 'image' is text with a NUL"),
    "a name too long": (row(image="x" * 5000), r"row 1: .*(too long|no picture)"),
    "the folder itself": (row(image="."), r"row 1: no picture '.'"),
    "a folder named like a picture": (
        both(lambda f: (f / "d.png").mkdir(), row(image="d.png")),
        r"no picture 'd.png'",
    ),
    "a pipe": (both(lambda f: os.mkfifo(f / "p.png"), row(image="p.png")), r"row 1: no picture 'p.png'"),
    "a picture above": (both(outside, row(image="../outside.png")), r"is outside"),
    "a picture above, by a detour": (
        both(outside, lambda f: (f / "d").mkdir(), row(image="d/../../outside.png")),
        r"row 1: 'd/../../outside.png' is outside",
    ),
    "an absolute path": (
        lambda f: row(image=str(outside(f)))(f),
        r"row 1: '/.*' is outside .*; copy the file",
    ),
    "an absolute path to a picture inside": (
        lambda f: row(image=str(f / "a.png"))(f),
        r"row 1: '/.*' is outside",
    ),
    "a link that leads out": (
        both(link("l.png", outside), row(image="l.png")),
        r"row 1: 'l.png' is outside",
    ),
    "a linked folder": (both(link("up", lambda f: f.parent), row(image="up/outside.png")), r"is outside"),
    "a link to nothing": (
        both(link("l.png", lambda f: f / "none"), row(image="l.png")),
        r"no picture 'l.png'",
    ),
    "a link in a circle": (
        both(link("l.png", lambda f: f / "l.png"), row(image="l.png")),
        r"row 1: .*'l.png'",
    ),
    "a system's file": (row(image="/etc/passwd"), r"row 1: '/etc/passwd' is outside"),
    # -- what the other columns hold ---------------------------------------------------------------------------------
    "a prompt that is a number": (row(prompt=5), r"row 1: 'prompt' is a number, not text"),
    "a prompt that is a list": (row(prompt=["say"]), r"row 1: 'prompt' is a list"),
    "a prompt for two pictures": (
        row(prompt="<image> or <image>?"),
        r"row 1: more than one <image> for one picture",
    ),
    "a task that is a list": (row(task=["vqa"]), r"row 1: 'task' is a list, not text"),
    "an unknown task": (row(task="sing"), r"row 1: unknown task 'sing'; use class, vqa, caption"),
    "a task without its column": (row(task="caption"), r"row 1: no 'captions', which task caption needs"),
    "vqa without a question": (row(task="vqa", answers="x"), r"row 1: no 'question', which task vqa needs"),
    "a question without an answer": (asked(), r"row 1: no 'label' or 'answers' or 'captions'"),
    "a question beside a label": (row(question="what?"), r"row 1: a 'question' without 'answers'"),
    "an answer beside a label": (row(answer="x"), r"row 1: no 'question'"),
    "a question that is a number": (asked(question=5, answer="x"), r"row 1: 'question' is a number"),
    "a question about two pictures": (
        asked(question="<image> <image>", answer="x"),
        r"row 1: more than one <image>",
    ),
    "answers that are an object": (asked(answers={}), r"row 1: 'answers' is an object, not text"),
    "answers that are null": (asked(answers=None), r"row 1: no 'label' or 'answers'"),
    "an answer that is null": (asked(answers=[None]), r"row 1: 'answers' is null, not text"),
    "no answers": (asked(answers=[]), r"row 1: no 'label' or 'answers'"),
    "an empty answer": (asked(answers=["x", ""]), r"row 1: 'answers' is a list with an empty text"),
    "only bars": (asked(answers=" | |"), r"row 1: 'answers' is a list with an empty text"),
    "an answer that is true": (asked(answers=True), r"row 1: 'answers' is true or false, not text"),
    "an answer that is a list": (asked(answers=[["x"]]), r"row 1: 'answers' is a list, not text"),
    "an answer with NUL": (asked(answers="x\0"), r"row 1: 'answers' is text with a NUL"),
    "half a character": (
        jsonl('{"image": "a.png", "label": "\\ud83d"}'),
        r"row 1: 'label' is text with .* unpaired",
    ),
    "answer and answers": (asked(answer="x", answers="y"), r"row 1: both 'answers' and 'answer'; keep one"),
    "caption and captions": (row(caption="x", captions="y"), r"row 1: both 'captions' and 'caption'"),
    "a caption that is an object": (row(caption={"text": "x"}), r"row 1: 'caption' is an object"),
    "a label that is an object": (row(label={"name": "x"}), r"row 1: 'label' is an object"),
    "no task at all": (jsonl({"image": "a.png"}), r"row 1: no 'label' or 'answers' or 'captions'"),
    "one prompt for two tasks": (
        row(caption="x", prompt="say"),
        r"row 1: one 'prompt' for class and caption",
    ),
    "a column misspelt": (
        row(captoin="x"),
        r"row 1: unknown column 'captoin'; did you mean 'caption'",
    ),
    "a column in capitals": (
        row(Caption="x"),
        r"row 1: unknown column 'Caption'; did you mean 'caption'",
    ),
    "a column misspelt in a CSV": (
        csv("image,label,anwser\na.png,cat,x\n"),
        r"'anwser'; did you mean 'answer'",
    ),
    "objects that are a number": (row(objects=5), r"row 1: 'objects' is a number, not text"),
    "objects that are an object": (row(objects={"cat": 1}), r"row 1: 'objects' is an object"),
    "objects that are numbers": (row(objects=[1, 2]), r"row 1: 'objects' is a number, not text"),
    "objects that are objects": (row(objects=[{"name": "cat"}]), r"row 1: 'objects' is an object, not text"),
    # -- masks -------------------------------------------------------------------------------------------------------
    "masks as a list": (row(masks=["m.png"]), r"row 1: 'masks' is not a JSON object of files: give"),
    "masks that are a number": (row(masks=5), r"row 1: 'masks' is not a JSON object of files"),
    "masks as text": (row(masks="m.png"), r"row 1: 'masks' is not a JSON object of files"),
    "a mask that is a number": (row(masks={"cat": 5}), r"row 1: 'masks' is a number, not text"),
    "a mask that is null": (row(masks={"cat": None}), r"row 1: 'masks' is null, not text"),
    "a missing mask": (mask(None), r"row 1: no picture 'm.png' in"),
    "a mask above": (
        both(outside, row(masks={"cat": "../outside.png"})),
        r"is outside",
    ),
    "a mask of the system": (row(masks={"cat": "/etc/hostname"}), r"row 1: '/etc/hostname' is outside"),
    "a linked mask": (
        both(link("l.png", outside), row(masks={"cat": "l.png"})),
        r"row 1: 'l.png' is outside",
    ),
    "a mask that is not a picture": (
        mask(b"no picture"),
        r"row 1: mask of 'cat': .*m.png' is not a readable picture",
    ),
    "an empty mask file": (mask(b""), r"row 1: mask of 'cat': .*is not a readable picture"),
    "half a mask": (mask(RED[:50]), r"row 1: mask of 'cat': .*is not a readable picture"),
    "a mask of another size": (
        mask(file_of(Image.new("L", (4, 6)))),
        r"row 1: the mask of 'cat' is 4x6, its picture 6x4",
    ),
    # -- pictures ----------------------------------------------------------------------------------------------------
    "an empty picture": (picture(b""), r"data.csv row 2: picture: .*b.png' is not a readable picture"),
    "a text named .png": (picture(b"no picture"), r"row 2: .*is not a readable picture"),
    "a web page": (picture(b"<!DOCTYPE html><html></html>"), r"row 2: .*is not a readable picture"),
    "a ZIP": (picture(b"PK\x05\x06" + bytes(18)), r"row 2: .*is not a readable picture"),
    "HEIC": (picture(b"\0\0\0\x18ftypheic" + bytes(99), "b.heic"), r"row 2: .*none of PNG, .*convert"),
    "SVG": (picture(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "b.svg"), r"row 2: .*none of PNG"),
    "PDF": (picture(b"%PDF-1.7\n", "b.pdf"), r"row 2: .*none of PNG"),
    "noise": (picture(np.random.default_rng(0).bytes(500)), r"row 2: .*is not a readable picture"),
    "half a PNG": (picture(RED[: len(RED) // 2]), r"row 2: .*is not a readable picture"),
    "half a JPEG": (
        picture(file_of(Image.new("RGB", (64, 64)), "JPEG")[:400], "b.jpg"),
        r"row 2: .*is not a readable",
    ),
    "half a WebP": (
        picture(file_of(Image.new("RGB", (6, 4)), "WEBP")[:30], "b.webp"),
        r"row 2: .*is not a readable",
    ),
    "half a GIF": (
        picture(file_of(Image.new("P", (6, 4)), "GIF")[:20], "b.gif"),
        r"row 2: .*is not a readable",
    ),
    "half a BMP": (
        picture(file_of(Image.new("RGB", (6, 4)), "BMP")[:60], "b.bmp"),
        r"row 2: .*is not a readable",
    ),
    "400 megapixels": (picture(bomb()), r"row 2: .*more than 178,956,970 pixels"),
    "32-bit grey": (
        picture(file_of(Image.fromarray(DEEP.astype(np.int32)), "TIFF")),
        r"row 2: .*outside 0..255",
    ),
    "float grey": (
        picture(file_of(Image.fromarray(DEEP.astype(np.float32)), "TIFF")),
        r"row 2: .*outside 0..255",
    ),
    "not a number": (
        picture(file_of(Image.fromarray(np.full((4, 6), np.nan, np.float32)), "TIFF")),
        r"row 2: .*not finite",
    ),
}


def read(where: str) -> list[Any]:
    """Every example of a data set."""
    found = data.load(where)
    return [example for task in found.tasks for example in found.examples(task)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "data" / "a.png", RED)
    return tmp_path / "data"


@pytest.mark.parametrize("name", BAD)
def test_a_folder(name: str, folder: Path) -> None:
    make, message = BAD[name]
    make(folder)
    with pytest.raises(GatelensError, match=message) as caught:
        read(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


# -- copies of the papers' data: the same faults in tables of their form -----------------------------------------------


def lines(name: str, *rows: Any) -> Make:
    """A table of JSON lines beside the good picture ``a.png``."""
    split = ENTRIES[name].split
    written = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return lambda folder: put(folder / f"{split}.jsonl", "\n".join(written))


def caption(**values: Any) -> Make:
    return lines(
        "flickr30k", {"image": "a.png", "caption": ["a cat"]}, {"image": "a.png", "caption": ["x"], **values}
    )


def question(**values: Any) -> Make:
    good = {"image": "a.png", "question": "what?", "answers": ["cat"]}
    return lines("vqav2", good, {**good, **values})


def objects(value: Any) -> Make:
    square = {"category_name": "cat", "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]], "bbox": [0, 0, 3, 3]}
    good = {"image": "a.png", "objects": [square]}
    bad = [{**square, **one} for one in value] if isinstance(value, list) else value
    return lines("coco-objects", good, {"image": "a.png", "objects": bad})


SECOND = r"row 1 of \w+ in .* \(counted from 0\): "
BAD_COPIES: dict[str, tuple[str, Make, str]] = {
    "no JSON": (
        "flickr30k",
        lines("flickr30k", {"image": "a.png", "caption": "x"}, "{"),
        r"test.jsonl line 2: not JSON",
    ),
    "NaN": ("flickr30k", lines("flickr30k", '{"image": NaN}'), r"line 1: not JSON \(NaN"),
    "JSON 100,000 deep": ("flickr30k", lines("flickr30k", DEEP_JSON), r"line 1: JSON nested too deeply"),
    "JSON as text, 100,000 deep": (
        "flickr30k",
        caption(caption=DEEP_JSON),
        SECOND + "JSON nested too deeply",
    ),
    "an empty table": ("flickr30k", lines("flickr30k"), r"is empty"),
    "a picture above": (
        "flickr30k",
        both(outside, caption(image="../outside.png")),
        SECOND + ".*is outside",
    ),
    "a system's file": ("flickr30k", caption(image="/etc/hostname"), SECOND + ".*is outside"),
    "a folder above": (
        "flickr30k",
        both(outside, caption(image="outside.png", filepath="..")),
        SECOND + ".*is outside",
    ),
    "an image that is a number": ("flickr30k", caption(image=5), SECOND + "no picture"),
    "NUL in a name": ("flickr30k", caption(image="\0.png"), SECOND + "no picture"),
    "a missing picture": (
        "flickr30k",
        caption(image="zzz.png"),
        SECOND + "no picture 'zzz.png' beside the table",
    ),
    "a folder named like a picture": (
        "flickr30k",
        both(lambda f: (f / "d.png").mkdir(), caption(image="d.png")),
        SECOND + "no picture 'd.png'",
    ),
    "a text named .png": (
        "flickr30k",
        both(lambda f: put(f / "b.png", "no picture"), caption(image="b.png")),
        SECOND + ".*is not a readable picture",
    ),
    "a caption that is an object": ("flickr30k", caption(caption={}), SECOND + "no caption"),
    "a caption that is null": ("flickr30k", caption(caption=[None]), SECOND + "caption 1 of 1 is empty"),
    "a caption that is a list": ("flickr30k", caption(caption=[["x"]]), SECOND + "entry 1 of 1 is not text"),
    "half a character": (
        "flickr30k",
        caption(caption=["\ud83d"]),
        SECOND + "text with a NUL or an unpaired surrogate",
    ),
    "a question with NUL": ("vqav2", question(question="a\0?"), SECOND + "text with a NUL"),
    "an answer with NUL": ("vqav2", question(answers="a\0"), SECOND + "text with a NUL"),
    "a question that is a number": ("vqav2", question(question=5), SECOND + "the question is not text"),
    "answers that are an object": ("vqav2", question(answers={}), SECOND + "no answers"),
    "an answer that is a list": ("vqav2", question(answers=[["x"]]), SECOND + "entry 1 of 1 is not text"),
    "an answer that is an object": ("vqav2", question(answers=[{"text": "x"}]), SECOND + "no answers"),
    "objects that are a number": ("coco-objects", objects(5), SECOND + ".*not in the form"),
    "objects that are a number beside numbered ones": (
        "coco-objects",
        lines(
            "coco-objects",
            {"image": "a.png", "objects": [{"category_id": 90, "segmentation": [[0, 0, 3, 0, 3, 3]]}]},
            {"image": "a.png", "objects": 5},
        ),
        SECOND + ".*not in the form",
    ),
    "a category that is a list": (
        "mme",
        lines(
            "mme",
            {"image": "a.png", "question": "a cat?", "answer": "yes", "category": "OCR"},
            {"image": "a.png", "question": "a cat?", "answer": "yes", "category": ["OCR"]},
        ),
        SECOND + "the category is not text",
    ),
    "objects that are text": ("coco-objects", objects("cat"), SECOND + ".*not in the form"),
    "no objects": ("coco-objects", objects([]), SECOND + "no objects"),
    "an object without a mask": (
        "coco-objects",
        objects([{"segmentation": None}]),
        SECOND + ".*without a mask",
    ),
    "a mask of two corners": (
        "coco-objects",
        objects([{"segmentation": [[0, 0, 1, 1]]}]),
        SECOND + "a polygon of 4",
    ),
    "a mask of words": ("coco-objects", objects([{"segmentation": [["a"] * 6]}]), SECOND),
    "run lengths beyond the picture": (
        "coco-objects",
        objects([{"segmentation": {"counts": [0, 10**9], "size": [4, 6]}}]),
        SECOND + "a mask of 6x4 with 1000000000 pixels",
    ),
    "negative run lengths": (
        "coco-objects",
        objects([{"segmentation": {"counts": [-1, 25], "size": [4, 6]}}]),
        SECOND,
    ),
    "run lengths without a size": ("coco-objects", objects([{"segmentation": {"counts": [24]}}]), SECOND),
    "run lengths that break off": (
        "coco-objects",
        objects([{"segmentation": {"counts": "o", "size": [4, 6]}}]),
        SECOND + "a truncated mask",
    ),
    "run lengths beyond ASCII": (
        "coco-objects",
        objects([{"segmentation": {"counts": "\u00e9", "size": [4, 6]}}]),
        SECOND,
    ),
    "a label that is a list": (
        "imagenet",
        lines("imagenet", {"image": "a.png", "label": "cat"}, {"image": "a.png", "label": ["dog"]}),
        SECOND + "the label is not text",
    ),
    "a label that is an object": (
        "imagenet",
        lines("imagenet", {"image": "a.png", "label": "cat"}, {"image": "a.png", "label": {}}),
        SECOND + "the label is not text",
    ),
}


@pytest.mark.parametrize("name", BAD_COPIES)
def test_a_copy_of_the_papers_data(name: str, folder: Path) -> None:
    entry, make, message = BAD_COPIES[name]
    make(folder)
    with pytest.raises(GatelensError, match=message) as caught:
        read(f"{entry}:{folder}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name", ["a table that is a folder", "UTF-16", "a task that is a list", "half a JPEG"]
)
def test_on_the_command_line(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[name]
    make(folder)
    command = ["study", "narrow-gate", "--model", "organism:gated", "--data", str(folder), "--quiet"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("gatelens: error: ") and "\n" not in error and re.search(message, error)
