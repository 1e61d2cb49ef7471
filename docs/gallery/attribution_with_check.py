"""
Attribution patching, with its check
====================================

The same map by gradients, for a fraction of the passes. Some cells are patched exactly, and the map
reports how far it is from them.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:llava")
pairs = gl.pairs("emoji-scenes", differ="class", n=2)

# %%
guess = gl.attribution_map(model, pairs, method="ig", steps=4, over=("layer", "pos"), check=16)
print(guess)
guess.show()
