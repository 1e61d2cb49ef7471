"""Towards Interpreting Visual Information Processing in Vision-Language Models: where an object is held.

Neo, Ong, Torr, Geva, Krueger and Barez, ICLR 2025, arXiv 2410.07149.

The paper asks whether an object is held in the image tokens that show it. It replaces some image tokens, as they enter
the language model, by a mean embedding: those on the object, those and their neighbours, those with the largest norm
("registers"), or as many random ones; and counts how many objects that were named before are no longer named. Here this
is ``gl.ablate`` on pictures whose object's mask is known exactly.

Left out: the integrated-gradients baseline, the yes/no and describe-the-image prompts (here the class is asked for),
and a mean over other data (here over the image tokens of the pictures at hand). The paper's second experiment, the
logit lens of image tokens, is in ``image_token_lens.py``; its third, attention knockouts, is similar to
``cross_modal_flow.py``.
"""

import pandas as pd
import torch
from _common import bars, options, save
from scipy.ndimage import binary_dilation

import gatelens as gl

args = options(__doc__, model="organism:llava", n=32)
model = gl.HookedVLM.from_pretrained(args.model, **args.load)
examples = gl.data.load(args.data).examples("class", limit=args.n)
right = gl.metrics.top1(lambda example: example.label)
named = gl.sweep(model, examples, {}, right).value
examples = [example for example, value in zip(examples, named, strict=True) if value]
prompts = [model.prepare(example.image, example.prompt) for example in examples]
entering = "blocks.0.hook_resid_pre"
streams = [model.run_with_cache(prompt, names_filter=entering)[1][entering] for prompt in prompts]
images = [prompt.tokens.mask("image") for prompt in prompts]
mean = torch.cat([stream[image] for stream, image in zip(streams, images, strict=True)]).mean(0)

tables = []
for example, prompt, stream, image in zip(examples, prompts, streams, images, strict=True):
    shown = example.masks[example.label]
    around = binary_dilation(shown, iterations=shown.shape[1] // 8)  # by an eighth: a token of an organism
    on = prompt.tokens.mask("image.mask(shown)", masks={"shown": shown})
    near = prompt.tokens.mask("image.mask(around)", masks={"around": around})
    largest = stream.norm(dim=-1)[0].cpu().where(image[0], -1).topk(int(on.sum())).indices
    places = {"object": on, "object and around": near, "largest norm": largest}
    places |= {
        "random": f"random_image:{on.sum()}",
        "random, as many as around": f"random_image:{near.sum()}",
    }
    grid = {"ablated": {name: gl.ablate(at, layers=[0], with_=mean) for name, at in places.items()}}
    tables.append(gl.sweep(model, [example], grid, right, progress=False))

table = pd.concat(tables)
table["value"] = 1 - table.value
lost = table.groupby("ablated", sort=False).value.mean()
print(lost.round(2).to_string(), f"\nshare of {len(examples)} named objects that are no longer named")
save(bars(table, "ablated", "share of objects lost"), args)
print(
    f"Reading: {lost['object']:.0%} of the objects are lost without their own tokens, {lost['random']:.0%} without as "
    f"many random ones, {lost['largest norm']:.0%} without those of the largest norm."
)
