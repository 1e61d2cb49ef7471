"""
The logit lens on image tokens
==============================

What each image token says, layer by layer: the residual stream through the final norm and the
unembedding. Hover over a patch to see its most likely tokens in every layer. A model this small was
never trained to say anything at image tokens, and most of them say words without a meaning; a few
say the class.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
lens = gl.logit_lens(model, inputs, at="image", targets=scene.label)
view = gl.views.lens(lens)
view

# %%
# How many image tokens say the class (its rank is 0) in each layer; the first row is the first layer
# in which any does.
said = lens.sel(kind="target").table.query("rank == 0")
said.groupby("layer").size().to_frame("image tokens")

# %%
# A still picture of some layers. ``view.figure().savefig("lens.png")`` writes all of them to a file.
lens.sel(target="top 0", layer=[2, 4, 6]).show()
