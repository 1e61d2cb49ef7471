"""
A feature of a sparse autoencoder
=================================

A small top-k autoencoder is trained on stored activations of image tokens, and its strongest features are shown over
the pictures. A few lines of PyTorch stand in for real training; ``gl.SAE.load`` reads SAELens folders.

The text of this model reads much of the picture in layer 0. To move the answer, change features before that, at
``blocks.0.hook_resid_pre``: the page on sparse autoencoders trains some there and compares with a control.
"""

import tempfile

import torch

import gatelens as gl

model = gl.HookedVLM.from_pretrained("organism:open")
scenes = gl.data.load("emoji-scenes").examples("class", limit=48)
folder = f"{tempfile.mkdtemp()}/image"
store = gl.collect(model, scenes, sites="resid_post", layers=[3], at="image", out=folder)
x = store.read().float()

# %%
torch.manual_seed(0)
decoder = torch.nn.functional.normalize(torch.randn(256, x.shape[1])).requires_grad_()
weights = {"W_enc": decoder.T, "W_dec": decoder, "b_dec": x.mean(0), "b_enc": torch.zeros(256)}
config = {
    "architecture": "topk",
    "k": 8,
    "apply_b_dec_to_input": True,
    "hook_name": "blocks.3.hook_resid_post",
}
sae = gl.SAE(config, weights)
optimiser = torch.optim.Adam([decoder], 3e-3)
for rows in torch.randint(len(x), (150, 512)):
    optimiser.zero_grad()
    (sae.reconstruct(x[rows]) - x[rows]).square().mean().backward()
    optimiser.step()

strongest = sae.encode(x).sum(0).topk(3).indices.tolist()
sae.features(store, strongest, data=scenes, top=5).show()
