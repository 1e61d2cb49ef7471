"""The benchmark's frame on methods whose score is known, and the measures by hand."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gatelens as gl
from gatelens.bench import METHODS, MethodError, Prediction, Rule, score
from gatelens.bench.cases import Truth, average_precision, compare, counted, read, task_of
from gatelens.bench.declared import declare
from gatelens.bench.methods import direct_effects
from gatelens.bench.plants import make
from gatelens.bench.scoring import method_of
from gatelens.cli import main
from gatelens.errors import OutputError

BITS, BLIND = 2, 6  # numbers of plants of the development split


def test_the_measures_by_hand() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.3, 0.2, 0.2])  # of positions 2 to 7
    found = compare(Truth((3, 5), (4,), range(2, 8)), scores, [3, 4], (2, 3))
    assert found["f1"] == 0.5 and found["exact"] == 0 and found["size_error"] == 0
    assert found["covered"] == 1 and found["on_decoy"] == 1 and math.isnan(found["false_gate"])
    assert found["precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    nothing = Truth((), (), (2, 3))
    assert compare(nothing, scores[:2], [], None)["f1"] == 1
    alarm = compare(nothing, scores[:2], [3], (1, 1))
    assert alarm["f1"] == 0 and alarm["false_gate"] == 1 and alarm["covered"] == 0
    assert math.isnan(alarm["precision"]) and math.isnan(alarm["on_decoy"])
    assert average_precision(np.ones(6), [False, True, False, True, False, False]) == pytest.approx(2 / 6)
    assert Rule(0.5).positions(scores, range(2, 8)) == [3, 4]
    assert Rule(0.5, floor=0.6).positions(scores, range(2, 8)) == [3]
    assert Rule(0.5, floor=1.0).positions(scores, range(2, 8)) == []


def test_known_methods_get_known_scores_and_a_run_goes_on(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    made = {str(number): gl.bench.plant("dev", number, 48) for number in (BITS, BLIND)}
    truth = {q.data.name: q.carriers for one in made.values() for q in one.questions}

    def oracle(model: Any, task: Any) -> Prediction:
        carriers = truth[task.name]
        scores = torch.zeros(task.inputs.tokens.n_pos)
        scores[list(carriers)] = 1
        return Prediction(scores, carriers, (len(carriers), len(carriers)))

    def constant(model: Any, task: Any) -> torch.Tensor:
        asked.write_text((asked.read_text() if asked.exists() else "") + task.name)
        model(task.inputs)
        return torch.ones(task.inputs.tokens.n_pos)

    methods = {"oracle": oracle, "constant": constant}
    result = score(methods, {name: partial(made.get, name) for name in made}, progress=False)
    cases = result.cases.set_index(["method", "kind"])
    for kind in ("bits", "blind"):
        row = cases.loc[("oracle", kind)]
        assert (row.f1, row.exact, row.size_error, row.covered) == (1, 1, 0, 1)
    assert cases.loc[("oracle", "bits")].precision == 1 and cases.loc[("oracle", "blind")].false_gate == 0
    row = cases.loc[("constant", "bits")]
    n_candidates = len(result.found.candidates.iloc[1])
    assert row.precision == pytest.approx(row["size"] / n_candidates)
    assert row.f1 == pytest.approx(2 * row["size"] / (row["size"] + n_candidates))
    assert math.isnan(row.covered) and row.passes == pytest.approx(1.0)
    assert cases.loc[("oracle", "bits")].passes == 0
    assert cases.loc[("constant", "blind")].false_gate == 1
    text = str(result)
    assert text.startswith("2 plants of split given, 2 questions") and "oracle" in text and "blind" in text
    # by Wilson's formula: z² / (n + z²)
    assert text.endswith("oracle: 0 of 1, 0.0 % [0.0, 79.3]\nconstant: 1 of 1, 100.0 % [20.7, 100.0]")
    rule = result.tuned()[
        "constant"
    ]  # a floor above 1 takes nothing, which is right on one of the two plants
    assert result.with_rules({"constant": rule}).cases.f1.mean() >= result.cases.f1.mean()
    assert "oracle" not in result.tuned()  # it says its sets itself
    out = tmp_path / "run"
    first = score({"constant": constant}, [BLIND], pictures=48, out=out, progress=False)
    before = asked.read_text()
    again = score({"constant": constant}, [BLIND], pictures=48, out=out, progress=False)
    assert asked.read_text() == before and again.cases.f1.tolist() == first.cases.f1.tolist()
    with pytest.raises(OutputError, match="other settings"):
        score({"oracle": oracle}, [BLIND], pictures=48, out=out, progress=False)


def test_bad_methods_are_named_in_a_line_with_their_plant() -> None:
    made = make(declare(np.random.default_rng(0), "blind", "llava"), "x", 1, 8)
    task = task_of(made, made.questions[0])
    n_pos = task.inputs.tokens.n_pos

    def raises(model: Any, task: Any) -> Any:
        raise RuntimeError("no\nluck")

    def hooks(model: Any, task: Any) -> Any:
        model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)
        return torch.ones(n_pos)

    def weights(model: Any, task: Any) -> Any:
        model.hf.lm_head.weight[0, 0] += 1
        return torch.ones(n_pos)

    for method, words in (
        (raises, "raised RuntimeError: no luck"),
        (weights, "changed the model's weights: put them back"),
        (hooks, "left 1 hook on the model: remove them"),
    ):
        with pytest.raises(MethodError, match=f"^method '{method.__name__}' on plant 'x a' {words}"):
            score(method, {"x": lambda: made}, progress=False)
    made.model.reset_hooks()
    wrong = {
        "gave scores of shape \\(3,\\): give one for each": torch.ones(3),
        "gave nan for position": torch.full((n_pos,), torch.nan),
        "gave 'much': give scores": "much",
        "chose position 0, which is not a candidate": Prediction(torch.ones(n_pos), [0]),
        "gave the size \\(3, 1\\)": Prediction(torch.ones(n_pos), None, (3, 1)),
    }
    for words, given in wrong.items():
        with pytest.raises(MethodError, match=words):
            read(given, task, 4)
    with pytest.raises(gl.errors.InputError, match="plants=0: give how many"):
        score(raises, 0)
    with pytest.raises(gl.errors.InputError, match="split='test': give 'dev' or 'heldout'"):
        score(raises, 1, "test")


def test_passes_are_counted_where_they_are_computed() -> None:
    made = make(declare(np.random.default_rng(0), "gate", "llava"), "x", 1, 4)
    task = task_of(made, made.questions[0])
    whole = 4 * task.inputs.tokens.n_pos * 4
    with counted(made.shell.decoder.layers) as count:
        made.model(task.inputs)
    assert count["rows"] == whole
    with counted(made.shell.decoder.layers) as count:
        METHODS["attribution_patching"](made.model, task)
    assert count["rows"] == 2 * whole + 3 * whole  # own and partner's streams, and one pass forth and back


def test_what_the_answer_reads_is_found_and_decoys_are_not() -> None:
    for kind in ("redundant", "blind"):
        rng = np.random.default_rng([7, len(kind)])
        made = make(declare(rng, kind, "chameleon"), kind, 2, 32)
        found = direct_effects(made.model, task_of(made, made.questions[0]))
        carriers = made.questions[0].carriers
        assert tuple(found.positions or ()) == carriers and found.size is not None
        assert found.size[0] <= len(carriers) <= found.size[1]


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    page = (Path(__file__).parents[2] / "docs" / "gatebench.md").read_text()
    file.write_text(page.split("```python\n# mine.py\n")[1].split("```")[0])
    out = tmp_path / "run"
    assert main(["bench", str(file), "--n", "1", "--quiet", "--tune", "--out", str(out)]) == 0
    assert "1 plants of split dev, 1 questions" in capsys.readouterr().out
    assert set(gl.bench.read_rules(out / "rules.json")) == {"mine"}
    written = {"dev.md", "dev-f1-by-kind.png", "dev-f1-by-passes.png"}
    assert {one.name for one in (out / "results").iterdir()} == written
    for arguments, words in (
        ([str(tmp_path / "none.py")], "there is no file"),
        (["--baseline", "attention"], "--baseline 'attention': there are attention_share"),
        ([], "no method is given"),
        (["--baseline", "all", "--split", "heldout", "--tune"], "rules are tuned on dev"),
        (["--baseline", "all", "--organism", "all", "--tune"], "--organism with --tune, --kind or --split"),
        (["--baseline", "all", "--organism", "open/gate-at-text"], "did you mean 'open/gate-at-text-0'?"),
    ):
        assert main(["bench", *arguments]) == 2
        assert words in capsys.readouterr().err
    for text, words in (
        ("method = 3\n", "has no function named method"),
        ("def method(model, task: return\n", "cannot be run: SyntaxError"),
        ("import sys\nsys.exit(1)\n", "cannot be run: SystemExit"),
    ):
        file.write_text(text)
        with pytest.raises(gl.errors.DataError, match=words):
            method_of(file)
    with pytest.raises(
        gl.errors.DataError, match=r"holds no rules .* give the rules.json of a run with --tune"
    ):
        gl.bench.read_rules(file)


def test_the_command_line_takes_graded_organisms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A method that names the end-of-image token is right about the class, and wrong about what is read directly."""
    file, out = tmp_path / "eoi.py", tmp_path / "run"
    file.write_text(
        "import torch, gatelens as gl\n"
        "def method(model, task):\n"
        "    assert (task.labels != task.labels[task.partners]).all()\n"
        "    return gl.bench.Prediction(torch.ones(task.inputs.tokens.n_pos), [66])\n"
    )
    arguments = ["--organism", "open/class-by-gate", "--baseline", "attention_share", "--n", "2", "--quiet"]
    assert main(["bench", str(file), *arguments, "--out", str(out)]) == 0
    assert "2 questions" in (said := capsys.readouterr().out) and "class-by-gate" in said
    cases = pd.read_parquet(out / "cases.parquet").set_index(["method", "question"])
    assert cases.f1["eoi", "class"] == 1 and cases.f1["eoi", "color"] == 0
    assert cases["size"]["eoi", "color"] == 64 and cases.passes["attention_share", "class"] == 1


def test_every_method_that_leaves_sets_to_a_rule_has_one_that_is_stored() -> None:
    assert set(gl.bench.read_rules()) == set(METHODS) - {"direct_effects", "find_gate"}


def test_the_finder_names_sets_that_cannot_be_spared_and_nothing_where_nothing_is_read() -> None:
    found = score(METHODS["find_gate"], [BITS, BLIND], pictures=48, progress=False).cases.set_index("kind")
    assert found.exact["bits"] == 1 and found.covered["bits"] == 1 and found.precision["bits"] == 1
    assert found.false_gate["blind"] == 0 and found.covered["blind"] == 1
    assert (found.passes < 8).all()
