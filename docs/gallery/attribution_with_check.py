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
# By layer and head: the output ``z`` of each head is patched. The rank correlation says whether the
# cells come in the right order, the error how far their numbers are off. Here the order is right and
# the numbers are not: take from this map which heads matter, and how much from ``gl.patch_map``.
by_head = gl.attribution_map(model, pairs, method="ig", steps=4, over=("layer", "head"), check=8)
print(by_head)
by_head.show()
