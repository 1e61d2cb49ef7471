"""Path patching against torch hooks on plain transformers, a planted path, and TransformerLens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching

import gatelens as gl
from attack.compositions import Subject, subject
from attack.oracle import Change, Seen
from gatelens.errors import GatelensError
from gatelens.model import HookedVLM
from gatelens.readouts.prompt_pairs import sides
from tiny_models import make_llava, make_llava_processor, make_picture

RIGHT, WRONG = -1, -3  # words in every vocabulary
# grouped heads; norms after the parts; image tokens that attend both ways; both of these; positions in three streams
FAMILIES = ("llava", "chameleon-34b", "paligemma", "gemma3", "qwen2-vl", "qwen3-vl")


def metric(logits: Tensor) -> Tensor:
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


class ByHand:
    """Path patching written once more over hooks on plain transformers."""

    def __init__(self, one: Subject, clean: Any, corrupt: Any) -> None:
        self.oracle, self.clean = one.oracle, clean
        self.real = clean.tokens.roles != 0
        self.seen = one.oracle.run(clean.tensors)[1]
        self.other = one.oracle.run(corrupt.tensors)[1]
        self.layers = tuple(range(len(one.oracle.layers)))

    def put(self, seen: Seen, site: str, layer: int, head: int | None = None, at: Any = None) -> Change:
        at = self.real if at is None else at
        heads = None if head is None else (head,)
        return Change(site, at, (layer,), heads, lambda old, layer, _: seen.sites[site, layer][at])

    def first(self, sender: Change, frozen_mlps: bool) -> tuple[Tensor, Seen]:
        """Logits and activations with the sender corrupt and all heads frozen, those of MLPs on request."""
        layers = [layer for layer in self.layers if layer >= sender.layers[0]]
        frozen = [self.put(self.seen, "z", layer) for layer in layers]
        if frozen_mlps:
            frozen += [self.put(self.seen, "mlp_out", layer) for layer in layers]
        return self.oracle.run(self.clean.tensors, [*frozen, sender])

    def second(self, kept: Seen, receivers: list[tuple[str, int, int | None]]) -> Tensor:
        return self.oracle.run(self.clean.tensors, [self.put(kept, *one) for one in receivers])[0]


def two_sides(one: Subject, kind: str) -> tuple[Any, Any]:
    """One prompt over two pictures. An untrained VQ encoder sees all alike: there other words stand in the prompt."""
    clean, corrupt = (one.built.inputs(kind, seed) for seed in (0, 1))
    if one.name.startswith("chameleon"):
        tensors = {**corrupt.tensors, "input_ids": corrupt.tensors["input_ids"].clone()}
        words = corrupt.tokens.mask("query")
        tensors["input_ids"][words] = tensors["input_ids"][words].flip(0)
        corrupt = one.built.model.inputs(**tensors)
    return clean, corrupt


@pytest.mark.parametrize("name", FAMILIES)
def test_paths_are_those_of_plain_transformers(name: str) -> None:
    one = subject(name)
    clean, corrupt = two_sides(one, "batch")
    model, hand = one.built.model, ByHand(one, clean, corrupt)
    at = clean.tokens.mask("query")
    senders = {
        "L0H1": hand.put(hand.other, "z", 0, 1),
        "L0 mlp@query": hand.put(hand.other, "mlp_out", 0, at=at),
        "L1 resid_pre@query": hand.put(hand.other, "resid_pre", 1, at=at),
    }
    receivers = {
        "L1H0.q": ("q", 1, 0),
        "L1H1.k": ("k", 1, 1),
        "L1H0.v": ("v", 1, 0),
        "L1 mlp": ("mlp_in", 1, None),
    }
    heads = one.oracle.config.num_key_value_heads
    receivers = {name: place for name, place in receivers.items() if (place[2] or 0) < heads}
    before = metric(one.oracle.run(clean.tensors)[0])
    biggest = 0.0
    for mlps in ("recomputed", "frozen"):
        kept = [hand.first(sender, mlps == "frozen") for sender in senders.values()]
        want = torch.stack([metric(logits) for logits, _ in kept], 1)
        got = gl.path_patch(model, (clean, corrupt), list(senders), "logits", metric, mlps, progress=False)
        torch.testing.assert_close(got.tensor, want - before[:, None], atol=2e-4, rtol=1e-4)
        for towards in ([name] for name in receivers):
            want = torch.stack(
                [metric(hand.second(seen, [receivers[r] for r in towards])) for _, seen in kept], 1
            )
            got = gl.path_patch(model, (clean, corrupt), list(senders), towards, metric, mlps, progress=False)
            torch.testing.assert_close(got.tensor, want - before[:, None], atol=2e-4, rtol=1e-4)
            biggest = max(biggest, float(got.tensor.abs().max()))
    assert biggest > 1e-2


def test_groups_send_and_receive_together() -> None:
    one = subject("llava")
    clean, corrupt = two_sides(one, "one")
    hand = ByHand(one, clean, corrupt)
    frozen = [hand.put(hand.seen, "z", layer) for layer in hand.layers]
    sent = [hand.put(hand.other, "z", 0, 2), hand.put(hand.other, "z", 1, 0)]
    _, kept = one.oracle.run(clean.tensors, [*frozen, *sent])
    want = metric(hand.second(kept, [("q", 1, 3), ("v", 2, 1)]))
    got = gl.path_patch(
        one.built.model,
        (clean, corrupt),
        {"two": ["L0H2", "L1H0"]},
        ["L1H3.q", "L2H1.v"],
        metric,
        progress=False,
    )
    torch.testing.assert_close(torch.from_numpy(got.columns["patched"])[:, 0], want, atol=1e-4, rtol=1e-4)
    assert got.table["sender"].tolist() == ["two"] and abs(float(got.tensor)) > 1e-3


def planted() -> Any:
    """Two layers, even attention, no MLPs: a word's sign goes L0H1 → the value of L1H2 → the logits, no other way."""
    hf = make_llava(kv_heads=4)
    decoder = hf.model.language_model
    del decoder.layers[2:]
    decoder.config.num_hidden_layers = hf.config.text_config.num_hidden_layers = 2
    with torch.no_grad():
        for table in (decoder.embed_tokens.weight.T, hf.model.multi_modal_projector.linear_2.weight):
            table[:3] = 0
        hf.model.multi_modal_projector.linear_2.bias[:3] = 0
        plus, minus = (word_id("left"), word_id("of"))
        decoder.embed_tokens.weight[minus] = decoder.embed_tokens.weight[plus]
        decoder.embed_tokens.weight[plus, 0], decoder.embed_tokens.weight[minus, 0] = 2.0, -2.0
        for layer, (head, reads, writes) in zip(decoder.layers, ((1, 0, 1), (2, 1, 2)), strict=True):
            attention = layer.self_attn
            for part in (
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                layer.mlp.down_proj,
            ):
                part.weight.zero_()
            attention.v_proj.weight[8 * head, reads] = 3.0
            attention.o_proj.weight[writes, 8 * head] = 3.0
        hf.lm_head.weight.zero_()
        hf.lm_head.weight[RIGHT, 2], hf.lm_head.weight[WRONG, 2] = 1.0, -1.0
    return hf


def word_id(word: str) -> int:
    return int(make_llava_processor().tokenizer(word, add_special_tokens=False)["input_ids"][0])


def test_a_planted_path_is_found_and_no_other() -> None:
    model = HookedVLM.from_module(planted(), make_llava_processor())
    clean, corrupt = (model.prepare(make_picture(), f"<image> is it {word} ?") for word in ("left", "of"))
    total = float(metric(model(corrupt)) - metric(model(clean)))
    assert abs(total) > 0.1
    for receiver in [f"L1H{h}.{part}" for h in range(4) for part in "qkv"]:
        effects = gl.path_patch(model, (clean, corrupt), "heads", receiver, metric, progress=False)
        want = torch.zeros(1, 1, 4)
        if receiver == "L1H2.v":
            want[0, 0, 1] = total
        torch.testing.assert_close(effects.tensor, want, atol=1e-5, rtol=0)
    direct = gl.path_patch(model, (clean, corrupt), "heads", "logits", metric, progress=False)
    want = torch.zeros(1, 2, 4)
    want[0, 1, 2] = total
    torch.testing.assert_close(direct.tensor, want, atol=1e-5, rtol=0)


def test_direct_paths_are_transformer_lens() -> None:
    model = HookedVLM.from_module(copy.deepcopy(make_llava(kv_heads=4)), make_llava_processor())
    clean, corrupt = (model.prepare(make_picture(24, 16, seed), "<image> is it ?") for seed in (4, 9))
    caches = [model.run_with_cache(inputs)[1] for inputs in (corrupt, clean)]
    one = lambda logits: metric(logits)[0]  # noqa: E731
    for part in "qkv":
        theirs = patching.get_act_patch_direct_path(model, clean, *caches, one, 0, 1, part, verbose=False)
        ours = [
            gl.path_patch(
                model, (clean, corrupt), "L0H1", f"L{layer}H{head}.{part}", metric, "frozen", progress=False
            )
            .columns["patched"]
            .item()
            for layer in (1, 2)
            for head in range(4)
        ]
        torch.testing.assert_close(torch.tensor(ours), theirs[1:].flatten(), atol=1e-5, rtol=1e-5)


def test_pairs_bring_their_own_metric(tiny_llava: Any) -> None:
    """Prompts that are prepared one by one, and the logit difference of their answers."""
    pictures = [make_picture(seed=seed) for seed in range(3)]
    examples = [
        gl.data.Example(p, "<image> is it a", (w,), "class", w, w)
        for p, w in zip(pictures, ["dog", "cat", "red"], strict=True)
    ]
    pairs = [gl.data.Pair(examples[0], examples[i], "picture", "dog", ("cat", "red")[i - 1]) for i in (1, 2)]
    got = gl.path_patch(tiny_llava, pairs, "mlps@last", progress=False)
    for i, word in enumerate(("cat", "red")):
        sides = [tiny_llava.prepare([e.image], [e.prompt]) for e in (examples[0], examples[i + 1])]
        of = gl.metrics.logit_diff(tiny_llava.to_single_token("dog"), tiny_llava.to_single_token(word))
        want = gl.path_patch(tiny_llava, tuple(sides), "mlps@last", "logits", of, progress=False)
        torch.testing.assert_close(got.tensor[i], want.tensor[0])
        assert got.columns["clean"][i, 0] == pytest.approx(float(of(tiny_llava(sides[0]))), abs=1e-4)
    assert got.means["n"].tolist() == [2, 2, 2] and got.show() is not None


def test_senders_of_longer_prompts_pair_by_their_place(tiny_llava: Any) -> None:
    clean = tiny_llava.prepare(make_picture(), "<image> is it a")
    corrupt = tiny_llava.prepare(make_picture(seed=3), "this animal <image> is it a")
    got = gl.path_patch(tiny_llava, (clean, corrupt), "L0H1@image", "L1H0.k", metric, progress=False)
    assert abs(float(got.tensor)) > 1e-4
    with pytest.raises(
        GatelensError, match=r"'L0H1' selects 20 positions of clean prompt 0 and 22 of the corrupt"
    ):
        gl.path_patch(tiny_llava, (clean, corrupt), "L0H1", "L1H0.k", metric, progress=False)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no place": ({"senders": "head 3"}, "sender 'head 3': write a head 'L3H2'"),
    "a number": ({"senders": [3]}, "sender 3: write a head"),
    "a layer": ({"senders": "L9H0"}, "sender 'L9H0': the model has layers 0 to 2"),
    "a head": ({"senders": "L0H4"}, "sender 'L0H4': the model has heads 0 to 3"),
    "key-value heads": ({"receivers": "L1H2.k"}, "receiver 'L1H2.k': the model has key-value heads 0 to 1"),
    "a query sends": ({"senders": "L0H1.q"}, "a head sends its whole output, write L0H1"),
    "a head receives": ({"receivers": "L1H1"}, r"say what of the head is to receive, L1H1.q, .k or .v"),
    "the stream receives": ({"receivers": "L1 resid_pre"}, "the stream is read by all that follows"),
    "none": ({"senders": []}, "no sender comes before a receiver"),
    "an empty group": ({"senders": {"all": []}}, "no sender comes before a receiver"),
    "a group of a number": ({"senders": {"all": 3}}, "sender 3: write a head"),
    "no receivers": ({"receivers": []}, "receivers is empty"),
    "logits and": ({"receivers": ["logits", "L1H1.q"]}, "ask for them by themselves"),
    "backwards": ({"senders": "L2H0", "receivers": "L1H1.q"}, "'L2H0' is computed after every receiver"),
    "nothing before": ({"receivers": "L0H1.q"}, "no sender comes before a receiver"),
    "elsewhere": (
        {"senders": "L0H1@image", "receivers": "L1H1.q@last"},
        "is at none of the positions of sender 'L0H1@image'",
    ),
    "not at the last": (
        {"senders": "heads@image", "metric": gl.metrics.logit(3)},
        "sender 'L0H0@image' must include the position the metric reads.*: write 'L0H0@last'",
    ),
    "no selector": ({"senders": "L0H1@nowhere"}, "nowhere"),
    "no such positions": ({"senders": "L0H1@boi"}, "selects no position"),
    "mlps": ({"mlps": "gone"}, "mlps='gone': write 'recomputed' or 'frozen'"),
    "no metric": ({"metric": None}, "metric=None: for prepared batches give a function"),
    "a word": ({"metric": "logit"}, "metric='logit': for prepared batches give a function"),
    "a scalar": ({"metric": lambda logits: logits.sum()}, r"the metric gave \(\), expected \(1,\)"),
    "no pairs": ({"pairs": 3}, "pairs is 3: give"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_means_nothing_is_one_line(tiny_llava: Any, name: str) -> None:
    clean, corrupt = (tiny_llava.prepare(make_picture(seed=seed), "<image> is it a") for seed in (0, 1))
    given, words = BAD[name]
    with pytest.raises(GatelensError, match=words) as raised:
        gl.path_patch(tiny_llava, **{"pairs": (clean, corrupt), "metric": metric, "progress": False, **given})
    assert "\n" not in str(raised.value)


def test_noise_of_a_pair_is_in_its_corrupt_run(tiny_llava: Any) -> None:
    """What a head says in the noised run, put in by hand."""
    one = gl.data.Example(make_picture(), "<image> is it a", ("dog",), "class", "0", "dog")
    pair = gl.data.Pair(one, one, "noise", "dog", noise=3.0)
    got = gl.path_patch(tiny_llava, pair, "L2H1", "logits", "prob", progress=False)
    _, corrupt = sides(tiny_llava, [pair], chat=False)
    noised = corrupt.interventions[0].hooks(corrupt.tokens, tiny_llava.cfg)
    _, cache = tiny_llava.run_with_cache(corrupt.inputs, fwd_hooks=noised)

    def put(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 1] = cache["blocks.2.attn.hook_z"][:, :, 1]
        return z

    logits = tiny_llava.run_with_hooks(corrupt.inputs, fwd_hooks=[("blocks.2.attn.hook_z", put)])
    of = gl.metrics.prob(tiny_llava.to_single_token("dog"))
    assert got.columns["patched"].item() == pytest.approx(float(of(logits)), abs=1e-6)
    assert abs(float(got.tensor)) > 1e-5
    with pytest.raises(GatelensError, match="has no answer for its corrupt picture"):
        gl.path_patch(tiny_llava, pair, progress=False)
