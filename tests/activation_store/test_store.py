"""Reading a store: rows in every order, without gatelens too; as the source of patches, directions and probes."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from sklearn.linear_model import SGDClassifier

import gatelens as gl
from gatelens.errors import GatelensError, OutputError
from gatelens.measures import linear_probe
from store_helpers import examples, small_store
from tiny_models import make_llava, make_llava_processor


@pytest.fixture(scope="module")
def store(tiny_llava: Any, tmp_path_factory: Any) -> Any:
    return small_store(tiny_llava, tmp_path_factory.mktemp("stores") / "s")


@pytest.fixture(scope="module")
def everything(store: Any) -> torch.Tensor:
    """Layer 2, read without gatelens."""
    parts = []
    for file in sorted((store.path / "activations/resid_pre.2").glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            assert list(opened.keys()) == ["activations"]
            parts.append(opened.get_tensor("activations"))
    return torch.cat(parts)


def test_a_store_is_readable_with_safetensors_and_pyarrow_alone(store: Any, everything: torch.Tensor) -> None:
    """As docs/activation-store.md says it."""
    shards = sorted(p.name for p in (store.path / "shards/collect").iterdir())
    assert len(shards) == 4
    tables = [
        pq.read_table(store.path / f"rows/{name}.parquet").to_pandas().astype(object) for name in shards
    ]
    for name, table in zip(shards, tables, strict=True):
        record = pq.read_table(store.path / f"shards/collect/{name}/shard.parquet").to_pylist()
        files = [f"rows/{name}.parquet", *(f"activations/resid_pre.{i}/{name}.safetensors" for i in (1, 2))]
        assert [one["file"] for one in record] == files
        for one in record:
            assert one["rows"] == len(table) and one["examples"] == table.example.nunique()
            written = (store.path / one["file"]).read_bytes()
            assert one["bytes"] == len(written) and one["crc32"] == zlib.crc32(written)
    plain = pd.concat(tables, ignore_index=True)
    assert len(plain) == len(everything) == len(store) == 8 * 17
    ours = store.index.astype(object)
    pd.testing.assert_frame_equal(
        ours.where(ours.notna(), None), plain.where(plain.notna(), None), check_dtype=False
    )
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert (
        manifest["settings"]["points"] == ["resid_pre.1", "resid_pre.2"]
        and manifest["settings"]["at"] == store.at
    )


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_numbers_are_kept_in_the_dtype_asked_for(
    tiny_llava: Any, tmp_path: Path, store: Any, kind: str
) -> None:
    short = small_store(tiny_llava, tmp_path / "s", dtype=kind)
    for layer in (1, 2):
        assert torch.equal(short.read(layer=layer), store.read(layer=layer).to(getattr(torch, kind)))


def test_rows_come_in_the_order_asked_for(store: Any, everything: torch.Tensor) -> None:
    order = np.random.default_rng(0).permutation(len(store))
    asked = [order, order[:1], order[:0], slice(30, 80), slice(None, None, 7), [40, 40, 3], np.arange(34, 60)]
    for rows in [*asked, torch.tensor([5, 135]), store.index.role == "query", None]:
        want = everything if rows is None else everything[np.arange(len(store))[rows]]
        assert torch.equal(store.read(rows, layer=2), want)
    read = store.read(slice(0, 2), layer=2)
    read.zero_()  # a copy: the store stays as it is
    assert torch.equal(store.read(layer=2), everything)


def test_batches_are_every_row_once(store: Any, everything: torch.Tensor) -> None:
    plain = list(store.iterate(50, layer=2))
    assert [len(one) for one in plain] == [50, 50, 36] and torch.equal(torch.cat(plain), everything)
    drawn = list(store.iterate(50, layer=2, shuffle=3, with_rows=True))
    numbers = np.concatenate([rows for _, rows in drawn])
    assert sorted(numbers) == list(range(len(store))) and not np.array_equal(numbers, np.sort(numbers))
    assert torch.equal(torch.cat([values for values, _ in drawn]), everything[numbers])
    again = torch.cat(list(store.iterate(7, layer=2, shuffle=3)))
    assert torch.equal(again, everything[numbers])  # the order is the seed's, whatever the batch
    assert not torch.equal(again, torch.cat(list(store.iterate(7, layer=2, shuffle=4))))
    dogs = store.index.query("label == 'dog' and role == 'image'").index
    few = torch.cat(list(store.iterate(20, layer=2, rows=dogs)))
    assert torch.equal(few, everything[dogs.tolist()]) and len(few) == 3 * 16


def test_it_feeds_scikit_learn_and_the_measures(store: Any, everything: torch.Tensor) -> None:
    labels = store.index.label.to_numpy(dtype=object)
    model = SGDClassifier(random_state=0)
    for values, rows in store.iterate(32, shuffle=0, layer=2, with_rows=True):
        model.partial_fit(values.float().numpy(), labels[rows], classes=["cat", "dog", "red"])
    same = SGDClassifier(random_state=0)
    for part in np.split(np.random.default_rng(0).permutation(len(store)), range(32, len(store), 32)):
        same.partial_fit(everything[part].numpy(), labels[part], classes=["cat", "dog", "red"])
    np.testing.assert_allclose(model.coef_, same.coef_)
    patches = store.index.query("role == 'image'").index
    classes = pd.factorize(store.index.label[patches])[0]
    found = linear_probe(store.read(patches, layer=2), torch.as_tensor(classes))
    plain = linear_probe(everything[patches.tolist()], torch.as_tensor(classes))
    assert found.accuracy == plain.accuracy and torch.equal(found.correct, plain.correct)


def test_a_patch_from_a_store_is_one_from_a_cache(tiny_llava: Any, store: Any) -> None:
    given = {one.id: one for one in examples()}
    here = tiny_llava.prepare(given["e0"].image, given["e0"].prompt)
    there = tiny_llava.prepare(given["e3"].image, given["e3"].prompt)
    _, cache = tiny_llava.run_with_cache(there, ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"])
    source = store.prompts(tiny_llava, "e3", where="role == 'image'")
    for layer in (1, 2):
        stored = tiny_llava.run(here, gl.patch(source, "image", layers=[layer]))
        cached = tiny_llava.run(here, gl.patch(cache, "image", layers=[layer]))
        torch.testing.assert_close(stored, cached, atol=1e-5, rtol=1e-5)
        assert (stored - tiny_llava(here))[:, -1].abs().max() > 1e-3
    last = store.prompts(tiny_llava, "e3", where="role == 'query'")
    torch.testing.assert_close(
        tiny_llava.run(here, gl.patch(last, "last", layers=[1])),
        tiny_llava.run(here, gl.patch(cache, "last", layers=[1])),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    top = store.prompts(tiny_llava, "e3", where="role == 'image' and row == 0")
    pairs = gl.patch(top, "image.box(0, 0, 16, 4)").pairs(here.tokens)
    assert [p.position for p in pairs] == here.tokens.positions("image.box(0, 0, 16, 4)") and len(pairs) == 4


def test_a_batch_is_patched_from_as_many_examples(
    tiny_llava: Any, store: Any, everything: torch.Tensor
) -> None:
    given = {one.id: one for one in examples()}
    here = tiny_llava.prepare([given["e0"].image, given["e2"].image], [given["e0"].prompt] * 2)
    spec = gl.patch(store.prompts(tiny_llava, ["e5", "e1"], where="role == 'image'"), "image", layers=[2])
    _, cache = tiny_llava.run_with_cache(
        here, "blocks.2.hook_resid_pre", fwd_hooks=spec.hooks(here.tokens, tiny_llava.cfg)
    )
    for i, name in enumerate(("e5", "e1")):
        rows = store.index.query(f"example == '{name}' and role == 'image'").index.to_numpy()
        assert torch.equal(
            cache["blocks.2.hook_resid_pre"][i, here.tokens.mask("image")[i]], everything[rows]
        )


@pytest.mark.parametrize("method", ["mean", "probe", "pca"])
def test_a_direction_from_a_store_runs_no_model(
    tiny_llava: Any, store: Any, monkeypatch: Any, method: Any
) -> None:
    by_model = gl.direction(
        tiny_llava,
        examples(),
        positive="cat",
        negative="dog",
        at=store.at,
        layers=[1, 2],
        method=method,
        batch_size=2,
    )
    monkeypatch.setattr(type(tiny_llava), "forward_step", None)
    read = gl.direction(tiny_llava, store, positive="cat", negative="dog", at=store.at, method=method)
    assert list(read) == [1, 2] and read.source == by_model.source
    for layer in (1, 2):
        torch.testing.assert_close(read[layer], by_model[layer], atol=1e-4, rtol=1e-3)


def other_model() -> Any:
    torch.manual_seed(5)
    model = make_llava()
    for one in model.parameters():
        one.data += 0.01
    return gl.HookedVLM.from_module(model, make_llava_processor())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, m: s.read([0, 999], layer=1), "row 999 is not in"),
        (lambda s, m: s.read([0.5], layer=1), "rows=[0.5]"),
        (lambda s, m: s.read(), "it has resid_pre.1, resid_pre.2"),
        (lambda s, m: s.read(layer=7), "layer=7"),
        (lambda s, m: s.iterate(0, layer=1), "batch=0"),
        (lambda s, m: s.prompts(m, "e33"), "no example 'e33'; did you mean 'e3'?"),
        (lambda s, m: s.prompts(m, "e3", where="rule == 2"), "rule"),
        (lambda s, m: s.prompts(m, "e3", where="role == 'boi'"), "'e3' has no row where role == 'boi'"),
        (lambda s, m: s.prompts(other_model(), "e3"), "has other weights"),
        (lambda s, m: gl.direction(other_model(), s, positive="cat", at=s.at), "has other weights"),
        (lambda s, m: gl.direction(m, s, positive="cat", at="image"), "the store holds at='image | last'"),
        (lambda s, m: gl.direction(m, s, positive="cow", at=s.at), "'cow' is not a label"),
        (lambda s, m: gl.direction(m, s, positive="cat", at=s.at, limit=3), "limit="),
        (lambda s, m: gl.direction(m, s, positive="cat", at=s.at, layers=[0]), "resid_pre.1"),
        (lambda s, m: gl.direction(m, s, positive=lambda e: True, at=s.at), "by their label"),
        (lambda s, m: gl.patch(s.prompts(m, "e3"), "image", source="image"), "where="),
        (lambda s, m: m.run(here(m), gl.patch(s.prompts(m, "e3"), "image")), "'e3'|17"),
        (
            lambda s, m: m.run(here(m), gl.patch(s.prompts(m, "e3"), "image | last", "z", layers=1)),
            "collect that site",
        ),
        (
            lambda s, m: m.run(here(m), gl.patch(s.prompts(m, "e3"), "image | last", layers=0)),
            "collect that site",
        ),
    ],
    ids=range(19),
)
def test_what_cannot_be_read_is_one_line(store: Any, tiny_llava: Any, call: Any, words: str) -> None:
    with pytest.raises(GatelensError) as error:
        call(store, tiny_llava)
    assert any(word in str(error.value) for word in words.split("|")) or words in str(error.value)
    assert "\n" not in str(error.value)


def here(model: Any) -> Any:
    one = examples(1)[0]
    return model.prepare(one.image, one.prompt)


def test_a_damaged_shard_is_named(tiny_llava: Any, tmp_path: Path) -> None:
    store = small_store(tiny_llava, tmp_path / "s")
    file = store.path / "activations/resid_pre.1/00002.safetensors"
    whole = file.read_bytes()
    for bad in (whole[:-40], whole + b"0", whole[:200], b"", b"\xff" * 600, None):
        file.unlink() if bad is None else file.write_bytes(bad)
        opened = gl.ActivationStore(store.path)
        assert len(opened.read(slice(0, 68), layer=1)) == 68  # the shards before it
        with pytest.raises(OutputError, match=r"00002\.safetensors") as error:
            opened.read(layer=1)
        assert "\n" not in str(error.value) and "collect again" in str(error.value)
    rows = store.path / "rows/00001.parquet"
    rows.write_bytes(rows.read_bytes()[:-30])
    with pytest.raises(OutputError, match=r"rows/00001\.parquet") as error:
        _ = gl.ActivationStore(store.path).index
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no run"):
        gl.ActivationStore(tmp_path)
    gl.Run.open(tmp_path / "r", study="narrow-gate", settings={})
    with pytest.raises(OutputError, match=r"holds a run of 'narrow-gate': give a folder gl\.collect filled"):
        gl.ActivationStore(tmp_path / "r")
