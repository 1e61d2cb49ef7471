"""What mypy accepts of the public face and what it refuses; checked by mypy alone, which warns of a useless ignore."""

import torch

import gatelens as gl

mask = torch.zeros(1, 4, dtype=torch.bool)
direction = torch.zeros(8)
selection = gl.Selection.parse("image") - "last_image"

gl.knockout("text - gate", "image | gate", layers=range(2))
gl.knockout(selection, ~selection | "gate")
gl.knockout(mask, [0, 1])
gl.ablate(selection, site="resid_pre", layers=[3], with_="mean", over="image")
gl.steer(direction, at="gate")
gl.ablate("text", "pattern", with_="uniform", heads=[1])
gl.ablate("text", with_="projection", direction=direction)
gl.edit(lambda rows, where: rows * where.position[:, None], at="image", site="rot_k")
gl.drop("image - random_image:4", layer=2)
gl.metrics.prob(3)
gl.metrics.prob("dog")
gl.metrics.prob(0.5)  # type: ignore[arg-type]

gl.knockout(5, "image")  # type: ignore[arg-type]
gl.knockout("text", object())  # type: ignore[arg-type]
gl.ablate(at=None)  # type: ignore[arg-type]
gl.steer(direction, at=3)  # type: ignore[arg-type]


def tokens_take_selectors(tokens: gl.TokenMap) -> None:
    tokens.mask(selection)
    tokens.positions("image")
    tokens.mask(1.5)  # type: ignore[arg-type]


def models_take_selectors(model: gl.HookedVLM, inputs: gl.VLMInputs) -> None:
    model.run_with_cache(inputs, positions="gate | last")
    model.run_with_cache(inputs, positions=7)  # type: ignore[arg-type]


def readouts_take_words_ids_and_pairs(model: gl.HookedVLM, inputs: gl.VLMInputs) -> None:
    parts = gl.attribute(model, inputs, ("dog", "cat"), by="position", at="last")
    parts.sel(role="image").show(image=1)
    gl.attribute(model, inputs, (torch.tensor([3]), [4]), by="head")
    gl.attribute(model, inputs, "dog", by="heads")  # type: ignore[arg-type]
    gl.attribute(model, inputs, 1.5)  # type: ignore[arg-type]
    gl.logit_lens(model, inputs, layers=-1, targets=["dog", 3], translators={2: torch.nn.Identity()})
    gl.logit_lens(model, inputs, at=None)  # type: ignore[arg-type]
