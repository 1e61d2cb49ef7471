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
texts = ["<image>this is a", "<image>what color is the shape behind the fox? answer:"]
short = model.prepare(here.image, texts[0])
long = model.prepare(there.image, texts[1])

# %%
# One batch may hold both: shorter prompts are padded on the left, and logits equal those of single runs
# to rounding.
both = model.run(model.prepare([here.image, there.image], texts))
for logits, alone in zip(both, (short, long), strict=True):
    difference = (logits[-1] - model.run(alone)[0, -1]).abs().max()
    print(f"{alone.tokens.n_pos} tokens: logits differ by {difference:.1e}")

# %%
_, cache = model.run_with_cache(long)
rows = []
for layer in range(model.cfg.n_layers):
    logits = model.run(short, gl.patch(cache, at="gate", layers=[layer]))
    rows.append((layer, model.to_single_str_token(int(logits[0, -1].argmax()))))
pd.DataFrame(rows, columns=["gate patched in layer", f"answer ({here.label} patched from {there.label})"])
