"""
The logit lens on image tokens
==============================

What each image token says, layer by layer: the residual stream through the final norm and the
unembedding. Hover over a patch to see its most likely tokens in every layer.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:llava")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, scene.prompt)

# %%
lens = gl.logit_lens(model, inputs, at="image", targets=model.to_single_token(scene.label))
gl.views.lens(lens)
