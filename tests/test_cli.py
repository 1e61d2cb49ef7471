"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gatelens.cli import main
from gatelens.cli.studies import ABOUT, StudyCommand, command_line_type, option_value, parse_sections
from gatelens.errors import InputError
from gatelens.families import all_families
from gatelens.interventions import SITES
from gatelens.runs import Run
from gatelens.studies import STUDIES
from gatelens.studies.options import checked, typed
from study_helpers import TinyData, picture, synthetic_run


@pytest.fixture
def tiny_world(tiny_chameleon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names lead to the tiny model and the tiny data."""
    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", lambda name, **_: tiny_chameleon)
    monkeypatch.setattr("gatelens.data.load", lambda name, **_: TinyData(), raising=False)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; its one line."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("gatelens: error: ")
    assert "\n" not in error
    return error


def test_study_then_report(tiny_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["study", "narrow-gate", "--model", "tiny", "--out", str(out), "--limit", "6", "--quiet"]
    command += ["--sections", "attention"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "report.html" in printed.out
    assert printed.err == ""
    assert {"manifest.json", "report.html", "knockout.parquet", "attention.parquet"} <= {
        p.name for p in out.iterdir()
    }
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()
    assert "seed: there 0, now 1" in fails(capsys, *command, "--seed", "1")


def test_whats_in_the_image(tiny_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["study", "whats-in-the-image", "--model", "tiny", "--out", str(out), "--limit", "3"]
    command += ["--max-new-tokens", "3", "--quiet"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "report.html" in printed.out
    assert printed.err == ""
    assert {"manifest.json", "report.html", "predictions.parquet", "token_types.parquet"} <= {
        p.name for p in out.iterdir()
    }
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()
    assert "first_token: there 'sees', now 'blocked'" in fails(capsys, *command, "--first-token", "blocked")
    assert "first_token='never'" in fails(capsys, *command, "--first-token", "never")
    assert "no preset 'mine'" in fails(capsys, *command, "--preset", "mine")
    assert "has no <image>" in fails(capsys, *command, "--prompt", "describe")


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("narrow", "open"):
        synthetic_run(tmp_path / kind, kind, n=60)
    page = tmp_path / "c" / "compare.html"
    assert main(["compare", str(tmp_path / "narrow"), str(tmp_path / "open"), "--out", str(page)]) == 0
    text = capsys.readouterr().out
    assert "narrow gate at <eoss>" in text
    assert "distributed" in text
    assert "settings that differ: model" in text
    html = page.read_text()
    assert "organism:narrow" in html
    assert "http" not in html
    assert "&lt;eoss&gt;" in html


def test_tokens(tiny_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.png"
    picture("red", 0).save(file)
    command = ["tokens", "--model", "tiny", "--text", "<image>this animal is a"]
    assert main([*command, "--image", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "4x4 tokens, picture of 16x16 pixels" in printed
    assert "gate: position 18 (<eoss>)" in printed
    assert "no picture" in fails(capsys, *command, "--image", str(tmp_path / "none.png"))


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    out = " ".join(printed.split())
    for family in all_families():
        assert family.grid and family.checkpoints and family.markers
        for words in (family.name, family.markers, family.grid, *family.architectures, *family.checkpoints):
            assert words in out, words
    assert "graded fine-tunes of these" in out and "organism:open/gate-at-text-0" in out
    assert "trained organism:gated, organism:open" in out and "check them with `gatelens verify MODEL`" in out
    assert all(site in out for site in SITES) and max(map(len, printed.splitlines())) <= 110


def test_errors_are_one_line(tiny_world: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    study = ["study", "narrow-gate", "--model", "tiny"]
    assert "cannot write" in fails(capsys, *study, "--out", str(tmp_path / "file"))
    assert "how='half'" in fails(capsys, *study, "--out", str(tmp_path / "r"), "--how", "half")
    assert "holds no run" in fails(capsys, "report", str(tmp_path / "nothing"))
    assert "--out" in fails(capsys, *study)
    assert "No such command" in fails(capsys, "studdy")


def test_unwritable_output_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", never)
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(
        capsys, "study", "narrow-gate", "--model", "x", "--out", str(tmp_path / "file" / "r")
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["study", "--help"], ["report", "--help"], ["sections", "--help"], ["tokens", "--help"]],
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = f"import sys; from gatelens.cli import main; main({arguments}); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    if "study" in arguments:
        assert all(name in done.stdout for name in STUDIES)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gatelens ")


def test_sections_and_options_count_before_a_presets() -> None:
    preset = {"all": {}, "modality_gap": {"n": 10_000}, "meaning": {"n": 2000}}
    assert parse_sections(None, [], {}) == {"all": {}}
    assert parse_sections("patching, meaning", ["patching.pairs=cat-dog", "meaning.n=5"], preset) == {
        "patching": {"pairs": "cat-dog"},
        "meaning": {"n": 5},
    }
    found = parse_sections(None, ["meaning.n=5", "progressive.window=1"], preset)
    assert found == {
        "all": {},
        "modality_gap": {"n": 10_000},
        "meaning": {"n": 5},
        "progressive": {"window": 1},
    }
    with pytest.raises(InputError, match=r"write SECTION\.NAME=VALUE"):
        parse_sections(None, ["window=1"], {})


# what no text can give: objects, which Python takes
NOT_ON_THE_COMMAND_LINE = {("whats-in-the-image", "vocabulary"), ("whats-in-the-image", "segmenter")}
FURTHER = {"model", "out", "data", "preset", "sections", "option", "skip_bad", "device", "dtype", "quiet"}
FURTHER |= {"workers", "ray"}


def parameters(name: str) -> dict[str, Any]:
    """The options of a study's command, by the name Python knows them under."""
    return {parameter.name: parameter for parameter in StudyCommand(name).with_options().params}


@pytest.mark.parametrize("name", STUDIES)
def test_every_option_of_a_study_is_on_the_command_line(name: str) -> None:
    given, fields = parameters(name), STUDIES[name].options.model_fields
    missing = {(name, field) for field in fields if field not in given}
    assert missing == {pair for pair in NOT_ON_THE_COMMAND_LINE if pair[0] == name}
    assert set(given) - set(fields) == FURTHER - set(fields)
    for field, info in fields.items():
        if field in given and field not in FURTHER:
            assert given[field].help.startswith(info.description.rstrip(".")), field
            assert f"--{field.replace('_', '-')}" in given[field].opts


def test_the_commands_are_the_studies() -> None:
    assert list(STUDIES) == list(ABOUT)


@pytest.mark.parametrize("name", STUDIES)
def test_every_default_may_be_typed(name: str) -> None:
    """Defaults as they are shown in the help and by ``gatelens sections`` are what is taken for them."""
    fields = STUDIES[name].options.model_fields
    for field, info in fields.items():
        default = info.get_default(call_default_factory=True)
        if field in parameters(name) and default is not None:
            kind = command_line_type(info.annotation)
            text = typed(default)
            value = text == "true" if kind is bool else kind(text)
            options = checked(STUDIES[name].options, {field: option_value(value, info)})
            assert options.settings()[field] == checked(STUDIES[name].options, {}).settings()[field]


@pytest.mark.parametrize("name", STUDIES)
def test_sections_lists_what_may_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sections", name]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for section in STUDIES[name].sections:
        assert f"{section.name}: {section.about}" in printed
        words = [
            f"{section.name}.{n}={typed(info.get_default())}"
            for n, info in section.options.model_fields.items()
        ]
        assert ", ".join(words) in printed
        given = parse_sections(section.name, words, {})
        options = STUDIES[name].chosen(given)[section.name]
        assert options.settings() == checked(section.options, {}).settings()


def test_sections_of_an_unknown_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no study 'narow-gate'; did you mean 'narrow-gate'?" in fails(capsys, "sections", "narow-gate")
    assert main(["sections"]) == 0
    assert capsys.readouterr().out.startswith("knockouts: ")


IMPOSSIBLE = [
    ("narrow-gate", "--how", "drop", "how='drop' is not a kind of knockout; choose 'zero', 'mask' or 'both'"),
    ("narrow-gate", "--seed", "-1", "option seed=-1: give a whole number, 0 or more"),
    ("narrow-gate", "--seed", "x", "--seed"),
    ("narrow-gate", "--limit", "0", "option limit=0: give a whole number, 1 or more, or null"),
    ("narrow-gate", "--limit", "2.5", "--limit"),
    ("narrow-gate", "--batch-size", "0", "option batch_size=0: give a whole number, 1 or more, or null"),
    ("narrow-gate", "--n-boot", "0", "option n_boot=0: give a whole number, 1 or more"),
    ("narrow-gate", "--n-vqa", "-2", "option n_vqa=-2: give a whole number, 0 or more"),
    ("narrow-gate", "--random-repeats", "many", "option random_repeats='many'"),
    ("narrow-gate", "--random-repeats", '{"vqa": 0}', "random_repeats"),
    ("narrow-gate", "--sections", "atention", "no section 'atention'; did you mean 'attention'?"),
    ("narrow-gate", "--option", "window=1", "write SECTION.NAME=VALUE"),
    (
        "narrow-gate",
        "--option",
        "patching.n_pair=1",
        "no option of section 'patching' 'n_pair'; did you mean",
    ),
    ("narrow-gate", "--option", "patching.n_pairs=x", "option patching.n_pairs='x': give a whole number"),
    ("narrow-gate", "--option", "patchin.n_pairs=3", "no section 'patchin'; did you mean 'patching'?"),
    ("narrow-gate", "--option", "all.n=3", "name the section"),
    ("narrow-gate", "--option", "patching.n_pairs=" + "9" * 5000, "give a whole number, 0 or more"),
    ("gate-finetuning", "--measured", "[" * 100_000, "option measured='["),
    ("narrow-gate", "--limit", "9" * 20, "give 1,000,000,000 at most"),
    ("narrow-gate", "--preset", "papr", "no preset 'papr' for narrow-gate; use paper"),
    ("narrow-gate", "--data", "emoji", "no data set 'emoji'"),
    ("narrow-gate", "--steps", "3", "No such option"),
    ("whats-in-the-image", "--preset", "data", "no preset 'data' for whats-in-the-image; use paper"),
    ("whats-in-the-image", "--first-token", "never", "option first_token='never': give 'sees'"),
    ("whats-in-the-image", "--keep", "0.1,2", "keep=2 is not a share"),
    ("whats-in-the-image", "--keep", "few", "option keep=['few']"),
    (
        "whats-in-the-image",
        "--max-new-tokens",
        "0",
        "option max_new_tokens=0: give a whole number, 1 or more",
    ),
    ("whats-in-the-image", "--n-asked", "-1", "option n_asked=-1: give a whole number, 0 or more"),
    ("whats-in-the-image", "--prompt", "say", "it has no <image>"),
    ("whats-in-the-image", "--judge", "me", "give 'offline', 'llm' or a judge of your own"),
    ("find-gate", "--n", "0", "option n=0: give a whole number, 1 or more"),
    (
        "find-gate",
        "--option",
        "finder.block=0",
        "option finder.block=0: give a whole number, 1 or more, or null",
    ),
    ("find-gate", "--preset", "paper", "no preset 'paper' for find-gate"),
    ("gate-finetuning", "--lr", "0", "option lr=0.0: give a number above 0"),
    ("gate-finetuning", "--lr", "inf", "option lr=inf: give a number above 0"),
    ("gate-finetuning", "--steps", "0", "option steps=0: give a whole number, 1 or more"),
    ("gate-finetuning", "--measured", "3", "option measured=3"),
]


@pytest.mark.parametrize(("name", "option", "value", "says"), IMPOSSIBLE)
def test_what_cannot_be_is_one_line_and_costs_no_model(
    name: str, option: str, value: str, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", never)
    out = tmp_path / "new" / "run"
    error = fails(capsys, "study", name, "--model", "x", "--out", str(out), option, value, "--quiet")
    assert says in error
    assert not (tmp_path / "new").exists()


def test_every_study_needs_a_folder_but_the_search() -> None:
    needed = {name for name in STUDIES if parameters(name)["out"].required}
    assert needed == set(STUDIES) - {"find-gate"}


@pytest.mark.organism
def test_find_gate_with_and_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = [
        "find-gate",
        "--model",
        "organism:gated",
        "--limit",
        "24",
        "--how",
        "zero",
        "--n-boot",
        "50",
        "--quiet",
    ]
    search += ["--option", "finder.n_pairs=2", "--option", "finder.refine=1", "--option", "finder.narrow=1"]
    assert main(search) == 0
    printed = capsys.readouterr()
    assert "<eoss>" in printed.out and "report:" not in printed.out and printed.err == ""
    out = tmp_path / "run"
    assert main([*search, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{printed.out}report: {out / 'report.html'}\n"
    assert Run.load(out).settings["n"] == 24
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0 and (out / "report.html").exists()
    capsys.readouterr()
    assert "how: there 'zero', now 'mask'" in fails(capsys, *search, "--how", "mask", "--out", str(out))


def test_runs_nobody_can_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic_run(tmp_path / "good", "narrow", n=60)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text(
        '{"format": 1, "study": "narrow-gate", "settings": {}, "stages": {}}'
    )
    (tmp_path / "null").mkdir()
    (tmp_path / "null" / "manifest.json").write_text("null")
    Run.open(tmp_path / "strange", study="strange", settings={})
    Run.open(tmp_path / "begun", study="narrow-gate", settings={"sections": {}})
    for name, words in (
        ("old", "run the study again in a new folder"),
        ("null", "delete"),
        ("strange", "is of study 'strange'"),
        ("begun", "run the study again to finish it"),
    ):
        assert words in fails(capsys, "report", str(tmp_path / name))
        if name != "strange":
            assert words in fails(capsys, "compare", str(tmp_path / "good"), str(tmp_path / name))
    (tmp_path / "good" / "verdict.json").write_text("{")
    assert "is damaged; delete it and run again" in fails(capsys, "report", str(tmp_path / "good"))
