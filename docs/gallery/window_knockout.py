"""
A window of layers, cut in a batch
==================================

Text no longer reads the image in three layers in a row; the window slides over all layers. All
windows run in one pass over each prompt.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)
n_layers = model.cfg.n_layers

# %%
table = gl.sweep(
    model,
    scenes,
    {"start": range(n_layers - 2)},
    gl.metrics.answer(),
    make=lambda start: gl.knockout("text - gate", "image", layers=range(start, start + 3)),
)
by_start = table.groupby("start").value.mean()
by_start.plot(
    xticks=by_start.index, marker="o", figsize=(5.5, 3.3), ylabel="accuracy", xlabel="first layer cut"
)
