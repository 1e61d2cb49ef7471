"""Interpreting Attention Heads for Image-to-Text Information Flow in Large Vision-Language Models (head attribution).

Kim, Kang, Park, Kim and Hwang, 2025, arXiv 2509.17588.

The paper asks which attention heads bring the picture into the answer. Ablating one head at a time misses heads that
back each other up, so it ablates random subsets of heads, fits a linear model of the answer's logit on which heads were
kept, and takes its coefficients as the importance of each head. Here a head is ablated by removing what it brings from
image to text, and the heads ranked first are removed together, by three rankings: the regression, one head at a time,
and attention to the picture.

Left out: baseline keys and values in place of the picture's (here weights are set to 0 after the softmax, the closest
equivalent), how well a few heads alone answer, heads by category of object, and the flow by token. ``gl.heads_table``
has a regression on everything that a head writes.
"""

import pandas as pd
import torch
from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:llava", n=24)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
examples = gl.data.load(args.data).examples("class", limit=args.n)
heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


def logits(subsets):
    """The object's logit without each subset of heads, [subset, example]."""
    runs = []
    for subset in subsets:
        gone = {layer: [head for at, head in subset if at == layer] for layer, _ in subset}
        runs.append(
            [gl.knockout("query", "image", layers=[at], heads=some, how="zero") for at, some in gone.items()]
        )
    table = gl.sweep(model, examples, {"subset": runs}, gl.metrics.logit(lambda example: example.label))
    return table.pivot(index="subset", columns="example", values="value")


kept = torch.rand(4 * len(heads), len(heads), generator=torch.Generator().manual_seed(0)) > 0.2
values = logits([[heads[i] for i in (~row).nonzero()[:, 0]] for row in kept])
fit = gl.measures.subset_regression(kept, torch.tensor(values.to_numpy()))
alone = logits([[], *([head] for head in heads)]).mean(axis=1).to_numpy()
attention = gl.heads_table(model, examples, "attention", n=args.n, progress=False).image.to_numpy()
worth = {"regression": fit.worth.mean(0), "one at a time": alone[0] - alone[1:], "attention": attention}
worth = pd.DataFrame(worth).assign(head=heads).set_index("head").sort_values("regression", ascending=False)
print(
    worth.head(8).round(3).to_string(), f"\n(layer, head); R² of the regression, held out: {fit.held_out:.2f}"
)

tables = []
for ranking in worth:
    order = list(worth[ranking].sort_values(ascending=False).index)
    table = logits([order[:count] for count in range(9)]).melt(ignore_index=False)
    tables.append(table.reset_index(names="heads").assign(ranking=ranking))
table = pd.concat(tables)
save(curves(table, "ranking", "logit of the object", x="heads", xlabel="heads removed"), args)
left = table[table.heads == 4].groupby("ranking", sort=False).value.mean().round(2)
print(
    f"Reading: the object's logit is {alone[0]:.2f}; without the first four heads of a ranking {left.to_dict()}."
)
