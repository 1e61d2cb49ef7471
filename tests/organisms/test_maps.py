"""Exact maps of the shipped organisms show the way that was planted, and gradient maps how far off they are.

The layers in which the gate of ``organism:gated`` holds a fact are those of the narrow-gate study's patching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.data import Pair, Pairs
from gatelens.readouts.prompt_pairs import masks_of

WRITTEN = {"class": 1, "color": 3, "shape": 3, "side": 5}  # the first layer the gate enters with the fact
GROUPS = {
    "changed": "image.mask(changed)",
    "others": "image - image.mask(changed)",
    "gate": "gate",
    "last": "last",
}

pytestmark = pytest.mark.organism
organisms: dict[str, Any] = {}


def organism(name: str) -> Any:
    if name not in organisms:
        organisms[name] = gl.HookedVLM.from_pretrained(f"organism:{name}")
    return organisms[name]


def pairs_in(differ: str, n: int = 4) -> Pairs:
    # combinations of training: in the test split another colour or shape is one of training, and a note says so
    return gl.pairs(gl.data.load("emoji-scenes", "train"), differ, n=n)


@pytest.mark.parametrize("differ", WRITTEN)
def test_the_gate_lights_where_a_fact_is_written_and_no_other_text_does(differ: str) -> None:
    """Until the last position has read the gate, it alone holds the fact; what stands around it never does."""
    found = gl.patch_map(organism("gated"), pairs_in(differ), at="~image", progress=False)
    effects = found.mean().tensor
    layer, n_layers = WRITTEN[differ], effects.shape[0]
    names = found.axes["position"]["role"].tolist()
    gate, last = names.index("eoi"), len(names) - 1
    between = [i for i in range(len(names)) if i not in (gate, last)]
    assert int(effects[:, gate].argmax()) == layer and effects[layer, gate] > 0.6
    assert effects[0].abs().max() < 0.01  # no text position has read anything yet
    assert effects[:, between].abs().max() < 0.03
    assert effects[: layer + 1, last].abs().max() < 0.1
    assert all(effects[n, last] > 0.3 for n in range(layer + 1, n_layers))


@pytest.mark.parametrize("differ", WRITTEN)
def test_what_the_gate_has_not_read_is_in_the_picture(differ: str) -> None:
    found = gl.patch_map(
        organism("gated"),
        pairs_in(differ),
        over=("role", "layer"),
        at={"image": "image", **GROUPS},
        progress=False,
    )
    image, changed, others, gate, last = found.mean().tensor
    layer = WRITTEN[differ]
    assert image[0] > 0.99 and gate[0].abs() < 0.01 and image[layer] < 0.4
    assert (image[layer + 1 :] < 0.05).all() and ((gate + last)[layer + 1 :] > 0.85).all()
    # the tokenizer's convolutions see around a token, so that others change too; side is most of the picture
    assert changed[0] > others[0]


@pytest.mark.parametrize("differ", WRITTEN)
@pytest.mark.parametrize("name", ["open", "llava"])
def test_image_tokens_that_changed_light_where_there_is_no_gate(name: str, differ: str) -> None:
    found = gl.patch_map(organism(name), pairs_in(differ), over=("role", "layer"), at=GROUPS, progress=False)
    changed, others, gate, last = found.mean().tensor
    assert changed[0] > 0.55 and gate.abs().max() < 0.05 and last[0].abs() < 0.01
    assert others[0] < (0.45 if name == "open" else 0.01)  # a tower sees each patch by itself, but attends
    # the fact goes from the picture to the last position; where it is in neither, both are needed
    assert changed[-1] < changed[0] and last[-1] > 0.1
    assert (last[1:] >= last[:-1] - 0.05).all()


def test_a_gradient_map_of_llava_says_how_far_it_is_from_the_truth() -> None:
    """The agreement printed is that of single patches, each run by itself."""
    model, pairs = organism("llava"), pairs_in("class", 2)
    found = gl.attribution_map(model, pairs, layers=[2], at="image | gate | last", check=24)
    exact = torch.as_tensor(found.columns["exact"])
    checked = (~exact.isnan()).all(0)
    assert int(checked.sum()) == 24
    ones, wanted = [], []
    for layer, i in checked.nonzero().tolist():
        position = int(found.axes["position"]["position"][i])
        for n, pair in enumerate(pairs):
            wanted.append(float(exact[n, layer, i]))
            ones.append(by_hand(model, pair, position))
    np.testing.assert_allclose(wanted, ones, atol=1e-4)
    guess, truth = (values.nanmean(0)[checked].numpy() for values in (found.tensor, exact))
    agreed = found.agreement
    assert agreed is not None and agreed.cells == 24
    assert agreed.error == pytest.approx(np.abs(guess - truth).sum() / np.abs(truth).sum(), abs=1e-6)
    assert str(agreed) in repr(found) and str(agreed) in found._repr_html_()  # a notebook shows the latter
    assert all(line in repr(found) and line in found.show().get_suptitle() for line in found.warnings)


def by_hand(model: Any, pair: Pair, position: int, layer: int = 2) -> float:
    """The effect of one position's stream, by a plain hook."""
    clean, corrupt = (model.prepare(e.image, e.prompt) for e in (pair.clean, pair.corrupt))
    point = f"blocks.{layer}.hook_resid_pre"
    _, cache = model.run_with_cache(clean, names_filter=point)

    def put(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x[:, position] = cache[point][:, position]
        return x

    target, base = model.to_single_token(pair.target), model.to_single_token(pair.base)
    values = [
        float(logits[0, -1, target] - logits[0, -1, base])
        for logits in (model(clean), model(corrupt), model.run_with_hooks(corrupt, fwd_hooks=[(point, put)]))
    ]
    return (values[2] - values[1]) / (values[0] - values[1])


def test_changed_is_where_the_two_pictures_differ() -> None:
    pair = pairs_in("class", 1)[0]
    clean, corrupt = (np.asarray(e.image).astype(int) for e in (pair.clean, pair.corrupt))
    changed = masks_of(pair)["changed"]
    assert np.array_equal(changed, np.abs(clean - corrupt).sum(-1) > 0) and 0 < changed.mean() < 0.5
    overlap = (changed & masks_of(pair)["object"]).sum() / masks_of(pair)["object"].sum()
    assert overlap > 0.8  # another object in its place
