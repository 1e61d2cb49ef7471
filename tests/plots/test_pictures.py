"""Pictures as data URIs."""

from __future__ import annotations

import pytest
from PIL import Image

from gatelens.plots.pictures import opened, picture_uri


@pytest.mark.parametrize(
    ("size", "longest", "enlarge", "expected"),
    [
        ((16, 8), None, False, (16, 8)),
        ((400, 200), 100, False, (100, 50)),
        ((16, 8), 100, False, (16, 8)),
        ((16, 8), 100, True, (96, 48)),
        ((80, 40), 100, True, (80, 40)),
    ],
)
def test_sizes(size: tuple[int, int], longest: int | None, enlarge: bool, expected: tuple[int, int]) -> None:
    uri = picture_uri(Image.new("RGBA", size, "red"), longest, enlarge=enlarge)
    assert uri.startswith("data:image/png;base64,")
    picture = opened(uri)
    assert picture.size == expected
    assert picture.getpixel((0, 0)) == (255, 0, 0)


def test_jpeg() -> None:
    assert picture_uri(Image.new("RGB", (4, 4)), kind="JPEG").startswith("data:image/jpeg;base64,")
