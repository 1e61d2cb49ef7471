"""When Sinks Help or Hurt: Unified Framework for Attention Sink in Large Vision-Language Models.

Choi, Kim, Kim, Hong and Park, 2026, arXiv 2604.03316.

The paper divides image tokens that draw much attention into those that come from the vision encoder (V-sinks) and those
that arise in the language model (L-sinks), and asks in which layers they matter: V-sinks carry the whole scene, but can
drown details. Here ``gl.heads_table`` says which positions draw attention and where their norm comes from; then the
attention of the text to V-sinks, or to the other image tokens, is scaled by 0 or 2 in one layer at a time.

Left out: the trained gates (LSG), which learn such factors, and the benchmarks. We know the paper by its abstract and
summaries alone; its definition of a V-sink may differ. Here V-sinks are the eighth of the image tokens with the largest
norm as they enter the language model, whether or not they draw attention, and the sum of a row's weights is kept.
"""

import pandas as pd
from _common import curves, options, save
from tqdm import tqdm

import gatelens as gl

args = options(__doc__, model="organism:llava", n=8)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
data, entering = gl.data.load(args.data), "blocks.0.hook_resid_pre"
sinks = gl.heads_table(model, data, "sinks", n=args.n, progress=False).sinks
print(sinks.value_counts(["role", "origin"]).to_string() if len(sinks) else "none")
print(f"positions that draw 0.3 of the attention of a head, by the origin of their norm; {args.n} pictures")


def scale(keys, factor):
    def scaled(weights, where):
        """Float[row, head, key] with some keys scaled and each row's sum kept."""
        new = weights.clone()
        new[:, :, keys] *= factor
        return new * weights.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp(min=1e-9)

    return scaled


def edited(scaled, layer):
    return gl.edit(scales[scaled], "query", site="pattern", layers=[layer])


probability = gl.metrics.prob(lambda example: example.answers[0])
tables = []
for example in tqdm(data.examples("class", limit=args.n) + data.examples("vqa", limit=args.n)):
    prompt = model.prepare(example.image, example.prompt)
    norms = model.run_with_cache(prompt, names_filter=entering)[1][entering][0].norm(dim=-1).cpu()
    image = prompt.tokens.mask("image")[0].nonzero()[:, 0]
    order = image[norms[image].argsort(descending=True)]
    groups = {"V-sinks": order[: len(order) // 8], "other image tokens": order[len(order) // 8 :]}
    scales = {f"{name} × {factor}": scale(keys, factor) for name, keys in groups.items() for factor in (0, 2)}
    grid = {"scaled": list(scales), "layer": range(model.cfg.n_layers)}
    clean = gl.sweep(model, [example], {}, probability, progress=False).value[0]
    table = gl.sweep(model, [example], grid, probability, progress=False, make=edited)
    tables.append(table.assign(task=example.task, value=table.value - clean))

table = pd.concat(tables)
means = table.groupby(["task", "scaled", "layer"], sort=False).value.mean().unstack()
print(means.round(2).to_string(), "\nchange of P(answer) with attention of the text scaled in one layer")
save(curves(table, "scaled", "change of P(answer)", columns="task"), args)
most = [f"{change:.2f} for {how} on {task}" for (task, how), change in means.abs().max(axis=1).items()]
print("Reading: P(answer) changes in some layer by", ", ".join(most), end=".\n")
