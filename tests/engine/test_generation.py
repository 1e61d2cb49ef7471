"""Cached decoding under interventions against running the whole grown prompt again at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import gatelens as gl
import gatelens.interventions as gi
from gatelens.engine import Sampling, generate, run
from gatelens.errors import InputError, InterventionError
from gatelens.interventions import knockouts as knockouts_module
from gatelens.model import HookedVLM
from gatelens.tokens import Role, position_ids
from model_helpers import CASES, PICTURES, TEXTS


@pytest.fixture(autouse=True)
def no_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights may write the image placeholder, which a grown prompt cannot hold: forbid it."""
    step = HookedVLM.forward_step

    def without(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits, past = step(self, *args, **kwargs)
        return logits.index_fill(-1, torch.tensor([self.layout.placeholder_id]), -1e9), past

    monkeypatch.setattr(HookedVLM, "forward_step", without)


def grown(inputs: Any, ids: torch.Tensor) -> Any:
    """The prompt with already generated tokens as part of the input, known as generated."""
    mask = torch.cat([inputs.tensors["attention_mask"], torch.ones_like(ids)], 1)
    tensors = {
        **inputs.tensors,
        "input_ids": torch.cat([inputs.tensors["input_ids"], ids], 1),
        "attention_mask": mask,
        "position_ids": position_ids(mask),
    }
    return dataclasses.replace(inputs, tensors=tensors, tokens=inputs.tokens.extend(ids.shape[1]))


def again(model: Any, inputs: Any, specs: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token without a cache: (ids [batch, steps], logits [batch, steps, d_vocab])."""
    ids, logits = torch.zeros(inputs.batch_size, 0, dtype=torch.long), []
    for _ in range(steps):
        logits.append(run(model, grown(inputs, ids), specs)[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return ids, torch.stack(logits, 1)


def cached(model: Any, inputs: Any, specs: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`generate` does, with the logits of each step kept."""
    logits: list[torch.Tensor] = []
    step = type(model).forward_step

    def keeping(*args: Any, **kwargs: Any) -> Any:
        out = step(model, *args, **kwargs)
        logits.append(out[0][:, -1])
        return out

    model.forward_step = keeping
    try:
        found = generate(model, inputs, specs, max_new_tokens=steps, stop_at_eos=False)
    finally:
        del model.forward_step
    return found.token_ids, torch.stack(logits, 1)


DIRECTION = torch.linspace(-2, 2, 32)
SPECS = {
    "clean": [],
    "mask": [gi.knockout("text", "image")],
    "zero": [gi.knockout("text", "image", how="zero")],
    "last and generated": [gi.knockout("last | generated", "image | gate", layers=[0, 2])],
    "generated cannot read the question": [gi.knockout("generated", "query", heads=[0, 3])],
    "generated cannot read generated": [gi.knockout("generated", "generated", layers=1)],
    "everything but itself": [gi.knockout("generated", "~system")],
    "steer": [gi.steer(DIRECTION, "last | generated", layers=1)],
    "ablate": [gi.ablate("generated", "z", layers=[1, 2], heads=[1]), gi.ablate("gate", "resid_mid", 0)],
    "ablate mid generated": [gi.ablate("generated", "resid_mid", 1)],
    "mean": [gi.ablate("text", "mlp_out", layers=[0, 2], with_="mean", over="image")],
    "mean of a moving selection": [gi.ablate("text", "resid_pre", layers=[1], with_="mean")],
    "all together": [
        gi.knockout("text", "image", layers=[0], heads=[1, 2]),
        gi.knockout("generated", "first_image", layers=[0, 1], how="zero"),
        gi.steer(DIRECTION, "text", "attn_out", layers=[0, 1], scale=0.5),
        gi.ablate("image", "k", layers=2, heads=0),
    ],
}


@pytest.mark.parametrize("name", list(SPECS))
def test_cached_decoding_is_full_recomputation(tiny: Any, batch: Any, name: str) -> None:
    specs = SPECS[name]
    # a selector of generated positions alone is empty in the first step of the run without a cache
    plain = [s for s in specs if not _only_generated(s)]
    steps = 6
    first = run(tiny, batch, plain)[:, -1].argmax(-1, keepdim=True)
    ids, logits = first, [run(tiny, batch, plain)[:, -1]]
    for _ in range(steps - 1):
        logits.append(run(tiny, grown(batch, ids), specs)[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    got, step_logits = cached(tiny, batch, specs, steps)
    torch.testing.assert_close(step_logits, torch.stack(logits, 1), atol=5e-5, rtol=1e-4)
    assert torch.equal(got, ids)


def _only_generated(spec: Any) -> bool:
    return getattr(spec, "queries", getattr(spec, "at", None)) == "generated"


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    queries=st.sampled_from(["text", "last | generated", "~image", "text - gate"]),
    keys=st.sampled_from(["image", "gate", "image | eoi", "random_image:6@3", "last | image"]),
    layers=st.lists(st.integers(0, 2), min_size=1, unique=True),
    heads=st.none() | st.lists(st.integers(0, 3), min_size=1, unique=True),
    how=st.sampled_from(["mask", "zero"]),
)
def test_any_knockout_holds_at_every_step(
    tiny: Any, batch: Any, queries: str, keys: str, **rest: Any
) -> None:
    spec = gi.knockout(queries, keys, **rest)
    ids, logits = again(tiny, batch, spec, 4)
    got, step_logits = cached(tiny, batch, spec, 4)
    torch.testing.assert_close(step_logits, logits, atol=5e-5, rtol=1e-4)
    assert torch.equal(got, ids)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(gi.SITES),
            st.sampled_from(["text", "last | generated", "gate", "image", "random_image:3 | text", "all"]),
            st.integers(0, 2),
            st.sampled_from(["zero", "mean", "push"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_edits_hold_at_every_step(tiny: Any, batch: Any, edits: list[Any]) -> None:
    specs = [
        gi.steer(torch.linspace(-1, 1, 8 if site in "qkvz" else 32), at, site, layer)
        if what == "push"
        else gi.ablate(at, site, layer, with_=what, over="prompt" if what == "mean" else None)
        for site, at, layer, what in edits
    ]
    ids, logits = again(tiny, batch, specs, 3)
    got, step_logits = cached(tiny, batch, specs, 3)
    torch.testing.assert_close(step_logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(got, ids)


def test_patching_the_prompt_holds_while_decoding(tiny: Any, batch: Any, one_image: Any) -> None:
    _, cache = tiny.run_with_cache(one_image, "blocks.1.hook_resid_pre")
    spec = gi.patch(cache, "image", layers=1)
    ids, logits = again(tiny, batch, spec, 4)
    got, step_logits = cached(tiny, batch, spec, 4)
    torch.testing.assert_close(step_logits, logits, atol=5e-5, rtol=1e-4)
    assert torch.equal(got, ids)


def test_clean_decoding_is_what_transformers_generates(tiny: Any, oracle: Any, batch: Any) -> None:
    tensors = {k: v for k, v in batch.tensors.items() if k != "position_ids"}
    expected = oracle.generate(
        **tensors,
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=[tiny.layout.placeholder_id],
    )
    got = generate(tiny, batch, max_new_tokens=8, stop_at_eos=False)
    assert torch.equal(got.token_ids, expected[:, batch.tokens.n_pos :])


def test_a_batch_is_its_examples(tiny: Any, batch: Any) -> None:
    spec = gi.knockout("text", "image", layers=[1, 2])
    together = generate(tiny, batch, spec, max_new_tokens=5, stop_at_eos=False)
    for b in range(3):
        alone = generate(tiny, batch.select([b]), spec, max_new_tokens=5, stop_at_eos=False)
        assert torch.equal(alone.token_ids[0], together.token_ids[b])


def test_decoding_builds_one_row_a_step(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    original = knockouts_module.blocked_entries

    def noting(*args: Any) -> Any:
        blocked = original(*args)
        if blocked is not None:
            shapes.append((blocked.entries.shape[2], blocked.entries.shape[3]))
        return blocked

    monkeypatch.setattr(knockouts_module, "blocked_entries", noting)
    generate(tiny, batch, gi.knockout("text", "image"), max_new_tokens=4, stop_at_eos=False)
    n = batch.tokens.n_pos
    assert [keys for _, keys in shapes] == [n, n + 1, n + 2, n + 3]
    assert [rows for rows, _ in shapes[1:]] == [1, 1, 1]


@pytest.fixture
def eos(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[int, torch.Tensor]:
    """An end-of-sequence token that the first example writes, and what all write without it."""
    ids = generate(tiny, batch, max_new_tokens=6, stop_at_eos=False).token_ids
    chosen = int(ids[0, 2])
    monkeypatch.setattr(tiny.hf.generation_config, "eos_token_id", [chosen])
    return chosen, ids


def test_an_example_ends_at_its_eos(tiny: Any, batch: Any, eos: tuple[int, torch.Tensor]) -> None:
    chosen, ids = eos
    got = generate(tiny, batch, max_new_tokens=6)
    for b in range(3):
        hits = (ids[b] == chosen).nonzero()[:, 0].tolist()
        end = hits[0] if hits else 6
        assert got.token_ids[b, :end].tolist() == ids[b, : min(end, got.token_ids.shape[1])].tolist()
        assert (got.token_ids[b, end:] == chosen).all()
        roles = got.tokens.roles[b, batch.tokens.n_pos :]
        assert (roles[: end + 1] == Role.GENERATED).all() and (roles[end + 1 :] == Role.PAD).all()
        assert got.texts[b] == tiny.decode(ids[b, :end])[0]


def test_the_run_ends_when_all_have_ended(tiny: Any, batch: Any, eos: tuple[int, torch.Tensor]) -> None:
    got = generate(tiny, batch.select([0]), max_new_tokens=6)
    assert got.token_ids.shape[1] <= 3
    assert got.tokens.n_pos == batch.select([0]).tokens.n_pos + got.token_ids.shape[1]


def test_the_map_of_a_generation(tiny: Any, batch: Any) -> None:
    got = generate(tiny, batch, max_new_tokens=3, stop_at_eos=False)
    assert (
        got.tokens.n_pos == batch.tokens.n_pos + 3 and got.tokens.prompt_length == batch.tokens.prompt_length
    )
    assert got.tokens.mask("generated").sum() == 9
    assert got.tokens.strings[0][-3:] == tuple(
        tiny.tokenizer.convert_ids_to_tokens(got.token_ids[0].tolist())
    )


def test_what_cannot_act_says_so(tiny: Any, batch: Any) -> None:
    for spec, word in [
        (gi.knockout("generated", "all"), "nothing to attend to"),
        (gi.knockout("text", "image", layers=8), "layer 8"),
        (gi.knockout("boi", "eoi"), "boi" if tiny.family.name == "llava" else "causal"),
    ]:
        with pytest.raises(InterventionError, match=word):
            generate(tiny, batch, spec, max_new_tokens=3)
    with pytest.raises(InterventionError, match="max_new_tokens=0"):
        generate(tiny, batch, max_new_tokens=0)


def test_decoding_with_fused_attention_is_the_same(tiny: Any, batch: Any) -> None:
    specs = [gi.knockout("text", "image", layers=1, heads=[0]), gi.ablate("gate", "z", 2)]
    before = tiny.attention
    try:
        tiny.attention = "stepwise"
        ids, logits = again(tiny, batch, specs, 4)
        tiny.attention = "fused"
        got, step_logits = cached(tiny, batch, specs, 4)
    finally:
        tiny.attention = before
    torch.testing.assert_close(step_logits, logits, atol=5e-5, rtol=1e-4)
    assert torch.equal(got, ids)


@pytest.mark.parametrize(
    "spec", [gi.knockout("text", "image", layers=0), gi.ablate("last", "mlp_out", layers=0)]
)
def test_hooks_made_for_a_prompt_refuse_a_decoding_step(tiny: Any, batch: Any, spec: Any) -> None:
    """Rather than act on the wrong position."""
    pairs = spec.hooks(batch.tokens, tiny.cfg)
    _, past = tiny.forward_step(batch.tensors, pairs, use_cache=True)
    step = {
        "input_ids": torch.full((3, 1), 30),
        "attention_mask": torch.cat([batch.tensors["attention_mask"], torch.ones(3, 1, dtype=torch.long)], 1),
    }
    with pytest.raises(InterventionError, match=r"model\.generate"):
        tiny.forward_step(step, pairs, past=past)


# ---------------------------------------------------------------- sampling
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8}],
)
def test_what_is_drawn_from_is_transformers(options: dict[str, Any]) -> None:
    logits = torch.randn(3, 40) * 3
    chosen: list[Any] = [TemperatureLogitsWarper(options.get("temperature", 1.0))]
    chosen += [TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    chosen += [TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    want = logits
    for warper in chosen:
        want = warper(torch.zeros(3, 1, dtype=torch.long), want)
    torch.testing.assert_close(Sampling(**options).probabilities(logits), want.softmax(-1))


def test_samples_follow_their_probabilities(tiny: Any) -> None:
    inputs = tiny.prepare(*CASES["one image"])
    probabilities = tiny(inputs)[0, -1].softmax(-1)
    drawn = torch.stack(
        [
            generate(tiny, inputs, max_new_tokens=1, sampling=Sampling(seed=s)).token_ids[0, 0]
            for s in range(300)
        ]
    )
    often = probabilities.argmax()
    assert abs((drawn == often).float().mean() - probabilities[often]) < 0.1 and drawn.unique().numel() > 3


def test_a_sample_is_of_its_seed_and_not_of_its_batch(tiny: Any) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)

    def sample(given: Any, seed: int) -> Any:
        return tiny.generate(
            given, max_new_tokens=6, stop_at_eos=False, temperature=1.5, seed=seed, return_type="ids"
        ).token_ids

    both = sample(inputs, 3)
    assert torch.equal(both, sample(inputs, 3)) and not torch.equal(both, sample(inputs, 4))
    assert torch.equal(both[1:2], sample(inputs[1:2], 3))
    greedy = generate(tiny, inputs, max_new_tokens=6, stop_at_eos=False)
    cold = generate(tiny, inputs, max_new_tokens=6, stop_at_eos=False, sampling=Sampling(top_k=1))
    assert torch.equal(cold.token_ids, greedy.token_ids)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 3}, "beam search under interventions is not supported"),
        ({"temperature": 0}, "above 0"),
        ({"top_k": 0}, "at least 1"),
        ({"top_p": 1.5}, "up to 1"),
        ({"do_sample": False, "top_k": 3}, "leave temperature"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tiny: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.generate(tiny.prepare(*CASES["one image"]), **options)


# ---------------------------------------------------------------- what was written, run again
def test_what_was_written_goes_back_in(tiny: Any) -> None:
    inputs = tiny.prepare(PICTURES, TEXTS)
    whole = tiny.generate(inputs, max_new_tokens=6, stop_at_eos=False, return_type="ids")
    begun = tiny.generate(inputs, max_new_tokens=3, stop_at_eos=False, return_type="ids")
    again = begun.inputs
    n = inputs.shape[1]
    assert again.tokens.positions("generated") == [n, n + 1, n + 2] and again.shape == (3, n + 3)
    assert again.texts[0].startswith(TEXTS[0]) and len(again.texts[0]) > len(TEXTS[0])
    assert torch.equal(tiny(again)[:, n - 1 :].argmax(-1), whole.token_ids[:, :4])
    assert torch.equal(
        tiny.generate(again, max_new_tokens=3, stop_at_eos=False, return_type="ids").token_ids,
        whole.token_ids[:, 3:],
    )
    knock = gl.knockout("last | generated", "image", how="mask")
    cut = tiny.generate(inputs, knock, max_new_tokens=4, stop_at_eos=False, return_type="ids")
    assert torch.equal(tiny.run(cut.inputs, knock)[:, n - 1 : -1].argmax(-1), cut.token_ids)


def test_a_prompt_that_ended_is_not_gone_on_with(tiny: Any) -> None:
    inputs = tiny.prepare(PICTURES[:2], TEXTS[:2])
    made = tiny.generate(inputs, max_new_tokens=4, stop_at_eos=False, return_type="ids")
    roles = made.tokens.roles.clone()
    roles[0, -1] = Role.PAD
    ended = dataclasses.replace(made, tokens=dataclasses.replace(made.tokens, roles=roles))
    with pytest.raises(InputError, match="ends in padding"):
        tiny.generate(ended.inputs)
    alone = ended.inputs[0:1, :-1]
    assert tiny.generate(alone, max_new_tokens=1)


def test_a_hook_that_stays_sees_the_grown_prompt(tiny: Any) -> None:
    """It may count positions from the first: each token is what the grown prompt gives."""
    inputs = tiny.prepare(*CASES["one image"])
    where = inputs.tokens.positions("image")[-1]

    def move(tensor: Tensor, hook: Any) -> Tensor:
        assert tensor.shape[1] > where
        return tensor.index_fill(1, torch.tensor([where]), 2.0)

    hook = ("blocks.1.hook_resid_pre", move)
    grown, want = inputs, []
    for _ in range(4):
        token = tiny.run_with_hooks(grown, [hook])[:, -1].argmax(-1)
        want.append(int(token))
        grown = grown.grown(token[:, None], grown.tokens.extend(1), [""])
    tiny.add_hook(*hook)
    try:
        got = tiny.generate(inputs, max_new_tokens=4, stop_at_eos=False, return_type="ids").token_ids
    finally:
        tiny.reset_hooks()
    assert got[0].tolist() == want
    assert (tiny.run_with_hooks(inputs, [hook]) - tiny(inputs))[:, -1].abs().max() > 1e-3
