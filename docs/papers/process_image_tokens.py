"""Do Vision Language Models Need to Process Image Tokens?

Ghosh, Babu and Agarwal, CVPR 2026, arXiv 2604.09425.

The paper asks whether image tokens have to go through all layers. Their matrix entropy and the curvature of their path
soon settle, while those of text tokens keep changing; representations of one layer can then replace another's;
and when the processing of image tokens stops at some depth, one-word answers suffer less than captions. Here entropy is
computed from the residual stream, and from a layer on the image tokens are frozen (``gl.patch`` from the same
run) or removed (``gl.drop``), while questions are answered and captions written.

Left out: intrinsic dimension, curvature, chains of reasoning, and LoRA after truncation. We know the paper by its
abstract and summaries alone, so both ways to stop the processing are shown. The score is the share of the words written
without either that are kept; the entropy is divided by its maximum, the logarithm of the rank.
"""

import functools

import pandas as pd
import torch
from _common import curves, options, save
from tqdm import tqdm

import gatelens as gl

args = options(__doc__, model="organism:llava", n=8)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
data, n_layers = gl.data.load(args.data), model.cfg.n_layers
names = [f"blocks.{layer}.hook_resid_post" for layer in range(n_layers)]


def kept(text, example, before):
    return len(set(text.split()) & set(before.split())) / len(set(before.split()))


spread, scores = [], []
for example in tqdm(data.examples("vqa", limit=args.n) + data.examples("caption", limit=args.n)):
    prompt = model.prepare(example.image, example.prompt)
    _, cache = model.run_with_cache(prompt, names_filter=names)
    for layer, role in [(layer, role) for layer in range(n_layers) for role in ("image", "query")]:
        rows = cache[names[layer]][prompt.tokens.mask(role)].float()
        share = torch.nn.functional.normalize(torch.linalg.svdvals(rows).square(), p=1, dim=0)
        entropy = float(torch.special.entr(share).sum() / torch.tensor(len(share)).log())
        spread.append({"tokens": role, "layer": layer, "example": example.id, "value": entropy})
    score = gl.metrics.of_texts(functools.partial(kept, before=model.generate(prompt, return_type="str")))
    for layer in range(1, n_layers - 1):
        held = gl.patch(cache, "image", "resid_post", range(layer, n_layers - 1), source_layer=layer - 1)
        grid = {"image tokens": {"held": held, "removed": gl.drop("image", layer)}}
        table = gl.sweep(model, [example], grid, score, progress=False)
        scores.append(table.assign(task=example.task, layer=layer))

spread, scores = pd.DataFrame(spread), pd.concat(scores)
entropies = spread.groupby(["tokens", "layer"]).value.mean().unstack()
print(entropies.round(2).to_string(), "\nentropy leaving each layer")
means = scores.groupby(["task", "image tokens", "layer"]).value.mean().unstack()
print(means.round(2).to_string(), "\nshare of the words kept, image tokens held or removed from a layer on")
save(curves(scores, "image tokens", "words kept", columns="task", xlabel="from layer"), args)
save(curves(spread, "tokens", "entropy (share of its maximum)", xlabel="leaving layer"), args, "_entropy")
said = [f"{share:.0%} of {task} with them {how}" for (task, how), share in means.mean(axis=1).items()]
print("Reading: where image tokens are no longer processed, words kept:", ", ".join(said), end=".\n")
