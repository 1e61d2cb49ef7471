"""
Captions under a knockout
=========================

Captions of several pictures in one batch, with and without the gate cut. A knockout applies at every
decoded token.
"""

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes").examples("class", limit=4)
inputs = model.prepare([s.image for s in scenes], ["<image>describe the image."] * 4)

# %%
cut = gl.knockout("text - gate", "gate", how="zero")
pd.DataFrame(
    {
        "unmodified": model.generate(inputs, max_new_tokens=7),
        "gate cut": model.generate(inputs, cut, max_new_tokens=7),
    }
)
