"""
Path patching
=============

Which heads at the gate affect the values that two later heads read there. Only the path from sender
to receiver changes; everything else keeps its clean activation.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
pairs = gl.pairs("emoji-scenes", differ="class", n=4)

# %%
paths = gl.path_patch(model, pairs, senders="heads@gate", receivers=["L1H0.v@gate", "L1H2.v@gate"])
paths.means.nlargest(6, "mean")
