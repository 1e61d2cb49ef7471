"""The progressive knockout: its points against hooks written here, its summary against hand-worked curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gatelens import data
from gatelens.errors import DataError
from gatelens.examples import prepare
from gatelens.measures.stats import CHANGE, mean_interval
from gatelens.model import HookedVLM
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate import progressive
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE
from study_helpers import TinyData

QUICK: dict[str, Any] = {"n_caption": 0, "n_boot": 50, "random_repeats": 1, "progress": False}


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    return HookedVLM.from_pretrained("organism:gated")


@pytest.fixture(scope="module")
def run(model: HookedVLM) -> Run:
    options = {"progressive": {"n": 16, "n_vqa": 8}}
    return narrow_gate(model, sections=options, n_class=24, n_vqa=8, how="both", **QUICK)


def test_every_point_is_the_plain_knockout_of_its_layers(run: Run, model: HookedVLM) -> None:
    """Hooks written here zero the pattern (or mask the scores) in the layers a point names, nothing else."""
    examples = data.load("emoji-scenes").examples("class", 24, 0)[:16]
    inputs = prepare(model, examples)
    t, n_layers = inputs.tokens, int(model.cfg.n_layers)
    right = [int(model.tokenizer(" " + e.label, add_special_tokens=False)["input_ids"][0]) for e in examples]
    rows = t.mask("text - gate")
    hidden = {"gate": t.mask("gate"), "image": t.mask("boi | image | row_break")}
    seen = set()
    for how, hook_point, fill in (("zero", "hook_pattern", 0.0), ("mask", "hook_attn_scores", float("-inf"))):
        for keys, way, start in (
            ("gate", "from", 2),
            ("gate", "from", 4),
            ("gate", "window", 1),
            ("image", "from", 0),
            ("image", "window", 3),
        ):
            cut = (rows[:, :, None] & hidden[keys][:, None, :])[:, None]
            layers = range(start, n_layers) if way == "from" else [start]

            def edit(x: torch.Tensor, hook: Any, cut: torch.Tensor = cut, fill: float = fill) -> torch.Tensor:
                return x.masked_fill(cut, fill)

            hooks = [(f"blocks.{layer}.attn.{hook_point}", edit) for layer in layers]
            best = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, -1].argmax(-1).tolist()
            wanted = {e.id: float(b == r) for e, b, r in zip(examples, best, right, strict=True)}
            stored = run.table("progressive_scores").query(
                "how == @how and task == 'class' and keys == @keys and way == @way and layer == @start"
            )
            assert dict(zip(stored.id, stored.score, strict=True)) == wanted, (how, keys, way, start)
            seen.add(sum(wanted.values()))
    assert len(seen) > 2  # else the points could be mixed up and nobody would see it


def test_ends_of_the_curve_are_the_knockout_table(run: Run) -> None:
    predictions = run.table("predictions").query("task != 'caption'")
    curve = run.table("progressive_scores")
    rows = {("none", -1): NONE, ("gate", 0): GATE, ("image", 0): IMAGE, ("gate + image", 0): FLOOR}
    for how in ("zero", "mask"):
        for (keys, layer), row in rows.items():
            mine = curve[(curve.how == how) & (curve["keys"] == keys) & (curve.layer == layer)]
            mine = mine[mine.way != "window"].set_index("id").score
            table = predictions[(predictions.how == how) & (predictions.row == row)].set_index("id").score
            assert len(mine) == 24
            pd.testing.assert_series_equal(mine.sort_index(), table[mine.index].sort_index())
    n_layers = 6
    last = curve[(curve.layer == n_layers - 1) & (curve["keys"] == "gate")]
    by_way = [last[last.way == way].set_index(["how", "task", "id"]).score for way in ("from", "window")]
    pd.testing.assert_series_equal(*by_way)


def test_table_is_the_mean_of_its_examples(run: Run) -> None:
    table, scores = run.table("progressive"), run.table("progressive_scores")
    assert set(table.n) == {16, 8}
    keys = ["how", "task", "keys", "way", "layer"]
    means = scores.groupby(keys).score.mean()
    np.testing.assert_allclose(table.set_index(keys)["mean"].sort_index(), means.sort_index())
    clean = table[table["keys"] == "none"].set_index(["how", "task"])["mean"]
    drop = clean[pd.MultiIndex.from_frame(table[["how", "task"]])].to_numpy() - table["mean"].to_numpy()
    np.testing.assert_allclose(table["drop"], drop, atol=1e-12)
    assert ((table.drop_low <= table["drop"] + 1e-12) & (table["drop"] <= table.drop_high + 1e-12)).all()


def test_points_of_deep_and_shallow_models() -> None:
    deep = [(p.keys, p.way, p.layers) for p in progressive.points(32)]
    assert deep[:2] == [("none", "none", range(0)), ("gate + image", "from", range(32))]
    assert [x for k, w, x in deep if (k, w) == ("gate", "from")] == [range(s, 32) for s in (0, 8, 16, 24)]
    assert [x for k, w, x in deep if (k, w) == ("image", "window")] == [
        range(s, s + 8) for s in (0, 8, 16, 24)
    ]
    shallow = [p.layers for p in progressive.points(3) if p.way == "window" and p.keys == "gate"]
    assert shallow == [range(1), range(1, 2), range(2, 3)]
    uneven = [p.layers for p in progressive.points(30, 8) if p.way == "window" and p.keys == "gate"]
    assert uneven == [range(8), range(8, 16), range(16, 24), range(22, 30)]
    fine = [p.layer for p in progressive.points(30, 8, 2) if p.way == "from" and p.keys == "gate"]
    assert fine == list(range(0, 30, 2))
    for bad in ({"window": 0}, {"window": 7}, {"step": 0}):
        with pytest.raises(DataError, match="do not fit 6 layers"):
            progressive.points(6, **bad)


def test_points_by_name() -> None:
    points = [
        ("none", "none", -1, -1),
        ("gate", "from", 2, 5),
        ("image", "window", 3, 3),
        ("gate", "window", 0, 2),
    ]
    names = progressive._point_names(pd.DataFrame(points, columns=["keys", "way", "layer", "last"]))
    assert list(names) == [
        "none",
        "gate → text, from layer 2 on",
        "image → text, in layer 3 alone",
        "gate → text, in layers 0–2 alone",
    ]


def made_up(means: dict[str, list[float]], starts: list[int], n_layers: int, n: int = 40) -> pd.DataFrame:
    """Scores whose first examples are right: each mean is met exactly."""
    out = []
    points = [("none", "none", -1, 1.0), ("gate + image", "from", 0, 0.0)]
    points += [(k, "from", s, m) for k, ms in means.items() for s, m in zip(starts, ms, strict=True)]
    for keys, way, layer, mean in points:
        last = -1 if keys == "none" else n_layers - 1
        out += [
            ("zero", "class", keys, way, layer, last, f"e{i}", float(i < round(mean * n))) for i in range(n)
        ]
    return pd.DataFrame(out, columns=["how", "task", "keys", "way", "layer", "last", "id", "score"])


def test_carriers_by_hand() -> None:
    """Drops 1, 1, 0.5, 0 of layers 0 to 3 on: layers 1 and 2 add a half each; from 3 on nothing is lost."""
    answers = made_up({"gate": [0.0, 0.0, 0.5, 1.0], "image": [1.0, 1.0, 1.0, 1.0]}, [0, 1, 2, 3], 4)
    carried = progressive.carriers(progressive.summarise(answers, 200, 0)).set_index("keys")
    gate, image = carried.loc["gate"], carried.loc["image"]
    assert (gate["drop"], gate["first"], gate["last"], gate.free_from) == (1.0, 1, 2, 3)
    # no example changes in any, which n of them cannot tell from a few changes among many
    assert 0 < gate.free_most == pytest.approx(mean_interval([0.0] * gate.n, CHANGE, n_boot=200)[1])
    assert (image["drop"], image["first"], image["last"], image.free_from) == (0.0, -1, -1, 0)


def test_carriers_count_in_layers_not_in_starts() -> None:
    answers = made_up({"gate": [0.0, 0.0, 1.0, 0.5], "image": [1.0] * 4}, [0, 8, 16, 24], 30)
    gate = progressive.carriers(progressive.summarise(answers, 200, 0)).set_index("keys").loc["gate"]
    # monotone drops 1, 1, 0.5, 0.5: the starts 8 and 24 add a half each, so 90 % needs layers 8 to the last
    assert (gate["first"], gate["last"]) == (8, 29)
    assert gate.free_from == -1  # from 16 on nothing is lost, but from 24 on something is
    assert np.isnan(gate.free_most)


def test_absent_without_its_tasks(tiny_llava: HookedVLM) -> None:
    run = narrow_gate(
        tiny_llava,
        TinyData(tasks=("caption",), n=4),
        sections=["progressive"],
        caption_tokens=2,
        n_boot=20,
        progress=False,
    )
    assert not run.has("progressive")


def curve_scores(how: str = "zero", width: int = 1, n: int = 40) -> pd.DataFrame:
    """The gate matters in the second of four starts only, the image never."""
    last = 4 * width - 1
    points = [("none", "none", -1, -1, 1.0), ("gate + image", "from", 0, last, 0.1)]
    for keys, from_, window in (
        ("gate", (0.1, 0.1, 1.0, 1.0), (1.0, 0.4, 1.0, 1.0)),
        ("image", (1.0,) * 4, (1.0,) * 4),
    ):
        points += [(keys, "from", i * width, last, m) for i, m in enumerate(from_)]
        points += [(keys, "window", i * width, (i + 1) * width - 1, m) for i, m in enumerate(window)]
    rows = [(how, "class", *p[:4], f"e{i}", float(i < round(p[4] * n))) for p in points for i in range(n)]
    return pd.DataFrame(rows, columns=["how", "task", "keys", "way", "layer", "last", "id", "score"])


def stored(scores: pd.DataFrame) -> Run:
    run = Run.open(None, study="narrow-gate", settings={})
    curve = progressive.summarise(scores, 100, 0)
    run.save("progressive", curve)
    run.save("progressive_layers", progressive.carriers(curve))
    return run


def test_lines_are_the_table() -> None:
    table = stored(curve_scores()).table("progressive")
    for dark in (False, True):
        figure = progressive.progressive_curves(table, dark=dark)
        left, right = figure.axes
        lines = {str(line.get_label()): list(line.get_ydata()) for line in left.lines}
        assert lines["gate → text"] == [0.1, 0.1, 1.0, 1.0]
        assert lines["image → text"] == [1.0] * 4
        assert lines["unmodified"] == [1.0, 1.0]
        assert lines["floor: both cut in every layer"] == [0.1, 0.1]
        assert list(right.lines[0].get_ydata()) == [1.0, 0.4, 1.0, 1.0]
        assert png(figure).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="how='mask'"):
        progressive.progressive_curves(table, "mask")


def test_the_table_of_layers_is_computed() -> None:
    (card,) = progressive.page(stored(curve_scores()))
    _, table = card.blocks
    gate, image = (
        next(row for row in table.rows if row[0][0] == f"{keys} → text") for keys in ("gate", "image")
    )
    assert gate[0] == ("gate → text", "class accuracy") and gate[1][0] == "−0.90"
    assert gate[2] == "layer 1" and gate[3][0] == "layer 2" and gate[3][1].startswith("costs at most 0.0")
    assert image[1][0] == "+0.00" and image[1][1].startswith("−0.0") and image[2] == "nothing to carry"
    assert card.finding == "90 % of the effect on class accuracy by gate: layer 1"
    chart, wide = progressive.page(stored(curve_scores(width=8)))[0].blocks
    (gate,) = (row for row in wide.rows if row[0][0] == "gate → text")
    assert gate[2] == "layers 8–15" and gate[3][0] == "layer 16"
    assert "cut in 8 layers alone" in chart.caption


def test_a_figure_for_every_kind_of_knockout() -> None:
    run = stored(pd.concat([curve_scores("zero"), curve_scores("mask")]))
    (one,) = progressive.page(run)
    charts = one.blocks[::2]  # a table after each
    assert [b.name for b in charts] == ["progressive_zero", "progressive_mask"]
    assert all(png(b.draw(False)).startswith(b"\x89PNG") for b in charts)
