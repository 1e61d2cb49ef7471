"""
Two knockouts that differ
=========================

A knockout before the softmax (mask) lets the row renormalise; one after it (zero) does not. The
same path cut in both ways can give two different answers.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)

# %%
table = gl.sweep(
    model,
    scenes,
    {"keys": ["image", "gate"], "how": ["mask", "zero"]},
    gl.metrics.answer(),
    make=lambda keys, how: gl.knockout("text - gate", keys, how=how),
)
means = table.groupby(["keys", "how"]).value.mean().unstack()
means.plot.barh(figsize=(5.5, 3.3), xlabel="accuracy")
