"""The study end to end on tiny untrained models, and on the organisms, whose answer is known."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gatelens.errors import DataError, InterventionError, OutputError
from gatelens.measures.judge import OfflineJudge
from gatelens.measures.objects import Vocabulary
from gatelens.plots.page import render
from gatelens.runs import Run
from gatelens.studies.options import checked
from gatelens.studies.report import figure, page_of, write_report
from gatelens.studies.section import Measured, Setup
from gatelens.studies.whats_in_the_image import configurations as wi
from gatelens.studies.whats_in_the_image import knockouts
from gatelens.studies.whats_in_the_image.study import STUDY, whats_in_the_image
from gatelens.studies.whats_in_the_image.word_widget import shown_example
from scene_helpers import TinyScenes
from study_helpers import TinyData

SMALL = {"batch_size": 5, "max_new_tokens": 5, "n_boot": 50, "n_asked": 0, "progress": False}


@pytest.fixture(scope="module")
def finished(tiny_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "llava"
    return whats_in_the_image(tiny_llava, TinyScenes(), path, **{**SMALL, "n_asked": 3})


def test_tables_and_files(finished: Run) -> None:
    table = finished.table("knockout")
    assert table.row.iloc[0] == "none"
    for path in wi.PATHS:
        assert {f"{path}, all layers", f"{path}, from layer 1 on", f"{path}, from layer 2 on"} <= set(
            table.row
        )
    assert ((table.low <= table["mean"] + 1e-12) & (table["mean"] <= table.high + 1e-12)).all()
    types = finished.table("token_types")
    assert types.groupby("layer").share.sum().tolist() == pytest.approx([1, 1, 1])
    assert set(types.n) == {7}
    assert list(finished.table("trade_off").context)[:3] == ["asked afresh", "K = 100 %", "K = 5 %"]
    assert finished.json("verdict")["verdict"] == "inconclusive"  # seven pictures
    assert finished.json("verdict")["planted"] is None
    assert finished.path is not None
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    assert {
        "figures/knockout.png",
        "figures/token_types.png",
        "figures/trade_off.png",
        "report.html",
    } <= names
    assert not [n for n in names if n.endswith(".part")]


def test_pictures_are_kept_by_their_id(finished: Run) -> None:
    section = STUDY.section("descriptions")
    cells = section.cells(finished).set_index(["metric", "row"])["mean"]
    values = section.values(finished)
    assert set(finished.table("token_types_by_picture").id) <= set(finished.table("descriptions").id)
    means = values.groupby(["metric", "row"]).value.mean()
    assert set(cells.index) <= set(means.index)
    assert cells.to_dict() == pytest.approx(means[cells.index].to_dict(), abs=1e-6)


@pytest.mark.usefixtures("no_report")
def test_resuming_computes_only_the_rest(
    tiny_llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Run
) -> None:
    real, calls = knockouts.generate_many, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(knockouts, "generate_many", failing)
    settings = {**SMALL, "n_asked": 3}
    with pytest.raises(KeyboardInterrupt):
        whats_in_the_image(tiny_llava, TinyScenes(), tmp_path / "r", **settings)
    run = whats_in_the_image(tiny_llava, TinyScenes(), tmp_path / "r", **settings)
    stages = 2 if run.json("window") is not None else 1
    assert len(calls) == 2 * stages + 1  # two batches a stage, one of them twice
    pd.testing.assert_frame_equal(run.table("knockout"), finished.table("knockout"))
    before = len(calls)
    whats_in_the_image(tiny_llava, TinyScenes(), tmp_path / "r", **settings)
    assert len(calls) == before


def test_batch_size_changes_nothing(tiny_llava: Any, finished: Run) -> None:
    other = whats_in_the_image(tiny_llava, TinyScenes(), None, **{**SMALL, "batch_size": 7})
    pd.testing.assert_frame_equal(
        *(r.table("predictions").sort_values(["row", "id"]).reset_index(drop=True) for r in (finished, other))
    )
    for name in ("share", "se", "even"):
        np.testing.assert_allclose(
            finished.table("token_types")[name], other.table("token_types")[name], atol=1e-6
        )


def test_other_settings_are_refused(tiny_llava: Any, finished: Run) -> None:
    settings = {**SMALL, "n_asked": 3}
    with pytest.raises(OutputError, match="first_token: there 'sees', now 'blocked'"):
        whats_in_the_image(tiny_llava, TinyScenes(), finished.path, first_token="blocked", **settings)
    with pytest.raises(OutputError, match="examples: there"):
        whats_in_the_image(tiny_llava, TinyScenes(n=6), finished.path, **settings)


def test_user_errors(tiny_llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(kind: type[Exception], match: str, **settings: Any) -> None:
        with pytest.raises(kind, match=match):
            whats_in_the_image(tiny_llava, TinyScenes(), None, **{**SMALL, **settings})

    fails(InterventionError, "how='drop'", how="drop")
    fails(DataError, "first_token='maybe'", first_token="maybe")
    fails(DataError, "preset='mine'", preset="mine")
    fails(DataError, "no <image>", prompt="describe")
    fails(DataError, "limit=0", limit=0)
    fails(DataError, "keep=5", keep=(5,))
    fails(DataError, "keep='x'", keep="x")
    fails(DataError, "judge='me'", judge="me")
    fails(DataError, "give out=", judge="llm")
    fails(DataError, "option judge=5: give 'offline'", judge=5)
    fails(DataError, "no option 'kep'", kep=(0.5,))
    monkeypatch.delenv("GATELENS_JUDGE_URL", raising=False)
    with pytest.raises(DataError, match="GATELENS_JUDGE_URL is not set"):
        whats_in_the_image("no-such-model", "no-such-data", tmp_path / "llm", judge="llm")
    with pytest.raises(DataError, match="none of the tasks"):
        whats_in_the_image(tiny_llava, TinyScenes(tasks=("draw",)), None, **SMALL)
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        whats_in_the_image("no-such-model", "no-such-data", tmp_path / "f")


def test_pictures_of_questions_are_described_once(tiny_llava: Any) -> None:
    data = TinyScenes(tasks=("vqa",), n=3)
    data.examples = lambda *a, **k: 2 * TinyScenes(n=3).examples("vqa")  # type: ignore[method-assign]
    run = whats_in_the_image(tiny_llava, data, None, prompt="<image>it shows", **SMALL)
    assert run.manifest["settings"]["n"] == 3
    assert run.manifest["settings"]["prompt"] == "<image>it shows"


@pytest.mark.organism
@pytest.mark.parametrize(
    ("name", "how", "wanted"),
    # before the softmax, the open one loses its thread when its query rows are cut: 40 pictures are too few to tell
    [("gated", "mask", "stored"), ("open", "zero", "direct"), ("llava", "mask", "direct")],
)
def test_the_configurations_come_out_as_planted(name: str, how: str, wanted: str) -> None:
    settings = {**SMALL, "batch_size": 40, "max_new_tokens": 30, "n_boot": 300}
    run = whats_in_the_image(f"organism:{name}", limit=40, how=how, **settings)
    said = run.json("verdict")
    assert said["verdict"] == wanted, said["sentence"]
    assert said["planted"]["accordingly"] is True, said["planted"]
    places = run.table("localisation")
    best = places.loc[places.hit.idxmax()]
    if name == "llava":  # reads each object where it is; the gated one need not look at all
        assert best.hit_low > 5 * best.chance


def _setup(model: Any, data: Any, **options: Any) -> Setup:
    """What the sections plan from, with the tables of a finished run."""
    asked = checked(STUDY.options, {"n_boot": 50, "max_new_tokens": 5, **options})
    run = whats_in_the_image(
        model, data, None, progress=False, **{"n_boot": 50, "max_new_tokens": 5, **options}
    )
    return Setup(model, data, STUDY.draw(data, asked), asked, STUDY.chosen(None), 5, run)


@pytest.mark.parametrize("section", [s.name for s in STUDY.sections])
def test_batches_can_be_sent_away(tiny_llava: Any, section: str) -> None:
    setup, one = _setup(tiny_llava, TinyScenes(n=3), n_asked=2), STUDY.section(section)
    with torch.inference_mode():
        for batch in one.batches(setup, Measured())[:2]:
            here, there = (one.measure(tiny_llava, b) for b in (batch, pickle.loads(pickle.dumps(batch))))
            assert list(here) == list(there)
            for name, table in here.items():
                pd.testing.assert_frame_equal(table, there[name])


def test_judge_and_options_in_the_manifest(tiny_llava: Any) -> None:
    judge = OfflineJudge(Vocabulary(["dog"]))
    run = whats_in_the_image(
        tiny_llava, TinyScenes(n=2), None, judge=judge, limit=1, **{**SMALL, "n_asked": 9}
    )
    assert run.settings["judge"] == "OfflineJudge"
    assert (run.settings["n"], run.settings["n_asked"], run.settings["max_new_tokens"]) == (1, 1, 5)
    assert run.settings["prompt"] == "<image>it shows"
    asked = checked(STUDY.options, {"preset": "paper"}).capped(7)
    assert (asked.longest, asked.n, asked.n_asked) == (300, 7, 7)
    assert checked(STUDY.options, {}).capped(None).n_asked is None


# -- the report


@pytest.fixture(scope="module")
def nameless(tiny_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An untrained model, and a vocabulary it does not share."""
    settings = {**SMALL, "batch_size": 6, "n_asked": 2, "limit": 6}
    return whats_in_the_image(tiny_llava, TinyData(), tmp_path_factory.mktemp("runs") / "a", **settings)


def test_page_needs_no_network_and_is_small(nameless: Run) -> None:
    html = render(page_of(STUDY, nameless))
    assert not re.search(r"https?://", html)
    assert not re.search(r"(src|srcset)=\"(?!data:)", html) and not re.search(r"href=\"(?!#|data:)", html)
    assert len(html) < 2_000_000
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="card looking"') == 6
    for row in ("image → generated, all layers", "image → query, all layers", "image → both, all layers"):
        assert row in html
    assert nameless.table("knockout").empty
    assert "names an object that the judge knows" in html


def test_words_of_the_page_are_those_of_its_data(nameless: Run) -> None:
    html = render(page_of(STUDY, nameless))
    for section in re.findall(r'<section class="card looking".*?</section>', html, re.S):
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', section, re.S)[1])  # type: ignore[index]
        buttons = re.findall(r'<button type="button" class="word[^>]*>(.*?)</button>', section)
        assert len(buttons) == len(data["words"])
        assert data["grid"] == [4, 4]
        assert 0 <= data["band"] < len(data["bands"])
        for w in data["words"]:
            assert len(w["mass"]) == len(data["bands"])


def test_the_model_cannot_write_markup_into_the_page(nameless: Run) -> None:
    example = {
        **nameless.json("examples")[0],
        "words": [{"text": "</script><b>", "before": "", "object": "", "values": "/w==", "mass": [1.0]}],
        "bands": ["all layers"],
        "grid": [1, 1],
    }
    shown = shown_example(example, pd.DataFrame(), "")
    assert "<" not in shown["payload"]
    assert json.loads(shown["payload"])["words"][0]["text"] == "</script><b>"


def test_what_the_cuts_lose_and_add_is_shown(nameless: Run) -> None:
    example = nameless.json("examples")[0]
    rows = [
        ("mask", "none", "no", example["id"], "a dog", "dog"),
        ("mask", "image → both, all layers", "all", example["id"], "a cat", "cat"),
        ("mask", "image → both, from layer 1 on", "from", example["id"], "a dog", "dog"),
        ("zero", "none", "no", example["id"], "a dog", "dog"),
    ]
    predictions = pd.DataFrame(rows, columns=["how", "row", "scope", "id", "text", "objects"])
    unmodified, both = shown_example(example, predictions, "")["rows"]
    assert unmodified["same"] and not unmodified["lost"]
    assert (both["lost"], both["new"], both["same"]) == (["dog"], ["cat"], False)


def test_page_where_only_the_truth_is_known(tiny_llava: Any) -> None:
    """The unmodified descriptions name nothing, so that nothing can be lost; the pictures say what is in them."""
    options = {**SMALL, "vocabulary": Vocabulary(["zebra"])}
    run = whats_in_the_image(tiny_llava, TinyScenes(n=2), None, **options)
    assert set(run.table("knockout").metric) == {"object F1 against truth"}
    page = page_of(STUDY, run)
    assert list(page.charts()) == ["token_types"]
    assert "object F1 against truth" in render(page)


def test_page_of_both_kinds_of_knockout(tiny_llava: Any) -> None:
    first = whats_in_the_image(tiny_llava, TinyScenes(n=2), None, **SMALL).table("descriptions").text
    words = Vocabulary(first.str.split().explode().unique().tolist())
    run = whats_in_the_image(tiny_llava, TinyScenes(n=2), None, how="both", vocabulary=words, **SMALL)
    names = ["knockout_mask", "knockout_window_mask", "knockout_zero", "knockout_window_zero"]
    assert [name for name in page_of(STUDY, run).charts() if name.startswith("knockout")] == names
    assert list(run.table("shares").how) == ["mask", "zero"]


def test_report_again_and_its_figures(finished: Run, nameless: Run) -> None:
    assert nameless.path is not None
    (nameless.path / "report.html").unlink()
    write_report(STUDY, Run.load(nameless.path))
    assert "<html" in (nameless.path / "report.html").read_text()
    assert figure(STUDY, finished, "token_types").axes
    with pytest.raises(DataError, match="no figure 'knockouts'"):
        figure(STUDY, finished, "knockouts")


def test_what_can_be_compared(finished: Run) -> None:
    cells = STUDY.comparable(finished)
    assert {"how", "metric", "row", "mean", "low", "high", "n"} <= set(cells.columns)
    assert set(cells.metric) == {"object F1", "object F1 against truth", "accuracy"} - (
        set() if len(finished.table("knockout").query("metric == 'object F1'")) else {"object F1"}
    )


def test_sections_can_be_chosen(tiny_llava: Any) -> None:
    run = whats_in_the_image(
        tiny_llava, TinyScenes(n=2), None, sections="knockouts", **{**SMALL, "n_asked": 2}
    )
    assert set(run.settings["sections"]) == {"descriptions", "knockouts"}
    assert not run.has("trade_off")
    run = whats_in_the_image(tiny_llava, TinyScenes(n=2), None, **SMALL)
    assert run.json("absent") == ["compressed_context (data 'tiny-scenes' has no questions to ask)"]
