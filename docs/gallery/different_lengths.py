"""
Patching between prompts of different length
============================================

Two prompts of different length, paired by role: the gate of one is patched into the other. The
answer becomes the class of the other picture.
"""

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
here, there = gl.data.load("emoji-scenes").examples("class", limit=2)
short = model.prepare(here.image, "<image>this is a")
long = model.prepare(there.image, "<image>what color is the shape behind the fox? answer:")

# %%
_, cache = model.run_with_cache(long)
rows = []
for layer in range(model.cfg.n_layers):
    logits = model.run(short, gl.patch(cache, at="gate", layers=[layer]))
    rows.append((layer, model.to_single_str_token(int(logits[0, -1].argmax()))))
pd.DataFrame(rows, columns=["gate patched in layer", f"answer ({here.label} patched from {there.label})"])
