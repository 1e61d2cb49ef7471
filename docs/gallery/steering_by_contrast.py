"""
Contrastive activation addition
===============================

A direction from pictures of foxes and of pigs is added at the gate of other pictures of pigs. Left: how
often the answer becomes *fox*, next to a random direction of the same length. Right: what it costs, as the
overlap of the next-token distribution of all other pictures with the one without steering.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
train = gl.data.load("emoji-scenes", split="train")
fox = gl.direction(model, train, at="gate", positive="fox", negative="pig", layers=[2], limit=120)

# %%
scenes = gl.data.load("emoji-scenes").examples("class", limit=200)
pigs = [scene for scene in scenes if scene.label == "pig"]
others = [scene for scene in scenes if scene.label not in ("pig", "fox")][:24]
says_fox = {"answers 'fox'": gl.metrics.top1(model.to_single_token("fox"))}
curve = gl.dose_curve(model, fox, pigs, [0.5, 1, 1.5, 2], says_fox, others=others, bounds=(0, 1))
curve.show()
