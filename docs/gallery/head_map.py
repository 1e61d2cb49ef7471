"""
Where each head looks
=====================

The attention of all heads and layers over the picture, as seen from any token of the prompt. Point
at a word or click a patch to make it the query.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
_, cache = model.run_with_cache(inputs)
gl.views.heads(cache, inputs, layer=3)
