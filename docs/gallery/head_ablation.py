"""
Mean-ablate each head
=====================

Each head's output at the last token is replaced by its mean over other pictures (`reference=`). How much
less likely does the right answer become? One sweep over layers and heads.
"""

import matplotlib.pyplot as plt

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)
others = gl.data.load("emoji-scenes", split="train").examples("class", limit=48)
_, means = model.run_with_cache(model.prepare([e.image for e in others], [e.prompt for e in others]))

# %%
heads = {"layer": range(model.cfg.n_layers), "head": range(model.cfg.n_heads)}
table = gl.sweep(
    model, scenes, heads, gl.metrics.log_prob(lambda scene: scene.label),
    make=lambda layer, head: gl.ablate("last", "z", layer, "mean", head, reference=means),
)  # fmt: skip
clean = gl.sweep(model, scenes, {}, gl.metrics.log_prob(lambda scene: scene.label)).value.mean()
change = table.groupby(["layer", "head"]).value.mean().unstack() - clean
figure, axes = plt.subplots(figsize=(4.2, 3.6))
axes.set(xlabel="head", ylabel="layer", xticks=change.columns, yticks=change.index)
figure.colorbar(axes.imshow(change, cmap="Oranges_r", aspect="auto"), label="change of log p(answer), nats")
figure
