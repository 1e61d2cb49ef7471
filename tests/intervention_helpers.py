"""A padded batch, and plain transformers doing by hand what an intervention should do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers.models.chameleon.modeling_chameleon as chameleon
import transformers.models.llama.modeling_llama as llama
from PIL import Image
from torch import Tensor

from gatelens.interventions import compile_hooks

TEXTS = ["this <image> animal is a", "<image> what color is the cat ?", "this is a dog . <image> and it"]


def pictures(n: int, seed: int = 0) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 16, 16, 3), generator=generator).to(torch.uint8)
    return [Image.fromarray(one.numpy()) for one in pixels]


def prompts(model: Any, seed: int = 0) -> Any:
    """Three prompts of different length, so that two are padded on the left; the seed draws the pictures.

    An untrained VQ encoder sees all pictures alike, so for Chameleon the image tokens are drawn themselves.
    """
    inputs = model.prepare(pictures(3, seed), TEXTS)
    if model.family.name != "chameleon":
        return inputs
    ids, placeholder = inputs.tensors["input_ids"].clone(), model.layout.placeholder_id
    codes = torch.tensor(sorted(model.layout.drawn.ids))
    drawn = torch.randint(len(codes), ids.shape, generator=torch.Generator().manual_seed(seed))
    ids = torch.where(ids == placeholder, codes[drawn], ids)
    return model.inputs(input_ids=ids, attention_mask=inputs.tensors["attention_mask"])


@pytest.fixture(scope="session")
def batch(tiny: Any) -> Any:
    """Three padded prompts of either family."""
    inputs = prompts(tiny)
    assert len(set((inputs.tokens.roles == 0).sum(1).tolist())) == 3
    return inputs


@pytest.fixture
def stepwise(tiny: Any) -> Any:
    """Attention computed one way in every layer, so that equal runs are equal to the last bit."""
    before, tiny.attention = tiny.attention, "stepwise"
    yield
    tiny.attention = before


@pytest.fixture(scope="session")
def real(batch: Any) -> Tensor:
    """Where the batch is no padding: what stands at padding means nothing."""
    return batch.tokens.roles != 0


def layers_of(hf: Any) -> Any:
    """The decoder blocks of a plain transformers model."""
    return getattr(hf.model, "language_model", hf.model).layers


@pytest.fixture(scope="session")
def blocks(oracle: Any) -> Any:
    return layers_of(oracle)


def cut_of(tokens: Any, queries: str, keys: str, heads: Any = None, n_heads: int = 4) -> Tensor:
    """Bool[batch, head, query, key]: the causal entries a knockout is about, written out one by one."""
    q, k = tokens.mask(queries), tokens.mask(keys)
    cut = torch.zeros(tokens.batch_size, n_heads, tokens.n_pos, tokens.n_pos, dtype=torch.bool)
    for b in range(tokens.batch_size):
        for i in q[b].nonzero()[:, 0].tolist():
            for j in k[b].nonzero()[:, 0].tolist():
                if j <= i:
                    cut[b, list(heads) if heads is not None else slice(None), i, j] = True
    return cut


@pytest.fixture
def plain_with_cuts(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Plain transformers whose attention function itself leaves out given entries, by layer."""

    def run(inputs: Any, cuts: dict[int, list[tuple[Tensor, str]]]) -> Tensor:
        def attention(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor,
            scaling: float,
            **_: Any,
        ) -> tuple[Tensor, Tensor]:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.transpose(2, 3) * scaling + attention_mask
            for cut, how in cuts.get(module.layer_idx, []):
                if how == "mask":
                    scores = scores.masked_fill(cut, float("-inf"))
            pattern = scores.softmax(-1)
            for cut, how in cuts.get(module.layer_idx, []):
                if how == "zero":
                    pattern = pattern.masked_fill(cut, 0)
            return (pattern @ value).transpose(1, 2).contiguous(), pattern

        for module in (chameleon, llama):
            monkeypatch.setattr(module, "eager_attention_forward", attention)
        with torch.no_grad():
            return oracle(**inputs.tensors).logits

    return run


@contextmanager
def torch_hooks(handles: list[Any]) -> Any:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain(model: Any, inputs: Any, specs: list[Any]) -> Tensor:
    """Logits by TransformerLens hooks at every layer and position: no engine in it."""
    return model.run_with_hooks(inputs, compile_hooks(specs, inputs.tokens, model.cfg).pairs)
