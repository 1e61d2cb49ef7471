"""Large Vision-Language Models Get Lost in Attention.

Xi, Tian, Yang, Yi, Liang, Hao, Wang and Wang, ICML 2026, arXiv 2605.05668.

The paper asks what attention adds to the residual stream. It measures that attention mostly rearranges what is there
while MLPs add new directions, and replaces the learned attention weights by predefined ones, such as Gaussian noise:
across most benchmarks large models answer as well or better. Here the weights of the text's rows are replaced, in one
layer at a time or in all of them: by those of Gaussian scores, by a uniform pattern, or by nothing (a row of zeros).

Left out: the information-theoretic half (the paper's RID and MixIG). We know the paper by its abstract and summaries
alone; which layers and rows it replaces, and the scale of its noise (here 1, of scores before the softmax), may differ.
"""

import torch
from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:llava", n=48)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
layers = range(model.cfg.n_layers)


def gaussian(weights, where):
    """Float[row, head, key]: the softmax of standard normal scores, over what each row can read."""
    scores = torch.randn(weights.shape, generator=torch.Generator().manual_seed(where.layer)).to(weights)
    return scores.masked_fill(~where.readable[:, None], -torch.inf).softmax(dim=-1)


def replaced(pattern, layer):
    at = layers if layer == "all" else [layer]
    if pattern == "Gaussian":
        return gl.edit(gaussian, "query", site="pattern", layers=at)
    return gl.ablate("query", site="pattern", layers=at, with_="uniform" if pattern == "even" else "zero")


examples = gl.data.load(args.data).examples("vqa", limit=args.n)
right = gl.metrics.top1(lambda example: example.answers[0])
learned = gl.sweep(model, examples, {}, right).value.mean()
grid = {"pattern": ["Gaussian", "even", "nothing"], "layer": [*layers, "all"]}
table = gl.sweep(model, examples, grid, right, make=replaced)
means = table.groupby(["pattern", "layer"], sort=False).value.mean().unstack()
print(means.round(2).to_string(), f"\naccuracy with attention of the text replaced; learned {learned:.2f}")
save(curves(table.astype({"layer": str}), "pattern", "accuracy", f"learned attention: {learned:.2f}"), args)
noise = means.loc["Gaussian"].drop("all")
free = ", ".join(str(layer) for layer in noise.index[noise >= learned - 0.02]) or "none"
print(
    f"Reading: Gaussian attention in all layers leaves {means.loc['Gaussian', 'all']:.2f} of {learned:.2f}; alone it "
    f"costs at most 0.02 in these layers: {free}."
)
