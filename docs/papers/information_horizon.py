"""When Token Pruning is Worse than Random: Understanding Visual Token Information in VLLMs (the information horizon).

Wang, Wu, Ni, Yang, Liu, Yang, Wen, He, Tang, Liu and Zhou, CVPR 2026, arXiv 2512.07580.

The paper measures the information of a group of image tokens at a layer as the change of the output probabilities when
the group is removed from that layer on. It fades with depth; beyond the "information horizon" no image token matters,
and pruning at random is as good as any method. Here each sixteenth of the picture (2 × 2 tokens of an organism, as in
the paper) is removed by ``gl.drop`` from every layer on, and so are half of the image tokens: at random, or those that
the last position attends to least.

Left out: the benchmarks (OCR has a deeper horizon than general questions), DART and DivPrune, which the paper combines
with random pruning, and the time saved. The probability is that of the answer's first token. The threshold for "no
information" is ours: a change of less than 0.05 for the group that matters most.
"""

import pandas as pd
from _common import curves, options, save
from tqdm import tqdm

import gatelens as gl

args = options(__doc__, model="organism:llava", n=12)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
layers = range(model.cfg.n_layers)
patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
probability = gl.metrics.prob(lambda example: example.answers[0])
tables = []
for example in tqdm(gl.data.load(args.data).examples("vqa", limit=args.n)):
    prompt, (width, height) = model.prepare(example.image, example.prompt), example.image.size
    corners = [(x * width / 4, y * height / 4) for x in range(4) for y in range(4)]
    groups = [f"image.box({x},{y},{x + width / 4},{y + height / 4})" for x, y in corners]
    image = prompt.tokens.mask("image")[0].nonzero()[:, 0]
    _, cache = model.run_with_cache(prompt, names_filter=patterns)
    runs = {"clean": None}
    for layer in layers:
        looked = cache[patterns[layer]][0, :, -1].mean(0).cpu()[image]  # as FastV ranks image tokens
        gone = {f"group {i}": group for i, group in enumerate(groups)}
        gone["half, at random"] = f"random_image:{len(image) // 2}"
        gone["half, least attended"] = image[looked.argsort()[: len(image) // 2]]
        runs |= {f"{name}@{layer}": gl.drop(at, layer) for name, at in gone.items()}
    table = gl.sweep(model, [example], {"removed": runs}, probability, progress=False)
    tables.append(table.assign(value=(table.value - table.value[0]).abs())[1:])

table = pd.concat(tables)
table[["removed", "layer"]] = table.removed.str.split("@", expand=True)
table["removed"] = table.removed.str.replace(r"group \d+", "the group that matters most", regex=True)
table = table.groupby(["removed", "layer", "example"], as_index=False).value.max().astype({"layer": int})
means = table.groupby(["removed", "layer"]).value.mean().unstack()
print(means.round(3).to_string(), f"\nchange of P(answer) when removed from a layer on, {args.n} questions")
save(curves(table, "removed", "change of P(answer)", xlabel="removed from layer"), args)
chance, ranked, group = means.to_numpy()  # its rows, in their order
horizon = next((layer for layer in layers if (group[layer:] < 0.05).all()), "beyond the last")
fine = ", ".join(str(layer) for layer in layers if chance[layer] <= ranked[layer]) or "none"
print(
    f"Reading: horizon: layer {horizon}; pruning at random does no more harm than by attention in layers: {fine}."
)
