"""Runs in which positions are another prompt's, against streams put in by plain hooks, one run at a time."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gatelens.engine.spliced_runs import SplicedRuns
from gatelens.errors import InterventionError
from gatelens.model import HookedVLM
from gatelens.tokens import Role
from study_helpers import TinyData

PAIRS = torch.tensor([[0, 1], [1, 3], [2, 0], [3, 2], [0, 2]])


def prepared(model: Any) -> Any:
    examples = TinyData(n=4).examples("class")
    return model.prepare([e.image for e in examples], [e.prompt for e in examples])


def masks(inputs: Any, first: int, runs: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that keep their own stream and that are the other's, at random; nothing at the last or at padding."""
    generator = torch.Generator().manual_seed(0)
    n = inputs.tokens.n_pos
    draw = torch.rand(runs, len(PAIRS), n, generator=generator)
    real = (inputs.tokens.roles != Role.PAD)[PAIRS[:, 0]] & (torch.arange(n) < n - 1)
    other = (draw < 0.4) & real
    return (draw > 0.8) & real & (torch.arange(n) >= first), other


def by_hooks(model: Any, inputs: Any, first: int, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The definition: one whole pass a run and pair, each stream written where it is pinned."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(inputs, names_filter=names)
    clean = {name: cache[name].clone() for name in names}
    answers = []
    for run in range(len(own)):
        for pair, (mine, theirs) in enumerate(PAIRS.tolist()):

            def put(
                value: Any, hook: Any, name: str, run: int = run, pair: int = pair, rows: Any = (mine, theirs)
            ) -> Any:
                value = value.clone()
                lent, kept = other[run, pair], own[run, pair].clone()
                kept[:first] = ~lent[:first]
                value[0, kept] = clean[name][rows[0], kept]
                value[0, lent] = clean[name][rows[1], lent]
                return value

            answers.append(
                model.run_with_hooks(
                    inputs.select([mine]), fwd_hooks=[(n, partial(put, name=n)) for n in names]
                )[0, -1]
            )
    return torch.stack(answers).unflatten(0, (len(own), len(PAIRS)))


@pytest.mark.parametrize("after", [1, 4])
def test_a_run_is_the_streams_put_in(tiny: Any, after: int) -> None:
    inputs = prepared(tiny)
    first = inputs.tokens.n_pos - after
    runs, (own, other) = SplicedRuns(tiny, inputs, first), masks(inputs, first)
    assert runs.can_mix
    wanted = by_hooks(tiny, inputs, first, own, other)
    torch.testing.assert_close(runs.logits(PAIRS, own, other), wanted, atol=1e-4, rtol=1e-4)
    none = torch.zeros_like(own[:1])
    kept = runs.logits(PAIRS, none, none)[0]
    torch.testing.assert_close(kept, tiny(inputs)[PAIRS[:, 0], -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "mixes"), [("paligemma", False), ("qwen_vl", True)])
def test_two_way_blocks_and_streams_of_positions(
    family: str, mixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where rows cannot be put after mixed caches, and where positions have three numbers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "families"))
    case = importlib.import_module(f"cases.{family}").CASES[0]
    model = HookedVLM.from_module(case.model(), case.processor())
    inputs = prepared(model)
    first = inputs.tokens.n_pos - 2
    runs, (own, other) = SplicedRuns(model, inputs, first), masks(inputs, first, 2)
    assert runs.can_mix is mixes
    wanted = by_hooks(model, inputs, first, own, other)
    torch.testing.assert_close(runs.logits(PAIRS, own, other), wanted, atol=1e-4, rtol=1e-4)


def test_prompts_of_other_layouts_are_refused(tiny: Any) -> None:
    picture = TinyData(n=1).examples("class")[0].image
    inputs = tiny.prepare([picture, picture], ["<image>this animal is a", "this <image> animal is a"])
    none = torch.zeros(1, 1, inputs.tokens.n_pos, dtype=torch.bool)
    with pytest.raises(InterventionError, match="pair 0: the prompts differ in the role of a position"):
        SplicedRuns(tiny, inputs, inputs.tokens.n_pos - 1).logits(torch.tensor([[0, 1]]), none, none)


def test_less_is_computed_than_by_whole_passes(tiny_llava: Any) -> None:
    inputs, rows = prepared(tiny_llava), []
    handle = tiny_llava.hf.model.language_model.layers[0].mlp.register_forward_hook(
        lambda _, __, out: rows.append(out.shape[0] * out.shape[1])
    )
    try:
        own, other = masks(inputs, inputs.tokens.n_pos - 1, 100)
        SplicedRuns(tiny_llava, inputs, inputs.tokens.n_pos - 1).logits(PAIRS, own, other)
    finally:
        handle.remove()
    assert sum(rows) == 4 * inputs.tokens.n_pos + 100 * len(PAIRS)  # the clean run, then a row per run
