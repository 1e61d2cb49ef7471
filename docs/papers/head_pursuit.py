"""Head Pursuit: Probing Attention Specialization in Multimodal Transformers.

Basile, Maiorca, Doimo, Locatello and Cazzaniga, NeurIPS 2025, arXiv 2510.21518.

The paper asks which attention heads write about one concept. The logit lens of a head is one step of matching pursuit
on one example; the paper takes several steps on many examples at once (simultaneous orthogonal matching pursuit), with
the unembedding rows of the concept's words as dictionary, and ranks heads by the share of the variance of their output
that these words explain. Flipping the sign of a few top heads removes the concept from what the model writes. Here
the concept is the classes of a data set; the controls are random heads, and questions with other answers.

Left out: captions, toxicity and text-only tasks, enhancing a concept, and dictionaries of the whole vocabulary. The
share is of the squared norm at the last position of the prompt; words of several tokens are left out.
"""

import pandas as pd
import torch
from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:llava", n=48)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
data = gl.data.load(args.data)
tasks = {task: data.examples(task, limit=args.n) for task in ("class", "vqa")}
tasks["vqa"] = [example for example in tasks["vqa"] if not set(example.answers) & set(data.classes)]
words = [model.to_tokens(word, prepend_bos=False)[0] for word in data.classes]
words = torch.cat([tokens for tokens in words if len(tokens) == 1])
atoms = torch.nn.functional.normalize(model.W_U[:, words].T.float(), dim=1)  # [word, d_model]


def explained(outputs, steps=8):
    """The share of the squared norm of Float[example, d_model] that this number of atoms explains."""
    rest, chosen = outputs, []
    for _ in range(steps):
        chosen.append(int((rest @ atoms.T).norm(dim=0).argmax()))
        basis = torch.linalg.qr(atoms[chosen].T).Q
        rest = outputs - outputs @ basis @ basis.T
    return float(1 - rest.square().sum() / outputs.square().sum())


shares, names = {}, [f"blocks.{layer}.attn.hook_z" for layer in range(model.cfg.n_layers)]
prompts = model.prepare([e.image for e in tasks["class"]], [e.prompt for e in tasks["class"]])
_, cache = model.run_with_cache(prompts, names_filter=names)
for layer, name in enumerate(names):
    outputs = torch.einsum("nhd,hdm->hnm", cache[name][:, -1].float(), model.W_O[layer].float())
    shares |= {(layer, head): explained(each) for head, each in enumerate(outputs)}
share = pd.Series(shares).sort_values(ascending=False)
print(share.head(5).round(2).to_string(), "\nshare of a head's output that class names explain (layer, head)")

right = gl.metrics.top1(lambda example: example.answers[0])
tables = []
for which, order in {"of the concept": share, "random": share.sample(frac=1, random_state=0)}.items():
    turned = [gl.edit(lambda z, where: -z, "last", "z", [layer], [head]) for layer, head in order.index[:5]]
    grid = {"count": [turned[:count] for count in range(6)]}
    for task, some in tasks.items():
        tables.append(gl.sweep(model, some, grid, right).assign(heads=which, task=task))

table = pd.concat(tables)
means = table.groupby(["task", "heads", "count"], sort=False).value.mean().unstack()
print(means.round(2).to_string(), "\naccuracy by the number of heads negated")
save(curves(table, "heads", "accuracy", x="count", columns="task", xlabel="heads negated"), args)
cost = [f"{lost:.2f} on {task} (heads {heads})" for (task, heads), lost in (means[0] - means[3]).items()]
print("Reading: negating three heads costs in accuracy", ", ".join(cost), end=".\n")
