"""Each column of a table of heads against a plain computation, and what is known of an organism."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import gatelens as gl
from gatelens.errors import GatelensError
from gatelens.examples import Labels
from model_helpers import no_hook_left
from planted_heads import GROWS, REGISTER, SIDE, sinks_model, two_heads_model
from planted_heads import examples as planted_examples
from tiny_models import make_picture

ANSWERS = ("dog", "cat", "red")
PROMPTS = ("this <image> animal is a", "<image> is it a", "this <image> animal is a")


def mask_of(i: int) -> np.ndarray:
    mask = np.zeros((16, 16), dtype=bool)
    mask[4 * i : 4 * i + 6, 3:9] = True
    return mask


@pytest.fixture(scope="module")
def examples() -> list[gl.data.Example]:
    return [
        gl.data.Example(
            make_picture(seed=i), PROMPTS[i], (word,), "class", word, word, {"masks": {word: mask_of(i)}}
        )
        for i, word in enumerate(ANSWERS)
    ]


class Plain:
    """Each example run by itself on plain transformers."""

    def __init__(self, model: Any, hf: Any, examples: Any, d_head: int = 8) -> None:
        self.model, self.hf, self.d_head, self.examples = model, hf, d_head, list(examples)
        self.decoder = getattr(hf.model, "language_model", hf.model)
        self.inputs = [model.prepare([e.image], [e.prompt]) for e in examples]
        right = [Labels(model).first_token(e.prompt, e.label) for e in examples]
        self.targets = list(zip(right, [*right[1:], right[0]], strict=True))  # the next example's is wrong

    def value(self, i: int) -> float:
        with torch.no_grad():
            logits = self.hf(**self.inputs[i].tensors).logits[0, -1]
        return float(logits[self.targets[i][0]] - logits[self.targets[i][1]])

    def without(self, i: int, heads: list[tuple[int, int]], new: Any) -> float:
        """The value with heads' output replaced by ``new[layer][head]``, or by zero."""
        handles = []
        for layer, head in heads:

            def hook(module: Any, args: Any, layer: int = layer, head: int = head) -> Any:
                z = args[0].clone()
                z[..., self.d_head * head : self.d_head * (head + 1)] = 0 if new is None else new[layer][head]
                return (z, *args[1:])

            handles.append(self.decoder.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook))
        try:
            return self.value(i)
        finally:
            for handle in handles:
                handle.remove()

    def seen(self, i: int, module: Any, entering: bool = True) -> Tensor:
        """What a module reads, or gives."""
        found = []
        handle = module.register_forward_hook(lambda m, args, out: found.append(args[0] if entering else out))
        self.value(i)
        handle.remove()
        return found[0]

    def attention(self, i: int) -> Tensor:
        """Float[layer, head, query, key]."""
        with torch.no_grad():
            return torch.stack(self.hf(**self.inputs[i].tensors, output_attentions=True).attentions)[:, 0]


@pytest.fixture
def plain(tiny: Any, oracle: Any, examples: Any) -> Plain:
    return Plain(tiny, oracle, examples)


def column(table: Any, name: str) -> Tensor:
    return torch.tensor(table[name].to_numpy(dtype=float)).view(3, 4).float()


def test_attention_and_localisation(tiny: Any, plain: Plain, examples: Any) -> None:
    parts = ["attention", "localisation"]
    got = gl.heads_table(tiny, examples, parts, queries="text - gate", progress=False)
    want: dict[str, list[Tensor]] = {name: [] for name in ("image", "gate", "text", "entropy", "object")}
    for i, inputs in enumerate(plain.inputs):
        rows = plain.attention(i)[:, :, inputs.tokens.mask("text - gate")[0]]
        want["entropy"].append(-(rows * rows.clamp(min=1e-30).log()).sum(-1).mean(-1))
        rows = rows.mean(2)
        for name, selector in (("image", "image"), ("gate", "gate"), ("text", "text - gate")):
            want[name].append(rows[..., inputs.tokens.mask(selector)[0]].sum(-1))
        on_image = rows[..., inputs.tokens.mask("image")[0]]
        in_mask = torch.tensor(
            mask_of(i).reshape(4, 4, 4, 4).mean((1, 3)).ravel()
        )  # of each token's 4x4 pixels
        want["object"].append((on_image * in_mask).sum(-1) / on_image.sum(-1))
    for name, values in want.items():
        torch.testing.assert_close(
            column(got, name), torch.stack(values).mean(0).float(), atol=1e-5, rtol=1e-4
        )
        low, mean, high = (column(got, name + end) for end in ("_low", "", "_high"))
        assert (torch.stack(values).amin(0) - 1e-5 <= low).all() and (low < mean).all()
        assert (mean < high).all() and (high <= torch.stack(values).amax(0) + 1e-5).all()
    assert got["object_chance"].iloc[0] == pytest.approx(np.mean([mask_of(i).mean() for i in range(3)]))
    assert no_hook_left(tiny)


@pytest.mark.parametrize("with_", ["zero", "mean"])
def test_knockout(tiny: Any, plain: Plain, examples: Any, with_: str) -> None:
    got = gl.heads_table(tiny, examples, "knockout", ablate_with=with_, progress=False)
    means = None
    if with_ == "mean":
        each = [
            torch.cat([plain.seen(i, layer.self_attn.o_proj)[0] for i in range(3)]).view(-1, 4, 8).mean(0)
            for layer in plain.decoder.layers
        ]
        means = each
    want = [
        np.mean([plain.value(i) - plain.without(i, [(layer, head)], means) for i in range(3)])
        for layer in range(3)
        for head in range(4)
    ]
    torch.testing.assert_close(
        column(got, "knockout").flatten(), torch.tensor(want).float(), atol=1e-4, rtol=1e-4
    )
    assert got.attrs["quantity"] == "logit difference" and abs(np.array(want)).max() > 1e-2


def test_regression(tiny_llava: Any, hf_llava: Any, examples: Any) -> None:
    """The runs are those of plain transformers, and their ridge regression numpy's least squares."""
    plain = Plain(tiny_llava, hf_llava, examples)
    got = gl.heads_table(
        tiny_llava,
        examples,
        "regression",
        subsets=40,
        fraction=0.3,
        ablate_with="zero",
        ridge=2.0,
        seed=3,
        progress=False,
    )
    kept = torch.rand(40, 3, 4, generator=torch.Generator().manual_seed(3)) >= 0.3
    values = np.array([
        [plain.without(i, [tuple(at) for at in (~one).nonzero().tolist()], None) for i in range(3)] for one in kept
    ])  # fmt: skip
    # a penalty is rows of sqrt(ridge) whose value is 0; the intercept has none
    x = np.vstack([np.c_[kept.flatten(1).numpy(), np.ones(40)], np.c_[np.eye(12) * 2.0**0.5, np.zeros(12)]])
    weights = np.linalg.lstsq(x, np.vstack([values, np.zeros((12, 3))]), rcond=None)[0]
    want = torch.tensor(weights[:12].mean(1)).float()
    torch.testing.assert_close(column(got, "regression").flatten(), want, atol=1e-3, rtol=1e-3)
    left = values - x[:40] @ weights
    r2 = (1 - (left**2).sum(0) / ((values - values.mean(0)) ** 2).sum(0)).mean()
    assert got.attrs["r2"] == pytest.approx(r2, abs=1e-3) and got.attrs["r2_held_out"] < got.attrs["r2"]


def test_attribution(tiny: Any, plain: Plain, examples: Any) -> None:
    got = gl.heads_table(tiny, examples, "attribution", progress=False)
    want = torch.zeros(3, 4)
    for i, (right, wrong) in enumerate(plain.targets):
        last = plain.seen(i, plain.decoder.norm)[0, -1]
        scale = (last.square().mean() + plain.decoder.norm.variance_epsilon).sqrt()
        towards = (
            (plain.hf.lm_head.weight[right] - plain.hf.lm_head.weight[wrong])
            * plain.decoder.norm.weight
            / scale
        )
        for layer, block in enumerate(plain.decoder.layers):
            z = plain.seen(i, block.self_attn.o_proj)[0, -1]
            want[layer] += (z * (towards @ block.self_attn.o_proj.weight)).view(4, 8).sum(-1).detach() / 3
    torch.testing.assert_close(column(got, "attribution"), want, atol=1e-4, rtol=1e-4)


def test_vocabulary(tiny: Any, plain: Plain) -> None:
    examples = [inputs.tokens.mask("image")[0] for inputs in plain.inputs]
    with torch.no_grad():
        logits = [plain.hf(**inputs.tensors).logits[0, -1] for inputs in plain.inputs]
    never = torch.stack(logits).min(0).values <= torch.finfo(torch.float32).min  # image codes of Chameleon
    got = gl.heads_table(tiny, plain.examples, "vocabulary", ov_of="image", top=3, progress=False)
    for layer, block in enumerate(plain.decoder.layers):
        written = torch.zeros(4, 32)
        for i, image in enumerate(examples):
            value = plain.seen(i, block.self_attn.v_proj, entering=False)[0, image].mean(0)
            last = plain.seen(i, plain.decoder.norm)[0, -1]
            scale = (last.square().mean() + plain.decoder.norm.variance_epsilon).sqrt()
            for head in range(4):
                mine = value.view(2, 8)[head // 2]
                out = block.self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] @ mine
                written[head] += (out * plain.decoder.norm.weight / scale).detach()
        ids = (written @ plain.hf.lm_head.weight.T).masked_fill(never, -torch.inf).topk(3).indices
        want = [" ".join(tiny.tokenizer.decode([i]) for i in of) for of in ids.tolist()]
        assert got[got.layer == layer]["writes"].tolist() == want


def test_sinks(tiny: Any, plain: Plain, examples: Any) -> None:
    got = gl.heads_table(tiny, examples, "sinks", progress=False)
    want, found = torch.zeros(3, 4), 0
    for i in range(3):
        pattern = plain.attention(i)
        n = pattern.shape[-1]
        for layer in range(3):
            for head in range(4):
                for key in range(n - 8):
                    drawn = float(pattern[layer, head, key + 1 :, key].mean())
                    if drawn > 0.3:
                        want[layer, head] += drawn / 3
                        found += 1
    torch.testing.assert_close(column(got, "sink"), want, atol=1e-4, rtol=1e-4)
    assert got.sinks["heads"].sum() == found > 0
    assert ((got["sink_tower"] + got["sink_decoder"]) <= got["sink"] + 1e-6).all()


def test_planted_sinks_come_from_where_they_were_planted() -> None:
    """A register of the tower, a word that grows in the decoder, a first token that is read whatever its size."""
    got = gl.heads_table(sinks_model(), planted_examples(), "sinks", progress=False)
    want = {
        "sink": {(1, 0): 1.0, (1, 1): 1.0, (1, 2): 1.0},
        "sink_tower": {(1, 0): 1.0},
        "sink_decoder": {(1, 1): 1.0},
    }
    for name, heads in want.items():
        for row in got.table.itertuples():
            assert getattr(row, name) == pytest.approx(heads.get((row.layer, row.head), 0.0), abs=1e-4), (
                name,
                row,
            )
    first = 1  # of the image tokens, after <s>
    found = got.sinks.groupby("position")
    assert found["example"].nunique().tolist() == [4, 4, 4]
    assert found["origin"].unique().map(list).to_dict() == {
        0: ["neither"],
        first + REGISTER: ["tower"],
        first + SIDE**2 + 1: ["decoder"],
    }
    assert found["token"].first().tolist()[2] == GROWS
    tower = got.sinks[got.sinks["origin"] == "tower"]
    assert tower["norm_entering"].tolist() == pytest.approx([(4**2 + 40**2) ** 0.5 / 4] * 4)


def test_a_regression_finds_the_two_heads_that_matter() -> None:
    """Their parts add up, so weights, single ablations and direct attribution are one closed form without width."""
    worth = {(0, 1): 3.0, (1, 2): 2.0}
    model, data = two_heads_model(worth), planted_examples()
    got = gl.heads_table(
        model, data, ["attribution", "knockout", "regression"], ablate_with="zero", progress=False
    )
    share = SIDE**2 / model.prepare([data[0].image], [data[0].prompt]).tokens.n_pos
    for name in ("regression", "knockout", "attribution"):
        want = [share * worth.get((layer, head), 0.0) for layer in range(2) for head in range(4)]
        assert got[name].tolist() == pytest.approx(want, abs=1e-4), name
        ranked = got.sort_values(name, ascending=False)[["layer", "head"]].to_numpy().tolist()
        assert ranked[:2] == [[0, 1], [1, 2]], name
        assert (got[f"{name}_high"] - got[f"{name}_low"]).max() < 1e-4
    assert got.attrs["r2"] == pytest.approx(1, abs=1e-5)
    assert got.attrs["r2_held_out"] == pytest.approx(1, abs=1e-5)


def test_the_interval_of_a_regression_holds_what_the_subsets_leave_open(
    tiny_llava: Any, examples: Any
) -> None:
    """Twice the same example: nothing is open between examples, and all that is left is the draw of subsets."""
    one = [examples[0], dataclasses.replace(examples[1], image=examples[0].image, prompt=examples[0].prompt)]
    pairs = [gl.data.Pair(one[0], one[1], "class", "dog", "cat")] * 2
    got = gl.heads_table(tiny_llava, pairs, "regression", subsets=30, progress=False)
    assert (got["regression_high"] - got["regression"]).min() > 1e-3
    many = gl.heads_table(tiny_llava, pairs, "regression", subsets=240, progress=False)
    width = lambda table: float((table["regression_high"] - table["regression_low"]).mean())  # noqa: E731
    assert width(many) < 0.5 * width(got)  # eight times the subsets, about a third of the width
    inside = (got["regression_low"] <= many["regression"]) & (many["regression"] <= got["regression_high"])
    assert inside.sum() >= 10, "of 12 heads"


@pytest.mark.parametrize("name", ["gated", "open", "llava"])
def test_what_an_organism_loses_without_a_head(name: str) -> None:
    """Every head in turn, replaced by its mean before the output matrix by hooks of torch alone."""
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    data = gl.data.load("emoji-scenes").examples("class", limit=2)
    got = gl.heads_table(model, list(data), "knockout", progress=False)
    plain = Plain(model, model.hf, list(data), d_head=model.cfg.d_head)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    means = []
    for block in plain.decoder.layers:
        z = torch.cat([plain.seen(i, block.self_attn.o_proj)[0] for i in range(2)])
        means.append(z.view(-1, heads, model.cfg.d_head).mean(0))
    want = [
        np.mean([plain.value(i) - plain.without(i, [(layer, head)], means) for i in range(2)])
        for layer in range(layers)
        for head in range(heads)
    ]
    assert got["knockout"].tolist() == pytest.approx(want, abs=2e-3)
    ranked = got.sort_values("knockout", ascending=False).index[:5].tolist()
    assert ranked == np.argsort(want)[::-1][:5].tolist()


@pytest.mark.parametrize(
    ("name", "sinks"),
    [
        ("gated", {1: "decoder"}),  # the begin-of-image token
        ("open", {0: "decoder", 1: "decoder"}),  # and the first one
        ("llava", {0: "neither"}),  # the first, whose norm stays ordinary
    ],
)
def test_the_sinks_of_an_organism_stay_whatever_is_asked(name: str, sinks: dict[int, str]) -> None:
    """Before the question; words of a long question may draw the rows that follow."""
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    asked = list(gl.data.load("emoji-scenes").examples("class", limit=8))
    other = [dataclasses.replace(e, prompt="<image>What is in this picture? It is a") for e in asked]
    for of in (asked, other):
        found = gl.heads_table(model, of, "sinks", progress=False).sinks
        common = found[found["role"] != "query"].groupby("position").filter(lambda one: len(one) >= 5)
        assert common.groupby("position")["origin"].unique().map(list).to_dict() == {
            position: [origin] for position, origin in sinks.items()
        }
        assert "tower" not in set(found["origin"])


def test_the_heads_of_an_organism() -> None:
    """What reads the gate of ``organism:gated``: little attention on the picture, much on the gate, a large effect."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    heads = gl.heads_table(
        model, "emoji-scenes", ["attention", "knockout"], n=6, ablate_at="last", progress=False
    )
    reading = heads[(heads["gate"] > 0.7) & (heads["image"] < 0.1)]
    assert [1, 0] in reading[["layer", "head"]].to_numpy().tolist()
    others = heads[(heads["gate"] < 0.5)]
    assert reading["knockout"].max() > 1 and reading["knockout"].max() > 3 * others["knockout"].max()


def drawn(figure: Any) -> list[tuple[str, str]]:
    """Title and unit of each heat map of a figure, whose scale stands after it; the unit may be on two lines."""
    return [
        (one.get_title("left") or one.get_title(), scale.get_ylabel().replace("\n", " "))
        for one, scale in zip(figure.axes[::2], figure.axes[1::2], strict=True)
    ]


def test_a_table_is_a_data_frame_that_shows_and_is_written(
    tiny_llava: Any, examples: Any, tmp_path: Path
) -> None:
    place = tmp_path / "new" / "heads"
    got = gl.heads_table(
        tiny_llava, examples, ["attention", "localisation", "sinks"], out=place, progress=False
    )
    best = got.sort_values("image", ascending=False).head(5)
    assert isinstance(best, gl.HeadsTable) and best.attrs["n"] == 3
    read = pd.read_parquet(place / "heads_table.parquet")
    pd.testing.assert_frame_equal(read, pd.DataFrame(got)[list(got)], check_frame_type=False)
    assert read.attrs["n"] == 3
    with pytest.raises(
        GatelensError, match=r"holds a run with other settings \(parts: there .*; choose another folder"
    ):
        gl.heads_table(tiny_llava, examples, "attention", out=place, progress=False)
    assert type(got.table) is pd.DataFrame and len(got.table) == 12
    assert drawn(got.show("image")) == [("attention to the picture", "share of attention")]
    assert drawn(best.show("gate")) == [("attention to the gate", "share of attention")]
    units = drawn(got.show(["entropy", "object", "sink", "text"]))
    assert [unit for _, unit in units] == [
        "nats",
        "share of attention on the picture",
        "share of attention",
        "share of attention",
    ]
    both = got.show(["image", "gate", "entropy"]).axes
    tops = [axes.images[0].norm.vmax for axes in both if axes.images]
    assert tops[0] == tops[1] == got[["image", "gate"]].to_numpy().max() and tops[2] == got["entropy"].max()
    assert drawn(got.show()) == [
        ("attention to the picture", "share of attention")
    ]  # no knockout in this table
    with pytest.raises(GatelensError, match=r"show\(\[\]\): name some of the columns image"):
        got.show([])
    with pytest.raises(GatelensError, match=r"show\('imag'\): the columns are image"):
        got.show("imag")


def test_pairs_say_what_is_wrong(tiny_llava: Any, examples: Any) -> None:
    pairs = [gl.data.Pair(examples[i], examples[i - 1], "class", ANSWERS[i], ANSWERS[i - 1]) for i in (1, 2)]
    got = gl.heads_table(tiny_llava, pairs, "attribution", progress=False)
    want = torch.zeros(12)
    for i in (1, 2):
        inputs = tiny_llava.prepare([examples[i].image], [examples[i].prompt])
        target = tuple(tiny_llava.to_single_token(word) for word in (ANSWERS[i], ANSWERS[i - 1]))
        want += gl.attribute(tiny_llava, inputs, target, by="head").sel(kind="head").tensor[0] / 2
    torch.testing.assert_close(column(got, "attribution").flatten(), want, atol=1e-5, rtol=1e-5)


def test_all_parts_without_masks_leave_localisation_out(tiny_llava: Any, examples: Any) -> None:
    bare = [gl.data.Example(e.image, e.prompt, e.answers, "class", e.id, e.label) for e in examples]
    got = gl.heads_table(tiny_llava, bare, progress=False)
    assert {"image", "sink", "attribution", "knockout", "writes"} <= set(got)
    assert not {"object", "regression"} & set(got)  # a regression makes many runs: who wants it names it
    with pytest.raises(GatelensError, match="no example has a mask of the object it is about"):
        gl.heads_table(tiny_llava, bare, "localisation", progress=False)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a part": ({"parts": "atention"}, "part 'atention': the parts are .*attention"),
    "no parts": ({"parts": []}, "parts is empty"),
    "no data": ({"data": 5}, "data is 5: give a data set"),
    "none": ({"data": []}, r"data is \[\]: give a data set"),
    "a task": ({"data": "emoji-scenes", "task": "sing"}, "has no task 'sing'; it has class"),
    "n": ({"n": 0}, "n=0: give a whole number"),
    "top": ({"parts": "vocabulary", "top": 1.5}, "top=1.5: give a whole number"),
    "by what": ({"parts": "knockout", "ablate_with": "noise"}, "ablate_with='noise': write 'mean' or 'zero'"),
    "where": ({"parts": "knockout", "ablate_at": "boi"}, "ablate_at='boi' selects no position"),
    "rows": ({"queries": "boi"}, "queries='boi' selects no position in example 'cat'"),
    "subsets": ({"parts": "regression", "subsets": 3}, "subsets=3: give a whole number, 10 or more"),
    "a fraction": ({"parts": "regression", "fraction": 1.0}, "fraction=1.0: give the share"),
    "a penalty": ({"parts": "regression", "ridge": -1}, "ridge=-1: give a penalty"),
    "values": ({"parts": "vocabulary", "ov_of": "boi"}, "ov_of='boi' selects no position in example 'cat'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_means_nothing_is_one_line(tiny_llava: Any, examples: Any, name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(GatelensError, match=words) as raised:
        gl.heads_table(tiny_llava, **{"data": examples, "parts": "attention", "progress": False, **given})
    assert "\n" not in str(raised.value)
