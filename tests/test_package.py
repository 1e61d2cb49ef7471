"""The package as it is sent: the wheel holds every file of ``src/gatelens`` that git holds, and nothing else."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from gatelens.shipped_organisms import graded_names, organism_names

REPOSITORY = Path(__file__).parents[1]
MOST_MEGABYTES = 40


def tracked(folder: str) -> set[str]:
    """The files under a folder that git holds, or would if all were added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hatch = pytest.importorskip("hatchling.builders.wheel", reason="make test installs hatchling")
    return Path(
        next(hatch.WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path_factory.mktemp("dist"))))
    )


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert package == {name.removeprefix("src/") for name in tracked("src/gatelens")}
    organisms = "gatelens/organisms/weights"
    needed = {f"{organisms}/{name}/model.safetensors" for name in organism_names()}
    needed |= {f"{organisms}/{name}/difference.safetensors" for name in graded_names()}
    needed |= {"gatelens/py.typed", "gatelens/__init__.pyi", "gatelens/bench/rules.json"}
    needed |= {"gatelens/explore/page/index.html", "gatelens/plots/templates/report.html.j2"}
    needed |= {"gatelens/data/artwork/LICENSE", "gatelens/data/artwork/noto/LICENSE"}
    assert needed <= package
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert {"LICENSE", "src/gatelens/data/artwork/noto/LICENSE"} <= licences


def test_the_wheel_is_small_enough_to_send(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_MEGABYTES * 1e6


def test_the_sdist_holds_what_its_tests_and_pages_need() -> None:
    hatch = pytest.importorskip("hatchling.builders.sdist", reason="make test installs hatchling")
    held = {f.distribution_path for f in hatch.SdistBuilder(str(REPOSITORY)).recurse_included_files()}
    assert held == {name for name in tracked(".") if not name.startswith(".ci/")}
