"""
Hide only the object
====================

A selector from a mask of pixels: first the tokens that show the object are cut, then all other
image tokens. If the answer is read at the object, only the first cut changes it.
"""

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
written = {"nothing": model.generate(inputs, max_new_tokens=2)}
for keys in (f"image.mask({scene.label})", f"image - image.mask({scene.label})"):
    cut = gl.knockout("text - gate", keys, masks=scene.masks)
    written[keys] = model.generate(inputs, cut, max_new_tokens=2)
pd.DataFrame(written.items(), columns=["cut", "answer"])
