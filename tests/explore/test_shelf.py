"""The pictures of the page: samples are the data's own, uploads are read as every picture is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

import gatelens as gl
from explore_helpers import png
from gatelens.errors import InputError
from gatelens.explore import shelf as room
from gatelens.explore.shelf import Shelf
from study_helpers import TinyData


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(TinyData(), "tiny")


def test_each_sample_is_what_its_source_says() -> None:
    samples = Shelf(gl.data.load("emoji-scenes"), "emoji-scenes", seed=3, drawn={"class": 7}).samples
    assert len(samples) == sum(room.SAMPLES.values())
    for shown in samples.values():
        again = eval(shown.source, {"gl": gl})
        assert np.array_equal(np.asarray(again), np.asarray(shown.image))
    assert 'examples("class", limit=7, seed=3)[0]' in samples["sample:0"].source


def test_an_upload_is_upright_rgb_under_its_name(shelf: Shelf) -> None:
    turned = Image.new("RGB", (8, 6), "blue")
    exif = turned.getexif()
    exif[274] = 6  # lies on its side
    file = io.BytesIO()
    turned.save(file, format="JPEG", exif=exif)
    shown = shelf[shelf.upload(file.getvalue(), "C:\\photos\\cat 1.jpg")]
    assert (shown.image.size, shown.image.mode, shown.label) == ((6, 8), "RGB", "cat 1.jpg")
    assert eval(shown.source) == "cat 1.jpg"


@pytest.mark.parametrize(
    "name", ["", "/", "..", "../../x.png", 'a"b.png', "a\nb.png", "\\", "x" * 300, "ü 漢.png"]
)
def test_any_name_is_one_file_of_this_folder_in_one_line(shelf: Shelf, name: str) -> None:
    source = shelf[shelf.upload(png(), name)].source
    assert "\n" not in source
    assert eval(source) not in ("", "..") and not set(eval(source)) & set("/\\")


def test_what_is_no_picture_is_refused(shelf: Shelf) -> None:
    with pytest.raises(InputError, match=r"'x.png'.*not a readable picture"):
        shelf.upload(b"not a picture", "x.png")
    with pytest.raises(InputError, match="not a readable picture"):
        shelf.upload(b"", "a\nb")


def test_the_oldest_uploads_go_first(shelf: Shelf) -> None:
    first = shelf.upload(png(), "first.png")
    assert shelf.upload(png(), "again.png") == first
    for side in range(1, room.UPLOADS + 1):
        last = shelf.upload(png(size=(side, 9)), "x.png")
    assert shelf[last].image.height == 9
    with pytest.raises(InputError, match="upload it again"):
        shelf[first]
    with pytest.raises(InputError, match="not on the page"):
        shelf["sample:99"]


def test_the_page_is_given_no_more_pixels_than_it_shows(shelf: Shelf) -> None:
    key = shelf.upload(png(size=(3000, 30)), "wide.png")
    assert Image.open(io.BytesIO(shelf[key].view)).size == (room.VIEW, 10)
    assert shelf[key].image.size == (3000, 30)
