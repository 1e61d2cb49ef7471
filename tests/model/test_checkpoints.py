"""Saving a wrapped model: what is loaded again, where it is written, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import gatelens as gl
from gatelens.drawing import codec
from gatelens.errors import ModelError, OutputError
from gatelens.model import HookedVLM
from gatelens.model.checkpoints import COMPANIONS, weights
from tiny_models import make_llava, make_picture


@pytest.mark.parametrize("name", ["gated", "llava"])
def test_an_organism_comes_back(name: str, tmp_path: Path) -> None:
    model = HookedVLM.from_pretrained(f"organism:{name}")
    shipped = gl.organisms.folder(name)
    saved = model.save_pretrained(tmp_path / "saved")
    assert (saved / "model.safetensors").read_bytes() == (shipped / "model.safetensors").read_bytes()
    loaded = HookedVLM.from_pretrained(str(saved))
    ask = (make_picture(), "<image> this is a")
    assert torch.equal(loaded(loaded.prepare(*ask)), model(model.prepare(*ask)))
    if name == "gated":
        ours, theirs = (
            gl.organisms.draw(m, "draw a fox on a red circle.", guidance=1.0)[0] for m in (loaded, model)
        )
        assert ours.tobytes() == theirs.tobytes()


def test_the_picture_decoder_is_a_companion() -> None:
    assert codec.DECODER_FILE in COMPANIONS


def test_changed_weights_are_saved(tmp_path: Path) -> None:
    model = HookedVLM.from_module(make_llava())
    with torch.no_grad():
        model.bridge.blocks[1].mlp.out.weight.mul_(2)  # by TransformerLens' name
    saved = model.save_pretrained(tmp_path / "changed")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    again = AutoModelForImageTextToText.from_pretrained(saved).state_dict()
    want = make_llava().state_dict()
    assert torch.equal(again[name], 2 * want.pop(name))
    assert all(torch.equal(again[key], value) for key, value in want.items())
    assert sorted(f.name for f in saved.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"
    ]  # fmt: skip


def test_large_weights_are_split(tmp_path: Path) -> None:
    model = HookedVLM.from_module(make_llava())
    saved = model.save_pretrained(tmp_path / "split", max_shard_size="50KB")
    parts = sorted(saved.glob("model-*.safetensors"))
    assert len(parts) > 2 and (saved / "model.safetensors.index.json").is_file()
    found: dict[str, Any] = {}
    for part in parts:
        one = load_file(part)
        assert not set(found) & set(one)
        found |= one
    assert len(found) == len(weights(model))
    loaded = AutoModelForImageTextToText.from_pretrained(saved).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in make_llava().state_dict().items())


def test_what_stands_there_is_not_lost(tmp_path: Path) -> None:
    model = HookedVLM.from_module(make_llava())
    (tmp_path / "file").write_text("mine")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "day.txt").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        model.save_pretrained(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="is not empty: choose another, or give overwrite=True"):
        model.save_pretrained(notes)
    with pytest.raises(OutputError, match="more than a checkpoint, or none"):
        model.save_pretrained(notes, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "notes"] and (notes / "day.txt").read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    saved = model.save_pretrained(empty)
    (saved / "stale.json").write_text("{}")
    model.save_pretrained(saved, overwrite=True)
    assert not (saved / "stale.json").exists() and (saved / "model.safetensors").is_file()
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "notes"]


def test_a_failure_half_way_leaves_all_as_it_was(tmp_path: Path) -> None:
    class Processor:
        """Writes the weights' folder to the end and then fails."""

        def save_pretrained(self, folder: Path) -> None:
            assert (folder / "model.safetensors").is_file()
            raise OSError("no space left on device\nsecond line")

    model = HookedVLM.from_module(make_llava())
    old = model.save_pretrained(tmp_path / "old")
    before = {file.name: file.read_bytes() for file in old.iterdir()}
    model.processor = Processor()
    for target in (tmp_path / "new", old):
        with pytest.raises(OutputError, match=r"no space left on device$"):
            model.save_pretrained(target, overwrite=True)
    assert os.listdir(tmp_path) == ["old"]
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before


def test_weights_not_in_memory_are_named(tmp_path: Path) -> None:
    model = HookedVLM.from_module(make_llava().to("meta"))
    with pytest.raises(ModelError, match=r"^'model\.\S+' is not in memory: load without offloading"):
        model.save_pretrained(tmp_path / "away")
    assert not list(tmp_path.iterdir())
