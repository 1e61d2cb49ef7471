"""The study end to end on tiny untrained models: tables, resuming, reproducibility."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gatelens.data import load as load_data
from gatelens.errors import DataError, InterventionError, OutputError
from gatelens.examples import prepare
from gatelens.model import HookedVLM
from gatelens.runs import Run
from gatelens.studies import narrow_gate
from gatelens.studies.narrow_gate import knockout_table
from gatelens.studies.narrow_gate.drawing.section import CUT_BOTH, CUT_DRAWING, CUT_ZERO, OTHER_GATE, RANDOM
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.report import render_report
from gatelens.studies.section import Measured, Section
from section_helpers import setup_of
from study_helpers import ROWS, TinyData

SMALL = {
    "sections": {"attention": {}, "patching": {"n_pairs": 6}},
    "batch_size": 5,
    "caption_tokens": 4,
    "vqa_tokens": 3,
    "n_boot": 50,
    "progress": False,
}


@pytest.fixture(scope="module")
def finished(tiny_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return narrow_gate(tiny_llava, TinyData(), tmp_path_factory.mktemp("runs") / "llava", **SMALL)


def test_tables(finished: Run) -> None:
    table = finished.table("knockout")
    assert list(dict.fromkeys(table.row)) == list(ROWS)
    assert list(dict.fromkeys(table.metric)) == [
        "class accuracy",
        "class accuracy among the class names",
        "VQA accuracy",
        "CIDEr-D",
    ]
    assert set(table.n) == {12}
    assert ((table.low <= table["mean"] + 1e-12) & (table["mean"] <= table.high + 1e-12)).all()
    assert set(table[table.row == "random-10 → text"].repeats) == {3}
    assert finished.json("verdict")["verdict"] == "inconclusive"  # an untrained model knows nothing
    assert finished.json("tokens")["gate"] == {"string": "what", "literal": False, "position": 17}


def test_files(finished: Run) -> None:
    assert finished.path is not None
    names = {str(p.relative_to(finished.path)) for p in finished.path.rglob("*") if p.is_file()}
    wanted = {f"{n}.parquet" for n in ("knockout", "attention", "patching", "predictions", "tasks")}
    wanted |= {f"figures/{n}.png" for n in ("knockout", "attention", "patching")} | {
        "report.html",
        "manifest.json",
    }
    assert wanted <= names
    assert not [n for n in names if n.endswith(".part")]
    settings = finished.manifest["settings"]
    assert settings["seed"] == 0
    assert settings["n"] == {"class": 12, "vqa": 12, "caption": 12}


def test_rows_are_what_they_say(finished: Run, tiny_llava: Any) -> None:
    """The stored class answers equal a plain hooked run that zeroes the attention itself."""
    data = TinyData()
    examples = data.examples("class", limit=12)[:5]
    inputs = prepare(tiny_llava, examples)
    gate = inputs.tokens.mask("gate")
    rows = inputs.tokens.mask("text - gate")
    image = inputs.tokens.mask("image")
    for name, keys in (("gate → text", gate), ("image → text", image), ("none", torch.zeros_like(gate))):
        cut = (rows[:, :, None] & keys[:, None, :])[:, None]

        def zero(pattern: torch.Tensor, hook: Any, cut: torch.Tensor = cut) -> torch.Tensor:
            return pattern.masked_fill(cut, 0.0)

        hooks = [(f"blocks.{layer}.attn.hook_pattern", zero) for layer in range(3)]
        best = tiny_llava.run_with_hooks(inputs, fwd_hooks=hooks)[:, -1].argmax(-1).tolist()
        words = tiny_llava.tokenizer.convert_ids_to_tokens(best)
        stored = (
            finished.table("predictions").query("task == 'class' and row == @name").prediction.tolist()[:5]
        )
        assert stored == words, name


def test_attention_equals_the_cached_patterns(finished: Run, tiny_llava: Any) -> None:
    inputs = prepare(tiny_llava, TinyData().examples("vqa", limit=12))
    _, cache = tiny_llava.run_with_cache(inputs, names_filter="blocks.2.attn.hook_pattern")
    pattern, t = cache["blocks.2.attn.hook_pattern"], inputs.tokens
    shares = []
    for b in range(12):
        rows = t.mask("text - gate")[b]
        f = pattern[b].mean(0)[rows].sum(0)
        side = t.mask("image")[b] | t.mask("gate")[b]
        shares.append(float(f[t.mask("gate")[b]].sum() / f[side].sum()))
    table = finished.table("attention").query("layer == 2 and kind == 'gate'")
    assert table.share.item() == pytest.approx(np.mean(shares), abs=1e-5)


@pytest.mark.usefixtures("no_report")
def test_resuming_computes_only_the_rest(
    tiny_llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Run
) -> None:
    real, calls = knockout_table.evaluate, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(knockout_table, "evaluate", failing)
    with pytest.raises(KeyboardInterrupt):
        narrow_gate(tiny_llava, TinyData(), tmp_path / "r", **SMALL)
    first = len(calls)
    run = narrow_gate(tiny_llava, TinyData(), tmp_path / "r", **SMALL)
    per_batch = 8  # five rows and the control, the random one three times
    batches = 3 + 4 + 3  # class and captions in fives; questions of two lengths, six of each
    assert len(calls) - first == batches * per_batch - (first - 1) // per_batch * per_batch
    pd.testing.assert_frame_equal(run.table("knockout"), finished.table("knockout"))
    before = len(calls)
    narrow_gate(tiny_llava, TinyData(), tmp_path / "r", **SMALL)
    assert len(calls) == before


def test_batch_size_changes_nothing(tiny_llava: Any, finished: Run) -> None:
    other = narrow_gate(tiny_llava, TinyData(), None, **{**SMALL, "batch_size": 12})
    keys = ["task", "row", "repeat", "id"]
    a, b = (r.table("predictions").sort_values(keys).reset_index(drop=True) for r in (finished, other))
    pd.testing.assert_frame_equal(a, b)
    np.testing.assert_allclose(finished.table("patching")["mean"], other.table("patching")["mean"], atol=1e-5)


def test_changed_settings_weights_or_data_are_refused(
    tiny_llava: Any, tiny_chameleon: Any, finished: Run
) -> None:
    with pytest.raises(OutputError, match="seed: there 0, now 3"):
        narrow_gate(tiny_llava, TinyData(), finished.path, **SMALL, seed=3)
    with pytest.raises(OutputError, match="weights: there"):
        narrow_gate(tiny_chameleon, TinyData(), finished.path, **SMALL)
    with pytest.raises(OutputError, match="examples: there"):
        narrow_gate(tiny_llava, TinyData(n=11), finished.path, **SMALL)


def test_both_kinds_and_missing_tasks(tiny_chameleon: Any) -> None:
    run = narrow_gate(tiny_chameleon, TinyData(tasks=("vqa",)), None, how="both", limit=4, **SMALL)
    table = run.table("knockout")
    assert list(dict.fromkeys(table.how)) == ["zero", "mask"]
    assert set(table.metric) == {"VQA accuracy"}
    assert not run.has("patching")
    assert run.json("tokens")["gate"]["string"] == "<eoss>"


def test_user_errors(tiny_llava: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the tasks"):
        narrow_gate(tiny_llava, TinyData(tasks=()), None, **SMALL)
    with pytest.raises(DataError, match="limit=0"):
        narrow_gate(tiny_llava, TinyData(), None, limit=0, **SMALL)
    with pytest.raises(InterventionError, match="how='drop'"):
        narrow_gate(tiny_llava, TinyData(), None, how="drop", **SMALL)
    (tmp_path / "f").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        narrow_gate("no-such-model", "no-such-data", tmp_path / "f")


def test_a_section_without_what_it_needs_is_named(tiny_llava: Any) -> None:
    """Questions alone: no classes to patch, and a model that does not draw."""
    settings = {**SMALL, "sections": {"patching": {}, "drawing": {}, "attention": {"n": 4}}}
    run = narrow_gate(tiny_llava, TinyData(tasks=("vqa",)), None, **settings)
    assert [name.split(" (")[0] for name in run.json("absent")] == ["patching", "drawing"]
    assert "with this model and data: patching (" in render_report(STUDY, run)


LITTLE = {
    "progressive": {"n": 4, "n_vqa": 2},
    "questions": {"by": "kind", "n_per_kind": 4, "n": 8},
    "attention": {"n": 4},
    "modality_gap": {"n": 20},
    "meaning": {"folds": 2, "layers": 2},
    "patching": {"n_pairs": 4},
    "finder": {"n": 24, "n_pairs": 4, "refine": 2},
    "steering": {"n_pairs": 2, "n": 2, "n_caption": 2, "n_vqa": 2, "n_random": 1, "doses": [1.0]},
    "drawing": {"n": 1},
}

NOT_DRAWN = {*CUT_DRAWING, *CUT_BOTH, *CUT_ZERO, OTHER_GATE, RANDOM}


class Named(TinyData):
    """Questions that name their kind."""

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        examples = super().examples(task, limit, seed)
        for i, e in enumerate(examples):
            e.meta["kind"] = ("usual", "usual", "usual", "rare")[i % 4]
        return examples


@pytest.mark.parametrize("section", STUDY.sections, ids=lambda section: section.name)
def test_batches_are_data(section: Section, tiny_llava: HookedVLM) -> None:
    """What a batch measures is the same when it comes from another process, for every kind of batch of a section."""
    model, data, drawn = tiny_llava, Named(n=24), None
    if section.name == "drawing":  # needs a model that draws
        model, data = HookedVLM.from_pretrained("organism:gated"), load_data("emoji-scenes")
        drawn = {"class": data.examples("class", limit=40, seed=0)}
    options = {section.name: LITTLE.get(section.name, {})}
    setup = setup_of(STUDY, model, data, options, 12, drawn, vqa_tokens=2, caption_tokens=2)
    if section.name == "questions":
        few = {"vqa": setup.drawn["vqa"][:8]}
        setup = dataclasses.replace(setup, drawn=few)
    measured, compared = Measured(), 0
    while new := [b for b in section.batches(setup, measured) if b.name not in measured]:
        for i, batch in enumerate(new):
            if getattr(batch, "row", "none") in NOT_DRAWN:
                measured[batch.name] = {}  # drawing takes long, and these rows are like the others
                continue
            with torch.inference_mode():
                tables = section.measure(model, batch)
                measured[batch.name] = tables
                if i >= 2 and section.name != "drawing" and type(batch) is type(new[i - 1]):
                    continue  # like the two before it
                again = section.measure(model, pickle.loads(pickle.dumps(batch)))
            assert tables.keys() == again.keys() and len(tables) > 0
            for name, table in tables.items():
                pd.testing.assert_frame_equal(table, again[name])
            compared += 1
    assert compared > 0
