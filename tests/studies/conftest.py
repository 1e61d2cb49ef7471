"""Processes for tests of what is measured elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import zipfile
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

import gatelens
import toy_study


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServerContext]:
    """Fresh processes that know nothing of this one but what is sent to them; the imports are done once for all."""
    paths = [Path(toy_study.__file__).parent, Path(gatelens.__file__).parents[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["toy_study"])
        yield context


@pytest.fixture(scope="session")
def stored_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tables of whole studies of ``organism:gated``, by study, as the version of format 3 wrote them.

    They show that a report can be drawn of a run that an older version measured. Raw batches are left out.
    """
    folders = {}
    for archive in sorted((Path(__file__).parent / "stored_runs").glob("*.zip")):
        folders[archive.stem] = tmp_path_factory.mktemp("stored") / archive.stem
        with zipfile.ZipFile(archive) as held:
            held.extractall(folders[archive.stem])
    return folders


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies write no report: drawing one takes longer than all they measure here."""
    monkeypatch.setattr("gatelens.studies.runner.write_report", lambda study, run: None)
