"""
A patching map
==============

Pairs of pictures that differ in one fact: which layer and role carry the difference, by exact runs.
Each cell patches the clean activation into the corrupt run; 1 restores the answer.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
pairs = gl.pairs("emoji-scenes", differ="class", n=4)

# %%
cells = gl.patch_map(model, pairs, over=("layer", "role"))
print(cells.mean().table.nlargest(5, "value")[["layer", "role", "value", "low", "high"]])
cells.show()
