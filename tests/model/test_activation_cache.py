"""A cache of some positions holds those rows, and interventions find them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.errors import InputError, InterventionError
from intervention_helpers import batch, real, stepwise  # noqa: F401  (fixtures)


def test_kept_rows_are_rows_of_the_whole_cache(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, whole = tiny.run_with_cache(batch)
    _, lean = tiny.run_with_cache(batch, positions="gate | last", dtype="bfloat16")
    mask = batch.tokens.mask("gate | last")
    assert set(lean.keys()) == set(whole.keys())
    for name in (
        "blocks.1.hook_resid_pre",
        "blocks.2.attn.hook_q",
        "blocks.0.attn.hook_k",
        "ln_final.hook_out",
    ):
        assert lean[name].dtype == torch.bfloat16 and lean[name].shape[:2] == (3, 2)
        want = whole[name][mask].view(lean[name].shape)
        torch.testing.assert_close(lean[name].float(), want, atol=0.02, rtol=0.02)
    pattern = lean["pattern", 1]
    assert pattern.shape == (3, 4, 2, batch.tokens.n_pos)
    for b in range(3):
        want = whole["pattern", 1][b][:, mask[b]]
        torch.testing.assert_close(pattern[b].float(), want, atol=0.02, rtol=0.02)


def test_a_patch_from_kept_rows_is_the_patch(tiny: Any, batch: Any) -> None:  # noqa: F811
    other = batch.select([1, 2, 0])
    _, whole = tiny.run_with_cache(other, "blocks.1.hook_resid_pre")
    _, lean = tiny.run_with_cache(other, "blocks.1.hook_resid_pre", positions="gate | last")
    for at in ("gate", "last", "gate | last"):
        want = tiny.run(batch, gl.patch(whole, at, layers=1))
        assert torch.equal(tiny.run(batch, gl.patch(lean, at, layers=1)), want)
        mean = [
            tiny.run(batch, gl.ablate("last", layers=1, with_="mean", over=at, reference=c))
            for c in (whole, lean)
        ]
        torch.testing.assert_close(*mean)
    with pytest.raises(InterventionError, match=r"keeps only positions='gate \| last', position \d+ is not"):
        tiny.run(batch, gl.patch(lean, "last_image", layers=1))


def test_examples_must_keep_alike(tiny: Any, batch: Any) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"selects \[\d+, \d+, \d+\] positions in the examples"):
        tiny.run_with_cache(batch, positions="query")
    with pytest.raises(InputError, match=r"positions='generated' selects \[0, 0, 0\]"):
        tiny.run_with_cache(batch, positions="generated")


def test_parts_of_the_stream_have_upstreams_names_and_order(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, cache = tiny.run_with_cache(batch)
    _, labels = cache.decompose_resid(2, mlp_input=True, return_labels=True)
    assert labels == ["embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out", "2_attn_out"]
    stack, labels = cache.stack_head_results(2, return_labels=True, incl_remainder=True)
    assert labels[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"] and labels[-1] == "remainder"
    assert stack.shape == (9, 3, batch.tokens.n_pos, 32)
    stack, labels = cache.stack_neuron_results(2, neuron_slice=5, pos_slice=-1, return_labels=True)
    assert labels == ["L0N5", "L1N5"] and stack.shape == (2, 3, 32)
    assert torch.equal(cache.get_neuron_results(1, 5, -1), stack[1])
    onto = torch.randn(32)
    projected = cache.get_neuron_results(1, (4, 6), -1, onto)
    torch.testing.assert_close(projected[:, 1], stack[1] @ onto, atol=1e-4, rtol=0)
    _, labels = cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True)
    assert labels == ["L0H0", "L0H1", "L0H2", "L0H3", "0_mlp_out", "embed", "bias"]
    cache.compute_head_results()
    assert torch.equal(cache["result", 1][:, :, 2], cache.stack_head_results()[6])


def test_slices_kept_rows_and_single_prompts_give_the_same_parts(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, cache = tiny.run_with_cache(batch)
    whole = cache.decompose_resid(apply_ln=True)
    torch.testing.assert_close(cache.decompose_resid(apply_ln=True, pos_slice=-1), whole[:, :, -1])
    _, lean = tiny.run_with_cache(batch, positions="gate | last")
    torch.testing.assert_close(lean.decompose_resid(apply_ln=True)[:, :, -1], whole[:, :, -1])
    second = cache.apply_slice_to_batch_dim([1])
    assert second.tokens.strings == batch.tokens.strings[1:2]
    torch.testing.assert_close(second.decompose_resid(apply_ln=True), whole[:, 1:2], atol=1e-5, rtol=0)
    single = second.remove_batch_dim().stack_head_results(apply_ln=True, incl_remainder=True)
    torch.testing.assert_close(single.sum(0), whole[:, 1].sum(0), atol=1e-4, rtol=0)


def test_projected_parts_are_the_products_of_the_parts(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, cache = tiny.run_with_cache(batch)
    onto = torch.randn(32, 2)
    for apply_ln in (False, True):
        options: dict[str, Any] = {"apply_ln": apply_ln, "pos_slice": -1}
        neurons = cache.stack_neuron_results(2, incl_remainder=True, **options)
        got = cache.stack_neuron_results(2, incl_remainder=True, project_output_onto=onto, **options)
        torch.testing.assert_close(got, neurons @ onto, atol=1e-4, rtol=0)
        whole = cache.get_full_resid_decomposition(2, **options)
        got = cache.get_full_resid_decomposition(2, project_output_onto=onto[:, 0], **options)
        torch.testing.assert_close(got, whole @ onto[:, 0], atol=1e-4, rtol=0)


def test_attributed_tokens_one_for_all_or_one_each(tiny: Any, batch: Any) -> None:  # noqa: F811
    logits, cache = tiny.run_with_cache(batch)
    stack = cache.decompose_resid()
    ids = torch.tensor([25, 26, 27])
    each = cache.logit_attrs(stack, ids, ids.flip(0)).sum(0)
    for i in range(3):
        row = logits[i, :, 25 + i] - logits[i, :, 27 - i]
        torch.testing.assert_close(each[i], row, atol=1e-4, rtol=0)
    by_position = ids.repeat(batch.tokens.n_pos)[: batch.tokens.n_pos]
    want = logits.gather(-1, by_position.expand(3, -1)[..., None])[..., 0]
    torch.testing.assert_close(cache.logit_attrs(stack, by_position).sum(0), want, atol=1e-4, rtol=0)
    word = tiny.tokenizer.convert_ids_to_tokens(24)
    last = cache.logit_attrs(stack[:, :, -1], word, pos_slice=-1).sum(0)
    torch.testing.assert_close(last, logits[:, -1, 24], atol=1e-4, rtol=0)


def test_what_a_cache_cannot_tell_is_an_error(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, small = tiny.run_with_cache(batch, "blocks.0.hook_resid_pre")
    with pytest.raises(InputError, match=r"the cache has no 'blocks\.\d\.hook_resid_mid', which this needs"):
        small.decompose_resid()
    _, cache = tiny.run_with_cache(batch)
    with pytest.raises(InputError, match="layer=4: the model has 3 layers"):
        cache.decompose_resid(4)
    with pytest.raises(InputError, match="give the pos_slice and batch_slice the stack was made with"):
        cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 20)
    with pytest.raises(InputError, match=r"tokens of shape \(2,\) do not fit rows"):
        cache.logit_attrs(cache.decompose_resid(), torch.tensor([20, 21]))
    edit = [("blocks.1.hook_attn_out", lambda value, hook: value * 2)]
    _, edited = tiny.run_with_cache(batch, fwd_hooks=edit)
    with pytest.raises(InputError, match="the parts of the attention of layer 1 are not what it adds"):
        edited.stack_head_results()
    stream = edited["resid_post", 2]
    torch.testing.assert_close(edited.decompose_resid().sum(0), stream, atol=1e-4, rtol=0)


def test_a_cache_prints_in_one_line(tiny: Any, batch: Any) -> None:  # noqa: F811
    _, cache = tiny.run_with_cache(batch, "blocks.0.hook_resid_pre", positions="last")
    assert repr(cache) == "ActivationCache(1 activations of 3 prompt(s), positions='last', 0.0 MiB)"


def test_the_idioms_of_transformer_lens_demos_are_right(tiny: Any, batch: Any) -> None:  # noqa: F811
    """Residual stack, final norm, direction of the logit difference; heads stacked; a trajectory by layer."""
    logits, cache = tiny.run_with_cache(batch)
    right, wrong = torch.tensor([26, 27, 28]), torch.tensor([30, 31, 32])
    want = logits[:, -1].gather(1, right[:, None])[:, 0] - logits[:, -1].gather(1, wrong[:, None])[:, 0]
    direction = tiny.tokens_to_residual_directions(right) - tiny.tokens_to_residual_directions(wrong)
    for stack in (
        cache["resid_post", -1][None, :, -1],
        cache.decompose_resid(layer=-1, pos_slice=-1),
        cache.stack_head_results(layer=-1, pos_slice=-1, incl_remainder=True),
    ):
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        got = torch.einsum("cbd,bd->b", scaled, direction)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    accumulated = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=-1)
    last = cache.logit_attrs(accumulated, right, wrong, pos_slice=-1)[-1]
    torch.testing.assert_close(last, want, atol=1e-4, rtol=0)


def test_what_every_cache_can(tiny: Any, batch: Any) -> None:  # noqa: F811
    logits, cache = tiny.run_with_cache(batch)
    lens, seen = cache.logit_lens(positions=None), batch.tensors["attention_mask"].bool()
    allowed = logits > -1e30  # Chameleon's image tokens are at the lowest number
    torch.testing.assert_close(lens.values[-1][allowed], logits[allowed], atol=1e-5, rtol=0)
    streams = [cache["resid_pre", layer] for layer in range(3)] + [cache["resid_post", 2]]
    assert torch.equal(cache.accumulated_resid(), torch.stack(streams))
    assert torch.equal(cache.stack_activation("pattern")[1], cache["pattern", 1])
    assert list(cache.keys()) == [name for name, _ in cache.items()] and len(list(cache.values())) == len(
        cache
    )
    assert (
        cache.to("cpu")["resid_pre", 0].device.type == "cpu" and cache.tokens is batch.tokens and seen.any()
    )
    cache.toggle_autodiff(True)
    assert torch.is_grad_enabled() and cache.ssm_layers() == []
    with pytest.raises(TypeError, match="SSM mixer"):
        cache.compute_ssm_state(0)
    with pytest.raises(TypeError, match="SSM mixer"):
        cache.compute_ssm_effective_attention(0)
    with pytest.raises(AssertionError, match="Cannot remove batch dimension"):
        cache.remove_batch_dim()
