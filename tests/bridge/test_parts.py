"""The general route: a decoder of transformers, a function for pictures, a layout."""

from __future__ import annotations

import copy
import doctest
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases.vila_u import CASE, VOCABULARY, Tower, layout, model, processor, wrap
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

import gatelens as gl
from gatelens.errors import InputError, ModelError
from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from tiny_models import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LAYOUT = Layout(placeholder_id=7, plan=FixedGrid(2, 2, Geometry((16, 16))), eoi_ids=frozenset({8}))
IDS = torch.tensor([[1, 7, 7, 7, 7, 8, 20, 21], [1, 22, 7, 7, 7, 7, 8, 23]])
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def decoder(kind: Any = LlamaForCausalLM, config: Any = LlamaConfig) -> Any:
    torch.manual_seed(0)
    return randomize(kind._from_config(config(**SIZES), attn_implementation="eager"), 0)


class Convolution(nn.Module):
    """2x2 features of a picture of 16x16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 32, kernel_size=8, stride=8)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(pixels).flatten(2).transpose(1, 2)


def tower() -> Convolution:
    torch.manual_seed(1)
    return Convolution()


def parts(embed_images: Callable[..., Any], decoder_: Any = None, layout_: Layout = LAYOUT) -> HookedVLM:
    return HookedVLM.from_parts(decoder() if decoder_ is None else decoder_, embed_images, layout_)


@pytest.mark.parametrize(
    "kind, config",
    [
        (LlamaForCausalLM, LlamaConfig),
        (MistralForCausalLM, MistralConfig),
        (Qwen2ForCausalLM, Qwen2Config),
        (type("ResearchLlama", (LlamaForCausalLM,), {}), LlamaConfig),
    ],
    ids=lambda x: x.__name__,
)
@pytest.mark.parametrize("flat", [False, True])
def test_any_decoder_with_any_function(kind: Any, config: Any, flat: bool) -> None:
    plain, encode = decoder(kind, config), tower()
    embeds = plain.get_input_embeddings()(IDS).clone()
    embeds[IDS == 7] = encode(PIXELS).flatten(0, 1)
    want = plain(inputs_embeds=embeds).logits
    hooked = parts((lambda x: encode(x).flatten(0, 1)) if flat else encode, copy.deepcopy(plain))
    inputs = hooked.inputs(IDS, pixel_values=PIXELS)
    assert (hooked(inputs) - want).abs().max() <= 1e-5
    assert [inputs.tokens.positions("gate", example=e) for e in (0, 1)] == [[5], [6]]
    cut = gl.knockout(queries="text - gate", keys="image", layers=[0, 1])
    assert (hooked.run(inputs, cut) - want).abs().max() > 1e-3


def test_parameters_are_frozen_and_pictures_still_have_gradients() -> None:
    encode = tower()
    hooked = parts(encode)
    assert not any(p.requires_grad for p in hooked.hf.parameters()) and not encode.inner.weight.requires_grad
    pixels = PIXELS.clone().requires_grad_(True)
    hooked(hooked.inputs(IDS, pixel_values=pixels))[:, -1].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def test_evidence_goes_to_the_encoder_and_not_to_the_decoder() -> None:
    seen: list[Tensor] = []

    def encode(pixels: Tensor, image_sizes: Tensor) -> Tensor:
        seen.append(image_sizes)
        return tower()(pixels)

    layout_ = Layout(placeholder_id=7, plan=LAYOUT.plan, evidence=("image_sizes",))
    hooked = parts(encode, layout_=layout_)
    sizes = torch.tensor([[16, 16], [12, 16]])
    inputs = hooked.inputs(IDS, pixel_values=PIXELS, image_sizes=sizes)
    hooked(inputs)
    hooked(inputs.select([1]))
    assert torch.equal(seen[0], sizes) and torch.equal(seen[1], sizes[1:])


@pytest.mark.parametrize(
    "embed_images, message",
    [
        (lambda x: torch.zeros(2, 3, 32), r"gave \(2, 3, 32\) for 8 placeholders of width 32"),
        (lambda x: torch.zeros(2, 4, 31), r"gave \(2, 4, 31\) for 8 placeholders of width 32"),
        (lambda x: torch.zeros(256), r"gave \(256,\) for 8 placeholders of width 32"),
        (lambda x: [torch.zeros(4, 32)] * 2, "gave a list: return one tensor"),
    ],
)
def test_features_of_a_wrong_shape(embed_images: Callable[..., Any], message: str) -> None:
    hooked = parts(embed_images)
    with pytest.raises(InputError, match=message) as error:
        hooked(hooked.inputs(IDS, pixel_values=PIXELS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("placeholder", [-200, 50])
def test_a_placeholder_outside_the_vocabulary(placeholder: int) -> None:
    with pytest.raises(ModelError, match=rf"placeholder id {placeholder} is outside .* vocabulary of 50"):
        parts(tower(), layout_=Layout(placeholder_id=placeholder, plan=LAYOUT.plan))


class Unheard(nn.Module):
    pass


@pytest.mark.parametrize("unknown", [Unheard(), "LlamaForCausalLM", LlamaModel(LlamaConfig(**SIZES))])
def test_an_unknown_decoder(unknown: Any) -> None:
    with pytest.raises(
        ModelError, match=f"no adapter for the decoder {type(unknown).__name__}: give a causal"
    ):
        parts(tower(), unknown)


def test_a_decoder_wrapped_already() -> None:
    held = decoder()
    parts(tower(), held)
    with pytest.raises(ModelError, match="wrapped already: wrap a fresh one"):
        parts(tower(), held)


def test_a_picture_too_few() -> None:
    hooked = parts(tower())
    with pytest.raises(InputError, match=r"placeholders for 2 picture\(s\), pixel_values hold 1"):
        hooked.inputs(IDS, pixel_values=PIXELS[:1])
    with pytest.raises(ModelError, match="no processor"):
        hooked.prepare(None, "it is")


def test_the_example_of_the_docstring_runs() -> None:
    found = doctest.DocTestFinder(recurse=False).find(HookedVLM.from_parts, "from_parts", globs={})
    runner = doctest.DocTestRunner(verbose=False)
    for example in found:
        runner.run(example)
    assert runner.tries > 0 and runner.failures == 0


def test_residual_codes_come_closer_one_after_the_other() -> None:
    """Four codes a position, each of them used, and their sum nearer to the feature with each."""
    plain = model()
    images = processor().image_processor([CASE.picture(i, seed=20) for i in (0, 1)], return_tensors="pt")
    with torch.no_grad():
        features = plain.tower.encoded(images["pixel_values"])
        codes = plain.tower.quantiser.codes(features)
        vectors = plain.tower.quantiser.codebook(codes)
        left = [(features - vectors[..., :d, :].sum(-2)).norm(dim=-1).mean() for d in range(5)]
    assert codes.shape == (2, 16, 4)
    assert all(len(codes[..., d].unique()) > 1 for d in range(4))
    assert all(after < before for before, after in itertools.pairwise(left))
    assert torch.equal(plain.tower.quantiser(features), vectors.sum(-2))


def test_codes_take_the_place_of_pictures() -> None:
    """A picture is its codes: what the decoder reads can be built from them alone."""
    plain = model()
    hooked = wrap(copy.deepcopy(plain), processor())
    inputs = hooked.prepare(CASE.picture(0), "this <image> is a")
    with torch.no_grad():
        codes = plain.tower.quantiser.codes(plain.tower.encoded(inputs.tensors["pixel_values"]))
        rows = plain.tower.projector(plain.tower.quantiser.codebook(codes).sum(-2))
    _, cache = hooked.run_with_cache(inputs, "blocks.0.hook_resid_pre")
    read = cache["blocks.0.hook_resid_pre"][inputs.tokens.mask("image")]
    torch.testing.assert_close(read, rows.flatten(0, 1))
    names = inputs.tokens.strings[0]
    assert [names[p] for p in inputs.tokens.positions("boi | eoi")] == ["<im_start>", "<im_end>"]


def test_full_size_vila_u_builds_without_weights() -> None:
    """The published sizes (arXiv 2409.04429: LLaMA-2-7B, SigLIP-large at 256 pixels, 16,384 codes of depth 4)."""
    vision = SiglipVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=256,
        patch_size=16,
    )
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(vocab_size=32000))
        encoder = Tower(vision, n_codes=16384, depth=4, d_model=4096)
        features = encoder(torch.empty(1, 3, 256, 256))
    hooked = HookedVLM.from_parts(llama, encoder, layout(pixels=256, side=16))
    assert hooked.cfg.n_layers == 32 and hooked.cfg.d_model == 4096
    assert features.shape == (1, hooked.layout.plan.n_tokens, 4096) == (1, 256, 4096)
    assert "blocks.31.attn.hook_pattern" in hooked.bridge.hook_dict
    ids = [1, VOCABULARY["<im_start>"], *[VOCABULARY["<image>"]] * 256, VOCABULARY["<im_end>"], 20]
    tokens = gl.families.token_map(hooked.layout, torch.tensor([ids]), None, [[(512, 256)]])
    assert tokens.positions("gate") == [258] and tokens.box[0, 257].tolist() == [480, 240, 512, 256]
