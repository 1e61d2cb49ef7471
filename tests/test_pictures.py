"""Pictures of every kind by every way in, against numpy by hand; what cannot be read correctly is refused."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import paper_copies
from gatelens import data
from gatelens.data import scenes
from gatelens.errors import InputError
from gatelens.inputs import match_images
from gatelens.pictures import load_image, load_mask
from tiny_models import make_picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
DEEP[0, :4] = (0, 255, 256, 65535)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(values: np.ndarray, depth: int, colour: int, key: tuple[int, ...] = ()) -> bytes:
    """A PNG written from its specification: rows of packed samples, ``key`` the transparent colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    if depth < 8:
        bits = [[(v >> b) & 1 for v in row for b in reversed(range(depth))] for row in values.tolist()]
        rows = [bytes(np.packbits(row)) for row in bits]
    else:
        rows = [row.astype(f">u{depth // 8}").tobytes() for row in values]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    if key:
        parts.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.round(values).astype(np.uint8)[..., None], 3, axis=2)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def turned(size: tuple[int, int], form: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(RGB).resize(size, Image.Resampling.NEAREST), form, exif=exif.tobytes())


PALETTE = Image.fromarray(RGB).quantize(8)
PALETTE_RGB = np.asarray(PALETTE.getpalette("RGB")).reshape(-1, 3)[np.asarray(PALETTE)].astype(np.uint8)
TWO_BITS = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
LA = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))
RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))
CMYK = np.dstack([RGB, GREY])
INVERTED = 255 - CMYK.astype(float)
FILES: dict[str, tuple[bytes, np.ndarray]] = {
    "RGB": (saved(Image.fromarray(RGB), "PNG"), RGB),
    "L": (saved(Image.fromarray(GREY), "PNG"), grey(GREY)),
    "1": (saved(Image.fromarray(GREY > 99), "PNG"), grey(255 * (GREY > 99))),
    "RGBA": (saved(RGBA, "PNG"), on_white(RGB, ALPHA)),
    "RGBA in WebP": (saved(RGBA, "WEBP", lossless=True, exact=True), on_white(RGB, ALPHA)),
    "LA": (saved(LA, "PNG"), on_white(grey(GREY), ALPHA)),
    "P": (saved(PALETTE, "PNG"), PALETTE_RGB),
    "P with a transparent colour": (
        saved(PALETTE, "PNG", transparency=2),
        np.where((np.asarray(PALETTE) == 2)[..., None], 255, PALETTE_RGB),
    ),
    "P with alphas": (
        saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 32))),
        on_white(PALETTE_RGB, 32 * np.asarray(PALETTE)),
    ),
    "L with a transparent grey": (
        png(GREY, 8, 0, (int(GREY[2, 2]),)),
        grey(np.where(GREY[2, 2] == GREY, 255, GREY)),
    ),
    "2 bits": (png(TWO_BITS, 2, 0), grey(85 * TWO_BITS)),
    "2 bits with a transparent grey": (
        png(TWO_BITS, 2, 0, (1,)),
        grey(np.where(TWO_BITS == 1, 255, 85 * TWO_BITS)),
    ),
    "1 bit with black transparent": (png(TWO_BITS % 2, 1, 0, (0,)), grey(np.full((2, 4), 255))),
    "RGB with a transparent colour": (
        png(RGB.reshape(5, -1).reshape(5, 7, 3), 8, 2, tuple(RGB[1, 1].tolist())),
        np.where((RGB[1, 1] == RGB).all(axis=2)[..., None], 255, RGB),
    ),
    "16-bit PNG": (saved(Image.fromarray(DEEP), "PNG"), grey(DEEP / 257)),
    "16-bit TIFF": (saved(Image.fromarray(DEEP), "TIFF"), grey(DEEP / 257)),
    "16-bit PNG with a transparent grey": (
        png(DEEP, 16, 0, (255,)),
        grey(np.where(DEEP == 255, 255, DEEP / 257)),
    ),
    "16-bit PGM": (b"P5 7 5 65535\n" + DEEP.astype(">u2").tobytes(), grey(DEEP / 257)),
    "16-bit RGB": (png(np.dstack([DEEP] * 3), 16, 2), grey(DEEP >> 8)),
    "float TIFF of 0..1": (
        saved(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
        grey(GREY),
    ),
    "float TIFF of 0..255": (saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), grey(GREY)),
    "32-bit TIFF of 0..255": (saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), grey(GREY)),
    "CMYK": (
        saved(Image.fromarray(CMYK, "CMYK"), "TIFF"),
        np.round(INVERTED[..., :3] * INVERTED[..., 3:] / 255).astype(np.uint8),
    ),
    "the first frame": (
        saved(
            Image.fromarray(RGB),
            "WEBP",
            save_all=True,
            lossless=True,
            append_images=[Image.fromarray(255 - RGB)],
        ),
        RGB,
    ),
    "damaged EXIF": (saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0nothing of the kind"), RGB),
}
QUARTER = Image.Exif()  # the picture lies on its side
QUARTER[0x0112] = 6
FILES |= {
    f"{name} turned": (
        saved(Image.open(io.BytesIO(FILES[name][0])), form, exif=QUARTER.tobytes()),
        FILES[name][1][::-1].transpose(1, 0, 2),
    )
    for name, form in (
        ("16-bit PNG", "PNG"),
        ("16-bit TIFF", "TIFF"),
        ("float TIFF of 0..1", "TIFF"),
        ("P with a transparent colour", "PNG"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
    )
}
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what EXIF says row 0 and column 0 are
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    9: lambda a: a,  # says nothing
}
for orientation, turn in UPRIGHT.items():
    for form in ("PNG", "TIFF"):
        FILES[f"EXIF {orientation} in {form}"] = (turned((7, 5), form, orientation), turn(RGB))


def by_prepare(kind: str) -> Callable[[bytes, Path], Image.Image]:
    def read(content: bytes, folder: Path) -> Image.Image:
        file = folder / "picture"
        file.write_bytes(content)
        given: Any = {
            "path": file,
            "bytes": content,
            "opened": Image.open(file),
            "decoded": Image.open(io.BytesIO(content)),
        }[kind]
        if kind == "decoded":
            given.load()
        return match_images(given, ["<image>"], "<image>")[0][0]

    return read


def by_folder(content: bytes, folder: Path) -> Image.Image:
    (folder / "picture").write_bytes(content)
    (folder / "data.csv").write_text("image,label\npicture,cat\n")
    return data.load(folder).examples("class")[0].image


def by_papers_table(content: bytes, folder: Path) -> Image.Image:
    (folder / "picture").write_bytes(content)
    (folder / "test.jsonl").write_text(json.dumps({"image": "picture", "caption": ["a cat"]}))
    return data.load(f"flickr30k:{folder}").examples("caption")[0].image


def by_papers_bytes(content: bytes, folder: Path) -> Image.Image:
    paper_copies.write(folder / "test.parquet", [{"image": {"bytes": content}, "caption": ["a cat"]}])
    return data.load(f"flickr30k:{folder}").examples("caption")[0].image


WAYS = {f"prepare {kind}": by_prepare(kind) for kind in ("path", "bytes", "opened", "decoded")}
WAYS |= {"folder": by_folder, "papers, file": by_papers_table, "papers, bytes": by_papers_bytes}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_by_every_way(name: str, tmp_path: Path) -> None:
    content, wanted = FILES[name]
    blended = (
        "LA" in name or "RGBA" in name or name in ("P with alphas", "CMYK")
    )  # by Pillow, in whole numbers
    for way, read in WAYS.items():
        if way == "prepare decoded" and name == "2 bits with a transparent grey":
            continue  # a decoded picture no longer tells how many bits it had
        folder = tmp_path / way
        folder.mkdir()
        image = read(content, folder)
        assert (image.mode, image.size) == ("RGB", wanted.shape[1::-1]), way
        got = np.asarray(image).astype(int)
        assert np.abs(got - wanted).max() <= (1 if blended else 0), way
        again = match_images(image, ["<image>"], "<image>")[0][0]  # as an example's picture goes to prepare
        assert np.array_equal(np.asarray(again), np.asarray(image)), way


def test_scenes_go_in_as_they_are() -> None:
    scene = scenes.scene("test", 0, 3)
    assert np.array_equal(match_images(scene.image, ["<image>"], "<image>")[0][0], scene.pixels)
    example = data.load("emoji-scenes").examples("class", limit=1)[0]
    assert np.array_equal(match_images(example.image, ["<image>"], "<image>")[0][0], example.image)


def test_a_phones_photo_with_a_second_picture_in_it() -> None:
    first, second = make_picture(8, 4, seed=1), make_picture(8, 4, seed=2)
    content = saved(first, "MPO", save_all=True, append_images=[second], exif=QUARTER.tobytes())
    wanted = np.asarray(Image.open(io.BytesIO(saved(first, "JPEG"))))[::-1].transpose(1, 0, 2)
    assert np.array_equal(np.asarray(load_image(content)), wanted)


def test_a_gif_gives_its_first_frame_and_a_picture_its_current_one(tmp_path: Path) -> None:
    frames = [Image.new("P", (4, 3), i) for i in (0, 1)]
    for frame in frames:
        frame.putpalette([255, 0, 0, 0, 0, 255])
    (tmp_path / "p.gif").write_bytes(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert load_image(tmp_path / "p.gif").getpixel((0, 0)) == (255, 0, 0)
    opened = Image.open(tmp_path / "p.gif")
    opened.seek(1)
    assert load_image(opened).getpixel((0, 0)) == (0, 0, 255)


def test_arrays() -> None:
    for given in (RGB, RGB.astype(int), RGB.astype(float), RGB / 255, (RGB / 255).astype(np.float32)):
        for kind in (given, torch.tensor(given), torch.tensor(given).permute(2, 0, 1)):
            assert np.array_equal(np.asarray(load_image(kind)), RGB)
    dark = np.zeros((5, 7, 3), np.uint8)
    dark[0] = 1  # of 255, not of 1
    for kind in (dark, torch.tensor(dark), torch.tensor(dark).int()):
        assert np.array_equal(np.asarray(load_image(kind)), dark)
    for kind in (GREY, GREY[..., None], GREY[None], torch.tensor(GREY), torch.tensor(GREY)[None]):
        assert np.array_equal(np.asarray(load_image(kind)), grey(GREY))
    for kind in (GREY > 99, torch.tensor(GREY > 99)):
        assert np.array_equal(np.asarray(load_image(kind)), grey(255 * (GREY > 99)))
    four = np.dstack([RGB, ALPHA])
    for kind in (four, four / 255, torch.tensor(four), torch.tensor(four).permute(2, 0, 1)):
        assert np.abs(np.asarray(load_image(kind)).astype(int) - on_white(RGB, ALPHA)).max() <= 1
    half = torch.tensor(RGB / 255).bfloat16()
    assert np.array_equal(np.asarray(load_image(half)), (half.float() * 255).round().numpy())
    assert np.array_equal(np.asarray(load_image(RGB[:3])), RGB[:3])  # channels of an array come last


def test_a_users_own_picture_stays_as_it_is() -> None:
    for content in (turned((7, 5), "PNG", 6), FILES["RGBA"][0], FILES["16-bit PNG"][0]):
        image = Image.open(io.BytesIO(content))
        mode, size, info = image.mode, image.size, dict(image.info)
        load_image(image)
        assert (image.mode, image.size, dict(image.info)) == (mode, size, info)


BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "seven channels": (np.zeros((2, 2, 7)), r"shape \(2, 2, 7\)"),
    "no rows": (np.zeros((0, 2, 3)), "shape"),
    "one number": (np.zeros(()), "shape"),
    "nan": (np.full((2, 2), np.nan), "not finite"),
    "inf": (torch.full((2, 2), torch.inf), "not finite"),
    "negative": (np.full((2, 2, 3), -1.5), "outside 0..255"),
    "16 bits": (DEEP, "outside 0..255"),
    "beyond 1": (RGB / (RGB.max() - 2), "floats up to 1.0.*give 0..1 .clip them. or 0..255"),
    "complex": (np.ones((2, 2), complex), "type complex128"),
    "objects": (np.array([["a", None]], object), "type object"),
    "words": (np.array([["a", "b"]]), "type <U1"),
    "no numbers": (torch.zeros(2, 2, device="meta"), "cannot be read as an array"),
    "sparse": (torch.zeros(2, 2).to_sparse(), "cannot be read as an array"),
    "channels first or last": (torch.zeros(3, 9, 4), "channels first or last"),
    "a number": (42, "is a int"),
    "None": (None, "is a NoneType"),
    "a list": ([[1, 2], [3, 4]], "is a list"),
    "mode I beyond 255": (Image.fromarray(DEEP.astype(np.int32)), "outside 0..255"),
    "mode F beyond 255": (Image.fromarray(DEEP.astype(np.float32)), "outside 0..255"),
    "mode F with nan": (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "not finite"),
    "no pixels": (Image.new("RGB", (0, 3)), "empty, 0x3 pixels"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_what_is_no_picture_is_named(name: str) -> None:
    given, message = BAD_ARRAYS[name]
    with pytest.raises(InputError, match=f"^picture 1.*{message}") as caught:
        load_image(given, "picture 1")
    assert "\n" not in str(caught.value)


def bomb() -> bytes:
    whole = png(np.zeros((1, 1), np.uint8), 8, 0)
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]


def tiff_tag(number: int, value: int) -> bytes:
    return struct.pack("<HHIH", number, 3, 1, value)


PHOTO = saved(make_picture(60, 40), "JPEG")
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "none of PNG, .*or damaged"),
    "text": (b"no picture", "none of PNG, .*or damaged"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of PNG, .*or damaged"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "none of PNG, .*or damaged"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "none of PNG, .*or damaged"),
    "half a JPEG": (PHOTO[: len(PHOTO) // 2], "truncated"),
    "half a PNG": (saved(Image.fromarray(RGB), "PNG")[:90], "truncated"),
    "half a TIFF": (saved(Image.fromarray(RGB), "TIFF")[:60], ""),
    "half a WebP": (saved(Image.fromarray(RGB), "WEBP")[:40], ""),
    "half a GIF": (saved(PALETTE, "GIF")[:40], ""),
    "header of a PNG": (b"\x89PNG\r\n\x1a\n", ""),
    "a broken checksum": (FILES["RGB"][0].replace(b"IDAT", b"IDAX"), ""),
    "400 megapixels": (bomb(), "more than 178,956,970 pixels.*make it smaller"),
    "32-bit TIFF": (saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "outside 0..255"),
    "float TIFF": (saved(Image.fromarray(DEEP.astype(np.float32)), "TIFF"), "outside 0..255"),
    "12-bit TIFF": (
        saved(Image.fromarray(DEEP), "TIFF").replace(
            struct.pack("<HHIH", 258, 3, 1, 16), struct.pack("<HHIH", 258, 3, 1, 12)
        ),
        "a TIFF of 12 bits",
    ),
    "16-bit TIFF with white as 0": (
        saved(Image.fromarray(DEEP), "TIFF").replace(
            struct.pack("<HHIH", 262, 3, 1, 1), struct.pack("<HHIH", 262, 3, 1, 0)
        ),
        "white as 0",
    ),
    "a transparent colour of 16 bits": (
        png(np.dstack([DEEP] * 3), 16, 2, (1000,) * 3),
        "transparent colour of 16",
    ),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / "p.png").write_bytes(content)
    for given, named in ((tmp_path / "p.png", r".*p\.png'"), (content, "it")):
        with pytest.raises(
            InputError, match=f"picture 0 of prompt 1: {named} is not a readable picture .*{message}"
        ) as caught:
            match_images([[make_picture()], [given]], ["<image>", "<image>"], "<image>")
        assert "\n" not in str(caught.value)


def test_paths_that_lead_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # which would be waited for
    for given, message in (
        ("missing.png", "no such file 'missing.png': check the path"),
        ("", "''"),
        (tmp_path / "folder.png", "not a file"),
        (tmp_path / "pipe.png", "not a file"),
        ("a\0b.png", "no such file|null"),
        ("x" * 5000, "no such file|too long"),
        ("http://nowhere/p.png", "no such file 'http://nowhere/p.png'"),
    ):
        with pytest.raises(InputError, match=f"^picture 1: .*{message}") as caught:
            load_image(given, "picture 1")
        assert "\n" not in str(caught.value)


def test_a_lazily_opened_picture_that_breaks_off(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"image: it is not a readable picture .*truncated"):
        load_image(Image.open(io.BytesIO(PHOTO[: len(PHOTO) // 2])))
    closed = Image.open(io.BytesIO(PHOTO))
    closed.close()
    with pytest.raises(InputError, match="image: it is not a readable picture"):
        load_image(closed)


def test_masks(tmp_path: Path) -> None:
    where = GREY > 99
    numbers = (where * 3).astype(np.uint16)
    cut_out = np.dstack([np.full((5, 7, 3), 255, np.uint8), 255 * where.astype(np.uint8)])
    palette = Image.fromarray((where * 1).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 128])
    kinds = {
        "1": Image.fromarray(where),
        "L": Image.fromarray((where * 1).astype(np.uint8)),
        "16 bits": Image.fromarray(numbers),
        "32 bits": Image.fromarray(numbers.astype(np.int32)),
        "float": Image.fromarray((numbers / 1000).astype(np.float32)),
        "RGB": Image.fromarray(np.dstack([where * 0, where * 0, where * 9]).astype(np.uint8)),
        "RGBA": Image.fromarray(cut_out),
        "P": palette,
    }
    for name, image in kinds.items():
        form = "TIFF" if name in ("32 bits", "float") else "PNG"
        (tmp_path / "m").write_bytes(saved(image, form))
        for given in (image, tmp_path / "m"):
            assert np.array_equal(load_mask(given), where), name
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "m").write_bytes(saved(kinds["L"], "PNG", exif=exif.tobytes()))
    assert np.array_equal(load_mask(tmp_path / "m"), where[::-1].T)
    with pytest.raises(InputError, match="mask: no such file"):
        load_mask(tmp_path / "none")
