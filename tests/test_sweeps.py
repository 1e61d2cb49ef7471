"""Sweeps over data: equal to a loop of sweeps on single examples, kept batch by batch, refused with other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.data import Example
from gatelens.errors import GatelensError, InputError, OutputError
from gatelens.examples import Labels
from gatelens.identity import content_fingerprint
from study_helpers import TinyData, picture

GRID = {"layer": range(3), "at": ["gate", "image"]}


def make(layer: int, at: str) -> Any:
    return gl.knockout("text - gate", at, layers=[layer])


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    asked = [
        ("dog", "<image>this is a"),
        ("cat", "<image>what color is the dog ?"),
        ("red", "<image>this is a"),
    ]
    return [
        Example(picture(name, seed=i), prompt, (name,), "class", f"e{i}", name, {"other": "blue"})
        for i, (name, prompt) in enumerate(asked)
    ]


def own(example: Example) -> str:
    assert example.label is not None
    return example.label


def test_over_data_equals_a_loop_of_single_examples(tiny: Any, examples: list[Example]) -> None:
    other = tiny.to_single_token("blue")
    table = gl.sweep(tiny, examples, GRID, gl.metrics.logit_diff(own, other), False, make=make, batch_size=2)
    assert list(table.columns) == ["layer", "at", "example", "value"] and len(table) == 18
    assert table.example.tolist() == ["e0", "e1", "e2"] * 6
    labels, rows = Labels(tiny), []
    for example in examples:
        inputs = tiny.prepare(example.image, example.prompt)
        metric = gl.metrics.logit_diff(labels.first_token(example.prompt, own(example)), other)
        for layer in range(3):
            for at in ("gate", "image"):
                value = float(metric(tiny.run(inputs, make(layer, at))))
                rows.append((layer, at, example.id, value))
    loop = pd.DataFrame(rows, columns=table.columns)
    both = table.merge(loop, on=["layer", "at", "example"], validate="one_to_one")
    torch.testing.assert_close(
        torch.tensor(both.value_x.tolist()), torch.tensor(both.value_y.tolist()), atol=1e-4, rtol=1e-4
    )
    assert both.value_x.nunique() > 9


def test_random_selectors_draw_by_the_number_of_the_example(tiny: Any, examples: list[Example]) -> None:
    grid = {"cut": [gl.knockout("text - gate", "random_image:3")]}
    metric = gl.metrics.logit(own)
    tables = [gl.sweep(tiny, examples, grid, metric, False, batch_size=size) for size in (1, 3)]
    torch.testing.assert_close(*(torch.tensor(t.value.tolist()) for t in tables), atol=1e-4, rtol=1e-4)


def test_a_word_is_its_token_for_every_example(tiny: Any, examples: list[Example]) -> None:
    dog = tiny.to_single_token("dog")
    for word, number in (
        (gl.metrics.prob("dog"), gl.metrics.prob(dog)),
        (gl.metrics.logit_diff(own, "dog"), gl.metrics.logit_diff(own, lambda e: dog)),
    ):
        pd.testing.assert_frame_equal(
            *(gl.sweep(tiny, examples, {}, metric, progress=False) for metric in (word, number))
        )
    assert content_fingerprint(gl.metrics.prob("dog")) != content_fingerprint(gl.metrics.prob("cat"))


def test_a_word_that_the_tokenizer_does_not_know_is_refused(tiny: Any, examples: list[Example]) -> None:
    for metric in (
        gl.metrics.prob("zebra"),
        gl.metrics.prob(lambda e: "zebra"),
        gl.metrics.logit_diff(own, lambda e: "zebra"),
    ):
        with pytest.raises(InputError, match="does not know the word 'zebra'"):
            gl.sweep(tiny, examples, {}, metric, progress=False)
    labels = Labels(tiny)
    # a prompt may end in such a word
    assert labels.first_token("<image>this is a zebra", "dog") == tiny.to_single_token("dog")
    with pytest.raises(InputError, match="does not know the word 'gnu'"):
        labels.first_token("<image>this is a zebra", "gnu")


def test_over_data_no_number_depends_on_the_batches(tiny: Any, examples: list[Example]) -> None:
    metric, same = gl.metrics.prob(own), [examples[0], examples[2]]  # of one length
    mean = {"layer": [gl.ablate("last", "z", layers=[1], with_="mean")]}
    for size in (None, 1):
        with pytest.raises(InputError, match=r"mean over the batch.*reference=.*batch_size=2"):
            gl.sweep(tiny, same, mean, metric, False, batch_size=size)
    together = gl.sweep(tiny, same, mean, metric, False, batch_size=2).value
    inputs = tiny.prepare([e.image for e in same], [e.prompt for e in same])
    cache = tiny.run_with_cache(inputs)[1]
    mean = {"layer": [gl.ablate("last", "z", layers=[1], with_="mean", reference=cache)]}
    for size in (None, 1):
        assert gl.sweep(tiny, same, mean, metric, False, batch_size=size).value.tolist() == pytest.approx(
            together.tolist(), abs=1e-5
        )


def test_over_data_pixel_masks_are_those_of_the_examples(tiny: Any, examples: list[Example]) -> None:
    mask = np.zeros((2, *examples[0].image.size[::-1]), dtype=bool)  # type: ignore[union-attr]
    mask[0, :4], mask[1, -4:] = True, True
    named = zip(examples[::2], mask, strict=True)
    masked = [replace(e, meta={"masks": {e.label: of_one}}) for e, of_one in named]
    cut = gl.knockout("text", "image.mask(object)")
    values = gl.sweep(tiny, masked, {"cut": [cut]}, gl.metrics.prob(own), False).value
    for example, of_one, value in zip(masked, mask, values, strict=True):
        inputs = tiny.prepare(example.image, example.prompt)
        alone = tiny.run(inputs, gl.knockout("text", "image.mask(m)", masks={"m": of_one}))
        token = tiny.to_single_token(own(example))
        assert value == pytest.approx(float(alone[0, -1].softmax(-1)[token]), abs=1e-5)
    with pytest.raises(InputError, match=r"over data, image.mask\(name\) is the examples' own mask"):
        given = gl.knockout("text", "image.mask(m)", masks={"m": mask[0]})
        gl.sweep(tiny, masked, {"cut": [given]}, gl.metrics.prob(own), False)
    with pytest.raises(GatelensError, match=r"no pixel mask named 'object' \(it has: none\)"):
        gl.sweep(tiny, examples, {"cut": [cut]}, gl.metrics.prob(own), False)


def test_a_data_set_gives_its_examples(tiny: Any) -> None:
    data = TinyData(n=4)
    table = gl.sweep(tiny, data, {}, gl.metrics.entropy(), False, limit=3)
    assert table.example.tolist() == ["class-0", "class-1", "class-2"]
    asked = gl.sweep(tiny, data, {}, gl.metrics.entropy(), False, task="vqa")
    assert asked.example.tolist() == [f"vqa-{i}" for i in range(4)]


def test_metrics_of_texts_and_of_a_cache(tiny: Any, examples: list[Example]) -> None:
    point = "blocks.1.hook_resid_pre"
    metrics = {
        "right": gl.metrics.answer(3),
        "length": gl.metrics.of_texts(lambda text, example: len(text) + len(example.id), 3),
        "norm": gl.metrics.of_cache(lambda cache: cache[point][:, -1].norm(dim=-1), point),
        "logit": gl.metrics.logit(own),
    }
    cut = gl.knockout("text - gate", "image")
    table = gl.sweep(tiny, examples, {"cut": [None, cut]}, metrics, False)
    assert list(table.columns) == ["cut", "example", *metrics]
    for i, specs in enumerate([None, cut]):
        for example in examples:
            inputs = tiny.prepare(example.image, example.prompt)
            row = table[(table.cut == i) & (table.example == example.id)].iloc[0]
            text = gl.engine.generate(tiny, inputs, specs, 3).texts[0]
            hooks = [] if specs is None else specs.hooks(inputs.tokens, tiny.cfg)
            _, cache = tiny.run_with_cache(inputs, names_filter=point, fwd_hooks=hooks)
            assert row["length"] == len(text) + 2 and row["right"] == float(text.strip() == own(example))
            assert row["norm"] == pytest.approx(float(cache[point][0, -1].norm()), rel=1e-4)


CALLS = {"made": 0, "die at": -1}  # a global: no part of what a metric is


def dying(logits: torch.Tensor) -> torch.Tensor:
    CALLS["made"] += 1
    if CALLS["made"] == CALLS["die at"]:
        raise KeyboardInterrupt
    return logits[:, -1, 5]


def test_a_sweep_cut_short_ends_as_an_undisturbed_one(
    tiny_chameleon: Any, examples: list[Example], tmp_path: Path
) -> None:
    grid = {"cut": {"none": None, 7: gl.knockout("text - gate", "image")}}
    call = (tiny_chameleon, examples, grid, {"value": gl.metrics.logit(own), "dying": dying}, False)
    whole = gl.sweep(*call, batch_size=1)
    CALLS.update({"made": 0, "die at": 6})  # in the third of three batches
    with pytest.raises(KeyboardInterrupt):
        gl.sweep(*call, batch_size=1, out=tmp_path / "s")
    assert len(list((tmp_path / "s/shards/sweep").glob("*/values.parquet"))) == 2
    CALLS.update({"made": 0, "die at": -1})
    resumed = gl.sweep(*call, batch_size=1, out=tmp_path / "s")
    assert CALLS["made"] == 2  # of the batch that was missing
    pd.testing.assert_frame_equal(resumed, whole)
    assert pd.read_parquet(tmp_path / "s/sweep.parquet").cut.tolist() == ["none"] * 3 + ["7"] * 3


def test_other_settings_in_the_same_folder_are_refused(
    tiny_chameleon: Any, examples: list[Example], tmp_path: Path
) -> None:
    push = gl.steer(torch.ones(32), "last", layers=[1])
    other_push = gl.steer(torch.ones(32) * 2, "last", layers=[1])
    repainted = [replace(examples[0], image=picture("cat", 9)), *examples[1:]]
    size: dict[str, Any] = {"progress": False, "batch_size": 2, "out": tmp_path / "s"}
    first = gl.sweep(tiny_chameleon, examples, {"push": [push]}, gl.metrics.logit(3), **size)
    again = gl.sweep(tiny_chameleon, examples, {"push": [push]}, gl.metrics.logit(3), **size)
    pd.testing.assert_frame_equal(first, again)
    for data, one, metric, changed in [
        (examples, other_push, gl.metrics.logit(3), "points.0 push=0"),
        (examples, push, gl.metrics.logit(4), "metrics.value"),
        (repainted, push, gl.metrics.logit(3), "examples"),
        (examples[:2], push, gl.metrics.logit(3), "n: there 3, now 2"),
    ]:
        with pytest.raises(OutputError, match="other settings") as error:
            gl.sweep(tiny_chameleon, data, {"push": [one]}, metric, **size)
        assert changed in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_that_proves_impossible_leaves_its_folder_free(
    tiny_chameleon: Any, examples: list[Example], tmp_path: Path
) -> None:
    wrong = {"cut": [gl.knockout("text", "image", layers=[9])]}
    with pytest.raises(GatelensError, match="layer 9"):
        gl.sweep(tiny_chameleon, examples, wrong, gl.metrics.logit(3), False, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"make": lambda layer: None}, ["make", "layer, at"]),
        ({"make": lambda layer, at, deep: None}, ["make", "deep"]),
        ({"make": 3}, ["make is 3"]),
        ({"inputs": []}, ["no example"]),
        ({"inputs": "emoji-scene"}, ["emoji-scene"]),
        ({"inputs": "twice"}, ["'e0'"]),
        ({"inputs": "mixed"}, ["not an example"]),
        ({"task": "vqa"}, ["task="]),
        ({"inputs": TinyData(), "task": "draw"}, ["'draw'"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"metric": gl.metrics.logit(lambda e: None)}, ["'e0'", "None"]),
        ({"metric": {"point": gl.metrics.logit(3)}}, ["'point'"]),
        ({"metric": gl.metrics.of_texts(lambda text, example: "no")}, ["'no'"]),
        ({"metric": gl.metrics.of_cache(lambda cache: 1.0, "blocks.1.hook_resid_pre")}, ["float"]),
        ({"metric": gl.metrics.of_cache(lambda cache: 1.0, "blocks.9.hook_resid_pre")}, ["blocks.9"]),
        ({"inputs": "prepared", "limit": 3}, ["limit="]),
        ({"inputs": "prepared", "metric": gl.metrics.logit(own)}, ["example", "gl.sweep"]),
        ({"inputs": "prepared", "metric": gl.metrics.answer()}, ["gl.metrics.answer", "examples"]),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    tiny_chameleon: Any, examples: list[Example], change: dict[str, Any], words: list[str]
) -> None:
    special = {
        "twice": [examples[0], examples[0]],
        "mixed": [examples[0], 3],
        "prepared": tiny_chameleon.prepare(examples[0].image, examples[0].prompt),
    }
    call: dict[str, Any] = {
        "inputs": examples,
        "grid": GRID,
        "metric": gl.metrics.logit(3),
        "make": make,
    } | change
    named = call["inputs"] if isinstance(call["inputs"], str) else ""
    call["inputs"] = special.get(named, call["inputs"])
    with pytest.raises(GatelensError) as error:
        gl.sweep(tiny_chameleon, progress=False, **call)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_grid_by_a_factory_on_a_prepared_batch(tiny: Any, one_image: Any) -> None:
    metric = gl.metrics.logit_diff(11, 12)
    table = gl.sweep(tiny, one_image, GRID, metric, False, make=make)
    assert table.columns.tolist() == ["layer", "at", "example", "value"]
    expected = [
        metric(tiny.run(one_image, make(layer, at)))[0]
        for layer, at in zip(table.layer, table["at"], strict=True)
    ]
    torch.testing.assert_close(torch.tensor(table.value.tolist()).float(), torch.stack(expected).float())
