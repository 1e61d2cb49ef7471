"""Prompts and generations longer than the model has positions are refused, never cut short and never run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BloomConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, OPTConfig

import gatelens as gl
from gatelens import engine
from gatelens.bridge.attention import position_limit
from gatelens.engine.compression import compress, describe
from gatelens.engine.drawing import canvas, draw
from gatelens.errors import InputError
from gatelens.inputs import next_position_ids
from tiny_models import VOCABULARY

LIMIT = 256  # of the tiny models
LINEAR, YARN = {"rope_type": "linear", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}


def words(n: int) -> torch.Tensor:
    """Ids of a prompt of n tokens."""
    return torch.tensor([[1] + [VOCABULARY["dog"]] * (n - 1)])


@pytest.mark.parametrize(
    "config, limit",
    [
        (LlamaConfig(max_position_embeddings=100), 100),
        (LlamaConfig(max_position_embeddings=100, rope_parameters={**LINEAR, "rope_theta": 1e4}), 400),
        (
            LlamaConfig(
                max_position_embeddings=100,
                rope_parameters={**YARN, "rope_theta": 1e4, "original_max_position_embeddings": 100},
            ),
            400,
        ),
        (
            LlamaConfig(
                max_position_embeddings=400,
                rope_parameters={**YARN, "rope_theta": 1e4, "original_max_position_embeddings": 100},
            ),
            400,
        ),
        (MistralConfig(max_position_embeddings=100, sliding_window=10), 100),
        (
            Gemma3TextConfig(
                max_position_embeddings=100,
                rope_parameters={
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {**LINEAR, "rope_theta": 1e6},
                },
            ),
            100,
        ),
        (GPT2Config(n_positions=100), 100),
        (OPTConfig(max_position_embeddings=100), 100),
        (BloomConfig(), None),
        (SimpleNamespace(max_position_embeddings=None), None),
    ],
)
def test_the_limit_a_config_names(config: Any, limit: int | None) -> None:
    assert position_limit(config) == limit


def test_a_prompt_may_fill_the_model_and_not_go_beyond(tiny: Any, oracle: Any) -> None:
    full = tiny.inputs(input_ids=words(LIMIT))
    torch.testing.assert_close(tiny(full), oracle(input_ids=words(LIMIT)).logits, atol=2e-5, rtol=1e-4)
    with pytest.raises(InputError, match=f"takes {LIMIT + 1} positions, this model has {LIMIT}"):
        tiny.inputs(input_ids=words(LIMIT + 1))
    with pytest.raises(InputError, match=f"this model has {LIMIT}"):
        tiny.prepare(text=["a dog", " ".join(["dog"] * LIMIT)])
    with pytest.raises(InputError, match=f"this model has {LIMIT}"):
        tiny.forward_step({"input_ids": words(LIMIT + 1)})


def test_padding_takes_no_position(tiny: Any, oracle: Any) -> None:
    short = torch.cat([torch.zeros(1, 10, dtype=torch.long), words(LIMIT - 5)], dim=1)
    padded = tiny.inputs(input_ids=short)
    assert padded.tokens.n_pos == LIMIT + 5
    torch.testing.assert_close(
        tiny(padded)[:, -1], oracle(input_ids=words(LIMIT - 5)).logits[:, -1], atol=2e-5, rtol=1e-4
    )


def test_new_tokens_count(tiny: Any) -> None:
    inputs = tiny.inputs(input_ids=words(LIMIT - 4))
    cut = gl.knockout("last", "pos[1]")
    assert engine.generate(tiny, inputs, cut, 4, stop_at_eos=False).token_ids.shape == (1, 4)
    says = rf"takes {LIMIT - 4} positions and 5 new tokens.*this model has {LIMIT} .*ask for 4 at most"
    for call in (
        lambda: engine.generate(tiny, inputs, cut, 5),
        lambda: tiny.generate(inputs, max_new_tokens=5),
        lambda: engine.generate_many(tiny, inputs, [cut, None], 5),
        lambda: describe(tiny, inputs, 5),
        lambda: compress(tiny, inputs, keep=0.5, max_new_tokens=5, among="pos[3:9]"),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_a_step_beyond_the_last_position_is_refused(tiny: Any) -> None:
    inputs = tiny.inputs(input_ids=words(LIMIT))
    _, past = tiny.forward_step(inputs.tensors, use_cache=True)
    step = {
        "input_ids": words(2)[:, :1],
        "attention_mask": torch.ones(1, LIMIT + 1, dtype=torch.long),
        "position_ids": next_position_ids(inputs.tensors["position_ids"], 0),
    }
    with pytest.raises(InputError, match=f"takes {LIMIT + 1} positions"):
        tiny.forward_step(step, past=past)


def test_questions_count(tiny: Any) -> None:
    context = describe(tiny, tiny.inputs(input_ids=words(LIMIT - 8)), 0).compress(1.0)
    assert context.answer("what color ?", max_new_tokens=5, stop_at_eos=False).token_ids[0][0].shape == (5,)
    for call in (
        lambda: context.answer("what color ?", max_new_tokens=6),
        lambda: context.logits("what color is the cat ? it is a"),
    ):
        with pytest.raises(InputError, match=f"this model has {LIMIT}"):
            call()


def test_a_drawing_counts(tiny_chameleon: Any) -> None:
    rows, cols = canvas(tiny_chameleon)
    prompt = tiny_chameleon.inputs(input_ids=words(LIMIT - rows * cols))  # the marker takes one more
    with pytest.raises(InputError, match=f"{rows * cols} new tokens.*this model has {LIMIT}"):
        draw(tiny_chameleon, prompt)
    fits = tiny_chameleon.inputs(input_ids=words(LIMIT - rows * cols - 1))
    assert draw(tiny_chameleon, fits, guidance=2.0).token_ids.shape == (1, rows * cols)
