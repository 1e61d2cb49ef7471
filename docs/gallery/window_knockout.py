"""
A window of layers, cut in a batch
==================================

Text no longer reads the image in three layers in a row; the window slides over all layers. All
windows run in one pass over each prompt, beside the run with nothing cut. Intervals are 95 %, over
examples. To cut only the row that writes the answer, write ``queries="last"``.
"""

import matplotlib.pyplot as plt

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
questions = gl.data.load("emoji-scenes").examples("vqa", limit=24, kind="color")
starts = range(model.cfg.n_layers - 2)

# %%
cuts = {f"{s} to {s + 2}": gl.knockout("text - gate", "image", layers=range(s, s + 3)) for s in starts}
table = gl.sweep(model, questions, {"layers cut": {"none": [], **cuts}}, gl.metrics.answer())
means = gl.measures.summary(table, by=["layers cut"])
print(means)

# %%
uncut, cut = means.iloc[0], means.iloc[1:]
figure, axes = plt.subplots(figsize=(5.5, 3.3), layout="constrained")
axes.errorbar(
    cut["layers cut"], cut["mean"], [cut["mean"] - cut.low, cut.high - cut["mean"]], marker="o", capsize=3
)
axes.axhline(uncut["mean"], color="gray", linestyle="--", label="nothing cut, with its interval")
axes.axhspan(uncut.low, uncut.high, color="gray", alpha=0.15, linewidth=0)
axes.set(xlabel="layers cut", ylabel="accuracy", ylim=(0, 1.05))
axes.legend(loc="lower right")
figure
