"""Same Task, Different Circuits: Disentangling Modality-Specific Mechanisms in VLMs.

Nikankin, Arad, Gandelsman and Belinkov, 2025, arXiv 2506.09047.

The paper finds the circuits of one task posed about a picture and about a text. What they do at the data's positions
differs, and image tokens resemble their text only in late layers, too late for later positions to use. So it patches
the image tokens of a late layer back into an early one and continues the forward pass: part of the gap closes. Here is
that last experiment, back-patching over every pair of layers, by ``gl.patch(source_layer=...)``. The best pair is
chosen on one half of the questions and evaluated on the other.

Left out: the circuits and their overlap (``gl.circuit`` finds circuits), the text form of the tasks, which the
organisms were not trained on, and windows of several layers. Accuracy is that of the answer's first token among all
tokens, not among the possible answers.
"""

import pandas as pd
from _common import heat, options, save
from tqdm import tqdm

import gatelens as gl

args = options(__doc__, model="organism:llava", n=48)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
examples = gl.data.load(args.data).examples("vqa", limit=args.n)
pairs = [(source, target) for source in range(model.cfg.n_layers) for target in range(source)]
right = gl.metrics.top1(lambda example: example.answers[0])

tables = []
for number, example in enumerate(tqdm(examples, unit="question")):
    prompt = model.prepare(example.image, example.prompt)
    _, cache = model.run_with_cache(prompt, names_filter=lambda name: name.endswith("hook_resid_post"))
    grid = {"patch": {"none": None}}
    for source, target in pairs:
        back = gl.patch(cache, at="image", site="resid_post", layers=[target], source_layer=source)
        grid["patch"][f"{source} → {target}"] = back
    each = gl.sweep(model, [example], grid, right, progress=False)
    tables.append(each.assign(half=number % 2))

accuracy = pd.concat(tables).pivot_table(index="patch", columns="half", values="value", sort=False)
gain = accuracy.mean(axis=1).drop("none") - accuracy.mean(axis=1)["none"]
layers = gain.index.str.split(" → ", expand=True).set_names(["from layer", "into layer"])
cells = gain.set_axis(layers).unstack()
print(
    f"{cells.round(2).to_string(na_rep='')}\ngain in accuracy; without a patch {accuracy.mean(axis=1)['none']:.2f}"
)
save(heat(cells, "gain in accuracy", "image tokens patched back", signed=True), args)
best = accuracy[0].drop("none").idxmax()
before, after = accuracy[1][["none", best]]
print(
    f"Reading: {best} is best on one half of the questions; on the other half (n = {len(examples) // 2}) it takes the "
    f"accuracy from {before:.2f} to {after:.2f}."
)
