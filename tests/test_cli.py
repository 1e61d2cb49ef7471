"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gatelens.cli import main
from gatelens.cli.studies import parse_sections
from gatelens.errors import InputError
from gatelens.families import all_families
from gatelens.interventions import SITES
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
    assert "trained organism:gated, organism:open" in out and "Published weights were not run" in out
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


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys; from gatelens.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "narrow-gate" in done.stdout or "study" in done.stdout
    assert time.perf_counter() - started < 10  # seconds on a busy machine; about 0.3 on a quiet one


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
