"""What Janus has that other families do not: a picture in the middle of a filled square, markers by tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases.janus import NAMED, VOCABULARY, full, model, processor
from PIL import Image
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

import gatelens as gl
from gatelens.errors import ModelError
from gatelens.families import family_of
from gatelens.model import HookedVLM, input_preparation
from tiny_models import make_picture

SIDE, N = 64, 4
CELL = SIDE // N
FAMILY = family_of("JanusForConditionalGeneration")


@pytest.fixture(scope="module")
def janus() -> HookedVLM:
    return HookedVLM.from_module(model(), processor())


@pytest.mark.parametrize("size", [(64, 64), (100, 61), (61, 203), (200, 199), (40, 30), (250, 20)])
@pytest.mark.parametrize("least", [1, 14])
def test_boxes_match_what_the_cells_show(size: tuple[int, int], least: int) -> None:
    """A picture of its own coordinates (red its x, green its y, blue full) goes through the real processor."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(width), np.arange(height)[:, None], 255
    images = JanusImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, min_size=least, do_rescale=False, do_normalize=False
    )
    seen = np.asarray(images(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])
    plan = FAMILY.layout(full(1, 64, 4, 64), None).plan
    geometry = type(plan.geometry)((SIDE, SIDE), longest=SIDE, least=least)
    boxes = geometry.boxes(size, N, N).view(N, N, 4)
    checked = 0
    for r in range(N):
        for c in range(N):
            patch = seen[:, r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL]
            shown = patch[2] > 250  # the rest of the square has another blue
            x0, y0, x1, y1 = boxes[r, c].tolist()
            if not shown.any():
                assert x1 - x0 <= 0 or y1 - y0 <= 0
                continue
            checked += 1
            assert abs(patch[0][shown].mean() - ((x0 + x1) / 2 - 0.5)) < 1.5
            assert abs(patch[1][shown].mean() - ((y0 + y1) / 2 - 0.5)) < 1.5
    assert checked >= N


def test_tiny_processor_and_layout_agree(janus: HookedVLM) -> None:
    inputs = janus.prepare(make_picture(80, 40), "this <image> is a")
    names = inputs.tokens.strings[0]
    assert names[2:4] == (NAMED["boi_token"], NAMED["image_token"]) and names[19] == NAMED["eoi_token"]
    assert inputs.tokens.positions("boi") == [2] and inputs.tokens.positions("gate") == [19]
    assert inputs.tokens.mask("image").sum() == 16
    assert janus.layout.plan.geometry.longest == 64 and janus.layout.plan.geometry.least == 2
    written = janus.prepare(make_picture(80, 40), f"this {NAMED['image_token']} is a")
    assert torch.equal(written.tensors["input_ids"], inputs.tensors["input_ids"])


def test_markers_without_a_tokenizer() -> None:
    published = FAMILY.layout(full(1, 64, 4, 64), None)
    assert (published.placeholder_id, published.boi_id, published.eoi_id) == (100581, 100016, 100593)
    assert published.plan.n_tokens == 576
    other = full(1, 64, 4, 64)
    other.image_token_id = VOCABULARY[NAMED["image_token"]]
    assert FAMILY.layout(other, None).boi_ids == frozenset()  # another tokenizer: not ours to guess


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.embeddings.hook_out",
        "vision_encoder.encoder_layers.0.hook_out",
        "vision_encoder.encoder_layers.1.attn.hook_z",
        "vision_encoder.encoder_layers.1.mlp.hook_out",
        "vision_projector.hook_out",
    ],
)
def test_edits_in_the_tower_reach_the_logits(janus: HookedVLM, name: str) -> None:
    inputs = janus.prepare(make_picture(80, 40), "this <image> is a")
    edited = janus.run_with_hooks(inputs, [(name, lambda tensor, hook: torch.zeros_like(tensor))])
    assert (edited - janus(inputs)).abs().max() > 1e-3


def test_heads_of_the_tower_have_their_own_number(janus: HookedVLM) -> None:
    inputs = janus.prepare(make_picture(80, 40), "this <image> is a")
    _, cache = janus.run_with_cache(inputs, lambda name: name.startswith("vision_encoder."))
    assert cache["vision_encoder.encoder_layers.0.attn.hook_z"].shape == (1, 16, 2, 8)
    assert cache["vision_encoder.encoder_layers.0.attn.hook_q"].shape == (1, 16, 2, 8)


def test_knocking_out_the_gate_is_one_column(janus: HookedVLM) -> None:
    inputs = janus.prepare(make_picture(80, 40), "this <image> is a")
    cut = gl.knockout(queries="text - gate", keys="eoi", layers=[0], how="mask")
    assert (janus.run(inputs, cut) - janus(inputs))[0, :20].abs().max() <= 1e-6
    assert (janus.run(inputs, cut) - janus(inputs))[0, 20:].abs().max() > 1e-4


PIECES = (  # a template that reads typed pieces, as Janus' own
    "{% for m in messages %}<|User|>: {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}<|Assistant|>:"
)


@pytest.mark.parametrize(
    "template, want",
    [
        (None, "<|User|>: <image_placeholder> what color\n\n<|Assistant|>:"),
        (PIECES, "<|User|>: <image_placeholder> what color<|Assistant|>:"),
        ("{{ messages[0]['content'] }} it is", "<image_placeholder> what color it is"),
    ],
)
def test_a_user_turn_keeps_the_prompt(janus: HookedVLM, template: str | None, want: str) -> None:
    janus.tokenizer.chat_template = template
    try:
        assert input_preparation.as_written(janus, "<image> what color", chat=True) == want
        janus.tokenizer.chat_template = "nothing of it"
        with pytest.raises(ModelError, match="leaves the prompt out"):
            input_preparation.as_written(janus, "<image> what color", chat=True)
    finally:
        janus.tokenizer.chat_template = None
