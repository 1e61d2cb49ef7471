"""The pictures that are described, and what the data knows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gatelens.data import Example
from gatelens.errors import GatelensError
from gatelens.studies.whats_in_the_image.pictures import mask_box, masks_of, objects_in
from study_helpers import picture


def test_truth(tmp_path: Path) -> None:
    image = picture("dog", 0)

    def example(**meta: Any) -> Example:
        return Example(image, "<image>", ("a dog",), "caption", "7", meta=meta)

    assert objects_in(example()) is None
    assert objects_in(example(objects="dog| cat |dog")) == ["dog", "cat"]
    left = np.zeros((16, 16), bool)
    left[:, :8] = True
    assert mask_box(left) == [0, 0, 0.5, 1]
    assert mask_box(np.eye(16, dtype=bool)) == [0, 0, 1, 1]
    twice = masks_of(example(objects=["dog", "dog"], masks=[left, ~left]))
    assert twice["dog"].all()
    Image.fromarray((255 * left).astype(np.uint8)).save(tmp_path / "m.png")
    assert (masks_of(example(masks={"dog": tmp_path / "m.png"}))["dog"] == left).all()
    assert masks_of(example()) == {}
    for meta, match in (
        ({"masks": {"dog": "none.png"}}, "no such file"),
        ({"masks": {"dog": np.ones((3, 3))}}, r"\(3, 3\), its picture \(16, 16\)"),
        ({"objects": ["dog"], "masks": [left, left]}, "2 masks for 1 objects"),
    ):
        with pytest.raises(GatelensError, match=match):
            masks_of(example(**meta))
