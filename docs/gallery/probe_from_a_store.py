"""
A probe on stored activations
=============================

Activations of many pictures are collected once, on disk; probes are trained on them with
scikit-learn. How early does the gate hold the class?
"""

import tempfile

import pandas as pd
from sklearn.linear_model import LogisticRegression

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes", split="train").examples("class", limit=200)
layers = range(model.cfg.n_layers)
store = gl.collect(
    model, scenes, sites="resid_post", layers=layers, at="gate", out=f"{tempfile.mkdtemp()}/gate"
)

# %%
scores = {}
for layer in layers:
    x, y = store.read(layer=layer).float().numpy(), store.index.label
    scores[layer] = LogisticRegression(max_iter=1000).fit(x[:140], y[:140]).score(x[140:], y[140:])
series = pd.Series(scores)
series.plot(
    xticks=series.index,
    marker="o",
    figsize=(5.5, 3.3),
    ylim=(0, 1),
    xlabel="layer",
    ylabel="accuracy of the probe, held out",
)
