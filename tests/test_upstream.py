"""Facts about TransformerLens and transformers that gatelens works around; docs/transformer-lens-notes.md names them.

A test here that fails after an upgrade is good news: something can be simplified.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import ChameleonForConditionalGeneration, DynamicCache

import gatelens as gl
from gatelens.model import HookedVLM
from gatelens.shipped_organisms import organism_folder
from tiny_models import make_chameleon, make_llava, make_llava_processor, make_picture

sys.path.append(str(Path(__file__).parent / "families"))


def plain_bridge(hf: Any) -> Any:
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


def prompt() -> dict[str, Tensor]:
    model = HookedVLM.from_module(make_llava(), make_llava_processor())
    return model.prepare([make_picture(), make_picture(seed=1)], ["this <image> is a", "<image> it"]).tensors


def seen(bridge: Any, hf: Any, tensors: dict[str, Tensor], names: list[str], edit: Any = None) -> Any:
    """Values at hook points of a bridge of TransformerLens as it comes; ``edit``: (name, function)."""
    found: dict[str, Tensor] = {}
    handles = []
    if edit is not None:
        name, function = edit
        handles.append(bridge.hook_dict[name].register_forward_hook(lambda m, a, out: function(out)))
    for name in names:

        def keep(m: Any, a: Any, out: Tensor, name: str = name) -> None:
            found[name] = out.clone()

        handles.append(bridge.hook_dict[name].register_forward_hook(keep))
    with torch.no_grad():
        logits = hf(**tensors).logits
    for handle in handles:
        handle.remove()
    return found, logits


def test_resid_mid_is_what_the_second_norm_reads() -> None:
    hf = make_llava()
    bridge, tensors = plain_bridge(hf), prompt()
    names = [f"blocks.1.hook_{n}" for n in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    edited, _ = seen(bridge, hf, tensors, names, ("blocks.1.hook_resid_mid", torch.zeros_like))
    pre, attn, mlp, post = (edited[name] for name in names)
    # were it the stream, nothing but the MLP's output would be left
    torch.testing.assert_close(post, pre + attn + mlp, atol=1e-5, rtol=1e-4)


def test_embed_is_not_what_the_decoder_reads() -> None:
    hf = make_llava()
    tensors = prompt()
    found, _ = seen(plain_bridge(hf), hf, tensors, ["embed.hook_out", "blocks.0.hook_resid_pre"])
    embed, pre = found.values()
    image = tensors["input_ids"] == hf.config.image_token_id
    assert (
        torch.equal(embed[~image], pre[~image]) and not torch.isclose(embed[image], pre[image]).all(-1).any()
    )


def test_padding_rows_attend_to_the_future() -> None:
    hf = make_llava()
    tensors = prompt()
    name = "blocks.0.attn.hook_pattern"
    pattern = seen(plain_bridge(hf), hf, tensors, [name])[0][name]
    assert not tensors["attention_mask"][1, 0]
    torch.testing.assert_close(pattern[1, :, 0], torch.full_like(pattern[1, :, 0], 1 / pattern.shape[-1]))


def test_chameleons_logits_are_overwritten_after_their_hook() -> None:
    hf = make_chameleon()
    bridge = plain_bridge(hf)
    held: list[Tensor] = []
    values: list[Tensor] = []

    def keep(m: Any, a: Any, out: Tensor) -> None:
        held.append(out)
        values.append(out.clone())

    bridge.hook_dict["unembed.hook_out"].register_forward_hook(keep)
    ids = torch.tensor([[1, 30, 31, 32]])
    with torch.no_grad():
        logits = hf(input_ids=ids).logits
    lowest = torch.finfo(logits.dtype).min
    assert (values[0] > lowest).all() and (held[0] == lowest).any()
    assert logits.data_ptr() == held[0].data_ptr()


def test_some_hooks_wait_for_a_switch() -> None:
    hf = make_llava()
    bridge, tensors = plain_bridge(hf), prompt()
    name = "blocks.1.attn.hook_result"
    assert not seen(bridge, hf, tensors, [name])[0]
    bridge.set_use_attn_result(True)
    assert seen(bridge, hf, tensors, [name])[0][name].ndim == 4


def case(name: str) -> Any:
    module = importlib.import_module(f"cases.{name}")
    return next(iter(getattr(module, "CASES", [getattr(module, "CASE", None)])))


def test_pixtral_towers_are_taken_for_clip() -> None:
    with pytest.raises(AttributeError, match="'PixtralVisionModel' object has no attribute 'embeddings'"):
        plain_bridge(case("pixtral").model())


def test_janus_norms_its_features_twice() -> None:
    """The second time for an output the decoder does not read: hooks on that norm fire twice."""
    row = case("janus")
    model = HookedVLM.from_module(row.model(), row.processor())
    inputs = model.prepare(row.picture(), row.texts[0])
    times: list[int] = []
    model.run_with_hooks(
        inputs, [("vision_encoder.post_layernorm.hook_out", lambda value, hook: times.append(1))]
    )
    assert len(times) == 2


def test_transformers_own_cache_forgets_what_left_the_window() -> None:
    """Window layers keep window - 1 keys, so that a pattern's columns are not positions any more."""
    row = case("gemma3")
    hf = row.model()
    model = HookedVLM.from_module(row.model(), row.processor())
    tensors = model.prepare([row.picture(0), row.picture(1)], row.texts[2]).tensors
    n, window = tensors["input_ids"].shape[1], hf.config.text_config.sliding_window
    assert n > window
    with torch.no_grad():
        past = hf(**tensors, use_cache=True).past_key_values
        given = hf(**tensors, use_cache=True, past_key_values=DynamicCache()).past_key_values
    assert [layer.keys.shape[2] for layer in past.layers] == [window - 1, window - 1, n]
    assert [layer.keys.shape[2] for layer in given.layers] == [n, n, n]


@pytest.mark.organism
def test_chameleon_codes_pictures_otherwise_in_bfloat16() -> None:
    """The VQ encoder runs in the model's dtype, and near ties between codes turn; the text model itself is close."""
    examples = gl.data.load("emoji-scenes").examples("class", limit=6)
    whole, half = (gl.HookedVLM.from_pretrained("organism:gated", dtype=d) for d in ("float32", "bfloat16"))
    plain = ChameleonForConditionalGeneration.from_pretrained(organism_folder("gated"), dtype=torch.bfloat16)
    here, there = (
        m.prepare([e.image for e in examples], [e.prompt for e in examples]) for m in (whole, half)
    )
    with torch.no_grad():
        codes, others = (
            model.hf.model.get_image_tokens(inputs.tensors["pixel_values"]).long()
            for model, inputs in ((whole, here), (half, there))
        )
        assert torch.equal(others, plain.model.get_image_tokens(there.tensors["pixel_values"]).long())
        assert 0.02 < (codes != others).float().mean() < 0.3
        ids = here.tensors["input_ids"].clone()
        ids[ids == whole.layout.placeholder_id] = codes.flatten()
        clean = whole(here)[:, -1]
        shown = clean > -1e4  # logits of image tokens are masked out
        gap = [(clean - half(one)[:, -1].float())[shown].abs().max() for one in (there, half.inputs(ids))]
    assert gap[1] < 0.25 < 0.5 < gap[0]


def test_a_blocks_aliases_are_fixed_when_it_is_made() -> None:
    """Taking norms out of a BlockBridge later leaves hook_attn_out pointing at a norm that is gone."""
    from transformer_lens.model_bridge.generalized_components import BlockBridge, RMSNormalizationBridge

    def norms(*names: str) -> dict[str, Any]:
        return {name: RMSNormalizationBridge(name=name, config=None) for name in names}

    four = BlockBridge(name="layers", submodules=norms("ln1", "ln1_post", "ln2", "ln2_post"))
    two = BlockBridge(name="layers", submodules=norms("ln1", "ln2"))
    del four.submodules["ln1_post"]
    assert four.hook_aliases["hook_attn_out"] == "ln1_post.hook_out"
    assert two.hook_aliases["hook_attn_out"] != "ln1_post.hook_out"


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_qwen_bridges_want_torchvision_and_discard_score_edits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    module = importlib.import_module("cases.qwen_vl")
    case = next(case for case in module.CASES if case.name == name)
    hf = case.model()
    model = HookedVLM.from_module(case.model(), case.processor())
    tensors = model.prepare(case.picture(), case.texts[0]).tensors
    with pytest.raises(ImportError, match="torchvision"):
        plain_bridge(hf)
    monkeypatch.setattr(SUPPORTED_ARCHITECTURES[type(hf).__name__], "required_libraries", [])
    bridge = plain_bridge(hf)
    clean, _ = model.forward_step(tensors)
    point = "blocks.1.attn.hook_pattern"
    with pytest.warns(UserWarning, match="edit is discarded"), torch.no_grad():
        bridge.hook_dict[point].add_hook(lambda t, hook: t * 0.5)
        left = hf(**tensors).logits
    assert (left - clean).abs().max() < 1e-5  # nothing happened
    ours, _ = model.forward_step(tensors, [(point, lambda t, hook: t * 0.5)])
    assert (ours - clean).abs().max() > 1e-2


def test_attribution_leaves_out_the_final_norms_weight_and_the_pictures() -> None:
    """TransformerLens' own cache: ``embed`` is not what the decoder reads, and no norm's weight is applied."""
    hf = make_llava()
    bridge, tensors = plain_bridge(hf), prompt()
    names = [
        name for name in bridge.hook_dict if name.startswith(("blocks.", "ln_final", "embed", "hook_embed"))
    ]
    names = [name for name in names if bridge._gated_hook_reason(bridge.hook_dict[name].name or name) is None]
    values, logits = seen(bridge, hf, tensors, names)
    cache = ActivationCache(
        {name: value for name, value in values.items() if isinstance(value, Tensor)}, bridge
    )
    missing = (cache.decompose_resid().sum(0) - cache["resid_post", 2]).abs().amax(-1)[0]
    image = tensors["input_ids"][0] == hf.config.image_token_id
    assert missing[image].min() > 0.1 and missing[~image].max() < 1e-4
    attrs = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 20, 21, pos_slice=-1).sum(0)
    assert (attrs - (logits[:, -1, 20] - logits[:, -1, 21])).abs().max() > 0.1


def wrapped_llava() -> tuple[Any, dict[str, Tensor]]:
    """A bridge as TransformerLens builds it, and a prompt with a picture."""
    hf = make_llava()
    return plain_bridge(hf).eval(), prompt()


@torch.no_grad()
def test_ids_alone_run_without_the_picture() -> None:
    bridge, tensors = wrapped_llava()
    ids = tensors["input_ids"]
    assert (ids == bridge.original_model.config.image_token_id).any()
    alone = bridge(ids, attention_mask=tensors["attention_mask"])
    assert alone.isfinite().all() and not torch.equal(alone, bridge(ids, **without(tensors, "input_ids")))


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name not in names}


@torch.no_grad()
def test_a_hook_goes_by_its_points_own_name() -> None:
    bridge, tensors = wrapped_llava()
    seen: list[str] = []
    hook = ("blocks.1.hook_resid_post", lambda tensor, hook: seen.append(hook.name))
    bridge.run_with_hooks(tensors["input_ids"], fwd_hooks=[hook], **without(tensors, "input_ids"))
    assert seen == ["blocks.1.hook_out"]


@torch.no_grad()
def test_a_pass_from_a_layer_computes_the_layers_before_it() -> None:
    bridge, _ = wrapped_llava()
    ran: list[int] = []
    for number, block in enumerate(bridge.blocks):
        block.original_component.register_forward_hook(lambda m, a, out, n=number: ran.append(n))
    bridge(torch.randn(1, 5, 32), start_at_layer=2)
    assert ran == [0, 1, 2]


def test_no_gradient_reaches_a_hook_while_parameters_are_frozen() -> None:
    bridge, tensors = wrapped_llava()
    bridge.requires_grad_(False)
    with bridge.hooks(bwd_hooks=[("blocks.1.hook_resid_post", lambda gradient, hook: None)]):
        logits = bridge(tensors["input_ids"], **without(tensors, "input_ids"))
    assert not logits.requires_grad


def test_attribution_gives_the_embedding_nothing_where_the_picture_is() -> None:
    bridge, _ = wrapped_llava()
    pictures = [
        HookedVLM.from_module(make_llava(), make_llava_processor()).prepare(
            make_picture(seed=s), "<image> is"
        )
        for s in (1, 2)
    ]
    embedded = [
        bridge.run_with_cache(one.ids, **without(one.tensors, "input_ids"))[1]["hook_embed"]
        for one in pictures
    ]
    assert torch.equal(*embedded)  # so their difference, which attribution multiplies, is nothing
