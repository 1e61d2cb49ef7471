"""
Hide only the object
====================

A selector from masks of pixels: first the tokens that show the object are cut, then all other image
tokens. In a sweep over data `image.mask(object)` is each example's own mask, from `example.masks`; for one
prompt give it yourself: `gl.knockout("text", "image.mask(m)", masks={"m": array})`.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)

# %%
cuts = {
    "nothing": [],
    "object": gl.knockout("text - gate", "image.mask(object)"),
    "all but the object": gl.knockout("text - gate", "image - image.mask(object)"),
}
table = gl.sweep(model, scenes, {"cut": cuts}, {"accuracy": gl.metrics.answer()})
gl.measures.summary(table, ["cut"], "accuracy")
