"""Cross-modal Information Flow in Multimodal Large Language Models.

Zhang, Yadav, Han and Shutova, CVPR 2025, arXiv 2411.18620.

The paper asks along which path the picture reaches the answer. On questions that are answered correctly it blocks the
attention of one group of positions to another in a window of layers, slides the window from the first layer to
the last, and records by how many per cent the probability of the answer changes: image to question, image to last
position, question to last position. Here the same three paths are cut by ``gl.knockout(how="mask")``, over all
windows and examples in one sweep. The window is the paper's 9 of 32 layers, as a share of the model's depth.

Left out: the knockouts of single objects' image tokens and of the options of a question, the probability of the
answer by layer, upper and lower case, and GQA with its six types of question. The question is here all of the text
after the picture except its last token.
"""

from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:llava", n=32)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
n_layers = model.cfg.n_layers
width = max(1, round(n_layers * 9 / 32))
PATHS = {
    "image → question": ("query - last", "image"),
    "image → last": ("last", "image"),
    "question → last": ("last", "query - last"),
}


def cut(path, layer):
    queries, keys = PATHS[path]
    window = range(max(0, layer - width // 2), min(n_layers, layer - (-width // 2)))
    return gl.knockout(queries, keys, layers=window, how="mask")


examples = gl.data.load(args.data).examples("vqa", limit=args.n)
probability = gl.metrics.prob(lambda example: example.answers[0])
clean = gl.sweep(model, examples, {}, {"right": gl.metrics.answer(), "before": probability})
clean = clean[clean.right == 1].set_index("example")
examples = [example for example in examples if example.id in clean.index]
grid = {"path": list(PATHS), "layer": range(n_layers)}
table = gl.sweep(model, examples, grid, probability, make=cut)
before = table.example.map(clean.before)
table["value"] = 100 * (table.value - before) / before

means = table.groupby(["path", "layer"], sort=False).value.mean().unstack()
print(
    means.round(1).to_string(),
    f"\n% change of the answer's probability, {len(examples)} questions answered correctly",
)
save(curves(table, "path", "change of P(answer), %", f"{width} layers cut at a time, around layer"), args)
worst = means.agg(["idxmin", "min"], axis=1)
said = [f"{path} at layer {at:.0f} ({low:.0f} %)" for path, (at, low) in worst.iterrows() if low < -1]
print("Reading: cutting lowers the answer's probability most for", "; ".join(said) or "no path", end=".\n")
