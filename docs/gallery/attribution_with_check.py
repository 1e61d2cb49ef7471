"""
Attribution patching, with its check
====================================

The same map by gradients, for a fraction of the passes. Some cells are patched exactly, and the map
reports how far it is from them.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:llava")
pairs = gl.pairs("emoji-scenes", differ="class", n=1)

# %%
guess = gl.attribution_map(model, pairs, method="ig", steps=4, over=("layer", "pos"), check=16)
print(guess)
guess.show()

# %%
# The rank correlation says whether the cells come in the right order; the error, how far the numbers
# are off. Gradients may find which cells matter and still give a large effect too small or too large:
# then take the places from this map and their effects from ``gl.patch_map``.
#
# By layer and head, where the exact map patches the output ``z`` of each head:
by_head = gl.attribution_map(model, pairs, method="ig", steps=4, over=("layer", "head"), check=8)
print(by_head)
by_head.show()
