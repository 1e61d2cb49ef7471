"""Too Late to Recall: Explaining the Two-Hop Problem in Multimodal Knowledge Retrieval.

Venhoff, Khakzar, Joseph, Torr and Nanda, 2025, arXiv 2512.03276.

To recall a fact about what a picture shows, a model must first form a representation of the entity and then look the
fact up. In a language model the lookup is done by early MLPs; the paper finds by probing and by patching that in many
VLMs the entity is formed only after these layers. Here the two parts of that timing that an organism has are measured:
from which layer on a linear probe reads the entity (the class) off the image tokens and off the last position, and what
the outputs of attention and MLPs at either place bring back, layer by layer, of the answer (``gl.patch_map``).

Left out: the language model's own recall, which organisms lack, and with it the benchmark of 14 models, patching
from the text-only model into the VLM, and chains of thought. The fact asked for is the entity's name itself. Probes are
cross-validated; that of the object's tokens reads their mean.
"""

import pandas as pd
import torch
from _common import heat, options, save

import gatelens as gl

args = options(__doc__, model="organism:open", n=160)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
data, layers = gl.data.load(args.data), range(model.cfg.n_layers)
examples = data.examples("class", limit=args.n)
label = pd.Series([example.label for example in examples])
examples = [example for example, n in zip(examples, label.map(label.value_counts()), strict=True) if n >= 5]
classes = torch.tensor(pd.factorize(pd.Series([example.label for example in examples]))[0])

names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
features = {"object's tokens": [], "last token": []}
for example in examples:
    prompt = model.prepare(example.image, example.prompt)
    _, cache = model.run_with_cache(prompt, names_filter=names)
    on = prompt.tokens.mask(f"image.mask({example.label})", masks=example.masks)
    features["object's tokens"].append(torch.stack([cache[name][on].mean(0) for name in names]))
    features["last token"].append(torch.stack([cache[name][0, -1] for name in names]))

rows = {}
for place, each in features.items():
    by_layer = torch.stack(each, dim=1).float()
    rows[f"probe of {place}"] = [gl.measures.linear_probe(x, classes, ridge=0.1).accuracy for x in by_layer]
places = {"object's tokens": "image.mask(object)", "last token": "last"}
pairs = gl.pairs(data, differ="class", n=max(4, args.n // 20))
sites = ["attn_out", "mlp_out"]
effects = gl.patch_map(model, pairs, over=("site", "layer", "role"), site=sites, at=places)
for (site, role), part in effects.table.groupby(["site", "role"], sort=False):
    rows[f"{site} of {role}, restored"] = part.groupby("layer").value.mean().tolist()
table = pd.DataFrame(rows, index=pd.Index(layers, name="layer")).T.rename_axis("what")
print(
    table.round(2).to_string(), f"\nprobes of {len(examples)} pictures; share restored of {len(pairs)} pairs"
)
save(heat(table, "accuracy, or share restored"), args)
probe, restored = table.loc["probe of object's tokens"], table.loc["attn_out of last token, restored"]
formed = (probe >= 0.9 * probe.max()).idxmax()
print(
    f"Reading: image tokens hold the entity from layer {formed}; the last token reads it in {restored.idxmax()}."
)
