"""
A few heads alone, all others at a mean
=======================================

Do five of the 24 heads carry the answer? They are chosen on other pictures, by what replacing each one alone costs.
Then all heads but these are replaced by their mean over a reference: one ``gl.ablate`` per layer, as each layer has
other heads to replace. ``over`` selects the positions of the reference that are averaged; without it, those of ``at``.

Faithfulness is (m(kept) − m(none)) / (m(all) − m(none)), with m the mean log-probability of the answer: 1 is the whole
model, 0 every head at its mean; a set that is worse than none is below 0. The 95 % interval is over questions: each
draw weighs them in the same way in all three means. Random sets of five heads are next to the chosen one.
"""

import random

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
questions = gl.data.load("emoji-scenes").examples("vqa", limit=24, kind="color")
others = gl.data.load("emoji-scenes", split="train").examples("vqa", limit=24, kind="color")
_, means = model.run_with_cache(model.prepare([e.image for e in others], [e.prompt for e in others]))
layers, log_prob = range(model.cfg.n_layers), gl.metrics.log_prob(lambda question: question.answers[0])
every = {f"L{layer}H{head}": (layer, head) for layer in layers for head in range(model.cfg.n_heads)}


# %%
def at_mean(names):
    heads = {layer: [head for at, head in map(every.get, names) if at == layer] for layer in layers}
    where = {"at": "gate | text", "over": "gate | text", "site": "z", "with_": "mean", "reference": means}
    return [gl.ablate(layers=layer, heads=some, **where) for layer, some in heads.items() if some]


single = gl.sweep(model, others, {"head": {name: at_mean([name]) for name in every}}, log_prob)
best = single.groupby("head").value.mean().nsmallest(5).index.tolist()

# %%
draw = random.Random(0)
kept = {"all": [*every], "none": [], " ".join(best): best}
kept |= {f"random {i}": draw.sample([*every], 5) for i in range(8)}
sets = {name: at_mean([head for head in every if head not in kept[name]]) for name in kept}
values = gl.sweep(model, questions, {"kept": sets}, log_prob).groupby("kept", sort=False).value
of = dict(zip(kept, gl.measures.drawn_means(*(one.tolist() for _, one in values), bounds=None), strict=True))
mean = values.mean()
table = ((mean - mean["none"]) / (mean["all"] - mean["none"])).to_frame("faithfulness")
draws = [(one - of["none"]) / (of["all"] - of["none"]) for one in of.values()]
table[["low", "high"]] = [gl.measures.middle(one) for one in draws]
table
