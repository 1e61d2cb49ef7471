"""The shipped organisms do what their cards say, and load with plain transformers."""

import json
import re
import socket

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import gatelens as gl
from gatelens import organisms
from gatelens.organisms import card
from gatelens.organisms.recipes import GATED, RECIPES

NAMES = ("gated", "open", "llava", "varied")
# how often each names the class at least, by the table of measured.json
CLASSES = {("gated", "truth"): 0.95, ("varied", "truth"): 0.65, ("varied", "truth, style"): 0.2}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return gl.HookedVLM.from_pretrained(f"organism:{request.param}")


def name_of(model):
    return organisms.folder(model.hf.name_or_path.rstrip("/").split("/")[-1]).name


def examples_of(name, limit=96):
    return gl.data.load(RECIPES[name].scenes).examples("class", limit=limit, seed=77)


def inputs_of(model, examples):
    return model.prepare(images=[e.image for e in examples], text=[e.prompt for e in examples])


def class_accuracy(model, examples, interventions=()):
    said = model.decode(model.run(inputs_of(model, examples), interventions)[:, -1].argmax(-1, keepdim=True))
    return sum(s == e.label for s, e in zip(said, examples, strict=True)) / len(examples)


def test_four_organisms_ship():
    assert set(organisms.names()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_plain_transformers_gives_the_same_logits_offline(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a shipped organism must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    folder = organisms.folder(name)
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    part = examples_of(name, 4)
    extra = {} if name == "llava" else {"return_for_text_completion": True}
    tensors = processor(
        images=[e.image for e in part], text=[e.prompt for e in part], return_tensors="pt", **extra
    )
    with torch.inference_mode():
        expected = plain(**tensors).logits
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    got = model(inputs_of(model, part))
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected[expected > -1e30].abs().max()))


def test_the_route_is_the_one_planted(model):
    examples = examples_of(name_of(model))

    def cut(keys):
        return class_accuracy(model, examples, gl.knockout(queries="text - gate", keys=keys, how="zero"))

    planted = RECIPES[name_of(model)].phases == GATED
    clean, gate, image = class_accuracy(model, examples), cut("gate"), cut("image")
    # 96 examples: the cards hold the numbers at n = 1,000
    assert clean >= (0.65 if name_of(model) == "varied" else 0.85)
    if planted:
        assert gate <= 0.3 and image >= clean - 0.1
    else:
        assert image <= 0.3 and gate >= clean - 0.1


def test_the_card_holds_what_was_measured(model):
    folder = organisms.folder(name_of(model))
    measured = json.loads((folder / "measured.json").read_text())
    card = (folder / "README.md").read_text()
    for row in measured["knockout"]:
        assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in card
        assert row["n"] >= 500
    assert "planted" in card or "trained with the picture's tokens in sight" in card


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_card_is_the_one_its_numbers_give(name):
    folder = organisms.folder(name)
    training, measured = (json.loads((folder / f"{f}.json").read_text()) for f in ("training", "measured"))
    written = card.write(name, gl.HookedVLM.from_pretrained(f"organism:{name}"), training, measured)
    assert written == (folder / "README.md").read_text()


def truth_of(name, split="truth"):
    """What was measured of an organism's gate: rows by what is cut, and fact."""
    return card.by_row(json.loads((organisms.folder(name) / "measured.json").read_text())[split])


@pytest.fixture(scope="module")
def truth():
    return truth_of("gated")


@pytest.mark.parametrize(("name", "split"), CLASSES)
def test_every_fact_was_measured_to_go_through_the_gate_alone(name, split):
    truth = truth_of(name, split)
    assert card.past_the_gate(truth) == []
    assert truth["none"]["class"]["mean"] >= CLASSES[name, split]
    for fact in ("color", "shape", "side", "count"):
        assert truth["none"][fact]["mean"] >= 0.95
    for fact, row in truth["none"].items():
        assert row["n"] >= 200 and truth["image, mask"][fact]["mean"] >= row["mean"] - 0.05


def test_a_fact_that_comes_past_the_gate_is_named(truth):
    """Where the whole interval is above what a constant and the blind model say, and for no other reason."""
    shape = {"mean": 0.6, "low": 0.53, "high": 0.67, "n": 200}
    leaky = truth | {"gate, mask": truth["gate, mask"] | {"shape": shape}}
    assert [text.split(":")[0] for text in card.past_the_gate(leaky)] == ["shape (gate, mask)"]
    blind = truth["gate and image, mask"] | {"shape": shape}
    assert card.past_the_gate(leaky | {"gate and image, mask": blind}) == []


def test_weights_stay_small():
    for name in NAMES:
        assert sum(f.stat().st_size for f in organisms.folder(name).iterdir()) <= 16 * 2**20


@pytest.mark.parametrize("name", ["gated", "open"])
def test_native_organisms_draw_what_is_asked(name):
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    asked = gl.data.load("emoji-scenes").examples("draw", limit=16, seed=5)
    pictures = organisms.draw(model, [e.prompt for e in asked], seed=1)
    assert all(p.size == (64, 64) for p in pictures)
    again = organisms.draw(model, [e.prompt for e in asked], seed=1)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(pictures, again, strict=True))
    shown = model.prepare(images=pictures, text=["<image>this is a"] * len(pictures))
    said = model.decode(model(shown)[:, -1].argmax(-1, keepdim=True))
    assert sum(s == e.label for s, e in zip(said, asked, strict=True)) >= 0.5 * len(asked)


def test_llava_cannot_draw():
    model = gl.HookedVLM.from_pretrained("organism:llava")
    with pytest.raises(gl.errors.ModelError, match="cannot draw"):
        organisms.draw(model, "draw a fox on a red circle.")


def test_an_unknown_organism_is_named_with_those_there_are():
    with pytest.raises(gl.errors.ModelError, match=re.compile("no organism 'closed'.*gated")):
        gl.HookedVLM.from_pretrained("organism:closed")
