"""What is measured of an organism's gate, against its parts called one by one."""

import pytest

import gatelens as gl
from gatelens.organisms.truth import truth

N = 12


@pytest.fixture(scope="module")
def model():
    return gl.HookedVLM.from_pretrained("organism:gated")


@pytest.fixture(scope="module")
def table(model):
    scenes = gl.data.load("emoji-scenes")
    return truth(model, scenes, N, seed=3, facts=["class"], by_layer=True).set_index(["row", "answer"])


def test_a_share_is_that_of_the_words_said_under_the_cut(model, table):
    pairs = gl.pairs("emoji-scenes", differ="class", n=N, seed=3)
    shown = [p.clean if i % 2 == 0 else p.corrupt for i, p in enumerate(pairs)]
    inputs = model.prepare(images=[e.image for e in shown], text=[e.prompt for e in shown])
    for row, cut in {
        "none": [],
        "gate, zero": [gl.knockout("text - gate", "gate", how="zero")],
        "image, mask": [gl.knockout("text - gate", "image", how="mask")],
        "gate and image, mask from layer 2 on": [
            gl.knockout("text - gate", "gate | image", layers=[2, 3, 4, 5])
        ],
    }.items():
        said = model.decode(model.run(inputs, cut)[:, -1].argmax(-1, keepdim=True).tolist())
        right = sum(word.strip() == e.label for word, e in zip(said, shown, strict=True))
        assert table.loc[(row, "own"), "mean"] == pytest.approx(right / N)


def test_what_is_resampled_answers_for_the_picture_it_comes_from(table):
    """The class goes through the gate: another's gate gives another's class, another's picture changes nothing."""
    assert table.loc[("gate, resample", "other"), "mean"] >= 0.7
    assert table.loc[("gate, resample", "own"), "mean"] == 0.0
    assert table.loc[("image, resample", "own"), "mean"] >= 0.7
    assert table.loc[("constant", "own"), "mean"] <= 0.5
    assert (table.low <= table["mean"]).all() and (table["mean"] <= table.high).all() and (table.n == N).all()


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_no_colour_comes_past_the_gate(model, how):
    """The colours of the same scenes, of which one in five is right by chance."""
    pairs = gl.pairs("emoji-scenes", differ="color", n=24, seed=5)
    shown = [side for p in pairs for side in (p.clean, p.corrupt)]
    inputs = model.prepare(images=[e.image for e in shown], text=[e.prompt for e in shown])
    right = []
    for cut in ([], [gl.knockout("text - gate", "gate", how=how)]):
        said = model.decode(model.run(inputs, cut)[:, -1].argmax(-1, keepdim=True).tolist())
        right.append(
            sum(word.strip() == e.answers[0] for word, e in zip(said, shown, strict=True)) / len(shown)
        )
    assert right[0] >= 0.9 and right[1] <= 0.45
