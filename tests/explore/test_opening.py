"""From a run or names to an explorer, and the command around it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gatelens as gl
from gatelens.cli import main
from gatelens.errors import DataError, ModelError, OutputError
from gatelens.explore.explorer import Explorer
from gatelens.explore.opening import open_explorer
from gatelens.identity import given
from gatelens.runs import Run


@pytest.fixture
def loaded(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What is loaded, without taking its time."""
    names: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> Any:
        names.append((name, options))
        return explorer.model

    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", load)
    return names


def run_with(folder: Path, info: dict[str, Any] | None = None, **settings: Any) -> Path:
    Run.open(folder, study="narrow-gate", settings=settings, info=info)
    return folder


def pictures(folder: Path, explorer: Explorer, n: int = 6) -> Path:
    """A folder of data with the first sample's picture."""
    folder.mkdir()
    explorer.shelf["sample:0"].image.save(folder / "a.png")
    rows = [f"a.png,{label}" for label in ("sunflower", "crab") * (n // 2)]
    (folder / "data.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    return folder


def test_a_run_opens_with_its_model_and_examples(tmp_path: Path, loaded: list[Any]) -> None:
    numbers = {"class": 9, "vqa": 4}
    run = run_with(tmp_path / "run", model="organism:llava", data="emoji-scenes", n=numbers, seed=3)
    opened = open_explorer(run)
    assert loaded == [("organism:llava", {})] and opened.model_name == "organism:llava"
    drawn = gl.data.load("emoji-scenes").examples("class", limit=9, seed=3)
    for example, shown in zip(drawn[:5], opened.shelf.samples.values(), strict=False):
        assert np.array_equal(np.asarray(example.image), np.asarray(shown.image))
        assert shown.label == example.label


def test_a_run_whose_folder_of_data_is_elsewhere_says_what_to_give(tmp_path: Path, loaded: list[Any]) -> None:
    run = run_with(tmp_path / "run", model="organism:gated", data="my-pictures", n={}, seed=0)
    with pytest.raises(DataError, match=r"'my-pictures'.*--data"):
        open_explorer(run)
    assert open_explorer(run, data="emoji-scenes").data_name == "emoji-scenes"
    with pytest.raises(OutputError, match="no run"):
        open_explorer(tmp_path)


def test_a_run_finds_its_folders_again_from_anywhere(
    tmp_path: Path, explorer: Explorer, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "pics", explorer)
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    drawn: dict[str, Any] = {"model": "weights", "data": "pics", "n": {"class": 4}, "seed": 2}
    run = run_with(tmp_path / "run", info=given("weights", "pics"), **drawn)
    monkeypatch.chdir("/")
    source = open_explorer(run).shelf.samples["sample:0"].source
    assert source == f'gl.data.load("{folder}").examples("class", limit=4, seed=2)[0].image'
    assert loaded == [(str(tmp_path / "weights"), {})]
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "pics")
    with pytest.raises(DataError, match=f"data of the run .*{folder}.*give it by --data") as caught:
        open_explorer(run)
    assert "\n" not in str(caught.value)
    # the same data at another place are still the run's; others are not
    source = open_explorer(run, data=str(moved)).shelf.samples["sample:0"].source
    assert source == f'gl.data.load("{moved}").examples("class", limit=4, seed=2)[0].image'
    source = open_explorer(run, data="emoji-scenes").shelf.samples["sample:0"].source
    assert source.endswith("limit=5, seed=0)[0].image")


def test_a_run_whose_model_cannot_be_loaded_takes_another(tmp_path: Path, loaded: list[Any]) -> None:
    run = run_with(tmp_path / "run", model="ChameleonModel", data="emoji-scenes", n={}, seed=0)
    assert open_explorer(run, model="organism:open").model_name == "organism:open"
    assert loaded == [("organism:open", {})]


def test_a_run_whose_model_is_gone_says_what_to_give(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", model="organism:gates", data="emoji-scenes", n={}, seed=0)
    with pytest.raises(ModelError, match=r"model of the run .*gates.*give it by --model") as caught:
        open_explorer(run)
    assert "\n" not in str(caught.value)


def test_folders_stand_in_the_script_by_their_whole_path(
    tmp_path: Path, explorer: Explorer, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures", explorer)
    Path("weights").mkdir()
    opened = open_explorer(model="weights", data="pictures", options={"dtype": "float32"})
    assert opened.loading == f'"{tmp_path / "weights"}", dtype="float32"'
    assert loaded == [("weights", {"dtype": "float32"})] and opened.labels == ["crab", "sunflower"]
    monkeypatch.chdir("/")
    shown = opened.shelf["sample:0"]
    assert np.array_equal(np.asarray(eval(shown.source, {"gl": gl})), np.asarray(shown.image))


def test_data_without_pictures_is_refused(
    tmp_path: Path, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Drawings:
        name, tasks, classes = "drawings", ("draw",), ()

    monkeypatch.setattr("gatelens.explore.opening.load", lambda name: Drawings())
    with pytest.raises(DataError, match="no pictures"):
        open_explorer(data="drawings")
    assert loaded == []


def test_without_the_extra_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("starlette", "uvicorn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "gatelens.explore.server")
    monkeypatch.delattr("gatelens.explore.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["explore", "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pip install 'gatelens[explore]'" in said and "uvicorn" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "65535"),
        (["--model", "organism:gates", "--no-browser"], "gates"),
        (["--data", "no-such-data"], "no-such-data"),
        (["no-such-run"], "no-such-run"),
    ],
    ids=["port", "model", "data", "run"],
)
def test_what_cannot_be_opened_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatelens: error: ") and error.count("\n") == 1 and said in error
