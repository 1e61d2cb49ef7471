"""
Between two models
==================

Activations of one model are patched into another of the same shape, for the same pictures. For a
fine-tuned model and its base, this shows where the two differ. Scores of two models on the same examples are
compared in :doc:`Save, draw and report results </results>`.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
other = gl.HookedVLM.from_pretrained("organism:open")
pairs = gl.pairs("emoji-scenes", differ="class", n=2)

# %%
cells = gl.patch_map(model, pairs, over=("layer", "role"), source=other)
cells.show()
