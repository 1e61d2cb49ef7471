"""
A resumable sweep over a data set
=================================

With `out=` each finished batch is a folder in `shards/sweep/`. Here the last one is deleted, as if the process
had been killed before it was written; the same call then measures that batch alone. `workers=2` shares the
batches among processes, `ray=` among the machines of a cluster.
"""

import shutil
import tempfile
from pathlib import Path

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scenes = gl.data.load("emoji-scenes").examples("class", limit=24)
grid = {"start": [gl.knockout("text - gate", "image", layers=range(s, 6)) for s in range(6)]}
folder = Path(tempfile.mkdtemp(), "starts")

# %%
gl.sweep(model, scenes, grid, gl.metrics.answer(), batch_size=8, out=folder)
*_, last = sorted(folder.glob("shards/sweep/*"))
shutil.rmtree(last)
table = gl.sweep(model, scenes, grid, gl.metrics.answer(), batch_size=8, out=folder)
means = gl.measures.summary(table, "start")
axes = means.plot(x="start", y="mean", marker="o", figsize=(5, 3), legend=False, xticks=means.start)
axes.fill_between(means.start, means.low, means.high, alpha=0.2)
axes.set(xlabel="first layer cut", ylabel="accuracy, 95 % interval")
axes
