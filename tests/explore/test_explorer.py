"""What the page is told of a state is what plain calls and plain hooks give; what goes wrong stands at its control."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import torch

import gatelens as gl
from explore_helpers import state
from gatelens.explore.explorer import Explorer, Outdated, Recent
from gatelens.explore.state import KEYS, QUERIES, ControlError
from gatelens.inputs import VLMInputs
from gatelens.tokens import Role

REGION = [8.0, 24.0, 48.0, 64.0]


@pytest.fixture
def model(explorer: Explorer) -> gl.HookedVLM:
    return explorer.model


@pytest.fixture
def inputs(explorer: Explorer) -> VLMInputs:
    return explorer.model.prepare(explorer.shelf["sample:1"].image, "<image>this is a")


def cached(explorer: Explorer, picture: str) -> Any:
    return explorer.model.run_with_cache(
        explorer.model.prepare(explorer.shelf[picture].image, "<image>this is a")
    )


def same_as_hooks(explorer: Explorer, inputs: VLMInputs, told: dict[str, Any], hooks: list[Any]) -> None:
    """Answer, top tokens, attention and lens against one pass under hooks that are written by hand."""
    logits, cache = explorer.model.run_with_cache(inputs, fwd_hooks=hooks)
    chances = logits[0, -1].softmax(-1)
    decode = explorer.model.tokenizer.decode
    top = sorted(told["top"], key=lambda one: -one["after"])[:8]
    assert [one["token"] for one in top] == [decode([i]) for i in chances.topk(8).indices]
    assert [one["after"] for one in top] == pytest.approx(chances.topk(8).values.tolist(), abs=1e-5)
    assert told["answer"]["after"].split()[0] == top[0]["token"]
    look = told["attention"]
    for layer, shares in enumerate(look["shares"]):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, look["position"]]
        assert shares == pytest.approx(
            pattern[:, inputs.tokens.roles[0] == Role.IMAGE].sum(-1).tolist(), abs=1e-5
        )
    mean = cache["blocks.0.attn.hook_pattern"][0, :, look["position"]].mean(0)
    assert look["values"] == pytest.approx(mean.tolist(), abs=1e-5)
    assert told["lens"][-1]["after"][1] == pytest.approx(float(chances.max()), abs=1e-5)


def test_nothing_changed(explorer: Explorer, inputs: VLMInputs) -> None:
    told = explorer.run(state())
    assert not told["changed"] and told["answer"] == {"before": "cactus", "after": "cactus", "second": "crab"}
    assert all(one["before"] == one["after"] for one in (*told["top"], *told["lens"]))
    same_as_hooks(explorer, inputs, told, [])
    json.dumps(told, allow_nan=False)


def test_a_knockout_by_hand(explorer: Explorer, inputs: VLMInputs) -> None:
    cells = [["text", "region"], ["text", "gate"]]
    told = explorer.run(state(cut=cells, cut_layers=[1, 4], cut_heads=[0, 3], region=REGION))
    (gate,) = inputs.tokens.positions("gate")
    x0, y0, x1, y1 = REGION
    box = inputs.tokens.box[0]
    inside = (box[:, 0] < x1) & (box[:, 2] > x0) & (box[:, 1] < y1) & (box[:, 3] > y0)
    assert inside.sum() == 25
    inside[gate] = True

    def cut(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern = pattern.clone()
        for head in (0, 3):
            pattern[0, head, gate + 1 :, inside] = 0
        return pattern

    same_as_hooks(explorer, inputs, told, [(f"blocks.{n}.attn.hook_pattern", cut) for n in range(1, 5)])
    assert told["answer"]["before"] == "cactus"


def test_a_patch_and_steering_by_hand(explorer: Explorer, inputs: VLMInputs) -> None:
    told = explorer.run(state(patch="gate", patch_layers=[2, 3], steer=0.7, steer_layer=4))
    (gate,) = inputs.tokens.positions("gate")
    ours, theirs = cached(explorer, "sample:1")[1], cached(explorer, "sample:2")[1]

    def patch(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        x[0, gate] = theirs[hook.name][0, gate]
        return x

    def steer(x: torch.Tensor, hook: Any) -> torch.Tensor:
        x = x.clone()
        x[0, gate] += 0.7 * (theirs[hook.name] - ours[hook.name])[0, gate]
        return x

    hooks = [
        ("blocks.2.hook_resid_pre", patch),
        ("blocks.3.hook_resid_pre", patch),
        ("blocks.4.hook_resid_pre", steer),
    ]
    same_as_hooks(explorer, inputs, told, hooks)
    assert told["answer"]["after"] == told["answer"]["second"] == "crab"


def test_the_whole_picture_from_the_second_is_the_second(explorer: Explorer) -> None:
    told = explorer.run(state(patch="region", patch_layers=[0, 0], region=[0, 0, 64, 64]))
    assert told["answer"]["after"] == "crab"
    other = explorer.run(state(picture="sample:2"))
    assert told["top"][0]["after"] == pytest.approx(other["top"][0]["before"], abs=1e-5)


def test_any_row_may_be_looked_from(explorer: Explorer, inputs: VLMInputs) -> None:
    told = explorer.run(state(look_at=20, look_layer=3, look_head=2))
    _, cache = explorer.model.run_with_cache(inputs)
    row = cache["blocks.3.attn.hook_pattern"][0, 2, 20]
    assert told["attention"]["values"] == pytest.approx(row.tolist(), abs=1e-5)
    lens = gl.logit_lens(explorer.model, inputs, at=[20], top=1).table
    assert [one["before"][0] for one in told["lens"]] == lens["word"].tolist()
    assert [told["tokens"][p]["role"] for p in (0, 1, 2, 66, 67)] == [
        "system",
        "boi",
        "image",
        "eoi",
        "query",
    ]
    assert [p for p, token in enumerate(told["tokens"]) if token["gate"]] == [66]
    assert told["tokens"][2]["box"] == [0, 0, 8, 8]


def test_what_an_answer_looked_at_is_what_decoding_saw(explorer: Explorer) -> None:
    changes: dict[str, Any] = {
        "prompt": "<image>describe",
        "patch": "gate",
        "patch_layers": [1, 2],
        "look_layer": 2,
    }
    changes["cut"] = [["answer", "image"], ["text", "gate"]]
    told = explorer.run(state(**changes))
    inputs = explorer.model.prepare(explorer.shelf["sample:1"].image, "<image>describe")
    written, n_pos = told["written"], inputs.tokens.n_pos
    assert [one["row"] for one in written] == [one["position"] - 1 for one in written]
    assert written[0]["position"] == n_pos and len(written) > 3
    assert (
        told["answer"]["before"] != told["answer"]["after"] == " ".join(one["word"] for one in written[:-1])
    )
    theirs = explorer.model.prepare(explorer.shelf["sample:2"].image, "<image>describe")
    _, other = explorer.model.run_with_cache(theirs)
    specs = [
        gl.knockout("last | generated", "image", layers=[0], how="zero"),
        gl.knockout("text - gate", "gate", layers=[0], how="zero"),
        gl.patch(other, at="gate", site="resid_pre", layers=[1, 2]),
    ]
    seen: dict[int, torch.Tensor] = {}

    def see(layer: int, pattern: torch.Tensor, position: int) -> None:
        if layer == 2:
            seen[position] = pattern[0, :, -1].mean(0).clone()

    gl.engine.generate(explorer.model, inputs, specs, max_new_tokens=16, see=see)
    for one in written:
        looked = explorer.run(state(**changes, look_at=one["row"]))
        assert looked["written"] == written
        assert looked["attention"]["values"] == pytest.approx(seen[one["row"]].tolist(), abs=1e-5)
        assert looked["lens"][-1]["after"][0] == one["word"]


def test_an_answer_that_became_shorter_is_looked_at_where_it_ends(explorer: Explorer) -> None:
    told = explorer.run(state(look_at=400))
    assert [one["word"] for one in told["written"]] == ["cactus", "</s>"]
    assert told["attention"]["position"] == told["written"][-1]["row"] == 70
    assert told["attention"]["note"].startswith("position 400 does not exist")
    assert explorer.run(state(look_at=70))["attention"]["note"] == ""


@pytest.mark.parametrize(("prompt", "how"), [("<image>this is a", "mask"), ("this is a<image>", "zero")])
def test_cells_with_nothing_to_cut_are_those_that_are_refused(
    explorer: Explorer, prompt: str, how: str
) -> None:
    told = set(explorer.run(state(prompt=prompt))["nothing_to_cut"])
    for query in QUERIES:
        for keys in KEYS:
            asked = state(prompt=prompt, cut=[[query, keys]], how=how, region=REGION)
            try:
                explorer.run(asked)
                refused = False
            except ControlError:
                refused = True
            assert refused == (f"{query}-{keys}" in told), (query, keys)


@pytest.mark.parametrize(
    ("changes", "control", "said"),
    [
        ({"picture": "sample:99"}, "picture", "not on the page"),
        ({"second": "upload:0"}, "second", "upload it again"),
        ({"prompt": ""}, "prompt", "<image> 0 times: write it once"),
        (
            {"prompt": "<image><image>"},
            "prompt",
            "<image> 2 times: .* one picture per prompt, gl.views any number",
        ),
        ({"prompt": "<image>" + "this is a " * 390}, "prompt", "has 512"),
        ({"cut": [["text", "region"]]}, "region", "drag a box"),
        ({"cut": [["text", "region"]], "region": [64, 0, 80, 9]}, "region", "outside the picture of 64 × 64"),
        ({"patch": "region", "region": [0, 99, 9, 100]}, "region", "outside the picture of 64 × 64"),
        ({"cut": [["gate", "text"]]}, "cut", "nothing to cut"),
        ({"cut": [["image", "image"]], "how": "mask"}, "cut", None),
        ({"cut": [["text", "gate"]], "cut_layers": [4, 6]}, "cut", "layer 6"),
        ({"cut": [["text", "gate"]], "cut_heads": [4]}, "cut", "head 4"),
        ({"patch": "gate", "second": None}, "second", "choose or upload"),
        ({"patch": "region"}, "region", "drag a box"),
        ({"patch": "gate", "patch_layers": [9, 9]}, "patch", "layer 9"),
        ({"steer": 1.0, "steer_at": "gaet"}, "steer", "did you mean 'gate'"),
        ({"steer": 1.0, "steer_at": "generated"}, "steer", "no position"),
        ({"steer": 1.0, "steer_layer": 6}, "steer_layer", "the last is 5"),
        ({"steer": 1.0, "steer_layer": 0}, "steer", "steer at a later one"),
        ({"steer": 1.0, "toward": "class:none"}, "toward", "choose"),
        ({"steer": 1.0, "second": None}, "second", "choose or upload"),
        ({"look_layer": 6}, "look_layer", "the last is 5"),
        ({"look_head": 4}, "look_head", "the last is 3"),
    ],
    ids=str,
)
def test_what_goes_wrong_stands_at_its_control(
    explorer: Explorer, changes: dict[str, Any], control: str, said: str | None
) -> None:
    if said is None:  # the first image token still reads what is before the picture
        explorer.run(state(**changes))
        return
    with pytest.raises(ControlError, match=said) as caught:
        explorer.run(state(**changes))
    assert caught.value.control == control and "\n" not in str(caught.value)


def test_knockouts_that_leave_a_row_nothing_together_are_refused_at_their_matrix(explorer: Explorer) -> None:
    alone = [["text", "image"], ["text", "gate"], ["text", "text"]]
    told = explorer.run(state(cut=alone, how="mask"))  # the begin of the text is still read
    assert told["changed"]


def test_outdated_work_stops_between_passes(explorer: Explorer) -> None:
    calls = []

    def go_on() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Outdated

    with pytest.raises(Outdated):
        explorer.run(state(cut=[["text", "gate"]]), go_on)
    assert len(calls) == 3
    assert explorer.run(state())["answer"]["after"] == "cactus"


def test_threads_take_turns(explorer: Explorer) -> None:
    states = [state(cut=[["text", "gate"]]), state(patch="gate"), state(), state(picture="sample:3")]
    alone = [explorer.run(one) for one in states]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i, one=one: together.update({i: explorer.run(one)}))  # type: ignore[misc]
        for i, one in enumerate(states)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(states))] == alone


def test_errors_are_not_kept_and_old_things_go() -> None:
    recent, made = Recent(2), []

    def make(value: int) -> int:
        made.append(value)
        if value < 0:
            raise ValueError
        return value

    for key in (1, 2, 1, 3, 1, 2):
        assert recent.of(key, lambda key=key: make(key)) == key  # type: ignore[misc]
    assert made == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(ValueError):
            recent.of("bad", lambda: make(-1))
    assert made[-2:] == [-1, -1]


def test_setup_says_what_the_model_has(explorer: Explorer) -> None:
    told = explorer.setup()
    assert (told["layers"], told["heads"], told["chat"]) == (6, 4, False)
    assert told["samples"][0]["prompt"] == "<image>this is a"
