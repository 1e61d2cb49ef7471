"""Bytes of a plan against the tensors that it makes, and as many runs at once as fit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.bridge.weights import OUTLIERS, ROUNDED, Quantisation
from gatelens.engine.footprint import Decoder, as_bytes, fitted, footprint, in_words
from gatelens.engine.plan import make_plan
from gatelens.engine.replay import Replay
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import InputError
from gatelens.model import HookedVLM


def runs_of(model: HookedVLM) -> list[Any]:
    """Knockouts from each layer on, and an edit in the middle of the picture."""
    cuts: list[Any] = [[gl.knockout("text - gate", "image", layers=range(start, 3))] for start in range(3)]
    return [*cuts, *cuts, [gl.ablate(at="last_image", site="resid_pre", layers=[1])]]


def size(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_are_those_of_the_model(tiny: Any, batch: Any) -> None:
    held = footprint(tiny, make_plan(tiny, batch, runs_of(tiny)))
    assert held.weights == size(*tiny.hf.parameters(), *tiny.hf.buffers())


@pytest.mark.parametrize("every", [False, True])
def test_prefix_and_logits_are_the_tensors_that_are_kept(tiny: Any, batch: Any, every: bool) -> None:
    many = RunBatch(tiny, batch, runs_of(tiny), every_position=every)
    held, clean = footprint(tiny, many.plan, every), many.clean
    stream = [tensor for _, tensor in clean.resid.values()]
    assert held.prefix == size(*(x for pair in clean.shared for x in pair), *stream)
    kept = [clean.logits, many._buffer()] if every else [clean.logits]
    assert held.logits == size(*kept)


def test_runs_at_once_are_what_a_pass_keeps_and_more(tiny: Any, batch: Any) -> None:
    """Their own keys and values and their logits are counted to the byte; a layer's own tensors come on top."""
    many = RunBatch(tiny, batch, runs_of(tiny), every_position=False)
    part = many.plan.parts[0].some(many.plan.parts[0].runs[:2])
    replay = Replay(many.clean, part, many.runs, many.tokens)
    with torch.no_grad():
        logits = replay.logits(last_only=True)
    own = [x for layer in replay.past.layers if layer.is_initialized for x in (layer.keys, layer.values)]
    plan = make_plan(tiny, batch, many.runs)
    alone = footprint(tiny, type(plan)(plan.n_layers, plan.n_pos, plan.batch, (part,)), False)
    rows = len(part.runs) * plan.batch * (plan.n_pos - part.position)
    assert alone.runs == size(*own, logits) + Decoder.of(tiny).layer(rows, plan.n_pos, stepwise=rows)
    assert alone.at_once == len(part.runs)


def test_fewer_at_once_where_memory_is_short_and_the_same_numbers(tiny: Any, batch: Any) -> None:
    runs = runs_of(tiny)
    free = RunBatch(tiny, batch, runs, every_position=False)
    whole = footprint(tiny, free.plan)
    limit = whole.peak - whole.runs // 2
    try:
        tiny.memory_limit = limit
        tight = RunBatch(tiny, batch, runs, every_position=False)
        assert footprint(tiny, tight.plan).peak <= limit < whole.peak
        assert len(tight.plan.parts) > len(free.plan.parts)
        got, due = dict(tight.each()), dict(free.each())
        assert sorted(got) == sorted(due)
        for i in due:
            torch.testing.assert_close(got[i], due[i], atol=1e-5, rtol=1e-5)
        written = gl.engine.generate_many(tiny, batch, runs, max_new_tokens=2)
    finally:
        tiny.memory_limit = None
    assert [w.texts for w in written] == [
        w.texts for w in gl.engine.generate_many(tiny, batch, runs, max_new_tokens=2)
    ]


def test_tokens_that_are_decoded_take_room(tiny: Any, batch: Any) -> None:
    plan = make_plan(tiny, batch, runs_of(tiny))
    grown = footprint(tiny, plan, new=10).runs - footprint(tiny, plan, new=1).runs
    at_once = footprint(tiny, plan, new=10).at_once
    assert grown == 9 * at_once * batch.batch_size * 3 * Decoder.of(tiny).keys_and_values
    assert fitted(tiny, plan, memory=1).parts == fitted(tiny, plan, memory=2).parts  # never less than one run


def test_explain_says_gigabytes_and_when_they_do_not_fit(tiny: Any, batch: Any) -> None:
    grid = {"start": runs_of(tiny)}
    said = gl.explain(tiny, batch, grid)
    held = said.footprint
    for part in (held.weights, held.prefix, held.logits, held.runs, held.peak):
        assert in_words(part) in str(said) and in_words(part) in said._repr_html_()
    assert "more than" not in str(said)
    tight = gl.explain(tiny, batch, grid, memory="100kB")
    assert "that is more than the 100 kB there is" in str(tight)
    assert "7 passes" not in str(said) and tight.footprint.at_once == 1
    with pytest.raises(InputError, match="memory='plenty': give bytes, or a size such as '80GB'"):
        gl.explain(tiny, batch, grid, memory="plenty")


@pytest.mark.parametrize(
    ("given", "due"),
    [("80GB", 80 * 10**9), ("24 GiB", 24 * 2**30), ("1.5mb", 1_500_000), (7, 7), ("12 B", 12)],
)
def test_sizes(given: Any, due: int) -> None:
    assert as_bytes(given) == due


@pytest.mark.parametrize("given", ["", "GB", "-1GB", 0, True, None, "80 PB", 1.5, float("nan"), float("inf")])
def test_what_is_no_size(given: Any) -> None:
    with pytest.raises(InputError, match="give bytes"):
        as_bytes(given)


def test_text_without_a_unit_may_mean_bytes_or_gigabytes() -> None:
    with pytest.raises(InputError, match="memory_limit='24' has no unit: give '24GB' or '24B', or bytes as"):
        as_bytes("24", "memory_limit")


@pytest.mark.parametrize(
    ("n", "due"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (45.6e9, "45.6 GB"), (1.6e11, "160 GB")]
)
def test_bytes_in_words(n: float, due: str) -> None:
    assert in_words(n) == due


def test_a_sweep_that_cannot_equal_a_run_is_said_once(tiny: Any, batch: Any) -> None:
    words = "a sweep can differ from the run of one point by about a step of 8 bits"
    try:
        tiny.quantisation = Quantisation("bitsandbytes 8-bit", f"{ROUNDED}, and {OUTLIERS}")
        assert words in str(gl.explain(tiny, batch, runs_of(tiny)))
        assert words not in str(gl.explain(tiny, batch, [None]))  # nothing shares a batch
        with pytest.warns(UserWarning, match=f"{words}.*llm_int8_threshold=0"):
            RunBatch(tiny, batch, runs_of(tiny))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            RunBatch(tiny, batch, runs_of(tiny))
    finally:
        tiny.quantisation = None
        tiny.__dict__.pop("_said_inexact", None)
