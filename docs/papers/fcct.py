"""Causal Tracing of Object Representations in Large Vision Language Models (FCCT).

Li, Ye, Feng, Zhong, Ma and Feng, 2025, arXiv 2511.05923.

The paper asks which tokens, layers and modules carry an object from the picture to the answer. It runs the picture
clean, runs it with Gaussian noise on its pixels, and in the noisy run restores the clean output of attention, of the
MLP, or the hidden state, at one group of tokens in one layer; the recovery rate is the share of the lost probability of
the answer that comes back. Here this is ``gl.patch_map`` over sites, layers and groups of tokens.

Left out: Intermediate Representation Injection, which the paper builds on the result; its questions about objects on
MS-COCO; and three of its seven groups of tokens, as the prompt here is short. The rate is computed from mean
probabilities, so that pictures which noise hardly changes do not dominate.
"""

import dataclasses

import numpy as np
from _common import heat, options, save
from PIL import Image

import gatelens as gl

args = options(__doc__, model="organism:llava", n=16)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
GROUPS = {
    "object's tokens": "image.mask(object)",
    "other image tokens": "image - image.mask(object)",
    "text but the last": "query - last",
    "last token": "last",
}
SITES = {"attn_out": "attention", "mlp_out": "MLP", "resid_post": "hidden state"}


def noisy(example, seed, sigma=512):  # of 255: most pixels end up at a bound
    pixels = np.asarray(example.image.convert("RGB"), dtype=float)
    pixels = (pixels + np.random.default_rng(seed).normal(scale=sigma, size=pixels.shape)).clip(0, 255)
    return dataclasses.replace(
        example, image=Image.fromarray(pixels.astype(np.uint8)), id=example.id + "-noisy"
    )


probability = gl.metrics.prob(lambda example: example.label)
examples = gl.data.load(args.data).examples("class", limit=args.n)
noised = [noisy(example, seed) for seed, example in enumerate(examples)]
clean, corrupt = (gl.sweep(model, each, {}, probability).value for each in (examples, noised))
lost = [i for i in range(len(examples)) if corrupt[i] < clean[i] / 2]
pairs = [gl.data.Pair(examples[i], noised[i], "noise", examples[i].label) for i in lost]

table = gl.patch_map(model, pairs, "prob", over=("site", "layer", "role"), site=list(SITES), at=GROUPS).table
means = table.groupby(["site", "role", "layer"], sort=False)[["patched", "clean", "corrupt"]].mean()
rate = ((means.patched - means.corrupt) / (means.clean - means.corrupt)).unstack().rename(index=SITES)
rate.index = [f"{site} at {group}" for site, group in rate.index]
print(rate.round(2).to_string(), f"\nrecovery rate, {len(pairs)} pictures whose object the noise hides")
save(heat(rate.rename_axis("restored").rename_axis("layer", axis=1), "recovery rate", signed=True), args)
best = {site: rate[rate.index.str.startswith(site)].stack() for site in ("attention", "MLP")}
said = [
    f"{where} in layer {layer} ({one.max():.2f})" for one in best.values() for where, layer in [one.idxmax()]
]
print("Reading: of single modules, the highest recovery is by", "; ".join(said), end=".\n")
