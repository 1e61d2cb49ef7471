"""
Captions under a knockout
=========================

Captions of many pictures in one batch, with and without the gate cut, and how much of their CIDEr-D is left. A knockout
applies at every decoded token. ``how="zero"`` leaves the other weights of attention as they are: with ``"mask"`` they
would grow to fill the gap, and the text would get more of what it reads elsewhere.
"""

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes").examples("caption", limit=24)
inputs = model.prepare([s.image for s in scenes], [s.prompt for s in scenes])

# %%
cut = gl.knockout("text - gate", "gate", how="zero")
written = {
    "unmodified": model.generate(inputs, max_new_tokens=24),
    "gate cut": model.generate(inputs, cut, max_new_tokens=24),
}
pd.DataFrame(written).head(4)

# %%
# CIDEr-D weighs words by how few of the pictures have them, so it is computed over all of them together.
references = [s.answers for s in scenes]
scored = {name: gl.measures.cider_d(texts, references) for name, texts in written.items()}
table = pd.DataFrame(scored).melt(var_name="cut", value_name="cider_d")
gl.measures.summary(table, "cut", "cider_d", unit=None, bounds=None)
