"""The page of “What's in the image?”: self-contained, escaped, small, and drawn from tables alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import gatelens.views as views
from gatelens.data import Example
from gatelens.errors import DataError, OutputError
from gatelens.measures.mme import yes_or_no
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies import whats_in_the_image
from gatelens.views.compare import compare, compare_html, compare_text
from gatelens.views.whats_in_the_image import curves as wi_curves
from gatelens.views.whats_in_the_image import report as wi_report
from study_helpers import TinyData, picture, synthetic_run

SETTINGS = {"batch_size": 6, "max_new_tokens": 5, "n_boot": 50, "n_asked": 2, "limit": 6, "progress": False}


@pytest.fixture(scope="module")
def run(tiny_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return whats_in_the_image(tiny_llava, TinyData(), tmp_path_factory.mktemp("runs") / "a", **SETTINGS)


def test_page_needs_no_network_and_is_small(run: Run) -> None:
    html = views.render_report(run)
    assert not re.search(r"https?://", html)
    assert not re.search(r"(src|href|srcset)=\"(?!data:)", html)
    assert len(html) < 2_000_000
    assert "prefers-color-scheme: dark" in html
    assert html.count('class="card looking"') == 6
    for row in ("image → generated, all layers", "image → query, all layers", "image → both, all layers"):
        assert row in html


def test_where_nothing_is_named_the_page_says_so(run: Run) -> None:
    assert run.table("knockout").empty  # an untrained model, and a vocabulary it does not share
    assert "names an object that the judge knows" in views.render_report(run)


def test_words_of_the_page_are_those_of_its_data(run: Run) -> None:
    html = views.render_report(run)
    for section in re.findall(r'<section class="card looking".*?</section>', html, re.S):
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', section, re.S)[1])  # type: ignore[index]
        buttons = re.findall(r'<button type="button" class="word[^>]*>(.*?)</button>', section)
        assert len(buttons) == len(data["words"])
        assert data["grid"] == [4, 4]
        assert 0 <= data["band"] < len(data["bands"])
        for w in data["words"]:
            assert len(w["mass"]) == len(data["bands"])


def test_the_model_cannot_write_markup_into_the_page(run: Run) -> None:
    example = {
        **run.json("examples")[0],
        "words": [{"text": "</script><b>", "before": "", "object": "", "values": "/w==", "mass": [1.0]}],
        "bands": ["all layers"],
        "grid": [1, 1],
    }
    shown = wi_report._example(example, None)
    assert "<" not in shown["payload"]
    assert json.loads(shown["payload"])["words"][0]["text"] == "</script><b>"


def test_localisation_by_bands_of_layers() -> None:
    places = pd.DataFrame(
        [(4 * i, 4 * i + 3, 0.1 * i, 0.05 * i, 0.15 * i, 0.07, 0.2, 0.1, 0.3, 0.15, 0.5, 9) for i in range(4)],
        columns=["first", "last", "hit", "hit_low", "hit_high", "chance", "near", "near_low", "near_high",
                 "chance_near", "mass", "n"],
    )  # fmt: skip
    before = dict(mpl.rcParams)
    for dark in (False, True):
        assert png(wi_curves.localisation(places, dark)).startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    names = [t.get_text() for t in wi_curves.localisation(places).axes[0].get_xticklabels()]
    assert names == ["0–3", "4–7", "8–11", "12–15"]


def test_curves_show_the_numbers_of_the_table() -> None:
    drawn = wi_curves.knockout_curves(_curve(), 0.1, {"start": 1, "stop": 3}, "mask")
    line = next(x for x in drawn.axes[0].lines if x.get_label() == "image → both")
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.3, 0.8, 0.9])
    assert len(drawn.axes) == 2
    with pytest.raises(DataError, match="how='zero'"):
        wi_curves.knockout_curves(_curve(), 0.1, None, "zero")


def _curve() -> pd.DataFrame:
    rows = []
    for path in ("image → generated", "image → query", "image → both"):
        for start, mean in enumerate((0.1, 0.3, 0.8, 0.9)):
            rows.append(("mask", path, "all" if start == 0 else "from", start, 4, mean))
        rows += [("mask", path, "within", 1, 3, 0.4), ("mask", path, "outside", 1, 3, 0.7)]
    table = pd.DataFrame(rows, columns=["how", "path", "scope", "start", "stop", "mean"])
    return table.assign(metric="object F1", low=table["mean"] - 0.05, high=table["mean"] + 0.05)


def test_report_again_and_comparison(run: Run, tiny_llava: Any, tmp_path: Path) -> None:
    assert run.path is not None
    (run.path / "report.html").unlink()
    views.write_report(Run.load(run.path))
    assert "<html" in (run.path / "report.html").read_text()
    other = whats_in_the_image(
        tiny_llava, TinyData(), tmp_path / "b", **{**SETTINGS, "first_token": "blocked"}
    )
    table = compare(run, other)
    assert {"compressed context"} <= set(table.how)
    assert "first_token" in compare_text(run, other)
    assert "What is" not in compare_html(run, other)
    with pytest.raises(OutputError, match="cannot compare"):
        compare(run, synthetic_run(tmp_path / "ng", "narrow", 30))


def test_mme_in_pairs(tiny_llava: Any, tmp_path: Path) -> None:
    """A data set with MME's pairs is asked whole, scored by its rule, and shown beside the reported numbers."""

    class Paired(TinyData):
        def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
            if task != "vqa":
                return super().examples(task, limit, seed)
            return [
                Example(picture("dog", i), f"<image>is it {w} ?", (answer,), "vqa", f"{i}{w}", meta=meta)
                for i in range(4)
                for w, answer in (("dog", "yes"), ("cat", "no"))
                for meta in ({"category": ("existence", "color")[i % 2], "pair": f"{i}"},)
            ]

    run = whats_in_the_image(
        tiny_llava, Paired(n=3), tmp_path / "m", **{**SETTINGS, "n_asked": None, "limit": None}
    )
    table = run.table("mme")
    assert set(table.subset) == {"existence", "color", "all", "mean of subsets"}
    assert set(table[table.subset == "all"].n_questions) == {8}
    answers = run.table("answers").query("context == 'K = 100 %'")
    right = [yes_or_no(p) == w for p, w in zip(answers.prediction, 4 * ["yes", "no"], strict=True)]
    acc = table[(table.context == "K = 100 %") & (table.subset == "all")].acc.item()
    assert acc == pytest.approx(np.mean(right))
    assert acc == pytest.approx(run.table("trade_off").query("context == 'K = 100 %'").accuracy.item())
    html = views.render_report(run)
    assert "84.83 / 70.60" in html
    assert "61.03 / 28.45" in html
