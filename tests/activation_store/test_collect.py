"""What is collected is what run_with_cache gives, row by row; it is kept shard by shard, and goes on after a kill."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from case import cases
from test_conformance import Built

import gatelens as gl
from forks import in_a_fork
from gatelens.activation_store.collecting import _Kept
from gatelens.activation_store.files import RowWriter
from gatelens.data import Example
from gatelens.errors import GatelensError, OutputError
from gatelens.examples import prepare_numbered
from gatelens.interventions import hook_name
from gatelens.tokens import Role
from store_helpers import examples, small_store

SITES = ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "k", "z", "neuron")
FAMILIES = ["chameleon", "gemma3", "llava-next", "qwen2-vl"]


def of_case(built: Built) -> list[Example]:
    """Pictures of two sizes under prompts of one length, so that where a size makes tokens the batch is padded."""
    text = built.case.texts[0]
    return [Example(built.case.picture(i % 2, i), text, (), "class", f"e{i}", f"label {i}") for i in range(4)]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_those_of_run_with_cache(name: str, tmp_path: Path) -> None:
    built = Built(cases()[name])
    model, given = built.model, of_case(built)
    store = gl.collect(
        model,
        given,
        sites=SITES,
        at="image | last",
        dtype="float32",
        batch_size=2,
        out=tmp_path / "s",
        progress=False,
    )
    assert len(store.points) == len(SITES) * model.cfg.n_layers
    start, padded = 0, 0
    for part in ([0, 1], [2, 3]):
        inputs = prepare_numbered(model, [given[i] for i in part], part)
        # the same points, so that attention is computed in the same way
        _, cache = model.run_with_cache(inputs, [hook_name(*point) for point in store.points])
        tokens, mask = inputs.tokens, inputs.tokens.mask("image | last")
        rows = slice(start, start + int(mask.sum()))
        for site, layer in store.points:
            assert torch.equal(
                store.read(rows, site=site, layer=layer), cache[hook_name(site, layer)][mask].float()
            ), f"{site}.{layer}"
        index = store.index.iloc[rows]
        who = mask.nonzero()[:, 0]
        n_padding = (tokens.roles == Role.PAD).sum(1)
        padded += int(n_padding.sum())
        assert index.example.tolist() == [given[part[i]].id for i in who.tolist()]
        assert index.label.tolist() == [given[part[i]].label for i in who.tolist()]
        assert index.position.tolist() == (mask.nonzero()[:, 1] - n_padding[who]).tolist()
        assert index.role.tolist() == [Role(r).name.lower() for r in tokens.roles[mask].tolist()]
        for column, values in (("image", tokens.image_index), ("row", tokens.row), ("tile", tokens.tile)):
            assert index[column].tolist() == values[mask].tolist()
        box = torch.tensor(index[["x0", "y0", "x1", "y1"]].to_numpy())
        assert torch.equal(box.nan_to_num(-1), tokens.box[mask].float().nan_to_num(-1))
        start = rows.stop
    assert start == len(store) and (padded > 0) == (name in ("llava-next", "qwen2-vl"))


def test_layers_above_the_last_site_are_not_run(tiny_llava: Any, tmp_path: Path, monkeypatch: Any) -> None:
    seen = []
    for i, block in enumerate(tiny_llava.bridge.blocks):
        handle = block.register_forward_pre_hook(lambda *args, i=i: seen.append(i))
        monkeypatch.setattr(tiny_llava, f"_handle{i}", handle, raising=False)
    gl.collect(tiny_llava, examples(2), layers=[0], out=tmp_path / "s", progress=False)
    for i in range(3):
        getattr(tiny_llava, f"_handle{i}").remove()
    assert set(seen) == {0}


def test_equal_pictures_have_one_name(tiny_llava: Any, tmp_path: Path) -> None:
    index = small_store(tiny_llava, tmp_path / "s").index
    names = index[index.role == "image"].groupby("example", observed=True).image_id.first()
    pairs = {(a, b) for a in names.index for b in names.index if a < b and names[a] == names[b]}
    # e0 and e1 share a seed and no colour; pictures are equal where both are
    given = {one.id: one.image.tobytes() for one in examples()}  # type: ignore[union-attr]
    assert pairs == {(a, b) for a in given for b in given if a < b and given[a] == given[b]}
    assert index[index.role != "image"].image_id.isna().all()


def test_a_killed_collection_goes_on_and_ends_with_the_same_bytes(
    tiny_llava: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Killed in the second batch of the second shard: the first shard is not computed again."""
    work = lambda: small_store(tiny_llava, tmp_path / "killed", batch_size=1)  # noqa: E731
    assert in_a_fork(work, (type(tiny_llava), "forward_step"), kill_at=3) == -signal.SIGKILL
    with pytest.raises(OutputError, match=r"2 of 8 examples: call gl\.collect again"):
        gl.ActivationStore(tmp_path / "killed")
    passes: list[int] = []
    step = type(tiny_llava).forward_step
    monkeypatch.setattr(
        type(tiny_llava),
        "forward_step",
        lambda *args, **options: (passes.append(1), step(*args, **options))[1],
    )
    again = small_store(tiny_llava, tmp_path / "killed", batch_size=1)
    assert len(passes) == 6  # eight batches, two of them in the shard that was whole
    whole = small_store(tiny_llava, tmp_path / "whole", batch_size=1)
    files = sorted(p.relative_to(whole.path) for p in whole.path.rglob("*.safetensors"))
    assert len(files) == 8
    for file in [*files, *(p.relative_to(whole.path) for p in (whole.path / "rows").iterdir())]:
        assert (again.path / file).read_bytes() == (whole.path / file).read_bytes(), file
    assert len(passes) == 14
    small_store(tiny_llava, tmp_path / "whole", batch_size=1)
    assert len(passes) == 14  # nothing is left to compute


def test_other_settings_in_the_same_folder_are_refused(tiny_llava: Any, tmp_path: Path) -> None:
    small_store(tiny_llava, tmp_path / "s")
    for change in (
        {"at": "image"},
        {"layers": [1]},
        {"dtype": "bfloat16"},
        {"shard_rows": 60},
        {"batch_size": 1},
    ):
        with pytest.raises(OutputError, match="other settings") as error:
            small_store(tiny_llava, tmp_path / "s", **change)
        assert "\n" not in str(error.value)


def full(self: Any, rows: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_what_is_whole(
    tiny_llava: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    add, calls = RowWriter.add, []

    def later_full(self: Any, rows: Any) -> None:
        calls.append(1)
        (add if len(calls) < 4 else full)(self, rows)

    monkeypatch.setattr(RowWriter, "add", later_full)
    with pytest.raises(OutputError, match="No space left") as error:
        small_store(tiny_llava, tmp_path / "s")
    assert "\n" not in str(error.value)
    assert len(list((tmp_path / "s").rglob("*.safetensors"))) == 2 and not list(
        (tmp_path / "s").rglob("*.part")
    )
    monkeypatch.setattr(RowWriter, "add", full)
    with pytest.raises(OutputError, match="No space left"):
        small_store(tiny_llava, tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    monkeypatch.setattr(RowWriter, "add", add)
    assert len(small_store(tiny_llava, tmp_path / "s")) == 8 * 17


def test_numbers_that_the_dtype_cannot_hold_are_refused(
    tiny_llava: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    step = type(tiny_llava).forward_step

    def large(self: Any, tensors: Any, hooks: Any) -> Any:
        return step(self, tensors, [("blocks.0.hook_resid_pre", lambda x, hook: x * 1e6), *hooks])

    monkeypatch.setattr(type(tiny_llava), "forward_step", large)
    with pytest.raises(
        GatelensError, match=r"resid_pre.1 reaches .*float16 ends at 65504: say dtype='bfloat16'"
    ):
        small_store(tiny_llava, tmp_path / "s", dtype="float16")
    assert small_store(tiny_llava, tmp_path / "s", dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": ["resid_past"]}, "resid_past"),
        ({"sites": []}, "sites is empty"),
        ({"sites": ["pattern"]}, "pattern"),
        ({"layers": [9]}, "layer 9"),
        ({"at": "eoi"}, "eoi"),
        ({"at": "image & text"}, "'image & text' selects no position of example 'e0'"),
        ({"dtype": "int8"}, "int8"),
        ({"shard_rows": 0}, "shard_rows=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"out": None}, "out=None"),
    ],
)
def test_what_cannot_be_collected_is_one_line(
    tiny_llava: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(GatelensError) as error:
        small_store(tiny_llava, tmp_path / "s", **change)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "s").exists()


def test_workers_of_machines_that_do_not_share_the_folder_are_told(tiny_llava: Any, tmp_path: Path) -> None:
    kept = _Kept(tiny_llava, [("resid_pre", 1)], "image", torch.float32, tmp_path / "elsewhere")
    with pytest.raises(
        OutputError, match=r"elsewhere' is not there on .*: give out= a folder that all machines share"
    ):
        kept.measure("00000", [([0], examples(1))], print)
    assert not (tmp_path / "elsewhere").exists()


def test_a_data_set_by_its_task(tiny_llava: Any, tmp_path: Path) -> None:
    from study_helpers import TinyData

    store = gl.collect(
        tiny_llava, TinyData(), task="vqa", limit=3, at="last", out=tmp_path / "s", progress=False
    )
    assert sorted(store.index.example) == ["vqa-0", "vqa-1", "vqa-2"]
    assert pd.isna(store.index.label).all() and store.dtype == torch.float16


def test_pixel_masks_are_those_of_the_examples(tiny_llava: Any, tmp_path: Path) -> None:
    mask = np.zeros((2, *examples(1)[0].image.size[::-1]), dtype=bool)  # type: ignore[union-attr]
    mask[0, :4], mask[1, -4:] = True, True
    masked = [
        replace(e, meta={"masks": {e.label: one}}) for e, one in zip(examples(3)[::2], mask, strict=True)
    ]
    store = gl.collect(
        tiny_llava, masked, out=tmp_path / "s", at="image.mask(object)", layers=[1], progress=False
    )
    for example, one in zip(masked, mask, strict=True):
        tokens = tiny_llava.prepare(example.image, example.prompt).tokens
        expected = tokens.mask("image.mask(m)", masks={"m": one})[0].nonzero().flatten()
        here = store.index[store.index.example == example.id]
        assert here.position.tolist() == expected.tolist()
