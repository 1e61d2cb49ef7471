"""``import gatelens`` loads nothing heavy; at a terminal a line says what the import of TransformerLens is doing."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatelens.cli import main
from gatelens.first_import import loading_libraries


def test_importing_gatelens_loads_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); import gatelens;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['gatelens']"


def said(capsys: pytest.CaptureFixture[str], quiet: bool = False) -> str:
    """What a first import says that takes long enough; it also shows that the collector rests meanwhile."""
    with loading_libraries(quiet):
        assert not gc.isenabled()
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(10)
    assert gc.isenabled()
    return capsys.readouterr().err


def test_only_who_waits_at_a_terminal_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "transformer_lens", raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # tests of notebooks load it
    monkeypatch.setattr("gatelens.first_import._AFTER", 0.0)
    assert said(capsys) == ""  # a script whose stderr is a file
    with monkeypatch.context() as prompt:
        prompt.setattr(sys, "ps1", ">>> ", raising=False)
        assert said(capsys).startswith("gatelens: importing torch, transformers and TransformerLens")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert said(capsys).startswith("gatelens: importing torch, transformers and TransformerLens")
    assert said(capsys, quiet=True) == ""
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console
    assert said(capsys) == ""


def test_an_import_that_fails_leaves_the_collector_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformer_lens", raising=False)
    with pytest.raises(ImportError), loading_libraries():
        raise ImportError("torch")
    assert gc.isenabled()
    gc.disable()
    try:
        with loading_libraries():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "command, quiet",
    [
        (["study", "narrow-gate", "--help"], False),
        (["study", "narrow-gate", "--quiet", "--help"], True),
        (["bench", "--quiet", "--tune", "--split", "heldout"], True),
        (["models"], False),
    ],
)
def test_a_command_says_so_unless_it_is_quiet(
    command: list[str], quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextmanager
    def noted(quiet: bool = False) -> Iterator[None]:
        asked.append(quiet)
        yield

    monkeypatch.setattr("gatelens.cli.options.loading_libraries", noted)
    main(command)
    assert asked == [quiet]
