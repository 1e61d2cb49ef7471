"""Steering directions against a closed form, plain hidden states and plain torch hooks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gatelens.errors import DataError
from gatelens.examples import Labels, prepare
from gatelens.model import HookedVLM
from gatelens.studies.narrow_gate.class_pairs import by_class
from gatelens.studies.narrow_gate.steering.directions import (
    MEANS,
    OTHER,
    RANDOM,
    REFERENCE,
    Item,
    Pushes,
    answers,
    chosen_layer,
    directions_at,
    fit,
    gate_means,
    halves,
    layer_scores,
    push,
    random_like,
)
from study_helpers import TinyData
from tiny_models import make_llava_processor

DATA = TinyData(n=24)
PAIRS = [("dog", "cat"), ("red", "blue")]


def plain_states(hf: Any, model: HookedVLM, examples: Any) -> torch.Tensor:
    """Float[layer, example, pos, d_model]: the residual stream entering each layer, by plain transformers."""
    with torch.no_grad():
        found = hf(**prepare(model, examples).tensors, output_hidden_states=True).hidden_states
    return torch.stack(found[:-1])


def test_halves_share_no_picture() -> None:
    examples = DATA.examples("class")
    split = halves(examples, 0)
    assert sorted(split) == ["blue", "cat", "dog", "red"]
    for name, (fitting, steered) in split.items():
        ids = [[e.id for e in half] for half in (fitting, steered)]
        assert len(ids[0]) == len(ids[1]) == 3 and not set(ids[0]) & set(ids[1])
        assert {e.label for e in (*fitting, *steered)} == {name}
    assert [e.id for e in halves(examples, 1)["dog"][0]] != [e.id for e in split["dog"][0]]
    assert halves(examples[:12], 0) == {}  # three pictures of each are too few
    with pytest.raises(DataError, match=r"'(dog|cat)' has 3 picture\(s\)"):
        halves(examples[:12], 0, "dog-cat")


def test_means_against_plain_hidden_states(tiny: HookedVLM, oracle: Any) -> None:
    examples = DATA.examples("class")[:7]
    tokens = prepare(tiny, examples).tokens
    states = plain_states(oracle, tiny, examples)
    for size in (3, 7):
        means = gate_means(tiny, examples, [0, 2], size)
        for place in ("gate", "last"):
            wanted = states[:, tokens.mask(place)].mean(1)[[0, 2]]
            torch.testing.assert_close(means[place], wanted, atol=1e-5, rtol=1e-4)


def test_direction_in_closed_form(hf_llava: Any) -> None:
    """A first layer whose attention is even and whose MLP writes nothing adds W_o W_v times the mean of its normed
    inputs to the gate, so the direction is that map of the difference of the classes' mean inputs."""
    hf = copy.deepcopy(hf_llava)
    first = hf.model.language_model.layers[0]
    first.self_attn.q_proj.weight.data.zero_()
    first.mlp.down_proj.weight.data.zero_()
    model = HookedVLM.from_module(copy.deepcopy(hf), make_llava_processor())
    split = {name: (mine, mine) for name, mine in by_class(DATA.examples("class")).items()}
    fitted = fit(model, PAIRS, split, [0, 1], 5, Labels(model))
    gate = int(prepare(model, split["dog"][0][:1]).tokens.positions("gate")[0])
    mean = {}
    for name, (mine, _) in split.items():
        x = plain_states(hf, model, mine)[0][:, : gate + 1]
        normed = x * (x.square().mean(-1, keepdim=True) + hf.config.text_config.rms_norm_eps).rsqrt()
        mean[name] = (normed * first.input_layernorm.weight).mean((0, 1))
    values = first.self_attn.v_proj.weight.view(2, 8, 32).repeat_interleave(2, 0)  # 4 heads share 2 values
    through = first.self_attn.o_proj.weight @ values.reshape(32, 32)
    for base, target in PAIRS:
        wanted = through @ (mean[target] - mean[base])
        assert wanted.norm() > 0.05
        torch.testing.assert_close(directions_at(fitted, 1)[base, target], wanted, atol=1e-5, rtol=1e-4)
        # the gate enters the first layer as the same word whatever the picture
        assert directions_at(fitted, 0)[base, target].norm() < 1e-6


def test_push_against_a_plain_torch_hook(tiny: HookedVLM, oracle: Any) -> None:
    examples = DATA.examples("class")[:4]
    inputs = prepare(tiny, examples)
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    block = [m for m in oracle.modules() if hasattr(m, "self_attn") and hasattr(m.self_attn, "layer_idx")][1]
    for place in ("gate", "last"):
        at = inputs.tokens.mask(place)

        def add(module: Any, args: Any, kwargs: Any, at: torch.Tensor = at) -> Any:
            stream = args[0] if args else kwargs["hidden_states"]
            moved = stream + 1.5 * torch.where(at[:, :, None], directions[:, None], torch.zeros(()))
            return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

        handle = block.register_forward_pre_hook(add, with_kwargs=True)
        with torch.no_grad():
            wanted = oracle(**inputs.tensors).logits
        handle.remove()
        got = tiny.run(inputs, push(directions, 1, 1.5, place))
        assert (got - wanted).abs().max() < 1e-4
        assert (wanted - tiny(inputs)).abs().max() > 1e-2


def test_answers_by_hand(tiny_llava: HookedVLM) -> None:
    labels = Labels(tiny_llava)
    examples = DATA.examples("class")[:2]  # a dog and a cat
    ids = {name: labels.first_token(examples[0].prompt, name) for name in ("dog", "cat", "red")}
    logits = torch.full((2, 44), -20.0)
    logits[0, ids["cat"]], logits[0, ids["dog"]] = 1.0, 0.0
    logits[1, ids["cat"]] = 5.0
    items = [Item(("dog", "cat"), examples[0]), Item(("cat", "red"), examples[1])]
    table = answers(items, logits, labels)
    assert table.is_target.tolist() == [True, False] and table.is_base.tolist() == [False, True]
    e = float(np.exp(1.0))
    assert table.p_target[0] == pytest.approx(e / (1 + e), abs=1e-4)
    assert table.p_base[0] == pytest.approx(1 / (1 + e), abs=1e-4)


def fitted_by_hand() -> pd.DataFrame:
    rows = []
    for place in ("gate", "last"):
        for k, pair in enumerate([*PAIRS, ("dog", "red")]):
            for layer, success, p in ((0, 0.0, 0.1), (1, 0.5, 0.4), (2, 0.5, 0.6), (3, 0.4, 0.9)):
                vector = [float(k + 1), float(layer), -1.0]
                rows.append(
                    (place, *pair, layer, vector, success if place == "gate" else 0.0, p, 10 * (k + 1), 5 + k)
                )
    names = ["place", "base", "target", "layer", "direction", "success", "probability", "n", "n_fit"]
    return pd.DataFrame(rows, columns=names)


def test_the_layer_that_turns_most_then_the_likelier() -> None:
    fitted = fitted_by_hand()
    assert chosen_layer(fitted) == 2
    assert chosen_layer(fitted, "last") == 3  # nothing turns: the likeliest target
    one = fitted.copy()
    one.loc[(one.base == "dog") & (one.target == "red") & (one.layer == 1), "success"] = 1.0
    scores = layer_scores(one).set_index("layer")
    assert scores.loc[1, "success"] == pytest.approx(
        (10 * 0.5 + 20 * 0.5 + 30 * 1.0) / 60
    )  # every picture once
    assert set(scores.n_fit) == {5}  # the rarest class
    assert chosen_layer(one) == 1
    with pytest.raises(DataError, match="'last'"):
        chosen_layer(fitted[fitted.place == "gate"], "last")


def test_controls() -> None:
    pushes = Pushes(fitted_by_hand(), [0.5, 1.0], 3, 7)
    own = pushes.direction(MEANS, 0, ("dog", "cat"))
    assert own is not None and own.tolist() == [1.0, 2.0, -1.0]
    drawn = [pushes.direction(RANDOM, r, ("dog", "cat")) for r in range(3)]
    for one in drawn:
        assert one is not None and one.norm() == pytest.approx(float(own.norm()), rel=1e-5)
    assert len({tuple(d.tolist()) for d in drawn if d is not None}) == 3
    again = Pushes(fitted_by_hand(), [0.5], 1, 7).direction(RANDOM, 1, ("dog", "cat"))
    assert again is not None and torch.equal(again, drawn[1])
    other = pushes.direction(OTHER, 0, ("dog", "cat"))  # red → blue shares no class with it
    wanted = torch.tensor([2.0, 2.0, -1.0])
    assert other is not None
    torch.testing.assert_close(other, wanted * own.norm() / wanted.norm())
    assert pushes.direction(OTHER, 0, ("dog", "red")) is None  # the others have a dog or a red
    last = pushes.direction(REFERENCE, 0, ("dog", "cat"))
    assert last is not None and last.tolist() == [1.0, 3.0, -1.0]
    ways = pushes.ways([MEANS, RANDOM, OTHER, REFERENCE])
    assert len(ways) == len(set(ways)) == 2 + 3 * 2 + 2 + 1
    lonely = Pushes(fitted_by_hand().query("target == 'cat'"), [1.0], 1, 7)
    assert lonely.ways([OTHER]) == []


def test_random_directions_are_even() -> None:
    drawn = torch.stack([random_like(torch.ones(40), 0, i) for i in range(400)])
    assert drawn.mean(0).norm() / 40**0.5 < 0.1  # no preferred side: 1/√400 expected
    assert (drawn / 40**0.5 @ torch.ones(40) / 40**0.5).std() == pytest.approx(40**-0.5, rel=0.15)
