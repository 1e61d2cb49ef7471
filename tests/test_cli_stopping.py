"""Signals: one line, the exit code of a shell, and what was measured is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatelens.cli import main
from gatelens.cli.stopping import listening

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Signals do what they do in a terminal, also where the tests were started with some ignored; then as before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sent(number: int) -> Any:
    """What a study's function does that is stopped while it measures."""

    def run(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    return run


@pytest.mark.parametrize("name", ["narrow-gate", "whats-in-the-image", "find-gate", "gate-finetuning"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_stopped_study_says_in_a_line_where_it_goes_on(
    number: int,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gatelens.studies.catalogue.starter", lambda name: sent(number))
    assert main(["study", name, "--model", "x", "--out", str(tmp_path)]) == SIGNALS[signal.Signals(number)]
    said = capsys.readouterr()
    assert said.err == f"gatelens: stopped; the same command resumes in {tmp_path}\n"
    assert said.out == ""


def test_a_search_without_a_folder_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatelens.studies.catalogue.starter", lambda name: sent(signal.SIGINT))
    assert main(["find-gate", "--model", "x"]) == 130
    assert capsys.readouterr().err == "gatelens: stopped; nothing is kept without --out\n"


def test_a_command_that_keeps_no_run_is_stopped_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatelens.runs.Run.load", sent(signal.SIGTERM))
    assert main(["report", str(tmp_path)]) == 143
    assert capsys.readouterr().err == "gatelens: stopped\n"


def test_what_a_signal_turns_into_is_no_other_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An import that a signal meets fails in its own way."""

    def load(path: Any) -> None:
        try:
            sent(signal.SIGINT)()
        except SystemExit:
            raise ImportError("numpy failed to import") from None

    monkeypatch.setattr("gatelens.runs.Run.load", load)
    assert main(["report", "x"]) == 130
    assert capsys.readouterr().err == "gatelens: stopped\n"


def test_a_command_leaves_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_kills_at_once(second: int) -> None:
    code = """
import time
from gatelens.cli.stopping import listening
with listening():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(second)
    assert process.wait(10) == -second
    process.stdout.close()
