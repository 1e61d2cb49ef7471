"""From a plain text model into a VLM of the same width: exact against plain torch hooks; what cannot be is refused."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import gatelens as gl
from attack.compositions import subject
from gatelens.data import Example, Pair
from gatelens.errors import GatelensError, InputError
from tiny_models import make_picture, randomize

FAMILIES = ("gemma3", "llava")


def measured(logits: Tensor) -> Tensor:
    return (logits[:, -1, -4:] ** 2).sum(-1)


def pair_of(clean: str, corrupt: str, /, **pictures: Any) -> Pair:
    sides = [
        Example(pictures.get(name), text, ("dog",), "class", name)
        for name, text in (("clean", clean), ("corrupt", corrupt))
    ]
    return Pair(*sides, differ="word", target="dog", base="cat")


def backbone(vlm: Any, n_layers: int = 3, wider: int = 0) -> tuple[Any, Any]:
    """A text model that shares the VLM's tokenizer and width alone, wrapped and plain."""
    config = LlamaConfig(
        vocab_size=vlm.hf.config.get_text_config().vocab_size,
        hidden_size=int(vlm.cfg.d_model) + wider,
        intermediate_size=40,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    plain = randomize(LlamaForCausalLM(copy.deepcopy(config)), 7).eval()
    twin = randomize(LlamaForCausalLM(copy.deepcopy(config)), 7).eval()
    return gl.HookedVLM.from_module(plain, vlm.processor, layout=vlm.layout), twin


def entering(layers: Any, run: Any) -> list[Tensor]:
    """The stream that enters each layer, by plain hooks."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(
                    (args[0] if args else kwargs["hidden_states"]).clone()
                ),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        run()
    return seen


def with_row(layer: Any, position: int, row: Tensor, run: Any) -> Tensor:
    """The logits with one row of what enters a layer replaced, by a plain hook."""

    def replace(module: Any, args: Any, kwargs: Any) -> Any:
        stream = (args[0] if args else kwargs["hidden_states"]).clone()
        stream[0, position] = row
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

    handle = layer.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        return run().logits
    finally:
        handle.remove()


# the position of the source for each of the prompt that is patched; None where its word is the other's alone
TEXTS = {
    "of one length": ("this dog is a", "this cat is a", lambda here: here),
    "a word more": ("this red dog is a", "this cat is a", lambda here: [0, None, 3, 4][here]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("read", [None, 1])
def test_every_cell_equals_plain_hooks(name: str, texts: str, read: int | None) -> None:
    vlm, oracle, (*words, partner) = subject(name).built.model, subject(name).oracle, TEXTS[texts]
    source, twin = backbone(vlm, int(vlm.cfg.n_layers) if read is None else 2)
    given, ids = (vlm.prepare(None, text).tensors["input_ids"] for text in words)
    first = ids.shape[1] - 4  # what the tokenizer puts before the words
    rows = entering(twin.model.layers, lambda: twin(given))
    found = gl.patch_map(vlm, pair_of(*words), measured, source=source, source_layer=read, progress=False)
    for cell in found.table.to_dict("records"):
        here, layer = int(cell["position"]), int(cell["layer"])
        there = here if here < first else partner(here - first)
        if there is None:
            assert np.isnan(cell["value"])
            continue
        row = rows[layer if read is None else read][0, there + first if here >= first else there]
        want = with_row(oracle.layers[layer], here, row, lambda: oracle.plain(ids))
        assert cell["patched"] == pytest.approx(float(measured(want)), abs=2e-4), cell
    assert found.tensor.isfinite().sum() >= 3 * 3 and float(found.tensor.nan_to_num().abs().max()) > 0.1


def test_what_cannot_be_is_refused() -> None:
    vlm = subject("llava").built.model
    small, _ = backbone(vlm, 2)
    words = ("this dog is a", "this cat is a")
    with pytest.raises(InputError, match=r"layer 2 is not in HookedVLM\(.*2 layers.*give layers=range\(2\)"):
        gl.patch_map(vlm, pair_of(*words), measured, source=small)
    with pytest.raises(GatelensError, match="layer 2 does not exist, the model has 2 layers"):
        gl.patch_map(vlm, pair_of(*words), measured, source=small, source_layer=2)
    pictures = {"clean": make_picture(seed=1), "corrupt": make_picture(seed=2)}
    texts = ("this <image> dog is a", "this <image> cat is a")
    with pytest.raises(InputError, match=r"HookedVLM\(.*\) reads no pictures: leave them out") as error:
        gl.patch_map(vlm, pair_of(*texts, **pictures), measured, layers=[0, 1], source=small)
    assert "\n" not in str(error.value)
    wider, _ = backbone(vlm, 3, 16)
    with pytest.raises(GatelensError, match="patch between models of one width"):
        gl.patch_map(vlm, pair_of(*words), measured, source=wider, progress=False)
