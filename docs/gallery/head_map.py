"""
Where each head looks
=====================

The attention of all heads of a layer over the picture, as seen from any token of the prompt. Point
at a word or click a patch to make it the query. Then the heads whose last token looks most at the
image, and a picture of one.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
_, cache = model.run_with_cache(inputs)
gl.views.heads(cache, inputs, layer=3)

# %%
# Of all layers, the heads with the largest share of attention on the image, a mean over examples:
heads = gl.heads_table(model, "emoji-scenes", parts=["attention"], n=8)
most = heads.table.nlargest(3, "image")[["layer", "head", "image"]]
most

# %%
# The pattern of the first over the picture; the white line goes around the tokens with at least half
# of the largest weight. ``figure.savefig("head.png")`` writes it to a file.
layer, head = int(most.iloc[0].layer), int(most.iloc[0]["head"])
pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1]
figure = gl.views.overlay(pattern, inputs.tokens, scene.image, title=f"layer {layer}, head {head}")
figure
