"""The words of a generation against plain runs: attention, log-probabilities, cuts, blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from case import cases

import gatelens as gl
from gatelens.errors import InputError
from gatelens.readouts.written import blocks_of
from study_helpers import picture


@pytest.fixture(scope="module")
def written(tiny_chameleon: Any) -> Any:
    """Two prompts of different length and what was written after them; the table of the second, padded one."""
    images = [[picture("red", 0, size=32)], [picture("blue", 1, size=32)]]
    inputs = tiny_chameleon.prepare(
        images=images, text=["<image>what color is the dog ?", "<image>this animal is a"]
    )
    generation = tiny_chameleon.generate(inputs, return_type="map", max_new_tokens=5)
    return generation, gl.words_table(tiny_chameleon, generation, example=1, grid=2)


def test_every_written_word_has_a_row(written: Any) -> None:
    generation, table = written
    text = "".join(
        before + word for before, word in zip(table.words["before"], table.words["word"], strict=True)
    )
    assert text == generation.texts[1].rstrip() and len(table.words) > 1
    assert (
        table.tokens.strings[0][table.tokens.prompt_length + table.words["first"][1]]
        == table.words["word"][1]
    )


def test_attention_is_that_of_the_rows_that_write(written: Any, tiny_chameleon: Any) -> None:
    generation, table = written
    _, cache = tiny_chameleon.run_with_cache(generation.inputs)
    start = generation.prompt.tokens.n_pos - 1
    for layer in range(3):
        whole = cache[f"blocks.{layer}.attn.hook_pattern"][1].float()
        for w, (first, last) in enumerate(zip(table.words["first"], table.words["last"], strict=True)):
            rows = whole[:, start + first : start + last + 1].mean(1)
            torch.testing.assert_close(table.attention[layer, :, w], rows, atol=1e-5, rtol=1e-4)


def test_log_probabilities_are_those_of_plain_transformers(written: Any, hf_chameleon: Any) -> None:
    generation, table = written
    with torch.no_grad():
        logits = hf_chameleon(**generation.inputs.select([1]).tensors).logits[0].float()
    start = generation.prompt.tokens.n_pos - 1
    for first, last, log_prob in zip(*(table.words[c] for c in ("first", "last", "log_prob")), strict=True):
        ids = generation.token_ids[1, first : last + 1]
        rows = logits[start + first : start + last + 1].log_softmax(-1)
        assert log_prob == pytest.approx(float(rows.gather(1, ids[:, None]).sum()), abs=1e-4)


def test_effects_are_those_of_one_knockout_each(written: Any, tiny_chameleon: Any) -> None:
    generation, table = written
    inputs = generation.inputs.select([1])
    start = generation.prompt.tokens.n_pos - 1
    assert len(table.blocks) == 4
    for b, block in enumerate(table.blocks):
        cut = gl.knockout("text | gate", list(block.positions), how="mask")
        logits = tiny_chameleon.run(inputs, [cut])[0].float().log_softmax(-1)
        for w, (first, last) in enumerate(zip(table.words["first"], table.words["last"], strict=True)):
            ids = generation.token_ids[1, first : last + 1]
            there = logits[start + first : start + last + 1].gather(1, ids[:, None]).sum()
            assert float(table.effects[b, w]) == pytest.approx(
                float(there) - table.words["log_prob"][w], abs=1e-4
            )
    assert float(table.effects.abs().max()) > 0.01


def test_the_table_has_a_row_a_word_and_block(written: Any) -> None:
    _, table = written
    rows = table.table
    assert len(rows) == 4 * len(table.words)
    first = table.blocks[0]
    assert (rows["effect"][1], rows["n_tokens"][1]) == (float(table.effects[0, 1]), len(first.positions))
    assert first.box == (0, 0, 16, 16)
    assert rows["attention"][1] == pytest.approx(
        float(table.attention[:, :, 1, list(first.positions)].sum(-1).mean())
    )
    assert "WordsTable" in repr(table) and str(table.words["word"][0]) in repr(table)


def test_the_lens_is_that_of_the_prompt(written: Any, tiny_chameleon: Any) -> None:
    generation, table = written
    alone = gl.logit_lens(tiny_chameleon, generation.prompt.select([1]), at="image", top=3)
    torch.testing.assert_close(table.lens.tensor, alone.tensor)


@pytest.mark.parametrize("name", ["llava-next", "pixtral", "qwen2-vl", "idefics3"])
def test_blocks_part_the_image_tokens(name: str) -> None:
    """Each token with a place is in one block, and every block is one piece of its picture."""
    case = cases()[name]
    model = gl.HookedVLM.from_module(copy.deepcopy(case.model()), case.processor())
    inputs = model.prepare([[case.picture(0), case.picture(1)]], ["<image> and <image> left of"])
    blocks = blocks_of(inputs.tokens, 2)
    where = [p for p in inputs.tokens.positions("image") if not bool(inputs.tokens.box[0, p].isnan().any())]
    assert sorted(p for block in blocks for p in block.positions) == where
    for block in blocks:
        assert {int(inputs.tokens.image_index[0, p]) for p in block.positions} == {block.image}
        x0, y0, x1, y1 = block.box
        width, height = inputs.tokens.image_sizes[0][block.image]
        assert 0 <= x0 < x1 <= width + 1e-3 and 0 <= y0 < y1 <= height + 1e-3
    assert {block.image for block in blocks} == {0, 1} and len(blocks) <= 8


def test_errors(written: Any, tiny_chameleon: Any) -> None:
    generation, _ = written
    with pytest.raises(InputError, match="grid=0"):
        gl.words_table(tiny_chameleon, generation, grid=0)
    nothing = tiny_chameleon.generate(
        tiny_chameleon.prepare(text="this animal is a"), return_type="map", max_new_tokens=2
    )
    with pytest.raises(InputError, match="has no picture"):
        gl.words_table(tiny_chameleon, nothing)
