"""The study on copies of the papers' data: two caption sets apart, bad rows in the manifest, the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import paper_copies as copies
from gatelens.cli import main
from gatelens.runs import Run
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate.reference import TABLE_1, reference_for
from gatelens.views import render_report
from study_helpers import synthetic_run

SMALL = {
    "random_tokens": 3,
    "random_repeats": 1,
    "n_boot": 20,
    "vqa_tokens": 3,
    "caption_tokens": 3,
    "sections": {"attention": {}, "patching": {"n_pairs": 3}},
}


@pytest.fixture
def papers(tmp_path: Path) -> str:
    """Copies of the four data sets as the command line names them; one question has no answers."""
    rows = copies.vqav2(30)
    rows[4]["answers"] = []
    copies.write(tmp_path / "v/validation.parquet", rows)
    copies.write(tmp_path / "f/test.parquet", copies.flickr30k(6))
    captioned = [{**r, "image": copies.picture(i)} for i, r in enumerate(copies.coco(6))]
    copies.write(tmp_path / "c/test.parquet", captioned)
    (tmp_path / "i").mkdir()
    copies.imagenet(12).to_parquet(tmp_path / "i/validation.parquet")
    return f"vqav2:{tmp_path}/v,flickr30k:{tmp_path}/f,coco:{tmp_path}/c,imagenet:{tmp_path}/i"


def test_the_papers_four_columns(tiny_chameleon: Any, papers: str, tmp_path: Path) -> None:
    run = narrow_gate(
        tiny_chameleon, papers, tmp_path / "run", skip_bad=True, seed=42, progress=False, **SMALL
    )
    table = run.table("knockout")
    metrics = ["class accuracy", "class accuracy among the class names", "VQA accuracy"]
    metrics += ["CIDEr-D (flickr30k)", "CIDEr-D (coco)"]
    assert set(table.metric) == set(metrics)
    n = table[table.row == "none"].set_index("metric").n
    assert (n["CIDEr-D (flickr30k)"], n["CIDEr-D (coco)"], n["VQA accuracy"], n["class accuracy"]) == (
        6,
        6,
        29,
        12,
    )
    scores = run.table("predictions").groupby("task").score
    assert scores.apply(lambda s: s.notna().all()).all()
    assert set(run.table("tasks").metric) == set(metrics) - {"class accuracy among the class names"}
    info = json.loads((tmp_path / "run/manifest.json").read_text())["info"]
    assert info["data_from"].startswith(f"vqav2 from {tmp_path}/v, flickr30k from ")
    assert info["bad_rows_left_out"] == {"n": 1, "rows": ["vqav2 row 4: no answers"]}
    page = (tmp_path / "run/report.html").read_text()
    assert (
        "vqav2 row 4: no answers" in page and "CIDEr-D (coco)" in page and "What the paper found" not in page
    )
    assert page.count("scored as the COCO evaluation does, with its factor of 10") == 1
    again = narrow_gate(
        tiny_chameleon, papers, tmp_path / "run", skip_bad=True, seed=42, progress=False, **SMALL
    )
    assert again.manifest["created"] == run.manifest["created"]


def test_captions_of_two_sets_are_scored_each_with_its_own_references(
    tiny_chameleon: Any, papers: str
) -> None:
    """Word weights of CIDEr-D come from one set's references: the other set must not change them."""
    both = narrow_gate(tiny_chameleon, ",".join(papers.split(",")[1:3]), seed=42, progress=False, **SMALL)
    alone = narrow_gate(tiny_chameleon, papers.split(",")[2], seed=42, progress=False, **SMALL)
    one, other = (r.table("predictions") for r in (both, alone))
    one = one[one.task == "caption (coco)"]
    assert other.task.unique().tolist() == ["caption"]
    assert one.sort_values(["row", "id"]).score.tolist() == other.sort_values(["row", "id"]).score.tolist()


@pytest.mark.usefixtures("no_report")
def test_preset_and_skip_bad_on_the_command_line(
    tiny_chameleon: Any, papers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("gatelens.model.HookedVLM.from_pretrained", lambda name, **_: tiny_chameleon)
    command = ["study", "narrow-gate", "--model", "tiny", "--quiet", "--preset", "paper"]
    vqa = papers.split(",")[0]
    assert main([*command, "--data", vqa, "--out", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "vqav2 row 4 of validation" in error and "--skip-bad" in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()
    assert main([*command, "--data", vqa, "--out", str(tmp_path / "a"), "--skip-bad"]) == 0
    assert "bad rows skipped: 1" in capsys.readouterr().out
    settings = Run.load(tmp_path / "a").manifest["settings"]
    assert (settings["seed"], settings["how"]) == (42, "zero")
    assert settings["random_repeats"] == {"class": 3, "vqa": 5, "caption": 3}
    assert settings["max_new_tokens"] == {"vqa": 20, "caption": 60} and settings["n"] == {"vqa": 29}
    assert main([*command[:-1], "papers", "--out", str(tmp_path / "b")]) == 2
    assert "no preset 'papers'" in capsys.readouterr().err


@pytest.mark.parametrize("model", TABLE_1)
def test_the_papers_numbers_stand_beside_a_run_of_the_same_model(model: str) -> None:
    page = render_report(synthetic_run(None, "narrow", 60, model=model))
    assert "What the paper found for this model" in page and "versions 1 and 2" in page
    for _, numbers in TABLE_1[model].rows:
        for value in numbers:
            assert f'<td class="number">{value:.2f}</td>' in page


def test_the_papers_numbers_are_for_their_models_only() -> None:
    assert reference_for("facebook/chameleon-7b").rows[1] == ("[EOI]", (0.25, 0.04, 0.03, 0.01))  # type: ignore[union-attr]
    assert reference_for("somewhere/models/facebook/Chameleon-7B/").model == "Chameleon-7B"  # type: ignore[union-attr]
    assert reference_for("facebook/chameleon-30b").rows[0][1] == (0.59, 0.38, 0.42, 0.43)  # type: ignore[union-attr]
    for other in (
        "organism:gated",
        "someone/chameleon-7b",
        "chameleon-7b-finetuned",
        "llava-hf/llava-1.5-7b-hf",
        "",
    ):
        assert reference_for(other) is None
