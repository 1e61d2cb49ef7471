"""Steering vectors against plain computations on cached activations; dose curves against runs one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gatelens as gl
from gatelens.data import Example, Pair, Pairs
from gatelens.directions import random_like
from gatelens.errors import DataError, GatelensError
from study_helpers import picture

LAYERS = [1, 2]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    names = ["dog", "cat", "red", "dog", "cat", "cat", "dog", "red"]
    prompts = ["<image>this is a", "<image>what color is the dog ?"]
    return [
        Example(picture(name, seed=i), prompts[i % 2], (name,), "class", f"e{i}", name)
        for i, name in enumerate(names)
    ]


def cached(model: Any, example: Example, at: str, layer: int, site: str = "resid_pre") -> torch.Tensor:
    inputs = model.prepare(example.image, example.prompt)
    _, cache = model.run_with_cache(inputs)
    name = f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"
    return cache[name][0, inputs.tokens.mask(at)[0]].double().mean(0)


def rows(
    model: Any, examples: list[Example], label: str, at: str, layer: int, site: str = "resid_pre"
) -> Any:
    return torch.stack([cached(model, e, at, layer, site) for e in examples if e.label == label])


@pytest.mark.parametrize(("at", "site"), [("gate", "resid_pre"), ("image", "resid_post"), ("last", "z")])
def test_the_difference_of_means(tiny: Any, examples: list[Example], at: str, site: Any) -> None:
    vector = gl.direction(
        tiny, examples, positive="cat", negative="dog", at=at, site=site, layers=LAYERS, batch_size=2
    )
    assert list(vector) == LAYERS
    for layer in LAYERS:
        plus, minus = (rows(tiny, examples, label, at, layer, site) for label in ("cat", "dog"))
        torch.testing.assert_close(vector[layer].double(), plus.mean(0) - minus.mean(0), atol=1e-5, rtol=1e-4)
    assert "3 'cat' − 3 'dog'" in repr(vector) and "\n" not in repr(vector)


def test_the_ways_to_say_which_examples(tiny_llava: Any, examples: list[Example]) -> None:
    by_label = gl.direction(tiny_llava, examples, positive="cat", at="last", layers=1)
    by_function = gl.direction(tiny_llava, examples, positive=lambda e: e.label == "cat", at="last", layers=1)
    cats = [e for e in examples if e.label == "cat"]
    others = [e for e in examples if e.label != "cat"]
    by_list = gl.direction(tiny_llava, positive=cats, negative=others, at="last", layers=1)
    pairs = Pairs([Pair(a, b, "class", "cat") for a, b in zip(cats, others, strict=False)])
    by_pairs = gl.direction(tiny_llava, pairs, at="last", layers=1)
    few = gl.direction(tiny_llava, positive=cats, negative=others[:3], at="last", layers=1)
    assert torch.equal(by_label[1], by_function[1]) and torch.equal(by_pairs[1], few[1])
    torch.testing.assert_close(by_label[1], by_list[1], atol=1e-5, rtol=1e-4)


def test_the_normal_of_a_probe(tiny_llava: Any, examples: list[Example]) -> None:
    """Against the same objective minimised by torch."""
    vector = gl.direction(
        tiny_llava, examples, positive="cat", negative="dog", at="last", layers=1, method="probe"
    )
    plus, minus = (rows(tiny_llava, examples, label, "last", 1) for label in ("cat", "dog"))
    x = torch.cat([plus, minus])
    scale = x.std(0, unbiased=False)
    x, y = (x - x.mean(0)) / scale, torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64)
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        fit = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y)
        total = fit + 1e-2 / 4 * weight.square().sum()  # of two opposite vectors of half the length
        total.backward()
        return total

    optimiser.step(loss)
    normal = weight.detach() / scale
    normal = normal / normal.norm()
    expected = normal * (normal @ (plus.mean(0) - minus.mean(0)))
    torch.testing.assert_close(vector[1].double(), expected, atol=1e-4, rtol=1e-3)


def test_the_first_principal_component_of_paired_differences(
    tiny_llava: Any, examples: list[Example]
) -> None:
    vector = gl.direction(
        tiny_llava, examples, positive="cat", negative="dog", at="last", layers=1, method="pca"
    )
    plus, minus = (rows(tiny_llava, examples, label, "last", 1) for label in ("cat", "dog"))
    difference = plus - minus
    first = torch.linalg.eigh(difference.T @ difference).eigenvectors[:, -1]
    torch.testing.assert_close(vector[1].double(), first * (first @ difference.mean(0)), atol=1e-4, rtol=1e-3)


def test_it_steers_and_is_projected_out(tiny: Any, examples: list[Example]) -> None:
    vector = gl.direction(tiny, examples, positive="cat", negative="dog", at="last", layers=LAYERS)
    inputs = tiny.prepare(examples[0].image, examples[0].prompt)
    point = "blocks.2.hook_resid_pre"
    alone = gl.ablate("last", layers=[2], with_="projection", direction=vector)
    _, cache = tiny.run_with_cache(inputs, names_filter=point, fwd_hooks=alone.hooks(inputs.tokens, tiny.cfg))
    assert abs(float(cache[point][0, -1] @ vector[2])) < 1e-4 * float(vector[2].norm())
    torch.testing.assert_close(
        tiny.run(inputs, gl.steer(vector, vector.at, vector.site, scale=2.0)),
        tiny.run(inputs, gl.steer(dict(vector), "last", "resid_pre", layers=LAYERS, scale=2.0)),
    )


def test_a_dose_curve_against_runs_one_by_one(tiny: Any, examples: list[Example]) -> None:
    vector = gl.direction(tiny, examples[:6], positive="cat", negative="dog", at="last", layers=LAYERS)
    metric = gl.metrics.logit(7)
    steered, others = examples[6:], examples[:3]
    table = gl.dose_curve(
        tiny, vector, steered, [1, 4], metric, layers=[2], others=others, n_random=2, seed=5, progress=False
    )
    at = table.set_index(["on", "direction", "scale"])
    for dose in (0.0, 1.0, 4.0):
        spec = gl.steer(vector, "last", layers=[2], scale=dose)
        values, shared = [], []
        for example in steered:
            inputs = tiny.prepare(example.image, example.prompt)
            values.append(float(metric(tiny.run(inputs, spec))[0]))
        for example in others:
            inputs = tiny.prepare(example.image, example.prompt)
            p, q = (x[0, -1].softmax(-1) for x in (tiny(inputs), tiny.run(inputs, spec)))
            shared.append(float(torch.minimum(p, q).sum()))
        kind = "own" if dose else "none"
        assert at.loc[("data", kind, dose), "mean"] == pytest.approx(np.mean(values), abs=1e-4)
        assert at.loc[("others", kind, dose), "mean"] == pytest.approx(np.mean(shared), abs=1e-4)
    assert at.loc[("others", "none", 0.0), "mean"] == pytest.approx(1)
    assert at.loc[("others", "own", 4.0), "mean"] < 0.999
    assert (at.loc[("data", "random", 4.0), "n"]) == 2 and len(table) == 10
    figure = table.show("doses")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "value, 2 examples",
        "overlap, 3 other examples",
    ]
    own = figure.axes[0].lines[0]
    assert own.get_xdata().tolist() == [0, 1, 4]  # the unsteered run is dose 0
    means = [
        at.loc[("data", kind, dose), "mean"] for kind, dose in (("none", 0.0), ("own", 1.0), ("own", 4.0))
    ]
    assert own.get_ydata().tolist() == means
    with pytest.raises(DataError, match="no rows"):
        table.query("scale > 9").show()


@pytest.mark.organism
@pytest.mark.parametrize("name", ["gated", "open"])
def test_a_class_direction_turns_answers_at_the_gate_alone(name: str) -> None:
    """In ``open`` nothing reads the gate, so the same push turns nothing and costs nothing."""
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    learned = gl.data.load("emoji-scenes", "train").examples("class", limit=200)
    test = gl.data.load("emoji-scenes")
    crowns = [one for one in test.examples("class", limit=120) if one.label == "crown"]
    vector = gl.direction(model, learned, positive="penguin", negative="crown", at="gate", layers=[1])
    says = gl.metrics.top1(model.to_single_token("penguin"))
    table = gl.dose_curve(
        model, vector, crowns, [0.5, 1], {"turned": says}, others=test.examples("vqa", limit=12), bounds=(0, 1),
        progress=False,
    )  # fmt: skip
    mean = table.set_index(["measure", "direction", "scale"])["mean"].sort_index()
    turned, kept = mean["turned", "own", 1.0], mean["overlap", "own"]
    assert mean["turned", "none", 0.0] == 0 == mean["turned", "random", 1.0]
    if name == "gated":
        assert turned > 0.9 and turned >= mean["turned", "own", 0.5] and 0.5 < kept[1.0] < kept[0.5] < 0.99
    else:
        assert turned == 0 and kept.min() > 0.99


def test_random_directions_have_the_length_of_the_vector() -> None:
    vector = torch.randn(4, 8)
    one, other = random_like(vector, 0, 1), random_like(vector, 0, 2)
    assert float(one.norm()) == pytest.approx(float(vector.norm()), rel=1e-5) and one.shape == vector.shape
    assert not torch.equal(one, other) and torch.equal(one, random_like(vector, 0, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positive": "cta"}, ["'cta'", "'cat'"]),
        ({"positive": None}, ["positive", "negative"]),
        ({"positive": 3}, ["positive=3"]),
        ({"positive": lambda e: False}, ["positive"]),
        ({"negative": lambda e: True}, ["'e1'"]),
        ({"method": "lda"}, ["'lda'", "'pca'"]),
        ({"site": "resid"}, ["'resid'"]),
        ({"layers": [9]}, ["layer 9"]),
        ({"at": "first_image", "layers": [0], "site": "resid_pre", "positive": "same"}, ["same"]),
        ({"positive": "lists"}, ["data"]),
        ({"data": "no-such-data"}, ["no-such-data"]),
    ],
)
def test_what_gives_no_direction_is_one_line(
    tiny_chameleon: Any, examples: list[Example], change: dict[str, Any], words: list[str]
) -> None:
    call: dict[str, Any] = {"data": examples, "positive": "cat", "negative": "dog", "at": "last"} | change
    if call["positive"] == "same":
        call |= {"data": None, "positive": examples[:1], "negative": examples[:1]}
    if call["positive"] == "lists":
        call |= {"positive": examples[:1], "negative": examples[1:]}
    with pytest.raises(GatelensError) as error:
        gl.direction(tiny_chameleon, call.pop("data"), **call)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"direction": torch.ones(32)}, ["gl.direction"]),
        ({"scales": []}, ["scales"]),
        ({"scales": [float("nan")]}, ["scales"]),
        ({"scales": 2.0}, ["scales"]),
        ({"n_random": -1}, ["n_random"]),
        ({"layers": [0]}, ["layer 0"]),
        ({"metric": 3}, ["metric"]),
    ],
)
def test_what_gives_no_dose_curve_is_one_line(
    tiny_chameleon: Any, examples: list[Example], change: dict[str, Any], words: list[str]
) -> None:
    vector = gl.direction(tiny_chameleon, examples, positive="cat", negative="dog", at="last", layers=LAYERS)
    call: dict[str, Any] = {
        "direction": vector,
        "data": examples,
        "scales": [1.0],
        "metric": gl.metrics.logit(3),
    }
    with pytest.raises(GatelensError) as error:
        gl.dose_curve(tiny_chameleon, **(call | change))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
