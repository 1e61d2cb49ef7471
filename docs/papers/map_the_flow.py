"""Map the Flow: Revealing Hidden Pathways of Information in VideoLLMs.

Kim, Kim and Han, ICLR 2026, arXiv 2510.13251.

The paper asks how a video reaches the answer of a VideoLLM. It knocks attention out in windows of layers along one path
at a time (frames to later frames, video to question, question to last position), and records how much the probability
of the answer drops: information first flows between frames, then from video to question, then from question to the last
position. Here a "video" is two pictures of one scene in which an object has moved, one after the other as frames, and
the answer whose probability is recorded is the one that the model gives.

Left out: real videos and VideoLLMs, temporal words and answer options as separate places, the logit lens of video
tokens, and running on only the few effective paths. The organisms were trained on one picture at a time, so no
flow between frames is expected.
"""

from _common import curves, options, save

import gatelens as gl

args = options(__doc__, model="organism:open", n=24)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
n_layers = model.cfg.n_layers
width = max(1, round(n_layers * 9 / 32))
PATHS = {
    "frame → later frame": ("image[1]", "image[0]"),
    "video → question": ("query - last", "image[0] | image[1]"),
    "video → last": ("last", "image[0] | image[1]"),
    "question → last": ("last", "query - last"),
}


def cut(path, layer):
    queries, keys = PATHS[path]
    window = range(max(0, layer - width // 2), min(n_layers, layer - (-width // 2)))
    return gl.knockout(queries, keys, layers=window, how="mask")


moved = gl.pairs(args.data, differ="side", n=args.n)
frames = [[pair.clean.image, pair.corrupt.image] for pair in moved]
videos = model.prepare(frames, ["<image>" + pair.clean.prompt for pair in moved])
clean = model(videos)[:, -1].softmax(dim=-1).max(dim=-1)
said = [model.to_string([token]) for token in clean.indices.tolist()]
last_frame = sum(word == pair.base for word, pair in zip(said, moved, strict=True)) / len(said)
grid = {"path": list(PATHS), "layer": range(n_layers)}
table = gl.sweep(model, videos, grid, gl.metrics.prob(clean.indices), make=cut)
before = clean.values.cpu().numpy()[table.example]
table["value"] = 100 * (table.value - before) / before

means = table.groupby(["path", "layer"], sort=False).value.mean().unstack()
print(
    means.round(1).to_string(),
    f"\n% change of the answer's probability; {last_frame:.0%} say what the last frame shows",
)
save(curves(table, "path", "change of P(answer), %", f"{width} layers cut at a time, around layer"), args)
worst = means.agg(["idxmin", "min"], axis=1)
said = [f"{path} at layer {at:.0f} ({low:.0f} %)" for path, (at, low) in worst.iterrows() if low < -1]
print("Reading: cutting lowers the answer's probability most for", "; ".join(said) or "no path", end=".\n")
