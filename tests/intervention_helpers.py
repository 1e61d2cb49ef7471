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

from gatelens.interventions.compile import compile_hooks

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
    """Where the batch is not padding: what stands at padding means nothing."""
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


def ends_of(block: Any) -> tuple[Any, Any]:
    """The modules of a plain decoder block whose outputs are what attention and MLP add to the stream."""
    if hasattr(block, "post_self_attn_layernorm"):
        return block.post_self_attn_layernorm, block.post_mlp_layernorm
    if hasattr(block, "post_feedforward_layernorm"):
        return block.post_attention_layernorm, block.post_feedforward_layernorm
    if "Swin" in type(block).__name__:
        return block.input_layernorm, block.post_attention_layernorm
    return block.self_attn, block.mlp


def site_hooks(block: Any, edits: dict[str, Callable[[Tensor], Tensor]]) -> list[Any]:
    """Torch hooks on a plain transformers block that edit sites, in the order in which the block computes them.

    Queries, keys, values and z are edited as [batch, pos, head * d_head].
    """
    stream: dict[str, Tensor] = {}

    def before(module: Any, one: Callable[[Tensor], Tensor]) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (one(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": one(kwargs["hidden_states"])}

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def after(module: Any, one: Callable[[Tensor], Tensor]) -> Any:
        def hook(_: Any, args: Any, out: Any) -> Any:
            return (one(out[0]), *out[1:]) if isinstance(out, tuple) else one(out)

        return module.register_forward_hook(hook)

    def keep(x: Tensor) -> Tensor:
        stream["in"] = x
        return x

    attention, (attn_end, mlp_end) = block.self_attn, ends_of(block)
    places: dict[str, Callable[[Any], list[Any]]] = {
        "resid_pre": lambda one: [before(block, one)],
        "attn_in": lambda one: [before(attention, one)],
        "q": lambda one: [after(attention.q_proj, one)],
        "k": lambda one: [after(attention.k_proj, one)],
        "v": lambda one: [after(attention.v_proj, one)],
        "z": lambda one: [before(attention.o_proj, one)],
        "attn_out": lambda one: [after(attn_end, one)],
        # the stream in the middle is what came in and what attention adds
        "resid_mid": lambda one: [
            before(block, keep),
            after(attn_end, lambda out: one(stream["in"] + out) - stream["in"]),
        ],
        "mlp_in": lambda one: [before(block.mlp, one)],
        "mlp_out": lambda one: [after(mlp_end, one)],
        "resid_post": lambda one: [after(block, one)],
    }
    return [handle for site in places if site in edits for handle in places[site](edits[site])]


def plain(model: Any, inputs: Any, specs: list[Any]) -> Tensor:
    """Logits by TransformerLens hooks at every layer and position: no engine in it."""
    return model.run_with_hooks(inputs, compile_hooks(specs, inputs.tokens, model.cfg).pairs)
