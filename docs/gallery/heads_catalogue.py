"""
A catalogue of heads
====================

One row per head: how much it attends to the image, and what the answer loses when it is knocked out.
Start from this table to test whether a few heads do most of the work.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")

# %%
heads = gl.heads_table(model, "emoji-scenes", n=8, parts=("attention", "knockout"))
heads
