"""
The logit lens on image tokens
==============================

What each image token says, layer by layer: the residual stream through the final norm and the
unembedding. Hover over a patch to see its most likely tokens in every layer. A model this small was
never trained to say anything at image tokens, and most of them say words without a meaning; a few
say the class. What the words of an answer looked at is in :doc:`words_over_the_picture`.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
lens = gl.logit_lens(model, inputs, at="image", targets=scene.label)
view = gl.views.lens(lens)
view

# %%
# How many image tokens say the class (its rank is 0) in each layer, on the object and elsewhere:
# in this picture, none on the object does.
mask = inputs.tokens.mask("image.mask(object)", masks={"object": scene.masks[scene.label]})
said = lens.sel(kind="target").table
said["place"] = ["on the object" if mask[0, at] else "elsewhere" for at in said["position"]]
said["says it"] = said["rank"] == 0
print(
    f"{int(mask.sum())} of {lens.sel(layer=0, target='top 0').tensor.numel()} image tokens are on the object"
)
said.pivot_table(index="layer", columns="place", values="says it", aggfunc="sum")

# %%
# A still picture of some layers. ``view.figure().savefig("lens.png")`` writes all of them to a file.
lens.sel(target="top 0", layer=[2, 4, 6]).show()
