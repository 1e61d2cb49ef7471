"""A changed bit is refused before it is used, in one line that says how to collect the shard again, and that works."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.activation_store import records
from gatelens.errors import OutputError
from store_helpers import examples, small_store

POINT = "activations/resid_pre.1/00002.safetensors"


@pytest.fixture
def store(tiny_llava: Any, tmp_path: Path) -> gl.ActivationStore:
    return small_store(tiny_llava, tmp_path / "s")


def flip(file: Path, bit: int = 0) -> None:
    """One bit, in the middle of the file's bytes, in place."""
    with open(file, "r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ (1 << bit)]))


def untouched(store: gl.ActivationStore) -> None:
    """Give every record a time after that of all files, as those of large shards have."""
    later = time.time_ns() + 10**9
    for record in store.path.glob("shards/collect/*/shard.parquet"):
        os.utime(record, ns=(later, later))


@pytest.mark.parametrize("file", [POINT, "rows/00002.parquet"])
def test_a_flipped_bit_is_refused(store: gl.ActivationStore, file: str) -> None:
    for bit in (0, 6):
        flip(store.path / file, bit)
        opened = gl.ActivationStore(store.path)
        assert len(opened.read(slice(0, 68), layer=1)) == 68  # shards before it
        calls = [lambda o: o.read(layer=1), lambda o: o.read([0, 80], layer=1)]
        for call in calls if file == POINT else [lambda o: o.index]:
            with pytest.raises(OutputError, match=rf"{file}' is damaged: its checksum differs") as error:
                call(opened)
            assert "\n" not in str(error.value)
        flip(store.path / file, bit)
    assert len(gl.ActivationStore(store.path).read(layer=1)) == len(store.index)


def test_the_line_says_how_the_shard_is_collected_again(
    tiny_llava: Any, store: gl.ActivationStore, monkeypatch: Any
) -> None:
    whole = store.read(layer=1)
    flip(store.path / POINT)
    with pytest.raises(OutputError) as error:
        gl.ActivationStore(store.path).read(layer=1)
    found = re.search(
        r"delete '([^']+)' and call gl\.collect again with the same arguments", str(error.value)
    )
    assert found is not None
    with pytest.raises(OutputError, match=f"{POINT}' is damaged: its checksum differs"):
        small_store(tiny_llava, store.path)  # nor is it called complete
    shutil.rmtree(found[1])
    passes: list[int] = []
    step = type(tiny_llava).forward_step
    monkeypatch.setattr(
        type(tiny_llava), "forward_step", lambda *args, **more: (passes.append(1), step(*args, **more))[1]
    )
    again = small_store(tiny_llava, store.path)
    assert len(passes) == 1 and torch.equal(again.read(layer=1), whole)


def test_verify_names_every_damaged_shard(store: gl.ActivationStore) -> None:
    store.verify(progress=False)
    flip(store.path / POINT)
    file = store.path / "activations/resid_pre.2/00001.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    (store.path / "rows/00003.parquet").unlink()
    with pytest.raises(OutputError, match="3 of 4 shards") as error:
        store.verify(progress=False)
    said = str(error.value)
    assert "\n" not in said and re.search(r"delete '.*/00001' and 2 more there \(00002, 00003\)", said)
    assert f"{POINT} is damaged: its checksum differs" in said and "rows/00003.parquet cannot be read" in said
    assert re.search(r"00001\.safetensors is damaged: it has \d+ of \d+ bytes", said)


def test_only_files_touched_since_are_compared(
    store: gl.ActivationStore, tmp_path: Path, monkeypatch: Any
) -> None:
    """A copy is compared when it is read, once in a process; after verify no more."""
    compared: list[str] = []
    checksum = records.checksum
    monkeypatch.setattr(records, "checksum", lambda file: (compared.append(file.name), checksum(file))[1])
    untouched(store)
    gl.ActivationStore(store.path).read(layer=1)
    assert compared == []
    shutil.copytree(store.path, tmp_path / "copy")  # with the times of the files
    copy = gl.ActivationStore(tmp_path / "copy")
    for record in (tmp_path / "copy").glob("shards/collect/*/shard.parquet"):
        os.utime(record, ns=(10**18, 10**18))
    for _ in range(2):
        copy.read(layer=1)
        list(copy.iterate(20, layer=1, shuffle=0))
    assert compared == [f"{i:05d}.safetensors" for i in range(4)]
    copy.verify(progress=False)
    assert len(compared) == 4 + 12
    untouched(copy)  # as verify does; files this small may have been made in the same tick of the clock
    gl.ActivationStore(copy.path).read(layer=1)
    assert len(compared) == 16
    flip(copy.path / POINT)
    for record in copy.path.glob("shards/collect/*/shard.parquet"):
        os.utime(record, ns=(10**18, 10**18))
    with pytest.raises(OutputError, match="its checksum differs"):
        gl.ActivationStore(copy.path).read(layer=1)


def test_verify_notes_what_is_right_in_the_times_of_records(store: gl.ActivationStore) -> None:
    times = {}
    for record in store.path.glob("shards/collect/*/shard.parquet"):
        os.utime(record, ns=(10**18, 10**18))
        times[record.parent.name] = record
    flip(store.path / POINT)
    with pytest.raises(OutputError, match="1 of 4 shards"):
        store.verify(progress=False)
    assert {name for name, record in times.items() if record.stat().st_mtime_ns == 10**18} == {"00002"}


def test_a_file_cut_short_while_the_store_is_open_is_one_line(store: gl.ActivationStore) -> None:
    store.read(layer=1)
    file = store.path / "activations/resid_pre.1/00003.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(OutputError, match="ends before its last row") as error:
        store.read(layer=1)
    assert "\n" not in str(error.value)


def test_a_store_of_an_earlier_version_is_refused(store: gl.ActivationStore) -> None:
    for record in store.path.glob("shards/collect/*/shard.parquet"):
        pd.read_parquet(record)[["rows", "examples"]].head(1).to_parquet(record)
    with pytest.raises(OutputError, match="without checksums: collect into a new folder"):
        gl.ActivationStore(store.path)


def test_a_store_can_be_sent_to_another_process(store: gl.ActivationStore) -> None:
    list(store.iterate(20, layer=1, shuffle=0))
    data = pickle.dumps(store)
    assert len(data) < 1000  # where it is, not what it holds
    assert torch.equal(pickle.loads(data).read(layer=1), store.read(layer=1))


@pytest.mark.parametrize(
    ("site", "kind"), [("z", "bfloat16"), ("neuron", "float16"), ("resid_mid", "float32")]
)
def test_rows_of_many_files_are_gathered_rightly(
    tiny_llava: Any, tmp_path: Path, site: str, kind: str
) -> None:
    """Files mapped in any order, at any distance, with rows of any length."""
    store = small_store(
        tiny_llava, tmp_path / "s", sites=[site], layers=[1], dtype=kind, shard_rows=17, batch_size=1
    )
    every = torch.cat([store.read(slice(i, i + 1)) for i in range(len(store))])
    draws = np.random.default_rng(0)
    opened = gl.ActivationStore(store.path)
    for n in (1, 3, 50, 300):
        rows = draws.integers(0, len(store), n)
        assert torch.equal(opened.read(rows), every[rows])
    assert len(examples()) * 17 == len(store) and every.dtype == getattr(torch, kind)
