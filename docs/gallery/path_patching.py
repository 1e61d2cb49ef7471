"""
Path patching
=============

Which heads at the gate affect the values that the heads of the next layer read there. Only the path from
sender to receiver changes; everything else keeps its clean activation. Effects through single receivers
need not add up to the effect through all four. The total effect of a head, in the same units, is
`patched - clean` of a patching map with `direction="noising"`.
"""

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
pairs = gl.pairs("emoji-scenes", differ="class", n=4)

# %%
each = [f"L1H{head}.v@gate" for head in range(4)]
groups = {name: [name] for name in each} | {"all four": each}
effects = {}
for name, receivers in groups.items():
    paths = gl.path_patch(model, pairs, senders="heads@gate", receivers=receivers)
    effects[f"through {name}"] = paths.means.set_index("head")["mean"]
total = gl.patch_map(model, pairs, over="head", layers=[0], at="gate", direction="noising").table
effects["total"] = (total["patched"] - total["clean"]).groupby(total["head"]).mean()

# %%
bars = pd.DataFrame(effects).add_prefix("L0H", axis="index").plot.barh(figsize=(6, 4))
bars.set(ylabel="sender, at the gate", xlabel="effect on the logit difference")
bars.invert_yaxis()
bars
