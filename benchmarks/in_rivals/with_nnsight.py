"""nnsight: a trace that edits the operations inside eager attention, by ``.source``.

``mask`` edits what goes into the softmax, ``zero`` what comes out of the dropout after it.
"""

import torch
from common import report


def prepare(work):
    from nnsight import NNsight
    from transformers import ChameleonForConditionalGeneration

    hf = ChameleonForConditionalGeneration.from_pretrained(work.model, attn_implementation="eager").eval()
    model = NNsight(hf)
    cut = work.entries()
    ids, mask, queries, n_layers = work.ids, work.mask, work.queries, work.n_layers

    def masked(start):
        with torch.no_grad(), model.trace(input_ids=ids, attention_mask=mask, use_cache=False):
            for i in range(start, n_layers):
                inside = model.model.layers[i].self_attn.source.attention_interface_1.source
                scores = inside.nn_functional_softmax_0.input
                inside.nn_functional_softmax_0.input = scores.masked_fill(cut, float("-inf"))
            logits = model.output.logits[0, queries].save()
        return logits

    def zeroed(start):
        with torch.no_grad(), model.trace(input_ids=ids, attention_mask=mask, use_cache=False):
            for i in range(start, n_layers):
                inside = model.model.layers[i].self_attn.source.attention_interface_1.source
                inside.nn_functional_dropout_0.output = inside.nn_functional_dropout_0.output.masked_fill(
                    cut, 0.0
                )
            logits = model.output.logits[0, queries].save()
        return logits

    return lambda start, how: masked(start) if how == "mask" else zeroed(start)


report("nnsight", ("mask", "zero"), prepare)
