"""Patching maps: every cell equal to plain transformers with torch hooks; the organisms' known routes; bad calls."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
from case import cases
from torch import Tensor

import gatelens as gl
from attack.compositions import Subject, subject
from attack.oracle import Change, Oracle
from gatelens.data import Example, Pair
from gatelens.errors import GatelensError, InputError
from gatelens.interventions.patching import PATCH_SITES
from gatelens.measures.stats import SHARE, mean_interval, wilson_interval
from gatelens.tokens import Role
from tiny_models import make_llava, make_llava_processor, make_picture, randomize

CASES = cases()
TOLERANCE = 2e-4


def measured(logits: Tensor) -> Tensor:
    return (logits[:, -1, -4:] ** 2).sum(-1)  # of words that every vocabulary ends with


def pair_of(case: Any, text: str | None = None, other: str | None = None) -> Pair:
    """Two pictures of one size, and perhaps two texts."""
    text = text or case.texts[0]
    sides = [
        Example(case.picture(0, seed), words, ("dog",), "class", str(seed))
        for seed, words in ((1, text), (2, other or text))
    ]
    return Pair(*sides, differ="picture", target="dog", base="cat")


class ByHand:
    """The two prompts of a pair as plain transformers run them."""

    def __init__(
        self, model: Any, oracle: Oracle, pair: Pair, source: tuple[Any, Oracle] | None = None
    ) -> None:
        self.oracle = oracle
        self.base = model.prepare([pair.corrupt.image], [pair.corrupt.prompt])
        there, its_oracle = source or (model, oracle)
        self.given = there.prepare([pair.clean.image], [pair.clean.prompt])
        _, self.seen = its_oracle.run(self.given.tensors)

    def patched(self, site: str, layers: Any, here: list[int], there: list[int], **how: Any) -> float:
        """The metric of the corrupt run with activations of the clean one, layer by layer or from ``read``."""
        at = torch.zeros(self.base.shape, dtype=torch.bool)
        at[0, here] = True

        def new(old: Tensor, layer: int, whole: Tensor) -> Tensor:
            return self.seen.sites[site, how.get("read", layer)][0, there]

        change = Change(site, at, tuple(layers), how.get("heads"), new)
        return float(measured(self.oracle.run(self.base.tensors, [change])[0]))


def cells(found: gl.EffectMap) -> list[dict[str, Any]]:
    return found.table.to_dict("records")


@pytest.fixture(params=sorted(CASES))
def family(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param)


def test_layers_and_positions_equal_plain_hooks(family: Subject) -> None:
    pair = pair_of(CASES[family.name])
    hand = ByHand(family.built.model, family.oracle, pair)
    found = gl.patch_map(
        family.built.model, pair, measured, at="gate | last | random_image:2 | system", progress=False
    )
    positions = sorted(found.axes["position"]["position"])
    assert hand.base.tokens.positions("gate | last | random_image:2 | system") == positions
    for cell in cells(found):
        at = [int(cell["position"])]
        assert cell["patched"] == pytest.approx(
            hand.patched("resid_pre", [cell["layer"]], at, at), abs=TOLERANCE
        )
        way = (cell["patched"] - cell["corrupt"]) / (cell["clean"] - cell["corrupt"])
        assert cell["value"] == pytest.approx(way, abs=1e-4)
    ends = [float(measured(family.oracle.run(one.tensors)[0])) for one in (hand.given, hand.base)]
    assert [cells(found)[0][name] for name in ("clean", "corrupt")] == pytest.approx(ends, abs=TOLERANCE)


def test_every_site_and_head_equals_plain_hooks(family: Subject) -> None:
    model, pair = family.built.model, pair_of(CASES[family.name])
    hand = ByHand(model, family.oracle, pair)
    image, last = hand.base.tokens.positions("image"), hand.base.tokens.positions("last")
    places = {"image": image, "last": last}
    at = {name: name for name in places}
    found = gl.patch_map(
        model, pair, measured, ("site", "role"), site=PATCH_SITES, layers=[1], at=at, progress=False
    )
    assert len(cells(found)) == 2 * len(PATCH_SITES)
    for cell in cells(found):
        at_role = places[cell["role"]]
        assert cell["patched"] == pytest.approx(
            hand.patched(cell["site"], [1], at_role, at_role), abs=TOLERANCE
        ), cell
    few: list[Any] = [3, range(4, 9), [0, 1]]
    units = gl.patch_map(model, pair, measured, "neuron", layers=[2], at="all", neurons=few, progress=False)
    every = hand.base.tokens.positions("all")
    for cell, numbers in zip(cells(units), ([3], few[1], few[2]), strict=True):
        assert (cell["neuron"], cell["last_neuron"]) == (numbers[0], numbers[-1])
        by_hand = hand.patched("neuron", [2], every, every, heads=tuple(numbers))
        assert cell["patched"] == pytest.approx(by_hand, abs=TOLERANCE), cell
    for site in ("z", "k", "pattern"):
        heads = gl.patch_map(model, pair, measured, "head", site=site, layers=[2], at="all", progress=False)
        everywhere = hand.base.tokens.positions("all")
        for cell in cells(heads):
            by_hand = hand.patched(site, [2], everywhere, everywhere, heads=(cell["head"],))
            assert cell["patched"] == pytest.approx(by_hand, abs=TOLERANCE), (site, cell)


def test_prompts_of_different_length_pair_by_what_they_are(family: Subject) -> None:
    """The words that both prompts end with pair, also where one has another word before them."""
    case, model = CASES[family.name], family.built.model
    pair = pair_of(case, case.texts[0], "this <image> the animal is a")
    hand = ByHand(model, family.oracle, pair)
    shift = hand.base.tokens.n_pos - hand.given.tokens.n_pos
    assert shift == 1
    roles = hand.base.tokens.roles[0]
    first = int((roles == Role.QUERY).nonzero()[0])
    extra = int(
        (torch.tensor([word.strip("▁Ġ") == "the" for word in hand.base.tokens.strings[0]])).nonzero()[0]
    )
    assert extra >= first
    found = gl.patch_map(model, pair, measured, layers=[1, 2], at="gate | text | first_image", progress=False)
    seen = set()
    for cell in cells(found):
        p = int(cell["position"])
        q = p - shift if p > extra else p
        assert hand.base.tokens.strings[0][p] == hand.given.tokens.strings[0][q] or p < first
        assert cell["patched"] == pytest.approx(
            hand.patched("resid_pre", [cell["layer"]], [p], [q]), abs=TOLERANCE
        )
        seen.add(p)
    assert extra not in seen and hand.base.tokens.n_pos - 1 in seen
    with pytest.raises(GatelensError, match="take prompts of one length"):
        gl.patch_map(model, pair, measured, "layer", site="pattern", at="last", progress=False)


TEXT_FAMILIES = ("chameleon", "chameleon-34b", "gemma3", "llava", "qwen2-vl")


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_from_one_model_into_another(name: str) -> None:
    here, pair = subject(name), pair_of(CASES[name])
    plain = copy.deepcopy(here.built.plain)
    for weight in plain.parameters():
        weight.data *= 0.9
    other, its_oracle = here.built.wrap(plain), Oracle(plain)
    hand = ByHand(here.built.model, here.oracle, pair, (other, its_oracle))
    found = gl.patch_map(
        here.built.model, pair, measured, ("layer", "role"), source=other, at={"last": "last"}, progress=False
    )
    last = hand.base.tokens.positions("last")
    own = ByHand(here.built.model, here.oracle, pair)
    for cell in cells(found):
        by_hand = hand.patched("resid_pre", [cell["layer"]], last, last)
        assert cell["patched"] == pytest.approx(by_hand, abs=TOLERANCE)
        if cell["layer"]:
            assert abs(by_hand - own.patched("resid_pre", [cell["layer"]], last, last)) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ["chameleon-34b", "gemma3", "paligemma"])
def test_windows_and_other_layers(name: str) -> None:
    here, pair = subject(name), pair_of(CASES[name])
    model, hand = here.built.model, ByHand(here.built.model, here.oracle, pair)
    last = hand.base.tokens.positions("last")
    windows = gl.patch_map(
        model, pair, measured, "layer", site="attn_out", at="last", window=2, progress=False
    )
    assert windows.axes["layer"][["layer", "last_layer"]].values.tolist() == [
        [i, i + 1] for i in range(int(model.cfg.n_layers) - 1)
    ]
    for cell in cells(windows):
        layers = range(cell["layer"], cell["layer"] + 2)
        assert cell["patched"] == pytest.approx(hand.patched("attn_out", layers, last, last), abs=TOLERANCE)
    every = gl.patch_map(model, pair, measured, ("source_layer", "layer"), at="last", progress=False)
    one = gl.patch_map(model, pair, measured, ("layer",), at="last", source_layer=1, progress=False)
    for cell in cells(every):
        by_hand = hand.patched("resid_pre", [cell["layer"]], last, last, read=cell["source_layer"])
        assert cell["patched"] == pytest.approx(by_hand, abs=TOLERANCE)
    torch.testing.assert_close(one.tensor, every.sel(source_layer=1).tensor[:, 0])


def test_noising_is_denoising_of_the_pair_the_other_way_round(tiny: Any) -> None:
    case = CASES[tiny.family.name]
    pair = pair_of(case)
    back = Pair(pair.corrupt, pair.clean, "picture", "cat", "dog")
    noising = gl.patch_map(tiny, pair, measured, direction="noising", at="text", progress=False)
    other = gl.patch_map(tiny, back, measured, at="text", progress=False)
    torch.testing.assert_close(noising.tensor, other.tensor)
    assert "destroyed" in noising.quantity and (noising.columns["clean"] == other.columns["corrupt"]).all()


METRICS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "logit": lambda row, clean, t, b: row[t],
    "logit_diff": lambda row, clean, t, b: row[t] - row[b],
    "prob": lambda row, clean, t, b: row.softmax(0)[t],
    "log_prob": lambda row, clean, t, b: row.log_softmax(0)[t],
    "kl": lambda row, clean, t, b: (clean.softmax(0) * (clean.log_softmax(0) - row.log_softmax(0))).nansum(),
    "similarity": lambda row, clean, t, b: torch.minimum(clean.softmax(0), row.softmax(0)).sum(),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_by_their_formulas(tiny: Any, name: str) -> None:
    pair = pair_of(CASES[tiny.family.name])
    found = gl.patch_map(tiny, pair, name, "layer", at="last", progress=False)
    target, base = (tiny.to_single_token(word) for word in ("dog", "cat"))
    clean, corrupt = (tiny.prepare([e.image], [e.prompt]) for e in (pair.clean, pair.corrupt))
    reference, cache = tiny.run_with_cache(clean)
    rows = [reference[0, -1], tiny(corrupt)[0, -1]]
    rows += [tiny.run(corrupt, gl.patch(cache, "last", layers=[n]))[0, -1] for n in range(3)]
    want = [float(METRICS[name](row, reference[0, -1], target, base)) for row in rows]
    first = cells(found)[0]
    assert [first["clean"], first["corrupt"]] == pytest.approx(want[:2], abs=1e-5)
    assert [cell["patched"] for cell in cells(found)] == pytest.approx(want[2:], abs=1e-5)
    with_pair = gl.patch_map(
        tiny,
        pair,
        lambda logits, pair: logits[:, -1, tiny.to_single_token(pair.target)],
        "layer",
        at="last",
        progress=False,
    )
    if name == "logit":
        torch.testing.assert_close(with_pair.tensor, found.tensor)


def test_noise_on_the_embeddings(tiny: Any) -> None:
    """The corrupt run has the clean picture's embeddings and noise of the stated size; what is not image stays."""
    example = Example(make_picture(), "this <image> animal is a", ("dog",), "class", "0")
    (pair,) = gl.pairs([example], "noise", multiple=2)
    inputs = tiny.prepare([example.image], [example.prompt])
    name, image = "blocks.0.hook_resid_pre", inputs.tokens.mask("image")
    _, clean = tiny.run_with_cache(inputs, name)
    spec = gl.readouts.prompt_pairs.noise(2.0, [crc32(b"0")])
    _, noisy = tiny.run_with_cache(inputs, name, fwd_hooks=spec.hooks(inputs.tokens, tiny.cfg))
    added = noisy[name] - clean[name]
    assert not added[~image].any()
    assert float(added[image].std() / clean[name][image].std()) == pytest.approx(2.0, rel=0.15)
    found = gl.patch_map(tiny, pair, measured, ("layer", "role"), progress=False)
    assert found.columns["clean"].flat[0] == pytest.approx(float(measured(tiny(inputs))), abs=1e-4)
    assert found.columns["corrupt"].flat[0] == pytest.approx(
        float(measured(tiny.run(inputs, spec))), abs=1e-4
    )
    restored = found.sel(layer=0, role="image").tensor
    torch.testing.assert_close(restored, torch.ones_like(restored), atol=1e-4, rtol=0)  # the whole picture
    cache = tiny.run_with_cache(inputs)[1]
    by_hand = tiny.run(inputs, [spec, gl.patch(cache, "query", layers=[1])])
    second = dataclasses.replace(pair, clean=dataclasses.replace(example, id="1"))
    both = gl.patch_map(tiny, [second, pair], measured, "layer", at="query", layers=[1], progress=False)
    here = found.sel(layer=1, role="query")
    torch.testing.assert_close(both.tensor[1], here.tensor[0, :, 0])  # the same noise in any list
    assert both.columns["corrupt"][0, 0] != both.columns["corrupt"][1, 0]
    assert here.columns["patched"].flat[0] == pytest.approx(float(measured(by_hand)), abs=1e-4)


def pairs_of_many(model: Any, n: int) -> list[Pair]:
    case = CASES[model.family.name]
    sides = [Example(case.picture(0, i), case.texts[0], ("dog",), "class", str(i)) for i in range(2 * n)]
    return [Pair(a, b, "picture", "dog", "cat") for a, b in zip(sides[::2], sides[1::2], strict=True)]


def test_the_mean_over_pairs_and_its_intervals(tiny: Any) -> None:
    found = gl.patch_map(tiny, pairs_of_many(tiny, 3), measured, ("layer", "role"), progress=False)
    assert found.dims == ("pair", "layer", "role") and len(found.table) == found.tensor.numel()
    mean = found.mean()
    torch.testing.assert_close(mean.tensor, found.tensor.mean(0))
    low, high = mean_interval(found.tensor[:, 1, 2].numpy(), None)
    assert (mean.columns["low"][1, 2], mean.columns["high"][1, 2]) == (low, high)
    assert (mean.columns["n"] == 3).all()
    single = gl.patch_map(tiny, pairs_of_many(tiny, 3)[1:2], measured, ("layer", "role"), progress=False)
    torch.testing.assert_close(single.tensor[0], found.sel(pair=1).tensor[0])


def test_answers_that_turn_or_do_not_have_wilsons_interval() -> None:
    tokens = subject("llava").built.inputs("one").tokens
    axes = {"pair": pd.DataFrame({"pair": range(5)}), "layer": pd.DataFrame({"layer": [0]})}
    effects = torch.tensor([[1.0], [1.0], [0.0], [1.0], [1.0]])
    mean = gl.EffectMap(
        effects, axes, "effect", tokens, columns={"patched": effects.numpy()}, bounds=SHARE
    ).mean()
    assert (mean.columns["low"][0], mean.columns["high"][0]) == wilson_interval(4, 5)


def test_pairs_of_different_prompts_share_the_axis_of_positions(tiny: Any) -> None:
    """A place that only some prompts have counts these alone; words that differ are not label."""
    case = CASES[tiny.family.name]
    short, long = pair_of(case), pair_of(case, "this <image> the animal is a", "this <image> the animal is a")
    other = pair_of(case, "this <image> dog is a", "this <image> dog is a")
    found = gl.patch_map(tiny, [long, short, other], measured, layers=[1], progress=False)
    words = [word.strip() for word in found.axes["position"]["token"]]
    assert "…" not in words[-2:] and words[-2:] == ["is", "a"]
    lone = gl.patch_map(tiny, short, measured, layers=[1], progress=False)
    torch.testing.assert_close(found.tensor[1, 0, -1], lone.tensor[0, 0, -1])
    the = words.index("the") if "the" in words else words.index("…")
    assert found.mean().columns["n"][0, the] < 3 and found.mean().columns["n"][0, -1] == 3


def test_pictures(tiny: Any) -> None:
    many = pairs_of_many(tiny, 2)
    found = gl.patch_map(tiny, many, measured, progress=False)
    figure = found.show()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert {"picture", "layer 0", "layer 1", "layer 2"} <= set(titles)
    drawn = np.asarray(figure.axes[0].get_images()[0].get_array())
    mean = np.stack([np.asarray(pair.clean.image) for pair in many]).mean(0).round()
    assert np.array_equal(drawn, mean)
    assert isinstance(found.sel(layer=1), gl.EffectMap)
    for one in (figure, found.mean().show()):
        assert "mean of 2 pairs" in one._suptitle.get_text()  # type: ignore[attr-defined]
    own = np.asarray(found.sel(pair=0).show().axes[0].get_images()[0].get_array())
    assert own.shape == drawn.shape
    bars = gl.patch_map(tiny, many, measured, "role", progress=False).show(dark=True)
    names = [label.get_text() for label in bars.axes[0].get_yticklabels()]
    assert {"image", "query"} <= set(names) and len(bars.axes[0].collections[0].get_segments()) == len(names)
    heads = gl.patch_map(tiny, many[0], measured, ("layer", "head"), progress=False)
    assert heads.show()._repr_png_() and "most" in repr(heads)


def other_grid() -> Pair:
    case = CASES["pixtral"]
    a, b = (Example(case.picture(i), case.texts[0], ("dog",), "class", str(i)) for i in (0, 1))
    return Pair(a, b, "picture", "dog", "cat")


def test_pairs_of_different_grids_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"pair 0 \(.*\): picture 0 has \d+ tokens .* give pictures of one size"
    ):
        gl.patch_map(subject("pixtral").built.model, other_grid(), measured, progress=False)


def no_pairs(m: Any, p: Pair) -> Any:
    return gl.patch_map(m, p, metric=lambda logits: logits[:, -1], progress=False)


CALLS: dict[str, tuple[Callable[[Any, Pair], Any], str]] = {
    "no pairs": (lambda m, p: gl.patch_map(m, 3, measured), "pairs=3: give pairs"),
    "no model": (lambda m, p: gl.patch_map("gated", p), "model is 'gated': give a model"),
    "no source": (lambda m, p: gl.patch_map(m, p, source="gated"), "source is 'gated': give a model"),
    "none": (lambda m, p: gl.patch_map(m, [], measured), r"pairs=\[\]: give pairs"),
    "a metric": (lambda m, p: gl.patch_map(m, p, "loss"), "metric='loss': write one of logit_diff"),
    "a near metric": (lambda m, p: gl.patch_map(m, p, "logit-diff"), "did you mean 'logit_diff'"),
    "a number": (lambda m, p: gl.patch_map(m, p, 3), "metric=3: write one of"),
    "no number": (no_pairs, r"the metric gave \(1, 44\), expected \(1,\): one number per example"),
    "of three": (lambda m, p: gl.patch_map(m, p, lambda a, b, c: a), r"is not a function of \(logits\)"),
    "of a second": (lambda m, p: gl.patch_map(m, p, lambda a, b: a), "call its second argument pair"),
    "NaN": (
        lambda m, p: gl.patch_map(m, p, lambda logits: measured(logits) * float("nan")),
        "the metric gave nan for pair 0",
    ),
    "a direction": (
        lambda m, p: gl.patch_map(m, p, measured, direction="up"),
        "direction='up': write 'denoising'",
    ),
    "an axis": (
        lambda m, p: gl.patch_map(m, p, measured, ("layers",)),
        "'layers' is not an axis.*did you mean 'layer'",
    ),
    "neurons": (
        lambda m, p: gl.patch_map(m, p, measured, "neuron", site="z"),
        "neurons go with site='neuron', which has no heads",
    ),
    "a neuron": (
        lambda m, p: gl.patch_map(m, p, measured, "neuron", neurons=[48]),
        "neuron 48 does not exist",
    ),
    "neurons with gaps": (
        lambda m, p: gl.patch_map(m, p, measured, "neuron", neurons=[[1, 3]]),
        r"neurons=\[\[1, 3\]\]: a cell is one neuron, or a range without gaps",
    ),
    "heads of neurons": (
        lambda m, p: gl.patch_map(m, p, measured, "head", site="neuron"),
        "site 'neuron' has no heads",
    ),
    "no axis": (lambda m, p: gl.patch_map(m, p, measured, ()), r"over=\(\): name axes"),
    "an axis twice": (lambda m, p: gl.patch_map(m, p, measured, ("pos", "position")), "name axes, each once"),
    "a site": (
        lambda m, p: gl.patch_map(m, p, measured, site="resid"),
        "site='resid' is unknown; the sites are",
    ),
    "two sites": (lambda m, p: gl.patch_map(m, p, measured, site=["z", "q"]), "with 'site' in over"),
    "a site without heads": (
        lambda m, p: gl.patch_map(m, p, measured, "head", site="mlp_out"),
        "site 'mlp_out' has no heads",
    ),
    "heads of two kinds": (
        lambda m, p: gl.patch_map(m, p, measured, ("site", "head"), site=["q", "k"]),
        r"different numbers of heads \(q 4, k 2\)",
    ),
    "a layer": (
        lambda m, p: gl.patch_map(m, p, measured, layers=[7]),
        "layer 7 does not exist, the model has 3 layers",
    ),
    "a head": (lambda m, p: gl.patch_map(m, p, measured, "head", heads=[4]), "head 4 does not exist"),
    "a source layer": (lambda m, p: gl.patch_map(m, p, measured, source_layer=3), "layer 3 does not exist"),
    "source layers": (
        lambda m, p: gl.patch_map(m, p, measured, source_layer=[0, 1]),
        "put 'source_layer' in over",
    ),
    "a wide window": (
        lambda m, p: gl.patch_map(m, p, measured, window=4),
        "window=4 is wider than the 3 layers",
    ),
    "a window of none": (
        lambda m, p: gl.patch_map(m, p, measured, window=0),
        "window=0: give a whole number",
    ),
    "no layers": (lambda m, p: gl.patch_map(m, p, measured, "pos", window=2), "put 'layer' in over"),
    "both": (lambda m, p: gl.patch_map(m, p, measured, window=2, source_layer=0), "do not go together"),
    "groups": (lambda m, p: gl.patch_map(m, p, measured, at={"a": "image"}), "put 'role' in over"),
    "nowhere": (lambda m, p: gl.patch_map(m, p, measured, at="generated"), "at= selects no position"),
    "an unknown selector": (lambda m, p: gl.patch_map(m, p, measured, at="imag"), "did you mean 'image'"),
    "one picture": (
        lambda m, p: gl.patch_map(m, Pair(p.clean, p.clean, "nothing", "dog", "cat"), measured),
        r"the measured of pair 0 .* there is nothing to restore; .*pairs.without\(0\)",
    ),
    "one answer": (
        lambda m, p: gl.patch_map(m, Pair(p.clean, p.corrupt, "picture", "dog")),
        "has no answer for its corrupt picture, so there is no logit difference: say metric='prob'",
    ),
    "the same answer": (
        lambda m, p: gl.patch_map(m, Pair(p.clean, p.corrupt, "picture", "dog", "dog")),
        "'dog' and 'dog' begin with one token",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls(tiny_llava: Any, name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(GatelensError, match=message) as raised:
        call(tiny_llava, pair_of(CASES["llava"]))
    assert "\n" not in str(raised.value)


def test_a_layer_of_a_smaller_model(tiny_llava: Any) -> None:
    small = smaller_llava()
    pair = pair_of(CASES["llava"])
    with pytest.raises(
        InputError, match=r"layer 2 is not in HookedVLM\(llava, 2 layers.*give layers=range\(2\)"
    ):
        gl.patch_map(tiny_llava, pair, measured, source=small, at="last", progress=False)
    found = gl.patch_map(
        tiny_llava, pair, measured, "layer", source=small, layers=[0, 1], at="last", progress=False
    )
    assert found.tensor.shape == (1, 2)


def smaller_llava() -> Any:
    plain = make_llava()
    plain.model.language_model.layers = plain.model.language_model.layers[:2]
    plain.config.text_config.num_hidden_layers = 2
    return gl.HookedVLM.from_module(randomize(plain, 5), make_llava_processor())


@pytest.fixture(scope="module")
def gated() -> Any:
    return gl.HookedVLM.from_pretrained("organism:gated")


@pytest.mark.organism
def test_the_top_answer_is_a_proportion(gated: Any) -> None:
    pairs = gl.pairs("emoji-scenes", n=4)
    found = gl.patch_map(gated, pairs, "top1", over=("layer",), at="gate", layers=[0, 1], progress=False)
    assert set(found.tensor.flatten().tolist()) <= {0.0, 1.0}
    low, high = (found.mean().columns[end].tolist() for end in ("low", "high"))
    turned = found.tensor.sum(0).int().tolist()
    assert list(zip(low, high, strict=True)) == [wilson_interval(n, 4) for n in turned]


def test_pairs_of_other_sizes_share_roles_but_no_positions() -> None:
    """Each pair has its own grid: roles and layers are the same things in both, places in a picture are not."""
    case, model = CASES["pixtral"], subject("pixtral").built.model
    wide = Pair(
        *(Example(case.picture(1, seed), case.texts[0], ("dog",), "class", str(seed)) for seed in (1, 2)),
        differ="picture",
        target="dog",
        base="cat",
    )
    pairs = [pair_of(case), wide]
    found = gl.patch_map(model, pairs, measured, ("layer", "role"), progress=False)
    for i, pair in enumerate(pairs):
        alone = gl.patch_map(model, pair, measured, ("layer", "role"), progress=False)
        torch.testing.assert_close(found.tensor[i], alone.tensor[0])
        assert alone.axes["role"].equals(found.axes["role"])
    with pytest.raises(
        InputError, match=r"pair 1 .*and pair 0: picture 0 has .*or write 'role' for 'pos' in over"
    ):
        gl.patch_map(model, pairs, measured, progress=False)
