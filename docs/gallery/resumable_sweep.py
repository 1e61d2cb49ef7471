"""
A resumable sweep over a data set
=================================

A sweep over data saves each batch in a folder; the same call resumes where an earlier one stopped.
The second call here computes nothing. ``workers=2`` or ``ray=`` share the work.
"""

import tempfile

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
folder = f"{tempfile.mkdtemp()}/starts"
grid = {"start": [gl.knockout("text - gate", "image", layers=range(s, 6)) for s in range(6)]}

# %%
for _ in range(2):
    table = gl.sweep(model, "emoji-scenes", grid, gl.metrics.answer(), task="class", limit=24, out=folder)
by_start = table.groupby("start").value.agg(["mean", "sem"])
by_start.plot(
    xticks=by_start.index,
    y="mean",
    yerr="sem",
    marker="o",
    figsize=(5.5, 3.3),
    ylabel="accuracy",
    legend=False,
)
