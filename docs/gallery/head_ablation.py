"""
Mean-ablate each head
=====================

Each head's output at the last token is replaced by its mean over the batch. How much does accuracy
drop? One sweep over layers and heads.
"""

import matplotlib.pyplot as plt

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)

# %%
table = gl.sweep(
    model,
    scenes,
    {"layer": range(model.cfg.n_layers), "head": range(model.cfg.n_heads)},
    gl.metrics.answer(),
    make=lambda layer, head: gl.ablate("last", site="z", layers=[layer], heads=[head], with_="mean"),
)
by_head = table.groupby(["layer", "head"]).value.mean().unstack()
figure, axes = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
axes.set(xlabel="head", ylabel="layer")
figure.colorbar(axes.imshow(by_head, cmap="Oranges_r"), label="accuracy")
figure
