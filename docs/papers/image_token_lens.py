"""Towards Interpreting Visual Information Processing in Vision-Language Models: what image tokens say.

Neo, Ong, Torr, Geva, Krueger and Barez, ICLR 2025, arXiv 2410.07149.

The paper reads image tokens by the logit lens, layer by layer: in late layers many of them say the object that they
show. Here the lens is read at every image token of pictures whose object's mask is known, and the share of tokens that
say the object is counted on the object and elsewhere.

Left out: the words of other objects and of parts, which the paper reads by hand, and its segmentation map. A token says
the object if the object's word, as the model itself names it, is among the five most likely. The paper's ablations are
in ``visual_processing.py``.
"""

import pandas as pd
from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:open", n=32)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
examples = gl.data.load(args.data).examples("class", limit=args.n)
named = gl.sweep(model, examples, {}, gl.metrics.top1(lambda example: example.label)).value

tables = []
for example in [example for example, right in zip(examples, named, strict=True) if right]:
    prompt = model.prepare(example.image, example.prompt)
    word = int(model(prompt)[0, -1].argmax())
    table = gl.logit_lens(model, prompt, at="image", targets=word, top=0).table
    on = prompt.tokens.mask(f"image.mask({example.label})", masks=example.masks)[0]
    table["tokens"] = ["on the object" if on[position] else "elsewhere" for position in table.position]
    tables.append(table.assign(example=example.id, value=table["rank"] < 5))

table = pd.concat(tables).groupby(["tokens", "layer", "example"], as_index=False).value.mean()
means = table.groupby(["tokens", "layer"]).value.mean().unstack()
print(means.round(2).to_string(), f"\nshare of image tokens that say the object, {len(tables)} pictures")
save(
    curves(table, "tokens", "share of image tokens that say the object", xlabel="stream entering layer"), args
)
best = means.loc["on the object"].idxmax()
print(
    f"Reading: most tokens on the object say it in layer {best}, {means.loc['on the object', best]:.0%} of them; "
    f"elsewhere it is {means.loc['elsewhere', best]:.0%}."
)
