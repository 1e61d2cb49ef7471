"""How the study asks: turns of a chat, the token a label begins with after one, and repeats by kind of task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import pixtral
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gatelens.cli import main
from gatelens.data import Example
from gatelens.errors import DataError, OutputError
from gatelens.examples import Labels
from gatelens.families.common.processing import ImageTextParts
from gatelens.model import HookedVLM
from gatelens.runs import Run
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate.asking import turned_kinds
from gatelens.studies.presets import preset
from study_helpers import ROWS, TinyData

SMALL: dict[str, Any] = {
    "sections": "knockouts",
    "batch_size": 4,
    "caption_tokens": 3,
    "vqa_tokens": 4,
    "n_boot": 20,
    "limit": 4,
    "random_tokens": 3,
    "progress": False,
}
RANDOM = "random-3 → text"
TURN = ["[INST]", "[/INST]"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these studies."""
    monkeypatch.setattr("gatelens.studies.runner.write_report", lambda study, run: None)


class Examples(TinyData):
    """The same as examples of the package's own class."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        return [Example(**vars(e)) for e in super().examples(task, limit, seed)]


@pytest.fixture(scope="module")
def instructed() -> tuple[Any, HookedVLM]:
    """The tiny Pixtral, plain and wrapped, whose tokenizer has the markers of a turn in place of two words."""
    renamed = {"left": TURN[0], "of": TURN[1]}
    vocabulary = {renamed.get(word, word): i for word, i in pixtral.VOCABULARY.items()}
    tokenizer = pixtral.tokenizer(vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": [*pixtral.MARKERS, *TURN]})
    assert len(tokenizer) == len(vocabulary)
    processor = ImageTextParts(pixtral.processor().image_processor, tokenizer)
    return pixtral.pixtral(), HookedVLM.from_module(pixtral.pixtral(), processor)


def test_pixtral_is_asked_in_turns(instructed: tuple[Any, HookedVLM], tmp_path: Path) -> None:
    plain, model = instructed
    run = narrow_gate(model, Examples(), tmp_path / "run", **SMALL)
    assert run.manifest["settings"]["chat"] == ["vqa", "caption"]
    table = run.table("knockout")
    assert (
        list(dict.fromkeys(table.row)) == [r.replace("10", "3") for r in ROWS] and table["mean"].notna().all()
    )
    prompts = {e["task"]: e["prompt"] for e in run.json("examples")}
    assert prompts["class"] == "<image>this animal is a"
    assert prompts["caption"] == "[INST]<image>it shows[/INST]"
    words = [row[3] for row in run.json("tokens")["rows"]]
    assert "[INST]" in words[0] and words[-1].endswith("[/INST]")
    # transformers' own answer to the turn written out by hand, without the study or the family's layout
    tokenizer = model.processor.tokenizer
    asked = Examples().examples("vqa", 4)
    said = run.table("predictions").query("task == 'vqa' and row == 'none'").set_index("id").prediction
    for e in asked:
        made = model.processor.image_processor(images=[e.image], patch_size=8, return_tensors="pt")
        rows, cols = (made["image_sizes"][0] // 8).tolist()
        shown = "[IMG_BREAK]".join(["[IMG]" * cols] * rows) + "[IMG_END]"
        text = f"[INST]{shown}{e.prompt.removeprefix('<image>')}[/INST]"
        ids = tokenizer(text, return_tensors="pt")
        assert [ids.input_ids[0, 1], ids.input_ids[0, -1]] == tokenizer.convert_tokens_to_ids(TURN)
        with torch.no_grad():
            out = plain.generate(
                ids.input_ids, attention_mask=ids.attention_mask, max_new_tokens=4, do_sample=False, **made
            )
        new = tokenizer.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
        assert said[e.id] == new.strip()
    assert all(said)


def test_a_turn_can_be_left_out_or_asked_for(
    instructed: tuple[Any, HookedVLM], tiny_llava: HookedVLM, tiny_chameleon: HookedVLM, tmp_path: Path
) -> None:
    model = instructed[1]
    assert (
        turned_kinds(model, False)
        == []
        == turned_kinds(tiny_llava, None)
        == turned_kinds(tiny_chameleon, None)
    )
    assert turned_kinds(tiny_llava, True) == ["vqa", "caption"] == turned_kinds(model, None)
    run = narrow_gate(model, Examples(), tmp_path / "run", chat=False, **SMALL)
    assert not any("[INST]" in row[3] for row in run.json("tokens")["rows"])
    with pytest.raises(OutputError, match="chat"):
        narrow_gate(model, Examples(), tmp_path / "run", **SMALL)
    turned = narrow_gate(tiny_llava, Examples(), chat=True, **SMALL)
    assert {e["prompt"] for e in turned.json("examples") if e["task"] == "caption"} == {
        "USER: <image>it shows ASSISTANT:"
    }


@pytest.mark.parametrize("flag, turned", [("--chat", ["vqa", "caption"]), ("--no-chat", []), (None, [])])
def test_the_command_line_takes_it(
    flag: str | None,
    turned: list[str],
    tiny_llava: HookedVLM,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", lambda name, **_: tiny_llava)
    command = [
        "study",
        "narrow-gate",
        "--model",
        "tiny",
        "--sections",
        "knockouts",
        "--limit",
        "1",
        "--quiet",
    ]
    assert main([*command, "--out", str(tmp_path / "run"), *([flag] if flag else [])]) == 0
    assert Run.load(tmp_path / "run").manifest["settings"]["chat"] == turned


@pytest.mark.parametrize(
    "prompt, begins",
    [
        ("<image>this is a", " cat"),
        ("<image>this is a ", " cat"),
        ("<image>", " cat"),
        ("[INST]<image>what is it[/INST]", "cat"),
        ("USER: <image>what is it ASSISTANT:", " cat"),
        ("<|im_start|>user <image>what is it<|im_end|><|im_start|>assistant\n", "cat"),
        ("[INST]this <image> or <image> what is it[/INST]", "cat"),
    ],
)
def test_a_label_begins_as_the_model_writes_it(prompt: str, begins: str) -> None:
    """With a byte-level BPE, which has `cat` and ` cat` as two tokens."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    corpus = ["cat", "this is a cat or a cat what is it", "cat\ncat", "USER: ASSISTANT: assistant user"] * 9
    special = [*TURN, "<|im_start|>", "<|im_end|>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(corpus, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=special)
    model: Any = SimpleNamespace(tokenizer=tokenizer)
    assert tokenizer.decode([Labels(model).first_token(prompt, "cat")]) == begins


def test_repeats_by_kind(tiny_llava: HookedVLM, tmp_path: Path) -> None:
    settings = {**SMALL, "random_repeats": {"vqa": 4, "caption": 2}}
    run = narrow_gate(tiny_llava, TinyData(), tmp_path / "run", **settings)
    assert run.manifest["settings"]["random_repeats"] == {"class": 3, "vqa": 4, "caption": 2}
    predictions = run.table("predictions")
    drawn = predictions[predictions.row == RANDOM].groupby("task").repeat.nunique()
    assert drawn.to_dict() == {"class": 3, "vqa": 4, "caption": 2}
    assert set(predictions[predictions.row != RANDOM].repeat) == {0}
    again = narrow_gate(tiny_llava, TinyData(), tmp_path / "run", **settings)
    assert again.manifest["created"] == run.manifest["created"]
    with pytest.raises(OutputError, match="random_repeats"):
        narrow_gate(tiny_llava, TinyData(), tmp_path / "run", **{**settings, "random_repeats": 3})


@pytest.mark.parametrize(
    "repeats, message",
    [
        (0, "random_repeats is 0; give 1 to 1,000"),
        ({"vqa": 0}, "random_repeats of 'vqa' is 0"),
        ({"captions": 3}, "has 'captions', which is not a kind of task; use class, vqa, caption"),
    ],
)
def test_repeats_that_cannot_be(repeats: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        narrow_gate("organism:gated", TinyData(), tmp_path / "run", random_repeats=repeats)
    assert not (tmp_path / "run").exists()


def test_the_paper_draws_questions_five_times_and_captions_three() -> None:
    repeats = preset("paper").settings["random_repeats"]
    assert (repeats["vqa"], repeats["caption"]) == (5, 3)
