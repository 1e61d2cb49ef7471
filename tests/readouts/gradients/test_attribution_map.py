"""Gradient maps against plain transformers: autograd, finite differences, patches by torch hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatelens as gl
from attack.oracle import Change
from gatelens.data import Example, Pair
from gatelens.errors import GatelensError
from gatelens.measures import agreement
from gatelens.readouts.gradients import passes
from gradient_helpers import PlainRuns
from tiny_models import make_picture

RIGHT, WRONG, TARGET = 30, 33, 28  # TARGET is "dog"
SITES = ("resid_pre", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "z", "q", "k", "v", "pattern")
METRIC = gl.metrics.logit_diff(RIGHT, WRONG)
TEXT = "this <image> animal is a"


class Plain(PlainRuns):
    """Both runs of plain transformers, in float64."""

    def __init__(self, hf: Any, clean: Any, corrupt: Any) -> None:
        super().__init__(hf, clean, corrupt, METRIC)

    def read_edge(self, sender: str, receiver: str) -> Tensor:
        """What the metric gains when one receiver reads one sender of the source."""
        layer = int(sender[1]) if sender.startswith("L") else 0
        if sender == "embed":
            added = self.delta("resid_pre", 0)
        elif sender.endswith("mlp"):
            added = self.delta("mlp_out", layer)
        else:
            head, attention = int(sender[3]), self.oracle.layers[layer].self_attn
            columns = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            added = self.delta("z", layer)[:, :, head] @ attention.o_proj.weight[:, columns].T
        if receiver == "logits":
            site, layer, head, new = "resid_post", 2, None, self.base["resid_post", 2] + added
        else:
            site, layer = receiver.split()[-1], int(receiver[1])
            block = self.oracle.layers[layer]
            if site == "mlp":
                site, head = "mlp_in", None
                new = block.post_attention_layernorm(self.base["resid_mid", layer] + added)
            else:
                head = int(receiver[3])
                read = block.input_layernorm(self.base["resid_pre", layer] + added)
                new = getattr(block.self_attn, f"{site}_proj")(read).unflatten(
                    -1, (-1, block.self_attn.head_dim)
                )
        every = torch.ones(new.shape[:2], dtype=torch.bool)
        heads = None if head is None else (head,)
        change = Change(site, every, (layer,), heads, lambda rows, layer, whole: new[every])
        return METRIC(self.oracle.run(self.tensors, [change])[0]) - self.base_value


def pair_of(i: int, clean: str = TEXT, corrupt: str = TEXT) -> Pair:
    sides = [
        Example(make_picture(seed=2 * i + j), text, ("dog",), "class", f"{i}{j}")
        for j, text in enumerate((clean, corrupt))
    ]
    return Pair(*sides, differ="picture", target="dog", base="cat")


PAIRS = [pair_of(0), pair_of(1)]


@pytest.fixture
def plain(tiny: Any, oracle: Any) -> Plain:
    sides = [[getattr(pair, side) for pair in PAIRS] for side in ("clean", "corrupt")]
    return Plain(
        oracle, *(tiny.prepare([[e.image] for e in side], [e.prompt for e in side]) for side in sides)
    )


@pytest.fixture
def mapped(tiny: Any) -> Callable[..., Any]:
    def make(method: str = "atp", over: Any = ("layer", "pos"), check: int = 0, **rest: Any) -> Any:
        return gl.attribution_map(tiny, PAIRS, METRIC, method, over, check=check, **rest)

    return make


def gained(got: Any) -> Tensor:
    """What the metric should gain, Float[pair, ...]."""
    return torch.as_tensor(got.columns["patched"] - got.columns["corrupt"]).float()


@pytest.mark.parametrize("site", SITES)
def test_attribution_patching_is_plain_autograd(mapped: Any, plain: Plain, site: str) -> None:
    by_head = site in ("z", "q", "k", "v", "pattern")
    got = mapped(site=site, over=("layer", "pos", "head") if by_head else ("layer", "pos"))
    for layer in range(3):
        want = (plain.grads[site, layer] * plain.delta(site, layer)).sum(-1)
        torch.testing.assert_close(gained(got)[:, layer], want.float(), atol=2e-4, rtol=1e-3)
    way = (plain.source_value - plain.base_value).float()
    share = gained(got) / way.view(-1, *[1] * (got.tensor.ndim - 1))
    torch.testing.assert_close(got.tensor, share, atol=2e-4, rtol=1e-3)


def named_metrics(clean: Tensor) -> dict[str, tuple[Any, Callable[[Tensor], Tensor]]]:
    """What is asked for, and its formula; ``clean`` are the last logits of the clean run."""
    p = clean.log_softmax(-1)

    def square(logits: Tensor) -> Tensor:
        return logits[:, -1, -4:].square().sum(-1)

    return {
        "prob": ("prob", lambda x: x[:, -1].softmax(-1)[:, TARGET]),
        "log_prob": ("log_prob", lambda x: x[:, -1].log_softmax(-1)[:, TARGET]),
        "kl": ("kl", lambda x: (p.exp() * (p - x[:, -1].log_softmax(-1))).nansum(-1)),
        "similarity": ("similarity", lambda x: torch.minimum(p.exp(), x[:, -1].softmax(-1)).sum(-1)),
        "a function": (square, square),
    }


@pytest.mark.parametrize("name", ["prob", "log_prob", "kl", "similarity", "a function"])
def test_the_gradient_of_each_metric(tiny: Any, oracle: Any, name: str) -> None:
    """By autograd of its formula on plain transformers."""
    pair = PAIRS[0]
    clean, corrupt = (tiny.prepare(example.image, example.prompt) for example in (pair.clean, pair.corrupt))
    asked, formula = named_metrics(oracle(**clean.tensors).logits[:, -1].detach().double())[name]
    got = gl.attribution_map(tiny, pair, asked, check=0, progress=False)
    plain = PlainRuns(oracle, clean, corrupt, formula)
    want = torch.stack([plain.slope("resid_pre", layer)[0] for layer in range(3)])
    size = float(want.abs().max())
    torch.testing.assert_close(gained(got)[0].double(), want, atol=1e-3 * size, rtol=0)
    exact = gl.patch_map(tiny, pair, asked, "layer", at="last", progress=False).table
    for cell in exact.to_dict("records"):
        value = plain.patched("resid_pre", int(cell["layer"]), -1) + plain.base_value
        assert cell["patched"] == pytest.approx(float(value), abs=1e-4 * max(1, abs(float(value))))


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "k"])
def test_attribution_patching_is_the_slope_of_the_patch(mapped: Any, plain: Plain, site: str) -> None:
    got, h = mapped(site=site), 5e-3  # norms compute in single precision
    for layer, position in ((0, 3), (1, 9), (2, -1)):
        up, down = (plain.patched(site, layer, position, share=s) for s in (h, -h))
        slope = ((up - down) / (2 * h)).float()
        torch.testing.assert_close(gained(got)[:, layer, position], slope, atol=1e-3, rtol=1e-2)


def test_other_axes_are_sums(mapped: Any) -> None:
    fine = mapped(site=["z", "q"], over=("site", "layer", "pos", "head"))
    coarse = mapped(site=["z", "q"], over=("head", "site", "role", "layer"))
    roles = fine.axes["position"]["role"]
    for number, role in enumerate(coarse.axes["role"]["role"]):
        of_role = gained(fine)[:, :, :, (roles == role).tolist()].sum(3)  # [pair, site, layer, head]
        want = of_role.permute(0, 3, 1, 2)
        torch.testing.assert_close(gained(coarse)[:, :, :, number], want, atol=1e-5, rtol=1e-3)
    one = mapped(site="z", layers=1, over="head", at="image")
    want = gained(fine)[:, 0, 1, (roles == "image").tolist()].sum(1)
    torch.testing.assert_close(gained(one), want, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("site", ["resid_pre", "z", "q", "mlp_out"])
def test_integrated_gradients_sum_to_the_patch_of_all_rows(mapped: Any, plain: Plain, site: str) -> None:
    got = gained(mapped("ig", site=site)).sum(-1)  # [pair, layer]
    for layer in range(3):
        want = plain.patched(site, layer, None)
        if site == "resid_pre":
            torch.testing.assert_close(want, plain.source_value - plain.base_value)
        torch.testing.assert_close(got[:, layer], want.float(), atol=2e-3, rtol=0.01)


@pytest.mark.parametrize("site", ["q", "k"])
def test_the_softmax_is_recomputed(mapped: Any, plain: Plain, site: str) -> None:
    got = mapped("atp*", site=site, over=("layer", "pos", "head"), layers=[0, 2])
    joined = mapped("atp*", site=site, over=("layer", "role"), layers=[0, 2])
    n_heads = plain.source[site, 0].shape[2]
    for number, layer in enumerate((0, 2)):
        grad, before = plain.grads["pattern", layer], plain.base["pattern", layer]
        for position, head in ((3, 0), (9, n_heads - 1), (-1, 1)):
            want = (grad * (patterned(plain, site, layer, [position], head) - before)).sum((1, 2, 3))
            have = gained(got)[:, number, position, head]
            torch.testing.assert_close(have, want.float(), atol=2e-4, rtol=1e-3)
        image = got.axes["position"].query("role == 'image'")["position"].tolist()
        want = (grad * (patterned(plain, site, layer, image, None) - before)).sum((1, 2, 3))
        of_image = joined.axes["role"]["role"].tolist().index("image")
        torch.testing.assert_close(gained(joined)[:, number, of_image], want.float(), atol=5e-4, rtol=1e-3)


def patterned(plain: Plain, site: str, layer: int, positions: list[int], head: int | None) -> Tensor:
    """The pattern of a layer with the source's queries or keys at some positions."""
    delta = plain.delta(site, layer)
    at = torch.zeros(delta.shape[:2], dtype=torch.bool)
    at[:, positions] = True
    change = Change(
        site, at, (layer,), None if head is None else (head,), lambda rows, layer, whole: rows + delta[at]
    )
    return plain.oracle.run(plain.tensors, [change])[1].sites["pattern", layer]


def test_other_sites_need_no_fix(mapped: Any) -> None:
    torch.testing.assert_close(mapped("atp*", site="v").tensor, mapped(site="v").tensor)


def test_checked_cells_are_patched_exactly(tiny: Any, mapped: Any, plain: Plain) -> None:
    got = mapped(site="z", over=("layer", "pos", "head"), check=9)
    exact = torch.as_tensor(got.columns["exact"])
    checked = ~exact.isnan()
    assert int(checked.sum()) == 18 and got.agreement.cells == 9  # in both pairs
    way = plain.source_value - plain.base_value
    for layer, position, head in checked[0].nonzero().tolist():
        want = plain.patched("z", layer, position, head) / way
        torch.testing.assert_close(exact[:, layer, position, head], want, atol=1e-4, rtol=1e-3)
    means = [x.mean(0)[checked[0]].numpy() for x in (got.tensor.double(), exact)]
    assert got.agreement.rank_correlation == pytest.approx(agreement(*means).rank_correlation, abs=1e-6)
    assert f"9 cells patched exactly: rank correlation {got.agreement.rank_correlation:.2f}" in repr(got)
    assert "not checked" in repr(mapped())
    whole = gl.patch_map(tiny, PAIRS, METRIC, ("layer", "pos", "head"), site="z", progress=False)
    torch.testing.assert_close(exact[checked].float(), whole.tensor[checked], atol=1e-5, rtol=1e-4)


def test_agreement_goes_along(mapped: Any) -> None:
    got = mapped(check=64)
    assert got.warnings and "Warning: " in repr(got)  # weights are random: nothing is linear here
    some = got.sel(layer=[1, 2], role="image")
    assert type(some) is type(got) and some.warnings == got.warnings
    figure = got.sel(layer=1).show()
    shown = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "rank correlation" in shown and "Warning" in shown


@pytest.mark.parametrize("metric", [gl.metrics.log_prob(RIGHT), gl.metrics.entropy(), gl.metrics.prob(RIGHT)])
def test_masked_logits_give_finite_gradients(tiny: Any, metric: Any) -> None:
    got = gl.attribution_map(tiny, PAIRS, metric, check=0)
    assert bool(got.tensor.isfinite().all())


def test_prompts_of_other_lengths_pair_by_role(tiny: Any) -> None:
    """The cells are those of the exact map, NaN where it has none; a check of all is the exact map."""
    mixed = pair_of(0, clean="this <image> animal is a dog")
    for over in (("layer", "pos"), ("layer", "role")):
        got = gl.attribution_map(tiny, mixed, METRIC, "ig", over, check=10**4)
        want = gl.patch_map(tiny, mixed, METRIC, over, progress=False)
        assert [*got.axes] == [*want.axes] and got.axes[over[1].replace("pos", "position")].equals(
            want.axes[over[1].replace("pos", "position")]
        )
        torch.testing.assert_close(
            torch.as_tensor(got.columns["exact"]).float(), want.tensor, atol=1e-5, rtol=1e-4, equal_nan=True
        )
        assert torch.equal(got.tensor.isnan(), want.tensor.isnan())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"metric": "top1"}, "metric 'top1' has no gradient"),
        ({"method": "atp+"}, "method='atp\\+': write one of atp"),
        ({"over": ("layer", "neuron")}, "site='neuron' is only for exact maps"),
        ({"over": ("pos",)}, "patches 3 layers at once"),
        ({"over": ("layer", "head"), "site": "resid_pre"}, "'resid_pre' has no heads"),
        ({"layers": 7}, "layer 7 does not exist, the model has 3 layers"),
        ({"steps": 0}, "steps=0: give a whole number, 1 or more"),
        ({"check": -1}, "check=-1: give a whole number, 0 or more"),
        ({"pairs": "emoji"}, "no data set 'emoji'"),
        ({"method": "eap", "site": "z"}, "site='z' is only for maps of nodes"),
        ({"metric": lambda logits: logits.sum()}, "one number per example"),
    ],
)
def test_refusals(tiny: Any, change: dict[str, Any], message: str) -> None:
    given = {"pairs": PAIRS, "metric": METRIC, "check": 0} | change
    if change.get("metric") == "top1":  # the pair's own words, of which this one is told apart
        given["metric"] = told_apart
        message = "metric 'told_apart' has no gradient"
    with pytest.raises(GatelensError, match=message) as error:
        gl.attribution_map(tiny, **given)
    assert "\n" not in str(error.value)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny.hook_points())
    assert not any("forward" in block.__dict__ for block in tiny.blocks)


def told_apart(logits: Tensor) -> Tensor:
    return METRIC(logits).round(decimals=4).detach()


def test_gradients_are_taken_in_any_mode_and_reach_no_weight(tiny: Any, mapped: Any) -> None:
    want = mapped().tensor
    with torch.inference_mode():
        torch.testing.assert_close(mapped().tensor, want)
    assert all(weight.grad is None for weight in tiny.parameters())


def test_the_graph_keeps_what_enters_each_block_and_the_inside_of_as_many_as_are_allowed(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With none allowed, a few streams; the numbers are the same whatever is kept."""
    stream = tiny.prepare([PAIRS[0].clean.image], [TEXT]).tokens.n_pos * int(tiny.cfg.d_model)
    kept, all_inside = held_at_most(tiny)
    monkeypatch.setattr(passes, "KEPT_BYTES", 0)
    again, none_inside = held_at_most(tiny)
    torch.testing.assert_close(again, kept, atol=1e-6, rtol=1e-5)
    assert 0 < none_inside < 12 * stream < all_inside, (none_inside, stream, all_inside)


def held_at_most(model: Any) -> tuple[Tensor, int]:
    """A map, and how many numbers its graph holds for the way back."""
    held: list[int] = []
    most = 0

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    def metric(logits: Tensor) -> Tensor:
        nonlocal most
        most = max(most, sum(held))
        return METRIC(logits)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = gl.attribution_map(model, PAIRS[0], metric, check=0)
    return found.tensor, most


@pytest.mark.parametrize("method, site", [("atp", "resid_pre"), ("ig", "resid_pre"), ("atp", "z")])
def test_the_last_layer_computes_one_row_where_no_other_is_read(tiny: Any, method: str, site: str) -> None:
    """Of all other rows of that layer only keys and values matter, unless the map is of what is inside it."""
    rows: set[int] = set()
    mlp = tiny.blocks[-1].mlp.original_component
    handle = mlp.register_forward_hook(lambda module, args, out: rows.add(args[0].shape[1]))
    try:
        gl.attribution_map(tiny, PAIRS[0], METRIC, method, site=site, steps=2, check=0, progress=False)
    finally:
        handle.remove()
    n_pos = tiny.prepare(PAIRS[0].clean.image, TEXT).tokens.n_pos
    assert rows == ({1} if site == "resid_pre" else {n_pos})


# --- edges


def test_edges_of_a_sender_sum_to_its_node(mapped: Any) -> None:
    """Whoever reads it reads all of it: the sum over receivers is attribution patching of the sender."""
    edges = mapped("eap", over=None)
    got = gained(edges).nansum(-1)  # [pair, sender]
    number = {name: i for i, name in enumerate(edges.axes["sender"]["sender"])}
    heads = gained(mapped(site="z", over=("layer", "head")))
    mlps = gained(mapped(site="mlp_out", over=("layer",)))
    embedding = gained(mapped(site="resid_pre", over=("layer",)))
    torch.testing.assert_close(got[:, number["embed"]], embedding[:, 0], atol=1e-4, rtol=1e-3)
    for layer in range(3):
        torch.testing.assert_close(got[:, number[f"L{layer} mlp"]], mlps[:, layer], atol=1e-4, rtol=1e-3)
        for head in range(heads.shape[2]):
            want = heads[:, layer, head]
            torch.testing.assert_close(got[:, number[f"L{layer}H{head}"]], want, atol=1e-4, rtol=1e-3)


def test_edges_into_a_receiver_sum_to_its_input(mapped: Any, plain: Plain) -> None:
    """All senders together are the stream: a receiver's edges sum to its own gradient along the stream's change."""
    edges = mapped("eap", over=None)
    got = gained(edges).nansum(1)  # [pair, receiver]
    number = {name: i for i, name in enumerate(edges.axes["receiver"]["receiver"])}
    for layer in range(3):
        block = plain.oracle.layers[layer]
        read = plain.base["resid_pre", layer].clone().requires_grad_()
        query = block.self_attn.q_proj(block.input_layernorm(read))
        grad = plain.grads["q", layer].flatten(2)
        (pulled,) = torch.autograd.grad(query, read, grad)
        want = (pulled * plain.delta("resid_pre", layer)).sum((1, 2))
        heads = [i for name, i in number.items() if name.startswith(f"L{layer}H") and name.endswith(" q")]
        torch.testing.assert_close(got[:, heads].sum(1), want.float(), atol=1e-3, rtol=1e-2)
    want = (plain.grads["resid_post", 2] * plain.delta("resid_post", 2)).sum((1, 2))
    torch.testing.assert_close(got[:, number["logits"]], want.float(), atol=1e-3, rtol=1e-2)


def test_edges_are_patched_exactly(mapped: Any, plain: Plain) -> None:
    """The receiver reads the sender of the source and nothing else changes, by torch hooks on plain transformers."""
    got = mapped("eap", over=None, check=10**4)
    exact, way = torch.as_tensor(got.columns["exact"]), plain.source_value - plain.base_value
    senders, receivers = ({n: i for i, n in enumerate(got.axes[a][a])} for a in ("sender", "receiver"))
    for sender, receiver in (
        ("L0H1", "L1H2 q"),
        ("L0 mlp", "L2H1 v"),
        ("L1H0", "L1 mlp"),
        ("embed", "logits"),
    ):
        want = plain.read_edge(sender, receiver) / way
        have = exact[:, senders[sender], receivers[receiver]]
        torch.testing.assert_close(have, want, atol=2e-4, rtol=2e-3)
    assert bool(exact[:, senders["L1 mlp"], receivers["L1 mlp"]].isnan().all())


def test_edges_along_the_way_sum_to_the_whole(mapped: Any, plain: Plain) -> None:
    """All edges of the embedding, along the way of the input, are what the input changes."""
    got = gained(mapped("eap-ig", over=None))[:, 0].nansum(-1)
    want = (plain.source_value - plain.base_value).float()
    torch.testing.assert_close(got, want, atol=2e-3, rtol=0.01)


def test_edges_along_the_way_are_mean_slopes_there(mapped: Any, plain: Plain) -> None:
    """The whole input moves from base to source, and at each step one receiver alone reads a bit of one sender."""
    edges = mapped("eap-ig", over=None, steps=3)
    got, senders = gained(edges), edges.axes["sender"]["sender"].tolist()
    places, weights = np.polynomial.legendre.leggauss(3)
    receivers, h = edges.axes["receiver"], 5e-3
    for sender, added in (("embed", plain.delta("resid_pre", 0)), ("L0 mlp", plain.delta("mlp_out", 0))):
        for site, stream in (("q", "resid_pre"), ("v", "resid_pre"), ("mlp_in", "resid_mid")):
            want: Any = 0.0
            for share, weight in zip((places + 1) / 2, weights / 2, strict=True):
                way = plain.moved("resid_pre", 0, float(share) * plain.delta("resid_pre", 0))
                grads, _ = plain.oracle.gradients(plain.tensors, [way])
                up, down = (
                    plain.oracle.run(plain.tensors, [way, plain.moved(stream, 1, step * added)])[1].sites
                    for step in (h, -h)
                )
                slope = (grads[site, 1] * (up[site, 1] - down[site, 1]) / (2 * h)).sum(-1).sum(1)
                want = want + float(weight) * slope.reshape(len(PAIRS), -1)
            kind = "mlp" if site == "mlp_in" else site
            own = ((receivers["kind"] == kind) & (receivers["layer"] == 1)).to_numpy()
            have = got[:, senders.index(sender)][:, torch.tensor(own)]
            torch.testing.assert_close(have.double(), want, atol=2e-3 * float(want.abs().max()), rtol=0)
