"""Studies that are killed at random moments: a share of ``python -m benchmarks.kills``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gatelens

ROOT = Path(__file__).parents[1]


@pytest.mark.organism
def test_a_study_killed_at_random_moments_ends_as_an_undisturbed_one() -> None:
    paths = os.pathsep.join([str(Path(gatelens.__file__).parents[1]), str(ROOT)])
    command = [sys.executable, "-m", "benchmarks.kills", "--studies", "quick", "--kills", "3"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("quick: 1 SIGKILL, 1 SIGTERM, 1 SIGINT; ") and "; 0 faults" in done.stdout
