"""Processes for tests of what is measured elsewhere."""

from __future__ import annotations

import multiprocessing
import os
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
