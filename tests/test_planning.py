"""A plan from a config alone is the plan of the loaded model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gatelens import planning
from gatelens.cli import main
from gatelens.data import load
from gatelens.engine.footprint import in_words
from gatelens.errors import DataError, InputError
from gatelens.model import HookedVLM
from gatelens.tokens import Role
from tiny_models import make_llava, make_llava_processor, make_picture

CONFIGS = Path(__file__).parent / "planning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and processor; no weights."""
    where = tmp_path_factory.mktemp("bare")
    model = make_llava()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(where)
    make_llava_processor().save_pretrained(where)
    return where


def test_a_plan_without_weights_is_that_of_the_model(folder: Path, tiny_llava: HookedVLM) -> None:
    bare = planning.bare_model(folder, "float32")
    assert all(p.device.type == "meta" for p in bare.hf.parameters())
    tokens = planning.prompt_of(16, 7, batch=2)
    for study in (None, "narrow-gate"):
        for got, due in zip(
            planning.planned(bare, tokens, study, "1GB"),
            planning.planned(tiny_llava, tokens, study, "1GB"),
            strict=True,
        ):
            assert got.explanation.plan == due.explanation.plan and got.equivalents == due.equivalents
            assert got.explanation.footprint == due.explanation.footprint
            assert len(got.explanation.plan.parts) and not got.explanation.plan.full


def test_the_prompt_that_is_planned(folder: Path) -> None:
    tokens = planning.prompt_of(5, 3)
    assert tokens.positions("image") == [1, 2, 3, 4, 5] and tokens.positions("gate") == [6]
    assert tokens.positions("query") == [7, 8, 9] and tokens.n_pos == 10
    with pytest.raises(InputError, match="--image-tokens=0: give at least 1"):
        planning.prompt_of(0, 3)


def test_data_says_how_long_prompts_are(folder: Path, tiny_llava: HookedVLM, tmp_path: Path) -> None:
    make_picture().save(tmp_path / "a.png")
    (tmp_path / "data.csv").write_text(
        "image,question,answers\na.png,what is it ?,dog\na.png,what color is the dog ?,red\n"
    )
    pictures, text = planning.longest_prompt(planning.bare_model(folder), str(folder), str(tmp_path))
    assert pictures == 16
    prompts = [e.prompt for e in load(str(tmp_path)).examples("vqa")]
    longest = max(tiny_llava.prepare(make_picture(), p).shape[1] for p in prompts)
    assert planning.prompt_of(pictures, text).n_pos == longest
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    with (
        pytest.warns(UserWarning, match="no usable processor"),
        pytest.raises(DataError, match="no processor"),
    ):
        planning.longest_prompt(planning.bare_model(tmp_path), str(tmp_path), str(tmp_path))


SIZES = {  # layers, width, MLP, vocabulary: of the decoder, in 2 bytes a number
    "chameleon-7b": (32, 4096, 11008, 65536, 1024),
    "llava-1.5-7b": (32, 4096, 11008, 32064, 576),
}


@pytest.mark.parametrize("name", SIZES)
def test_seven_billion_parameters_from_a_config(name: str) -> None:
    layers, width, mlp, vocabulary, image = SIZES[name]
    decoder = 2 * (2 * vocabulary * width + layers * (4 * width**2 + 3 * width * mlp))
    bare = planning.bare_model(CONFIGS / name)
    (work,) = planning.planned(bare, planning.prompt_of(image, 24), None, "24GB")
    held = work.explanation.footprint
    assert decoder < held.weights < 1.06 * decoder  # picture encoder and norms come on top
    assert bare.dtype.itemsize == 2
    n = image + 26
    keys = 2 * 2 * layers * n * width
    assert keys < held.prefix < 1.1 * keys
    assert work.runs == 64 and 1 < work.equivalents < 3
    lines = planning.report(bare, [work], "16GB")
    assert lines[-1] == f"at most {in_words(held.peak)}: fits in 16.0 GB"
    assert planning.report(bare, [work], "14GB")[-1].endswith("does NOT fit in 14.0 GB")


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", str(folder / "config.json"), "--image-tokens", "16", "--prompt-tokens", "5"]
    assert main([*asked, "--study", "narrow-gate", "--device-memory", "1GB"]) == 0
    said = capsys.readouterr().out
    assert "2 prompt(s)" not in said and "1 prompt(s) of 23 positions" in said
    assert "knockouts, questions: 8 runs, 20 tokens decoded after each" in said and "fits in 1.00 GB" in said


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([], "how long is the prompt"),
        (["--image-tokens", "4", "--data", "emoji-scenes"], "were both given"),
        (["--image-tokens", "100000000"], "100000000 image and 32 text tokens is beyond the"),
        (["--image-tokens", "4", "--study", "else"], "--study else: only narrow-gate can be planned"),
        (["--image-tokens", "4", "--device-memory", "much"], "--device-memory='much': give bytes"),
    ],
)
def test_what_is_asked_in_vain(
    folder: Path, capsys: pytest.CaptureFixture[str], asked: list[str], why: str
) -> None:
    assert main(["plan", "--model", str(folder), *asked]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_no_such_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "./nowhere", "--image-tokens", "4"]) == 2
    assert "no folder './nowhere'" in capsys.readouterr().err


def test_roles_are_those_of_a_picture_and_text() -> None:
    roles = planning.prompt_of(2, 1).roles[0].tolist()
    assert roles == [Role.SYSTEM, Role.IMAGE, Role.IMAGE, Role.EOI, Role.QUERY]
    assert planning.prompt_of(2, 1, batch=3).roles.shape == torch.Size([3, 5])
