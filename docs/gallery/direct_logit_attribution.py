"""
Direct logit attribution by head
================================

How much each head adds to the logit of the correct answer relative to a wrong one. The attribution is exact:
all parts together sum to the logit difference. `show()` draws the mean of a batch; by position it draws one
prompt: `parts.sel(example=0).show()`.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scene, other = gl.data.load("emoji-scenes").examples("class", limit=2)
inputs = model.prepare(scene.image, scene.prompt)

# %%
parts = gl.attribute(model, inputs, (scene.label, other.label), by="head")
parts.show()

# %%
# By position, the table has a row for each head and source: columns `part`, `kind`, `layer`, `head`,
# `position`, `role`, `token` and `value` among them. Sums say from which kind of token a head reads its part.
sources = gl.attribute(model, inputs, (scene.label, other.label), by="position")
by_role = sources.table.groupby(["layer", "head", "role"]).value.sum().unstack()
by_role.loc[by_role.abs().max(axis=1).nlargest(6).index].round(2).reset_index()
