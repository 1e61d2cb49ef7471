"""
From which layer on are image tokens unnecessary?
=================================================

From a given layer on, no later position sees the image tokens. Where the answer stays, the model
has already read what it needs.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)

# %%
table = gl.sweep(
    model,
    scenes,
    {"layer": range(1, model.cfg.n_layers)},
    gl.metrics.answer(),
    make=lambda layer: gl.drop("image - last_image", layer),
)
by_layer = table.groupby("layer").value.mean()
by_layer.plot(
    xticks=by_layer.index, marker="o", figsize=(5.5, 3.3), ylabel="accuracy", xlabel="dropped from layer"
)
