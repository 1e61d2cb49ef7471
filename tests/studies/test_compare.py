"""Two runs side by side: cells, settings and verdicts, for a terminal and as a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gatelens.errors import OutputError
from gatelens.measures.stats import CHANGE, mean_interval, wilson_interval
from gatelens.runs import Run
from gatelens.studies.catalogue import study_of
from gatelens.studies.compare import _part, compare, compare_html, compare_text
from gatelens.studies.narrow_gate.knockout_table import summarise
from gatelens.studies.narrow_gate.patching.section import summarise_patching
from gatelens.studies.narrow_gate.steering.table import summarise as summarise_steering
from gatelens.studies.whats_in_the_image.descriptions import localisation_table
from study_helpers import synthetic_run


def test_comparison() -> None:
    run, other = synthetic_run(None, "narrow", 60), synthetic_run(None, "open", 60)
    table = compare(run, other)
    row = table[(table.metric == "class accuracy") & (table.row == "gate → text")].iloc[0]
    assert row.apart
    assert row.difference == pytest.approx(row.mean_b - row.mean_a)
    assert not row.paired  # nothing says that the examples are the same
    assert row.difference_low < row.difference < row.difference_high < 1
    assert "apart" not in compare_text(run, run)
    assert "same settings" in compare_text(run, run)
    assert "organism:open" in compare_html(run, other)
    with pytest.raises(OutputError, match="cannot compare"):
        compare(run, Run.open(None, study="other", settings={}))


def scored(name: str, right: dict[str, list[float]], examples: str = "same") -> Run:
    """A run whose unmodified model scored so, by metric's task."""
    run = Run.open(None, study="narrow-gate", settings={"model": name, "examples": examples})
    predictions = pd.DataFrame(
        [
            (task, "zero", "none", 0, f"{task}-{i}", float(score), float("nan"))
            for task, scores in right.items()
            for i, score in enumerate(scores)
        ],
        columns=["task", "how", "row", "repeat", "id", "score", "restricted"],
    )
    run.save("predictions", predictions)
    run.save("knockout", summarise(predictions, 200, 0))
    run.save("verdict", {"verdict": "mixed", "headline": "mixed", "sentence": "", "evidence": []})
    return run


def test_two_runs_on_the_same_examples_are_compared_example_by_example() -> None:
    """One example of 200 in six turns from right to wrong, none the other way: a difference that two intervals of
    accuracies, which overlap, do not show."""
    hard = [i % 4 != 0 for i in range(200)]
    worse = [right and i % 8 != 1 for i, right in enumerate(hard)]
    captions = [3.0 + (i % 5) for i in range(200)]
    a = scored("a", {"class": hard, "caption": captions})
    b = scored("b", {"class": worse, "caption": [c - 0.1 - 0.001 * (i % 3) for i, c in enumerate(captions)]})
    table = compare(a, b).set_index("metric")
    row = table.loc["class accuracy"]
    assert row.low_a < row.high_b and row.difference == pytest.approx(-0.125)
    assert row.paired and row.apart and row.difference_high < 0
    change = np.array(worse, float) - np.array(hard, float)
    half = 1.96 * change.std() / 200**0.5
    assert row.difference_low == pytest.approx(-0.125 - half, abs=0.01)
    assert row.difference_high == pytest.approx(-0.125 + half, abs=0.01)
    cider = table.loc["CIDEr-D"]
    assert cider.paired and cider.apart and cider.difference_high - cider.difference_low < 0.01
    assert "paired" in compare_text(a, b) and "paired" in compare_html(a, b)


def test_other_examples_are_not_paired() -> None:
    right = [i % 4 != 0 for i in range(200)]
    a = scored("a", {"class": right})
    row = compare(a, scored("b", {"class": right}, examples="other")).iloc[0]
    assert not row.paired and not row.apart
    # Newcombe's interval of two independent proportions, 150 of 200 each
    low, high = wilson_interval(150, 200)
    half = np.hypot(0.75 - low, high - 0.75)
    assert (row.difference_low, row.difference_high) == pytest.approx((-half, half))
    same = compare(a, scored("b", {"class": right})).iloc[0]
    assert same.paired and 0 < same.difference_high < half
    assert not compare(a, scored("b", {"class": right[:100]})).iloc[0].paired  # not all of them


def test_every_section_is_compared(stored_runs: dict[str, Path]) -> None:
    run = Run.load(stored_runs["narrow-gate"])
    table = compare(run, run)
    every = {
        "knockouts",
        "progressive",
        "questions",
        "attention",
        "modality_gap",
        "meaning",
        "patching",
        "finder",
    }
    assert set(table.section) == {*every, "steering", "drawing"}
    assert (
        table.section.iloc[0] == "knockouts"
        and not table.duplicated(["section", "how", "metric", "row"]).any()
    )
    assert (table.difference == 0).all() and not table.apart.any()
    # the same examples by id: a difference of nothing from itself has hardly a width
    paired = table[table.section.isin(["knockouts", "progressive", "patching", "steering", "drawing"])]
    assert paired.paired.all()
    page = compare_html(run, run)
    assert "differences, which have no interval" in page  # the modality gap
    assert page.count('class="part"') >= len(every) + 2
    text = compare_text(run, run)
    assert "\nprogressive: 0 of " in text and len(text.splitlines()) < 80


def test_sections_of_whats_in_the_image_are_compared(stored_runs: dict[str, Path]) -> None:
    run = Run.load(stored_runs["whats-in-the-image"])
    table = compare(run, run)
    assert set(table.section) == {"knockouts", "descriptions"}
    looked = table[table.metric == "attention of generated tokens"].set_index("row")
    types = run.table("token_types")
    image = types[(types.kind == "image") & (types.layer == 2)].iloc[0]
    row = looked.loc["image, layer 2"]
    assert (row.mean_a, row.high_a) == pytest.approx((image.share, image.share + 1.96 * image.se))
    assert row.difference == 0 and not row.paired and not row.apart
    assert len(table[table.metric == "words that attend most to their object"]) == len(
        run.table("localisation")
    )
    page = compare_html(run, run)
    assert "unpaired, from the intervals of both means: a run kept no per-example values" in page


def test_pairs_of_pictures_are_compared_pair_by_pair(stored_runs: dict[str, Path]) -> None:
    """Every second pair turns the other way in one of the runs."""
    run = Run.load(stored_runs["narrow-gate"])
    pairs = run.table("patching_pairs")
    other = pairs.assign(success=pairs.success ^ (pairs.pair % 2 == 0))
    runs = []
    for name, table in (("a", pairs), ("b", other)):
        runs.append(made := Run.open(None, study="narrow-gate", settings={**run.settings, "model": name}))
        classes = table[table.attribute == "class"]
        made.save("patching_pairs", table)
        made.save("patching", summarise_patching(classes[classes.site == "resid_pre"], 100, 0))
        made.save("patching_attention", summarise_patching(classes[classes.site == "attn_in"], 100, 0))
    section = study_of(run).section("patching")
    both = _part(*runs, "patching", section.cells, section.values, {}).set_index(["metric", "row"])
    counted = pairs[
        (pairs.attribute == "class") & (pairs.site == "resid_pre") & pairs.both_right & (pairs.layer == 2)
    ]
    change = np.where(counted.pair % 2 == 0, np.where(counted.success, -1.0, 1.0), 0.0)
    row = both.loc[("gate patched", "success, layer 2")]
    assert row.paired and row.difference == pytest.approx(change.mean())
    assert (row.difference_low, row.difference_high) == mean_interval(change, CHANGE)


def test_pairs_are_by_id_and_not_by_row() -> None:
    """The shares of attention of eight prompts, each a little higher in one run, which keeps them in another order."""
    shares = pd.DataFrame(
        {"layer": 0, "group": "gate", "id": [f"q{i}" for i in range(8)], "share": np.linspace(0.1, 0.8, 8)}
    )
    more = shares.assign(share=shares.share + 0.02 + 0.001 * np.arange(8) % 3)
    runs = []
    for table in (shares, more.iloc[::-1]):
        runs.append(run := Run.open(None, study="narrow-gate", settings={"examples": "same"}))
        kept = table.astype({"share": "float32"})
        run.save("attention_by_example", kept)
        low, high = mean_interval(table.share, None)
        means = {"share": table.share.mean(), "low": low, "high": high, "positions": 1.0, "n": 8}
        run.save("attention_groups", pd.DataFrame([{"layer": 0, "group": "gate", **means}]))
    section = study_of(runs[0]).section("attention")
    row = _part(*runs, "attention", section.cells, section.values, {}).iloc[0]
    change = more.share - shares.share
    assert row.paired and row.apart and row.difference == pytest.approx(change.mean())
    assert (row.difference_low, row.difference_high) == pytest.approx(mean_interval(change, None), abs=3e-4)
    # an older run keeps the means alone
    bare = Run.open(None, study="narrow-gate", settings={"examples": "same"})
    bare.save("attention_groups", runs[1].table("attention_groups"))
    row = _part(runs[0], bare, "attention", section.cells, section.values, {}).iloc[0]
    assert row.unpaired == "a run kept no per-example values" and not row.paired and not row.apart


def test_words_are_compared_by_picture_and_object() -> None:
    """An object is another one in another picture; the runs keep them in another order."""
    named = [(f"p{i}", name) for i in range(10) for name in ("dog", "fox")]
    hits = pd.DataFrame(named, columns=["id", "object"]).assign(first=0, last=3)
    a = hits.assign(hit=[float(i % 3 == 0) for i in range(20)])
    b = hits.assign(hit=[float(i % 3 == 0 or i % 5 == 1) for i in range(20)])
    runs = []
    for table in (a, b.sample(frac=1, random_state=1)):
        runs.append(run := Run.open(None, study="whats-in-the-image", settings={"examples": "same"}))
        run.save("token_types", pd.DataFrame(columns=["layer", "kind", "share", "se", "even", "n", "n_rows"]))
        run.save("localisation_by_object", table)
        full = table.assign(near=1.0, chance=0.2, chance_near=0.3, mass=0.5)
        run.save("localisation", localisation_table(full, 50, 0))
    section = study_of(runs[0]).section("descriptions")
    row = _part(*runs, "descriptions", section.cells, section.values, {}).iloc[0]
    change = (b.hit - a.hit).to_numpy()
    assert row.row == "layers 0–3" and row.paired and row.difference == pytest.approx(change.mean())
    low, high = mean_interval(np.sort(change), CHANGE)
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high), abs=0.02)


def test_steered_pictures_are_compared_picture_by_picture(stored_runs: dict[str, Path]) -> None:
    """In one of the runs some pushes act otherwise, and the pictures stand in another order."""
    run = Run.load(stored_runs["narrow-gate"])
    pictures = run.table("steering_pictures")
    unlike = pictures.id.rank(method="dense") % 3 == 0
    other = pictures.assign(is_target=pictures.is_target ^ (unlike & (pictures.dose == 1)))
    runs = []
    for name, table in (("a", pictures), ("b", other.sample(frac=1, random_state=0))):
        runs.append(made := Run.open(None, study="narrow-gate", settings={**run.settings, "model": name}))
        made.save("steering_pictures", table)
        nothing = pd.DataFrame()
        made.save("steering", summarise_steering(table, nothing, nothing, {"gate": 1, "last": 2}, 100, 0))
    section = study_of(run).section("steering")
    both = _part(*runs, "steering", section.cells, section.values, {}).set_index(["metric", "row"])
    assert both.paired.all() and (both.unpaired == "").all()
    keys = ["id", "base", "target"]
    right = [
        table[table.right & (table.dose == 1)].set_index(keys).sort_index() for table in (pictures, other)
    ]
    plain = [table[table.direction == "class means"].is_target.astype(float) for table in right]
    random = [
        table[table.direction == "random"].is_target.astype(float).groupby(keys).mean() for table in right
    ]
    row = both.loc["success", "class means × 1"]
    change = (plain[1] - plain[0]).to_numpy()
    assert row.difference == pytest.approx(change.mean()) and change.any()
    low, high = mean_interval(np.sort(change), CHANGE)
    assert (row.difference_low, row.difference_high) == pytest.approx((low, high), abs=0.02)
    above = both.loc["success above random", "class means × 1"]
    change = ((plain[1] - random[1]) - (plain[0] - random[0])).to_numpy()
    assert above.difference == pytest.approx(change.mean())
    # a difference of differences: each lies between -1 and 1
    low, high = mean_interval(np.sort(change), (-2.0, 2.0))
    assert (above.difference_low, above.difference_high) == pytest.approx((low, high), abs=0.02)


def test_stages_of_a_fine_tuning_are_compared_section_by_section(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        run = Run.open(tmp_path / name, study="gate-finetuning", settings={"model": name})
        inner = {"before": synthetic_run(tmp_path / name / "before", "narrow", 60)}
        inner["masked"] = synthetic_run(
            tmp_path / name / "masked" / "study", "open" if name == "b" else "narrow", 60
        )
        run.save("knockout", pd.concat([r.table("knockout").assign(stage=s) for s, r in inner.items()]))
        run.save("stages", [{"name": stage} for stage in inner])
        runs.append(run)
    table = compare(*runs)
    assert set(table.section) == {"stages"} | {
        f"{stage}: {section}" for stage in ("before", "masked") for section in ("attention", "patching")
    }
    own = table[(table.section == "stages") & (table.metric == "class accuracy")].set_index("row")
    assert own.loc["before: gate → text"].difference == 0 and not own.loc["before: gate → text"].apart
    assert own.loc["masked: gate → text"].apart
    assert not table.duplicated(["section", "how", "metric", "row"]).any()
