"""The pictures that the page can name: samples of a data set, and uploads."""

from __future__ import annotations

import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from threading import Lock

from PIL import Image

from gatelens.data import Dataset, Example
from gatelens.errors import InputError
from gatelens.pictures import load_image

UPLOADS = 24  # kept at once; the oldest goes first
LARGEST_UPLOAD = 16 << 20  # bytes
VIEW = 1024  # pixels of the longer side, as the page shows it
SAMPLES = {"class": 5, "vqa": 4, "caption": 3}


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture on the page.

    Attributes:
        image: upright RGB.
        label: what the page calls it.
        source: the Python that gives it.
        comment: the comment on that line.
        prompt: what its data set asks about it.
    """

    image: Image.Image
    label: str
    source: str
    comment: str = ""
    prompt: str | None = None

    @cached_property
    def view(self) -> bytes:
        """The picture as a PNG for the page, at most :data:`VIEW` pixels a side."""
        image = self.image.copy()
        image.thumbnail((VIEW, VIEW))
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()


class Shelf:
    """Pictures by id, ``sample:0`` … and ``upload:…``; several threads may use it.

    Args:
        data: where samples are from.
        name: what :func:`gatelens.data.load` loads it by.
        seed: of the samples.
        drawn: how many examples of each task are drawn; the first few are shown.
    """

    def __init__(
        self, data: Dataset, name: str, seed: int = 0, drawn: Mapping[str, int] | None = None
    ) -> None:
        self._samples: dict[str, Shown] = {}
        self._uploads: OrderedDict[str, Shown] = OrderedDict()
        self._lock = Lock()
        for task in [task for task in SAMPLES if task in data.tasks]:
            limit = (drawn or {}).get(task, SAMPLES[task])
            examples = data.examples(task, limit=limit, seed=seed)
            called = (
                f"gl.data.load({json.dumps(name)}).examples({json.dumps(task)}, limit={limit}, seed={seed})"
            )
            self._add_samples(examples[: SAMPLES[task]], called)

    def _add_samples(self, examples: Sequence[Example], called: str) -> None:
        for number, example in enumerate(examples):
            if example.image is not None:
                words = example.label or next(iter(example.answers), "")
                shown = Shown(example.image, words, f"{called}[{number}].image", prompt=example.prompt)
                self._samples[f"sample:{len(self._samples)}"] = shown

    @property
    def samples(self) -> Mapping[str, Shown]:
        """The pictures of the data set."""
        return self._samples

    def upload(self, content: bytes, name: str) -> str:
        """Keep the picture of a file; its id.

        Raises:
            InputError: it is not a readable picture.
        """
        # a name from a browser has no folder, but any client may send one, and it is written into a script
        file = PurePath(name.replace("\\", "/")).name[-100:]
        file = file if file.strip(".") else "picture"
        image = load_image(content, f"'{file}'" if file.isprintable() else "picture")
        key = "upload:" + hashlib.sha256(content).hexdigest()[:16]
        shown = Shown(image, file, json.dumps(file), "the file that was uploaded")
        with self._lock:
            self._uploads[key] = shown
            self._uploads.move_to_end(key)
            while len(self._uploads) > UPLOADS:
                self._uploads.popitem(last=False)
        return key

    def __getitem__(self, key: str) -> Shown:
        """Raises InputError for an id that is not there."""
        with self._lock:
            shown = self._samples.get(key) or self._uploads.get(key)
        if shown is None:
            gone = "is no longer here: upload it again" if key.startswith("upload:") else "is not on the page"
            raise InputError(f"picture '{key:.40}' {gone}")
        return shown
