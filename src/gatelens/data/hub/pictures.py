"""The pictures of a table's rows: held by the row, in a file beside the table, or at an address."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from PIL import Image

from gatelens.data.base import Example
from gatelens.errors import DataError
from gatelens.pictures import load_image

ATTEMPTS = 3
TIMEOUT_SECONDS = 30
_ADDRESS = ("http://", "https://")


class _Picture:
    """The attribute ``image`` of an example whose picture is decoded again at each access."""

    def __get__(self, example: Any, owner: Any = None) -> Any:
        if example is None:
            return self
        held = example.__dict__["image"]
        return decoded(held) if callable(held) else held

    def __set__(self, example: Any, value: Any) -> None:
        example.__dict__["image"] = value


class LazyExample(Example):
    """An example that keeps its picture's file, so that thousands of them fit into memory."""

    image = _Picture()


def decoded(read: Callable[[], bytes]) -> Image.Image:
    """The picture whose file ``read`` gives, in RGB.

    Raises:
        InputError: it cannot be read.
    """
    return load_image(read(), "picture")


def picture_source(
    cells: Sequence[Any], base: Path | None, folder: str, address: str | None
) -> Callable[[], bytes]:
    """What reads the file of a row's picture.

    Args:
        cells: the row's picture columns that are not empty: bytes, a path, an address, or a mapping with one.
        base: the folder of the table, for paths.
        folder: the folder below ``base`` that the row names, or "".
        address: where the picture is when it is nowhere else.

    Raises:
        ValueError: there is no picture, or the server does not have it: the row is bad.
        DataError: the server cannot be reached.
    """
    names: list[str] = []
    for cell in cells:
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if isinstance(content, (bytes, bytearray, memoryview)):
            data = bytes(content)
            return lambda: data
        path = cell.get("path") if isinstance(cell, Mapping) else cell
        if isinstance(path, str) and path:
            names.append(path)
    for file in _candidates(names, base, folder):
        if os.path.isfile(file):
            return file.read_bytes
    address = next((name for name in names if name.startswith(_ADDRESS)), address)
    if address is None:
        raise ValueError(f"no picture {names[0]!r} beside the table" if names else "no picture")
    return fetch(address).read_bytes


def _candidates(names: Sequence[str], base: Path | None, folder: str) -> Iterator[Path]:
    """The files that a picture of one of these names may be; below ``base``, as a table may come from anywhere.

    Links are followed: the hub's own cache is made of them.
    """
    for name in names:
        if base is not None and not name.startswith(_ADDRESS):
            for below in ("", folder, "images"):
                path = Path(below, name)
                if path.is_absolute() or ".." in path.parts:
                    raise ValueError(f"the picture {str(path)!r} is outside {base}; copy it beside the table")
                yield base / path


def fetch(address: str) -> Path:
    """The file of the picture at an address, fetched when it is not there yet and kept below ``HF_HOME``.

    Raises:
        ValueError: the server answers that it does not have it: the row is bad.
        DataError: the server cannot be reached, or the disk refuses: no fault of the row, so never skipped.
    """
    file = Path(constants.HF_HOME, "gatelens", "pictures") / hashlib.sha256(address.encode()).hexdigest()[:32]
    if file.is_file():
        return file
    partial = file.with_suffix(f".{os.getpid()}.part")
    try:
        content = _download(address)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except urllib.error.HTTPError as error:
        raise ValueError(f"the picture {address} is not there ({error.code} {error.reason})") from error
    except OSError as error:  # URLError, timeouts, and the disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the picture {address} cannot be fetched ({reason}); connect, or put the pictures beside the table"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return file


def _download(address: str) -> bytes:
    """The bytes at an address; huggingface_hub's client refuses other servers when it is switched offline."""
    request = urllib.request.Request(address, headers={"User-Agent": "gatelens"})
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return bytes(answer.read())
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError) or attempt + 1 == ATTEMPTS:
                raise  # an HTTP error is the server's answer: asking again changes nothing
    raise AssertionError("unreachable")
