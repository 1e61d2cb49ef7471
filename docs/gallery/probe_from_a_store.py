"""
A probe on stored activations
=============================

Activations of many pictures are collected once, on disk; linear probes are trained on them. How
early does the gate hold the class, and how early the shape of its plate? With shuffled labels a
probe has nothing to learn; the dashed lines are a guess of the commonest class or shape.
"""

import random
import tempfile

import pandas as pd

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
scenes = gl.data.load("emoji-scenes", split="train").examples("class", limit=200)
folder = f"{tempfile.mkdtemp()}/gate"
store = gl.collect(model, scenes, sites="resid_post", at="gate", out=folder)

# %%
shape = {scene.id: scene.meta["objects"][0].shape for scene in scenes}
names = store.index.label.tolist()
facts = {"class": names, "shape": [shape[id] for id in store.index.example]}
facts["class, shuffled labels"] = random.Random(0).sample(names, len(names))
probes = {
    fact: [gl.measures.linear_probe(store.read(layer=layer), labels) for layer in range(model.cfg.n_layers)]
    for fact, labels in facts.items()
}
accuracy = pd.DataFrame({fact: [probe.accuracy for probe in several] for fact, several in probes.items()})
axes = accuracy.plot(
    marker="o", figsize=(5.5, 3.3), ylim=(0, 1.05), xlabel="layer", ylabel="accuracy, cross-validated"
)
for fact, line in zip(["class", "shape"], axes.lines, strict=False):
    axes.axhline(probes[fact][0].majority, linestyle="--", color=line.get_color())
axes
