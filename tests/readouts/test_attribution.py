"""Each part against plain transformers, and refusals where the sum is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens as gl
from gatelens.errors import InputError, ModelError
from intervention_helpers import batch  # noqa: F401  (fixture)
from tiny_models import make_llava, make_llava_processor

RIGHT, WRONG = 30, 33


class Plain:
    """What plain transformers computes at the last position, and how its logits read it."""

    def __init__(self, hf: Any, inputs: Any) -> None:
        self.hf, self.seen = hf, {}
        self.layers = (
            hf.model.language_model.layers if hasattr(hf.model, "language_model") else hf.model.layers
        )
        handles = []
        for i, layer in enumerate(self.layers):
            for name, module in (
                ("attn", layer.self_attn.o_proj),
                ("v", layer.self_attn.v_proj),
                ("mlp", layer.mlp.down_proj),
            ):
                handles.append(module.register_forward_hook(self.keep(f"{name}{i}")))
        with torch.no_grad():
            out = hf(**inputs.tensors, output_attentions=True, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        self.attentions, self.hidden, self.logits = out.attentions, out.hidden_states, out.logits
        norm = getattr(hf.model, "language_model", hf.model).norm
        last = self.hidden[0] + sum(
            self.seen[f"{kind}{i}"][1] for kind in ("attn", "mlp") for i in range(len(self.layers))
        )
        scale = (last[:, -1].square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        unembedding = hf.lm_head.weight
        self.direction = (unembedding[RIGHT] - unembedding[WRONG]) * norm.weight / scale  # [batch, d_model]

    def keep(self, name: str) -> Any:
        def hook(module: Any, args: Any, out: Tensor) -> None:
            self.seen[name] = (args[0], out)

        return hook


@pytest.fixture
def plain(tiny: Any, oracle: Any, batch: Any) -> Plain:  # noqa: F811
    return Plain(oracle, batch)


def test_components_are_those_of_plain_transformers(tiny: Any, batch: Any, plain: Plain) -> None:  # noqa: F811
    parts = gl.attribute(tiny, batch, (RIGHT, WRONG))
    want = {"embed": plain.hidden[0][:, -1]}
    for i in range(3):
        want |= {f"L{i} attn": plain.seen[f"attn{i}"][1][:, -1], f"L{i} mlp": plain.seen[f"mlp{i}"][1][:, -1]}
    assert parts.axes["part"]["part"].tolist() == list(want)
    for i, added in enumerate(want.values()):
        torch.testing.assert_close(parts.tensor[:, i], (added * plain.direction).sum(-1), atol=1e-4, rtol=0)
    difference = plain.logits[:, -1, RIGHT] - plain.logits[:, -1, WRONG]
    torch.testing.assert_close(parts.logit_difference, difference, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.total, difference, atol=1e-4, rtol=0)


def test_smaller_parts_are_those_of_plain_transformers(tiny: Any, batch: Any, plain: Plain) -> None:  # noqa: F811
    heads = gl.attribute(tiny, batch, (RIGHT, WRONG), by="head")
    sources = gl.attribute(tiny, batch, (RIGHT, WRONG), by="position")
    neurons = gl.attribute(tiny, batch, (RIGHT, WRONG), by="neuron")
    layer, head, neuron = 1, 2, 7
    attention, mlp = plain.layers[layer].self_attn, plain.layers[layer].mlp
    columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
    back = plain.direction @ attention.o_proj.weight[:, columns]
    z = plain.seen[f"attn{layer}"][0][:, -1, columns]
    got = heads.sel(layer=layer, head=head).tensor[:, 0]
    torch.testing.assert_close(got, (z * back).sum(-1), atol=1e-4, rtol=0)
    kv = head // (4 // 2)  # two key-value heads serve four
    value = plain.seen[f"v{layer}"][1].unflatten(-1, (2, -1))[:, :, kv]
    weight = plain.attentions[layer][:, head, -1]
    want = weight * torch.einsum("bpd,bd->bp", value, back)
    got = sources.sel(layer=layer, head=head).tensor
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    post = plain.seen[f"mlp{layer}"][0][:, -1, neuron]
    want = post * (plain.direction @ mlp.down_proj.weight[:, neuron])
    torch.testing.assert_close(neurons.sel(layer=layer, neuron=neuron).tensor[:, 0], want, atol=1e-4, rtol=0)


def test_a_target_is_a_word_an_id_one_each_or_a_pair(tiny: Any, batch: Any) -> None:  # noqa: F811
    logits = tiny(batch)[:, -1]
    words = tiny.tokenizer.convert_ids_to_tokens([RIGHT, WRONG])
    torch.testing.assert_close(gl.attribute(tiny, batch, RIGHT).total, logits[:, RIGHT], atol=1e-4, rtol=0)
    pair = gl.attribute(tiny, batch, tuple(words))
    torch.testing.assert_close(pair.total, logits[:, RIGHT] - logits[:, WRONG], atol=1e-4, rtol=0)
    each = torch.tensor([30, 31, 32])
    got = gl.attribute(tiny, batch, (each, [33, 34, 35])).total
    want = logits.gather(1, each[:, None])[:, 0] - logits.gather(1, each[:, None] + 3)[:, 0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def test_several_positions_of_padded_prompts(tiny: Any, batch: Any) -> None:  # noqa: F811
    parts = gl.attribute(tiny, batch, RIGHT, by="layer", at="query | gate")
    rows = parts.axes["row"]
    assert rows["example"].nunique() == 3 and len(rows) == int(batch.tokens.mask("query | gate").sum())
    want = tiny(batch)[rows["example"].tolist(), rows["at"].tolist(), RIGHT]
    torch.testing.assert_close(parts.total, want, atol=1e-4, rtol=0)
    # where prompts differ in layout, roles of sources are of each prompt
    sources = gl.attribute(tiny, batch, RIGHT, by="position")
    for example, part in sources.table[sources.table["kind"] == "source"].groupby("example"):
        roles = part.drop_duplicates("position").sort_values("position")["role"].tolist()
        assert roles == [gl.Role(r).name.lower() for r in batch.tokens.roles[example].tolist()]
    if "role" not in sources.axes["part"]:
        with pytest.raises(gl.errors.DataError, match=r"sel\(role=...\)"):
            sources.sel(role="image")
        one = gl.attribute(tiny, batch.select([1]), RIGHT, by="position")
        assert set(one.sel(role="image").table["role"]) == {"image"}


@pytest.mark.parametrize(
    "target, message",
    [
        (10**6, "target 1000000 is outside the vocabulary"),
        ("this animal", "is not one token"),
        ([1, 2], "one for each of the 3 examples"),
        (1.5, "give a token"),
    ],
)
def test_bad_targets(tiny: Any, batch: Any, target: Any, message: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=message):
        gl.attribute(tiny, batch, target)


def test_other_refusals(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    with pytest.raises(InputError, match="by='heads': write one of component, layer, head"):
        gl.attribute(tiny, batch, RIGHT, by="heads")
    with pytest.raises(gl.errors.GatelensError, match="selects no position"):
        gl.attribute(tiny, batch, RIGHT, at="generated")
    monkeypatch.setattr(tiny.bridge.adapter, "apply_output_logits_transform", lambda logits: 1.01 * logits)
    with pytest.raises(ModelError, match=r"the parts by head sum to .* and the model says"):
        gl.attribute(tiny, batch, RIGHT, by="head")


@pytest.mark.parametrize("by", ["component", "position"])
def test_standing_hooks_hold(tiny: Any, batch: Any, by: Any) -> None:  # noqa: F811
    """Under a knockout it is the knocked-out run that is taken apart, and what is cut off brings nothing."""
    cut = gl.knockout("text", "image", layers=[1])
    with tiny.hooks(cut.hooks(batch.tokens, tiny.cfg)):
        parts = gl.attribute(tiny, batch, (RIGHT, WRONG), by=by)
    logits = tiny.run(batch, cut)[:, -1]
    torch.testing.assert_close(parts.total, logits[:, RIGHT] - logits[:, WRONG], atol=1e-4, rtol=0)
    assert (logits - tiny(batch)[:, -1])[:, 24:].abs().max() > 1e-3
    if by == "position":
        table = parts.table[(parts.table["role"] == "image") & (parts.table["kind"] == "source")]
        moved = table.groupby("layer")["value"].apply(lambda values: values.abs().max())
        assert moved[1] == 0 and moved[0] > 0 and moved[2] > 0


def test_a_folded_norm_changes_nothing(picture: Any) -> None:
    model = gl.HookedVLM.from_module(make_llava(), make_llava_processor())
    inputs = model.prepare(picture, "this <image> animal is a")
    before, lens = gl.attribute(model, inputs, RIGHT, by="head"), gl.logit_lens(model, inputs, at="image")
    model.enable_compatibility_mode()
    torch.testing.assert_close(
        gl.attribute(model, inputs, RIGHT, by="head").tensor, before.tensor, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        gl.logit_lens(model, inputs, at="image").tensor, lens.tensor, atol=1e-4, rtol=0
    )


def test_tokens_a_model_never_writes_are_refused(tiny_chameleon: Any, picture: Any) -> None:
    inputs = tiny_chameleon.prepare(picture, "this <image> animal is a")
    with pytest.raises(ModelError, match="these tokens, differently"):
        gl.attribute(tiny_chameleon, inputs, 20)  # an image token: its logit is overwritten


def test_half_precision_adds_up_to_rounding(tiny_llava: Any, picture: Any) -> None:
    half = gl.HookedVLM.from_module(make_llava().bfloat16(), tiny_llava.processor)
    inputs = half.prepare(picture, "this <image> animal is a")
    for by in ("component", "head", "neuron", "position"):
        parts = gl.attribute(half, inputs, (RIGHT, WRONG), by=by)
        assert parts.error < 0.3 and parts.tensor.dtype == torch.float32


def test_a_result_prints_short(tiny: Any, batch: Any) -> None:  # noqa: F811
    parts = gl.attribute(tiny, batch, (RIGHT, WRONG))
    assert repr(parts).startswith("Attribution(row 3 × part 7: logit difference ") and "error" in repr(parts)
    assert "<table" in parts._repr_html_() and len(parts._repr_html_()) < 6000
