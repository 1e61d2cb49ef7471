"""
TransformerLens' own tools
==========================

``transformer_lens.patching`` with the picture in the prompt: a prepared batch takes the place of
token ids. The output of every head is patched from the clean run.
"""

import matplotlib.pyplot as plt
from transformer_lens import patching

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:gated")
pair = gl.pairs("emoji-scenes", differ="class", n=1)[0]
clean = model.prepare(pair.clean.image, pair.clean.prompt)
corrupt = model.prepare(pair.corrupt.image, pair.corrupt.prompt)
_, cache = model.run_with_cache(clean)

# %%
difference = gl.metrics.logit_diff(model.to_single_token(pair.target), model.to_single_token(pair.base))
effect = patching.get_act_patch_attn_head_out_all_pos(
    model, corrupt, cache, lambda logits: difference(logits).mean()
)

figure, axes = plt.subplots(figsize=(5.5, 3.3), layout="constrained")
largest = float(effect.abs().max())
picture = axes.imshow(effect, cmap="RdBu", vmin=-largest, vmax=largest)
axes.set(xlabel="head", ylabel="layer")
figure.colorbar(picture, label="logit difference")
figure
