"""easyroutine: one ``Intervention`` of type ``grid`` for every layer and head, as its HookedModel takes them.

It loads models by a fixed list of names. The weights lie in a folder of such a name below the working
directory, so that transformers reads them from there. ``zero`` is its ablation of the pattern; for ``mask`` its
``grid_pre_softmax`` writes -inf into the scores.
"""

import os

import torch
from common import report


def tokenizer(work):
    """Its HookedModel turns ids into words to find the picture, so the folder needs a processor."""
    from tokenizers import Tokenizer, models
    from transformers import ChameleonImageProcessor, ChameleonProcessor, LlamaTokenizerFast

    words = {word: i for i, word in enumerate(work.words)}
    raw = Tokenizer(models.WordLevel(words, unk_token=work.words[0]))
    fast = LlamaTokenizerFast(tokenizer_object=raw, unk_token=work.words[0], pad_token=work.words[0])
    fast.add_tokens(["<image>", "<racm3:break>", "<eoss>"], special_tokens=True)
    ChameleonProcessor(ChameleonImageProcessor(), fast).save_pretrained(work.model)


def prepare(work):
    tokenizer(work)
    os.chdir(work.folder / "model")
    from easyroutine.interpretability import ExtractionConfig, HookedModel, Intervention

    model = HookedModel.from_pretrained("facebook/chameleon-7b", device_map="cpu", torch_dtype=torch.float32)
    n = work.ids.shape[1]
    away = torch.full((n, n), float("-inf"))

    def intervention(layer, head, how):
        zero = how == "zero"
        return Intervention(
            type="grid" if zero else "grid_pre_softmax",
            activation=f"pattern_L{layer}H{head}",
            token_positions=(work.queries, work.keys),
            patching_values="ablation" if zero else away,
        )

    def run(start, how):
        cuts = [intervention(n, h, how) for n in range(start, work.n_layers) for h in range(work.n_heads)]
        inputs = {"input_ids": work.ids, "attention_mask": work.mask}
        cache = model.forward(
            inputs,
            target_token_positions=["all"],
            extraction_config=ExtractionConfig(),
            interventions=cuts,
        )
        return cache["logits"][0, work.queries]

    return run


report("easyroutine", ("mask", "zero"), prepare)
