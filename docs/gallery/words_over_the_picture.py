"""
What each written word looked at
================================

The attention of each written word over the picture, and what hiding blocks of the picture does to its
probability. Hover over a word of the description. What the image tokens themselves say is in
:doc:`lens_on_image_tokens`.
"""

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:llava")
scene = gl.data.load("emoji-scenes").examples("class", limit=1)[0]
inputs = model.prepare(scene.image, "<image>describe the image.")

# %%
written = model.generate(inputs, return_type="map", max_new_tokens=8)
view = gl.views.words(gl.words_table(model, written))  # view.save("words.html") keeps the page
view

# %%
# A still picture of one word, the second: ``.savefig("words.png")`` keeps it.
view.figure(query=1, layer=3)
