"""Compressed contexts against the full prompt, run again as one sequence with the dropped tokens cut by layer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import gatelens.interventions as gi
from gatelens.engine import run
from gatelens.engine.compression import compress, describe
from gatelens.errors import InputError, InterventionError
from gatelens.model import HookedVLM
from gatelens.tokens import Role
from tiny_models import make_llava, make_llava_processor

sys.path.append(str(Path(__file__).parents[1] / "families"))
from case import Case, cases

CASES = cases()
FAMILIES = ["chameleon", "llava", "llava-next", "qwen2-vl", "qwen3-vl", "idefics3", "pixtral"]
QUESTIONS = [["what color is it ?", "is the dog red"], ["the cat ?", "left of the dog", "what is it"]]
KEEPS = [1.0, 0.3, 0.05, 0.0]
TOLERANCE = 1e-4


class Built:
    """A family's tiny model, plain and wrapped, with two description prompts of different length."""

    def __init__(self, case: Case) -> None:
        self.case, self.plain = case, case.model()
        self.model = HookedVLM.from_module(case.model(), case.processor())
        self.pictures = [[case.picture(1)], [case.picture(0)]]
        self.texts = list(case.texts[:2])

    def inputs(self) -> Any:
        return self.model.prepare(self.pictures, self.texts)

    def grown(self, b: int, more: list[int]) -> Any:
        """Prompt ``b`` alone with further tokens in it, as a new prompt: nothing is cached or carried over."""
        one = self.model.prepare(self.pictures[b], self.texts[b])
        ids = torch.cat([one.tensors["input_ids"], torch.tensor([more], dtype=torch.long)], 1)
        derived = {"input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids"}
        rest = {k: v for k, v in one.tensors.items() if k not in derived}
        return self.model.inputs(input_ids=ids, attention_mask=torch.ones_like(ids), **rest)

    def ids(self, question: str) -> list[int]:
        return self.model.tokenizer(question, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=FAMILIES)
def built(request: pytest.FixtureRequest) -> Built:
    return Built(CASES[request.param])


@pytest.fixture(scope="module")
def llava() -> Built:
    return Built(CASES["llava"])


@pytest.fixture(autouse=True)
def no_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights may write the image placeholder, which a grown prompt cannot hold: forbid it."""
    step = HookedVLM.forward_step

    def without(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits, past = step(self, *args, **kwargs)
        shut = {
            self.layout.placeholder_id,
            *self.layout.boi_ids,
            *self.layout.eoi_ids,
            *self.layout.inner_ids,
        }
        drawn = self.layout.drawn.ids if self.layout.drawn is not None else ()
        return logits.index_fill(-1, torch.tensor(sorted({*shut, *drawn})), -1e9), past

    monkeypatch.setattr(HookedVLM, "forward_step", without)


def cuts(context: Any, b: int, grown: Any) -> list[Any]:
    """A knockout a layer: no row after the prompt reads what the layer dropped."""
    real = (context.described.tokens.roles[b] != Role.PAD).cpu()
    n_prompt = int(real.sum())
    rows = (torch.arange(grown.tokens.n_pos) >= n_prompt)[None]
    specs = []
    for layer in range(len(context.kept)):
        keys = torch.zeros_like(rows)
        keys[0, :n_prompt] = context.dropped(layer)[b][real]
        if keys.any():
            specs.append(gi.knockout(rows, keys, layers=[layer], how="mask"))
    return specs


def compressed(built: Built, keep: float) -> Any:
    return compress(built.model, built.inputs(), keep, max_new_tokens=5)


@pytest.mark.parametrize("keep", KEEPS)
def test_every_step_equals_full_recomputation(built: Built, keep: float) -> None:
    context = compressed(built, keep)
    answers = context.answer(QUESTIONS, max_new_tokens=4, stop_at_eos=False)
    after = iter(context.logits(QUESTIONS))
    for b, asked in enumerate(QUESTIONS):
        for question, got in zip(asked, answers.token_ids[b], strict=True):
            ids, want = built.ids(question), []
            for step in range(4):
                grown = built.grown(b, ids + want)
                logits = run(built.model, grown, cuts(context, b, grown))[0, -1]
                if step == 0:
                    assert (next(after) - logits).abs().max() <= TOLERANCE
                want.append(int(logits.argmax()))
            assert got.tolist() == want
    assert next(after, None) is None


def test_it_is_exact_at_every_step_in_numbers(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    context, seen = compressed(built, 0.3), []
    step = HookedVLM.forward_step

    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = step(self, *args, **kwargs)
        seen.append(out[0][:, -1])
        return out

    with monkeypatch.context() as patch:
        patch.setattr(HookedVLM, "forward_step", keeping)
        ids = context.answer([QUESTIONS[0][:1], []], max_new_tokens=5, stop_at_eos=False).token_ids[0][0]
    assert len(seen) == 5
    for n, got in enumerate(seen):
        grown = built.grown(0, built.ids(QUESTIONS[0][0]) + ids[:n].tolist())
        want = run(built.model, grown, cuts(context, 0, grown))[0, -1]
        assert (got[0] - want).abs().max() <= TOLERANCE


class Plain:
    """Plain transformers, each layer of which adds a mask of its own, [1, 1, query, key]."""

    def __init__(self, hf: Any) -> None:
        self.hf, self.masks = hf, {}
        AttentionInterface.register("one-mask-a-layer", self.attend)
        AttentionMaskInterface.register("one-mask-a-layer", eager_mask)
        hf.config.get_text_config()._attn_implementation = "one-mask-a-layer"

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling + mask
        if module.layer_idx in self.masks:
            scores = scores + self.masks[module.layer_idx]
        pattern = scores.softmax(-1)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern


@pytest.mark.parametrize("keep", [0.3, 0.0])
def test_it_equals_plain_transformers_with_a_mask_by_layer(built: Built, keep: float) -> None:
    """The text's configuration decides which attention is called: here nothing of gatelens runs."""
    plain = Plain(built.plain)
    context = compressed(built, keep)
    after = context.logits([QUESTIONS[0], QUESTIONS[1][:1]])
    for row, (b, question) in enumerate([(0, QUESTIONS[0][0]), (0, QUESTIONS[0][1]), (1, QUESTIONS[1][0])]):
        grown = built.grown(b, built.ids(question))
        n = grown.tokens.n_pos
        real = context.described.tokens.roles[b] != Role.PAD
        plain.masks = {}
        for layer in range(len(context.kept)):
            mask = torch.zeros(1, 1, n, n)
            hidden = context.dropped(layer)[b][real].nonzero().flatten()
            mask[..., int(real.sum()) :, hidden] = float("-inf")
            plain.masks[layer] = mask
        with torch.no_grad():
            want = plain.hf(**grown.tensors).logits[0, -1]
            plain.masks = {}
            free = plain.hf(**grown.tensors).logits[0, -1]
        allowed = after[row] > -1e8
        assert (after[row] - want)[allowed].abs().max() <= TOLERANCE
        assert (free - want).abs().max() > 1e-3  # what was dropped mattered


@pytest.fixture
def ending_early(llava: Built) -> Iterator[Any]:
    """One of two descriptions ends after two words, the other goes on."""
    model, inputs = llava.model, llava.inputs()
    ids = model.generate(inputs, max_new_tokens=6, stop_at_eos=False, return_type="ids").token_ids
    end = next(i for i in ids[0, 1:6].tolist() if i not in ids[1].tolist() and i != int(ids[0, 0]))
    config = model.hf.generation_config
    before, config.eos_token_id = config.eos_token_id, end
    yield ids, ids[0].tolist().index(end)
    config.eos_token_id = before


def test_each_layer_keeps_what_the_description_attends_to_most(llava: Built, ending_early: Any) -> None:
    """Recomputed from whole patterns of prompt and description; rows after an end do not count."""
    ids, n_first = ending_early
    context = compress(llava.model, llava.inputs(), 0.3, max_new_tokens=6)
    found = context.described.attention
    differ = False
    for b, n_words in enumerate((n_first, 5)):  # the sixth word is written, and never read again
        grown = llava.grown(b, ids[b, :n_words].tolist())
        _, cache = llava.model.run_with_cache(grown, lambda name: name.endswith("hook_pattern"))
        n_prompt = grown.tokens.n_pos - n_words
        real = context.described.tokens.roles[b] != Role.PAD
        image = grown.tokens.mask("image")[0]
        count = round(0.3 * int(image.sum()))
        assert count == 5
        chosen = []
        for layer in range(len(context.kept)):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
            mean = pattern[:, n_prompt - 1 :].mean(dim=(0, 1))
            torch.testing.assert_close(found[layer, b][real], mean[:n_prompt], atol=1e-6, rtol=1e-5)
            best = mean.masked_fill(~image, -1).topk(count).indices
            want = ~image[:n_prompt]
            want[best] = True
            assert torch.equal(context.kept[layer, b][real], want)
            chosen.append(set(best.tolist()))
        differ |= len({frozenset(c) for c in chosen}) > 1
    assert differ  # layers keep sets of their own
    assert context.description.texts[0] == llava.model.decode([ids[0, :n_first].tolist()])[0]


def test_the_description_is_what_generate_writes(built: Built) -> None:
    context = compressed(built, 0.3)
    want = built.model.generate(built.inputs(), max_new_tokens=5, return_type="ids")
    assert torch.equal(context.description.token_ids, want.token_ids)
    assert compressed(built, 0.0).description is None and compressed(built, 1.0).description is None


def test_what_is_kept(built: Built) -> None:
    tokens = built.inputs().tokens
    image, real = tokens.mask("image"), tokens.mask("all")
    for keep in KEEPS:
        context = compressed(built, keep)
        assert context.n_prompt == real.sum(1).tolist()
        for layer in context.kept:
            assert torch.equal(layer & ~image, real & ~image)
        n_image = image.sum(1).tolist()
        counts = [max(1, int(keep * n + 0.5)) if keep else 0 for n in n_image]
        rest = (real & ~image).sum(1).tolist()
        assert context.n_kept == [r + c for r, c in zip(rest, counts, strict=True)]
        assert (context.kept.sum(2) == torch.tensor(context.n_kept)).all()
        keys, values = context.layers[0]
        assert keys.shape[2] == max(context.n_kept)
        of_one = len(context.layers) * (keys.shape[1] * keys.shape[3] + values.shape[1] * values.shape[3]) * 4
        assert context.nbytes == [of_one * n for n in context.n_kept]


def test_positions_are_the_original_ones(built: Built) -> None:
    """Counting on from fewer positions gives other numbers; in three streams a picture takes few positions."""
    context = compressed(built, 0.05)
    close_up = dataclasses.replace(context.described, next_position=torch.tensor(context.n_kept))
    moved = dataclasses.replace(context, described=close_up)
    assert (context.logits("what is it") - moved.logits("what is it")).abs().max() > 1e-3
    if built.case.name.startswith("qwen"):
        assert (context.described.next_position < torch.tensor(context.n_prompt)).all()


def test_questions_do_not_see_each_other_nor_their_batch(built: Built) -> None:
    context = compressed(built, 0.3)
    whole = context.answer(QUESTIONS, max_new_tokens=4)
    small = context.answer(QUESTIONS, max_new_tokens=4, batch_size=2)
    assert whole.texts == small.texts and [len(t) for t in whole.texts] == [2, 3]
    alone = compress(
        built.model, built.model.prepare(built.pictures[1], built.texts[1]), 0.3, max_new_tokens=5
    )
    ended = context.description.tokens.roles[0, -1] == Role.PAD  # a batch goes on till all have ended
    assert alone.answer(QUESTIONS[1], max_new_tokens=4).texts[0] == whole.texts[1] or ended
    assert whole.seconds > 0 and whole.seconds_each < whole.seconds
    assert context.answer("is it a dog").texts == context.answer([["is it a dog"], ["is it a dog"]]).texts


def test_the_markers_can_be_dropped_too() -> None:
    built = Built(CASES["chameleon"])
    context = compress(built.model, built.inputs(), 0, always="system | query")
    tokens = context.described.tokens
    assert torch.equal(context.kept[0], tokens.mask("system | query"))
    assert not (context.kept & tokens.mask("gate")).any()
    both = describe(built.model, built.inputs(), max_new_tokens=4)
    first = both.compress(0.5, always="system | query", among="image | eoi")
    assert first.n_kept == [n + 9 for n in tokens.mask("system | query").sum(1).tolist()]  # 9 of 17
    assert both.compress(1.0).n_kept == both.compress(1.0).n_prompt


@pytest.mark.parametrize("keep", [-0.1, 1.5, 5, True, float("nan")])
def test_a_share_is_one(llava: Built, keep: Any) -> None:
    with pytest.raises(InterventionError, match=r"give a share from 0 to 1"):
        compress(llava.model, llava.inputs(), keep)


def test_what_cannot_be_asked(llava: Built) -> None:
    context = compress(llava.model, llava.inputs(), 0)
    for questions, why in [
        (["one for each ?", "or both for the first ?"], "give a list of questions for each"),
        ([["a"]], "give a list of questions for each"),
        ([["a"], [""]], "a question for prompt 1 is empty"),
        ([[], []], "no questions"),
        ([["<image> and"], []], "holds a picture"),
    ]:
        with pytest.raises(InputError, match=why):
            context.answer(questions)
    with pytest.raises(InterventionError, match="max_new_tokens=0: give a whole number, 1 or more"):
        context.answer("is it", max_new_tokens=0)
    with pytest.raises(InterventionError, match="give max_new_tokens of 1 or more"):
        describe(llava.model, llava.inputs(), 0).compress(0.5)
    with pytest.raises(InterventionError, match="keeps nothing of prompt"):
        compress(llava.model, llava.inputs(), 0, always="boi")
    with pytest.raises(InterventionError, match="max_new_tokens=-1: give a whole number, 0 or more"):
        describe(llava.model, llava.inputs(), -1)


@pytest.mark.parametrize("name", [n for n in sorted(CASES) if n.startswith("paligemma")])
def test_a_prompt_that_attends_both_ways_is_refused(name: str) -> None:
    built = Built(CASES[name])
    with pytest.raises(InterventionError, match="whole prompt attends in both directions"):
        compress(built.model, built.inputs(), 0)


def test_windows_are_refused_where_they_would_matter() -> None:
    """Gemma 3's tiny layers look back less far than prompt and question are long; else it is exact."""
    built = Built(CASES["gemma3"])
    with pytest.raises(InterventionError, match="look back 24 positions"):
        compress(built.model, built.inputs(), 0).answer(QUESTIONS)
    case = built.case
    with pytest.raises(InterventionError, match="look back 24 positions"):
        compress(built.model, built.model.prepare([case.picture(0), case.picture(1)], case.texts[2]), 0)
    cfg = built.model.hf.config.get_text_config()
    cfg.sliding_window = 40
    for layer in built.model.hf.model.language_model.layers:
        layer.self_attn.sliding_window = None if layer.self_attn.sliding_window is None else 40
    built.model.cfg.attention_windows = tuple(w and 40 for w in built.model.cfg.attention_windows)
    context = compressed(built, 0.3)
    question = QUESTIONS[0][0]
    grown = built.grown(0, built.ids(question))
    want = run(built.model, grown, cuts(context, 0, grown))[0, -1]
    assert (context.logits([[question], []])[0] - want).abs().max() <= TOLERANCE
    with pytest.raises(InterventionError, match="look back 40 positions"):
        context.answer(question, max_new_tokens=30)


def test_half_precision_and_models_of_the_conftest() -> None:
    """Sizes follow the type that is kept."""
    model = HookedVLM.from_module(make_llava().to(torch.bfloat16), make_llava_processor())
    case = CASES["llava"]
    inputs = model.prepare(case.picture(0), "this <image> animal is a")
    context = compress(model, inputs, 0.05, max_new_tokens=3)
    assert context.layers[0][0].dtype == torch.bfloat16
    assert context.nbytes == [3 * 2 * 2 * 8 * 2 * context.n_kept[0]]
    assert len(context.answer(["what is it", "a dog ?"], max_new_tokens=2).texts[0]) == 2
