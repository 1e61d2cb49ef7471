"""Maps over data: kept pair by pair, continued after a kill, metrics of texts and activations."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import gatelens as gl
from forks import in_a_fork
from gatelens.data import Example, Pair
from gatelens.errors import GatelensError, OutputError
from gatelens.readouts.gradients.attribution_map import GradientWork
from gatelens.readouts.heads.batches import HeadsWork
from gatelens.readouts.map_runs import MapWork
from tiny_models import make_picture

TEXTS = ("this <image> animal is a", "this <image> animal is a", "this <image> the dog is a")


def some_pairs(texts: tuple[str, ...] = TEXTS) -> list[Pair]:
    """Pairs of pictures; the last prompt is longer than the others."""

    def side(seed: int, text: str) -> Example:
        return Example(make_picture(seed=seed), text, ("dog",), "class", str(seed))

    return [
        Pair(side(2 * i, text), side(2 * i + 1, text), "picture", "dog", "cat")
        for i, text in enumerate(texts)
    ]


def measured(logits: Tensor) -> Tensor:
    return (logits[:, -1, -4:] ** 2).sum(-1)


def exact(model: Any, pairs: Any, **how: Any) -> Any:
    return gl.patch_map(model, pairs, measured, layers=[1, 2], at="text", progress=False, **how)


def gradients(model: Any, pairs: Any, **how: Any) -> Any:
    how = {"layers": [1, 2], "at": "text", "check": 6, "progress": False} | how
    return gl.attribution_map(model, pairs, measured, **how)


def heads(model: Any, pairs: Any, **how: Any) -> Any:
    parts = ["attention", "sinks", "attribution", "knockout", "regression", "vocabulary"]
    return gl.heads_table(model, list(pairs), parts, subsets=20, ridge=1.0, progress=False, **how)


MAPS: dict[str, Callable[..., Any]] = {"patch_map": exact, "attribution_map": gradients}
UNITS = {
    "patch_map": (MapWork, "runs_of"),
    "attribution_map": (MapWork, "runs_of"),
    "heads_table": (HeadsWork, "_tables"),
}


@pytest.mark.parametrize("name", UNITS)
def test_a_map_that_is_killed_goes_on_where_it_stopped(tiny_llava: Any, name: str, tmp_path: Path) -> None:
    """A process is killed in the second of its units; another makes the map that an undisturbed one makes.

    Pairs of one length are a unit of an exact map and of a table of heads; each is one of a map by gradients.
    """
    make_it = (MAPS | {"heads_table": heads})[name]

    def make(out: str, kill: bool) -> Path:
        work = lambda: make_it(tiny_llava, some_pairs(), out=tmp_path / out)  # noqa: E731
        ended = in_a_fork(work, UNITS[name], kill_at=2 if kill else None)
        assert ended == (-signal.SIGKILL if kill else 0)
        return tmp_path / out / f"{name}.parquet"

    whole = pd.read_parquet(make("whole", kill=False))
    assert not make("cut", kill=True).exists()
    section = "batches" if name == "heads_table" else "cells"
    there, *more = (tmp_path / "cut/shards" / section).glob("*/*.parquet")
    assert {one.parent for one in more} <= {there.parent}
    stamp = there.stat().st_mtime_ns
    pd.testing.assert_frame_equal(pd.read_parquet(make("cut", kill=False)), whole, check_exact=True)
    assert there.stat().st_mtime_ns == stamp  # what was whole was not made again
    assert whole.select_dtypes("number").notna().any(axis=None)
    if name == "heads_table":
        undisturbed = heads(tiny_llava, some_pairs())
        pd.testing.assert_frame_equal(pd.DataFrame(undisturbed), pd.DataFrame(whole), rtol=1e-4, atol=1e-5)
        assert undisturbed.attrs["n"] == whole.attrs["n"]


@pytest.mark.parametrize("name", MAPS)
def test_other_settings_in_the_same_folder_are_refused(tiny_llava: Any, tmp_path: Path, name: str) -> None:
    pairs, make = some_pairs(), MAPS[name]
    first = make(tiny_llava, pairs, out=tmp_path / "m")
    again = make(tiny_llava, iter(pairs), out=tmp_path / "m")
    pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)
    pd.testing.assert_frame_equal(first.table, make(tiny_llava, pairs).table, check_exact=True)
    changes: list[tuple[Any, dict[str, Any], str]] = [
        (pairs[:2], {}, "n: there 3, now 2"),
        ([pairs[0], pairs[1], pairs[1]], {}, "pairs"),
        (pairs, {"direction": "noising"}, "direction: there 'denoising', now 'noising'"),
        (pairs, {"site": "attn_out"}, "site: there None, now 'attn_out'"),
    ]
    for data, how, changed in changes:
        with pytest.raises(OutputError, match="other settings") as error:
            make(tiny_llava, data, out=tmp_path / "m", **how)
        assert changed in str(error.value) and "\n" not in str(error.value)


def test_an_impossible_map_leaves_its_folder_free(tiny_llava: Any, tmp_path: Path) -> None:
    same = [Pair(one.clean, one.clean, "nothing", "dog", "cat") for one in some_pairs()]
    with pytest.raises(GatelensError, match="nothing to restore"):
        exact(tiny_llava, same, out=tmp_path / "m")
    with pytest.raises(GatelensError, match="the metric gave nan"):
        gl.patch_map(tiny_llava, some_pairs(), lambda x: measured(x) * float("nan"), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_a_pair_with_nothing_to_restore_costs_no_gradients(
    tiny_llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """With a folder all pairs are checked first, without one each before its gradients are kept."""
    begun: list[Any] = []
    scores = GradientWork._scores
    monkeypatch.setattr(GradientWork, "_scores", lambda *given: begun.append(given) or scores(*given))
    pairs = some_pairs(TEXTS[:2] * 2)
    pairs[1] = Pair(pairs[1].clean, pairs[1].clean, "nothing", "dog", "cat")
    out = {"out": tmp_path / "m"} if kept else {}
    with pytest.raises(GatelensError, match=r"of pair 1 .* nothing to restore; .*without\(1\)"):
        gradients(tiny_llava, pairs, check=0, **out)
    assert len(begun) == (0 if kept else 2) and not (tmp_path / "m").exists()
    found = gradients(tiny_llava, [pairs[0], *pairs[2:]], check=0, **out)
    assert found.tensor.shape[0] == 3


def test_texts_and_activations_are_metrics_too(tiny: Any) -> None:
    """Against one generation and one cached pass a cell."""
    (pair,) = some_pairs(TEXTS[:1])
    clean, corrupt = (tiny.prepare([e.image], [e.prompt]) for e in (pair.clean, pair.corrupt))
    _, cache = tiny.run_with_cache(clean)
    point = "blocks.2.hook_resid_post"
    by_text = gl.metrics.of_texts(lambda text, example: sum(map(ord, text)) + len(example.answers), 3)
    by_cache = gl.metrics.of_cache(lambda cache: cache[point][:, -1, :4].sum(-1), point)
    maps = [
        gl.patch_map(tiny, pair, metric, "layer", at="image", progress=False)
        for metric in (by_text, by_cache)
    ]
    for layer, text, activation in zip(range(3), *(one.table["patched"] for one in maps), strict=True):
        patch = gl.patch(cache, "image", layers=[layer])
        written = gl.engine.generate(tiny, corrupt, patch, 3).texts[0]
        assert text == sum(map(ord, written)) + 1
        _, seen = tiny.run_with_cache(corrupt, point, fwd_hooks=patch.hooks(corrupt.tokens, tiny.cfg))
        assert activation == pytest.approx(float(seen[point][0, -1, :4].sum()), abs=1e-4)
    words = gl.patch_map(
        tiny, pair, gl.metrics.logit(lambda e: e.answers[0]), "layer", at="last", progress=False
    )
    named = gl.patch_map(tiny, pair, "logit", "layer", at="last", progress=False)
    torch.testing.assert_close(words.tensor, named.tensor)
    with pytest.raises(GatelensError, match=r"the metric reads texts: .*gl.patch_map"):
        gl.attribution_map(tiny, pair, by_text, progress=False)


WORDS = ("this <image> animal is a", "this <image> dog is a", "<image> the dog is a", "this <image> it a")
POINT = "blocks.2.hook_resid_post"
BATCHED: dict[str, dict[str, Any]] = {
    "positions": {"over": ("layer", "pos"), "at": "text | last_image"},
    "roles": {"over": ("role", "layer"), "at": {"a few": "random_image:3", "object": "image.mask(object)"}},
    "heads": {"over": "head", "site": "z", "at": "text", "metric": "kl"},
    "rows of attention": {"over": "layer", "site": "pattern", "at": "last", "metric": "prob"},
    "its pair": {"over": "role", "metric": lambda logits, pair: logits[:, -1, 26 + int(pair.clean.id)]},
    "activations": {
        "over": "layer",
        "at": "image",
        "metric": gl.metrics.of_cache(lambda c: c[POINT][:, -1, 3], POINT),
    },
    "noise": {"over": "role", "noise": 2.0},
}


@pytest.mark.parametrize("name", BATCHED)
def test_pairs_that_run_together_are_as_one_by_one(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Prompts of two lengths and different words, objects at other places; five of six pairs share a pass."""
    how: dict[str, Any] = {"metric": measured, "progress": False} | BATCHED[name]
    pairs, noise = [], how.pop("noise", 0.0)
    for i, pair in enumerate(some_pairs(("this <image> animal is a", *WORDS, WORDS[1]))):
        mask = np.zeros((16, 16), dtype=bool)
        mask[2 * i : 2 * i + 5, 4:9] = True
        clean = dataclasses.replace(pair.clean, label="dog", meta={"masks": {"dog": mask}})
        pairs.append(
            dataclasses.replace(pair, clean=clean, noise=noise, corrupt=clean if noise else pair.corrupt)
        )
    together = gl.patch_map(tiny, pairs, **how)
    seen = units_of(monkeypatch)
    again = gl.patch_map(tiny, pairs, **how)
    assert sorted(seen) == [1, 5]
    monkeypatch.setattr(MapWork, "most", 1)
    alone = gl.patch_map(tiny, pairs, **how)
    assert seen[-6:] == [1] * 6
    pd.testing.assert_frame_equal(together.table, again.table, check_exact=True)
    assert together.axes.keys() == alone.axes.keys() and together.tokens.strings == alone.tokens.strings
    for column in ("patched", "clean", "corrupt"):
        np.testing.assert_allclose(together.columns[column], alone.columns[column], rtol=1e-5, atol=1e-5)
    assert np.array_equal(together.tensor.isnan(), alone.tensor.isnan())


def units_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were run together, filled as it comes."""
    seen: list[int] = []
    runs_of = MapWork.runs_of

    def counted(self: Any, part: Any) -> Any:
        seen.append(len(part))
        return runs_of(self, part)

    monkeypatch.setattr(MapWork, "runs_of", counted)
    return seen


@pytest.fixture(scope="module")
def gated() -> Any:
    return gl.HookedVLM.from_pretrained("organism:gated")


def at_gate(model: Any, pairs: Any, **how: Any) -> Any:
    return gl.patch_map(model, pairs, over="layer", at="gate", progress=False, **how)


def gradients_at_gate(model: Any, pairs: Any, **how: Any) -> Any:
    return gl.attribution_map(model, pairs, at="gate", check=4, progress=False, **how)


@pytest.mark.organism
@pytest.mark.parametrize("differ", ["class", "color", "blur", "noise"])
@pytest.mark.parametrize("make", [at_gate, gradients_at_gate])
def test_a_data_set_gives_its_pairs(gated: Any, make: Any, differ: str) -> None:
    """A fact, or a corruption, whose metric needs no answer to the corrupt picture."""
    how: dict[str, Any] = {} if differ in ("class", "color") else {"metric": "log_prob"}
    asked = {"differ": differ, "n": 2, "seed": 3}
    found = make(gated, "emoji-scenes", **asked, **how)
    pairs = gl.pairs("emoji-scenes", **asked)
    pd.testing.assert_frame_equal(found.table, make(gated, pairs, **how).table)
    assert found.axes["pair"]["differ"].tolist() == [pair.differ for pair in pairs] and len(pairs) == 2


@pytest.mark.organism
def test_what_goes_with_data_is_checked(gated: Any) -> None:
    pairs = gl.pairs(gl.data.load("emoji-scenes", "train"), n=1)
    for how, message in (
        ({"pairs": pairs, "differ": "color"}, "differ='color' goes with data"),
        ({"differ": "klass"}, "did you mean 'class'"),
        ({"n": 0}, "n=0: give a whole number, 1 or more"),
    ):
        for make in (at_gate, gradients_at_gate):
            with pytest.raises(GatelensError, match=message):
                make(gated, **{"pairs": "emoji-scenes"} | how)


@pytest.mark.organism
@pytest.mark.parametrize("make", [at_gate, gradients_at_gate])
def test_chat_makes_each_prompt_a_turn(gated: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pairs that are written as turns."""
    template = "what {{ messages[0]['content'] }} it"
    monkeypatch.setattr(gated.tokenizer, "chat_template", template)
    pairs = gl.pairs(gl.data.load("emoji-scenes", "train"), n=2)
    written = [
        dataclasses.replace(
            pair, **{side: turned(gated, getattr(pair, side)) for side in ("clean", "corrupt")}
        )
        for pair in pairs
    ]
    found, plain = make(gated, pairs, chat=True), make(gated, pairs)
    np.testing.assert_array_equal(found.columns["patched"], make(gated, written).columns["patched"])
    assert found.tokens.n_pos == plain.tokens.n_pos + 2
    assert not np.allclose(found.columns["clean"], plain.columns["clean"])


def turned(model: Any, example: Example) -> Example:
    return dataclasses.replace(example, prompt=model.as_turn(example.prompt))
