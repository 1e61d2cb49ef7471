"""vlmprobe: ``causal.knockout(joint=True)`` for ``mask``; ``zero`` by its kernel AttentionReweight at weight 0.

It has no adapter for Chameleon and asks for an explicit one, which this script gives: its own taps for scores
and probabilities, put where transformers calls its attention function, as its adapters for other decoders do.
Its reweighting runs layers one by one; to cut several at once the kernel is handed to the adapter's ``run``.
"""

import torch
from common import report
from torch import nn
from transformers import AttentionInterface, ChameleonForConditionalGeneration


def tapped(module, query, key, value, attention_mask, scaling, **kwargs):
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, : key.shape[-2]]
    scores = module.tap_scores(scores)
    pattern = module.tap_pattern(nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype))
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


def prepare(work):
    from transformers import AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from vlmprobe import ModelSpec, ProbeInputs, Prober, TokenLayout
    from vlmprobe.adapters.torch import HookPoint, TorchModelAdapter
    from vlmprobe.attention import AttentionReweight

    AttentionInterface.register("tapped", tapped)
    AttentionMaskInterface.register("tapped", eager_mask)
    model = ChameleonForConditionalGeneration.from_pretrained(work.model, attn_implementation="tapped").eval()
    sites = {}
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.tap_scores, layer.self_attn.tap_pattern = nn.Identity(), nn.Identity()
        place = f"model.layers.{i}"
        after = f"model.layers.{i + 1}" if i + 1 < work.n_layers else "model.norm"
        sites[f"residual.{i}"] = HookPoint(after, kind="input", selector=0)
        sites[f"scores.{i}"] = HookPoint(f"{place}.self_attn.tap_scores")
        sites[f"pattern.{i}"] = HookPoint(f"{place}.self_attn.tap_pattern")
    layers = range(work.n_layers)
    spec = ModelSpec(
        {i: f"residual.{i}" for i in layers},
        attentions={i: f"pattern.{i}" for i in layers},
        attention_scores={i: f"scores.{i}" for i in layers},
        editable_attention=set(layers),
        forward_defaults={"use_cache": False, "return_dict": True},
    )
    probe = Prober(model, adapter=TorchModelAdapter(model, sites, spec=spec))
    valid = work.mask.bool()
    inputs = ProbeInputs({"input_ids": work.ids, "attention_mask": work.mask}, TokenLayout(valid))
    rows, columns = torch.zeros_like(valid), torch.zeros_like(valid)
    rows[:, work.queries], columns[:, work.keys] = True, True
    kernel = AttentionReweight(renormalize=False)
    weights = torch.where(columns[:, None, None, :], 0.0, 1.0)

    def zero(pattern):
        return kernel.run(pattern, weights, query_mask=rows, key_mask=valid).tensors["attention"]

    def run(start, how):
        chosen = list(range(start, work.n_layers))
        if how == "mask":
            method = probe.causal.knockout(layers=chosen, queries=work.queries, keys=work.keys, joint=True)
            return method.forward(inputs).logits[0, work.queries]
        values = {**spec.forward_defaults, **inputs.kwargs}
        edits = {f"pattern.{i}": zero for i in chosen}
        return probe.adapter.run(values, interventions=edits).logits[0, work.queries]

    return run


report("vlmprobe", ("mask", "zero"), prepare)
