"""
Contrastive activation addition
===============================

A direction from two sets of pictures is added at the gate. The curve shows how many answers it
changes at each dose, next to a random direction of the same length.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
train = gl.data.load("emoji-scenes", split="train")
fox = gl.direction(model, train, at="gate", positive="fox", negative="pig", layers=[2], limit=120)

# %%
pigs = [e for e in gl.data.load("emoji-scenes").examples("class", limit=60) if e.label == "pig"]
curve = gl.dose_curve(model, fox, pigs, [0, 1, 2], gl.metrics.prob(model.to_single_token("fox")))
curve.show()
