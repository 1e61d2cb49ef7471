"""
Direct logit attribution by head
================================

How much each head adds to the logit of the correct answer relative to a wrong one. The attribution is exact:
all parts together sum to the logit difference.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scene, other = gl.data.load("emoji-scenes").examples("class", limit=2)
inputs = model.prepare(scene.image, scene.prompt)

# %%
parts = gl.attribute(model, inputs, (scene.label, other.label), by="head")
print(parts.table.nlargest(5, "value"))
parts.show()
