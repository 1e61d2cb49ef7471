"""
A catalogue of heads
====================

One row per head: how much it attends to the image, and what the answer loses when it is knocked out.
The table is the place to start when a paper says that few heads do the work.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")

# %%
heads = gl.heads_table(model, "emoji-scenes", n=8, parts=("attention", "knockout"))
heads
