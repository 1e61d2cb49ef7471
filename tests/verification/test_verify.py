"""``gl.verify`` and ``gatelens verify``: what passes, what is kept, what is written, what is refused."""

from __future__ import annotations

import copy
import getpass
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from case import cases
from transformers.utils import output_capturing

import gatelens as gl
from gatelens.cli import main
from gatelens.errors import InputError, ModelError, OutputError
from gatelens.verification import verify as running
from gatelens.verification.bench import outcome_of
from gatelens.verification.plain import Plain, twin
from gatelens.verification.result import FILE, Verification
from gatelens.verification.verify import CHECKS, opened, public_name
from tiny_models import make_llava_processor, make_picture

SIZE = (16, 16)


@pytest.fixture(scope="module")
def folder(hf_llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model, and two pictures beside it."""
    there = tmp_path_factory.mktemp("checkpoint") / "tiny-llava"
    hf_llava.save_pretrained(there)
    make_llava_processor().save_pretrained(there)
    for seed in (0, 1):
        make_picture(*SIZE, seed=seed).save(there.parent / f"{seed}.png")
    return there


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[str]:
    return [str(folder.parent / f"{seed}.png") for seed in (0, 1)]


@pytest.fixture(scope="module")
def out(folder: Path, pictures: list[str]) -> Path:
    """A verification by name, everything in it."""
    out = folder.parent / "verified"
    images = [part for picture in pictures for part in ("--image", picture)]
    assert main(["verify", str(folder), "--out", str(out), *images, "--quiet"]) == 0
    return out


def test_a_right_model_passes_every_check(out: Path) -> None:
    result = Verification.load(out)
    assert result.passed and result.finished
    assert set(result.table.status) == {"pass"}, result
    assert [row.key for row in result.rows] == [check.key for check in CHECKS]
    of_edits = [row for row in result.rows if row.group == "interventions" and row.name != "sweep"]
    for row in of_edits:  # what a lost edit would have measured is far beyond the bound
        assert row.effect is not None and row.bound is not None and row.effect > 100 * row.bound


def test_the_file_can_be_sent(out: Path, folder: Path) -> None:
    text = (out / FILE).read_text()
    for word in (str(folder.parent), getpass.getuser(), "/tmp", "/home"):
        assert word not in text or word == "root"
    assert len(text) < 16_000
    content = json.loads(text)
    assert content["version"] == 1 and content["passed"] and content["facts"]["model"] == "folder tiny-llava"
    assert content["facts"]["weights"].endswith("(none missing, none left over, all finite)")
    roles = [row[0] for row in content["facts"]["tokens"]["rows"]]
    assert roles == ["system", "image[0]", "query"]
    page, markdown = (out / "verify.html").read_text(), (out / "verify.md").read_text()
    for shown in (page, markdown):
        assert (
            "knockout, mask" in shown and "23 of 23 checks pass" in shown and str(folder.parent) not in shown
        )
    assert "://" not in page.replace("http://www.w3.org/", "")


def test_the_same_call_goes_on_and_tries_again_what_failed(
    out: Path, folder: Path, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    there, ran = Verification.load(out), []
    rows = [r for r in there.rows if r.name != "steer"]
    rows = [r if r.name != "drop" else replace(r, status="fail") for r in rows]
    Verification(there.facts, there.rule, rows, there.planned, created=there.created).save(tmp_path)
    real_run = running._run
    monkeypatch.setattr(
        running, "_run", lambda check, bench: (ran.append(check.name), real_run(check, bench))[1]
    )
    result = gl.verify(folder, images=pictures, out=tmp_path, progress=False)
    assert "Loading weights" not in capsys.readouterr().err
    assert ran == ["drop", "steer"] and result.passed and result.created == there.created
    assert [r.key for r in result.rows] == [c.key for c in CHECKS]
    with pytest.raises(OutputError, match=r"holds the verification of another model \(prompts"):
        gl.verify(folder, images=pictures[:1], out=tmp_path, progress=False)


def test_a_failure_is_exit_code_1_and_is_shown(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Verification.load(out)
    failed = {"status": "fail", "reason": "no\x1b[2Jt so", "measured": 2.0, "bound": 1.0}
    bad = [replace(r, **failed) if r.name == "drop" else r for r in there.rows]
    Verification(there.facts, there.rule, bad, there.planned, created=there.created).save(tmp_path)
    assert main(["verify", "--show", str(out / FILE)]) == 0
    assert "23 of 23 checks pass" in capsys.readouterr().out
    assert main(["verify", "--show", str(tmp_path / FILE)]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  interventions: drop" in shown and "2 > 1" in shown and "1 fail" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "content, words",
    [
        ("nothing", "not a result of gatelens verify"),
        ('{"format": "gatelens verification", "version": 99}', "version 99"),
        ('{"format": "gatelens verification", "version": 1, "checks": [{}]}', "damaged"),
        (
            '{"format": "gatelens verification", "version": 1, "checks": [], "planned": 0, "created": "", "rule": "", '
            '"facts": {"tokens": {"header": ["a"], "rows": [["b", "c"]]}}, "paper": {}}',
            "damaged",
        ),
    ],
)
def test_a_file_that_is_none(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(OutputError, match=words):
        Verification.load(tmp_path / "a.json")
    with pytest.raises(OutputError, match="there is no file"):
        Verification.load(tmp_path / "b.json")


def test_what_is_refused(tiny_llava: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="give a HookedVLM"):
        gl.verify(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dtype: these go with a name"):
        gl.verify(tiny_llava, dtype="bfloat16")
    with pytest.raises(InputError, match="paper=-1"):
        gl.verify(tiny_llava, paper=-1)
    for arguments in (["verify"], ["verify", "organism:gated", "--show", "a.json"]):
        assert main(arguments) == 2
        assert "give a model to verify, or --show FILE" in capsys.readouterr().err
    assert main(["verify", "organism:gated", "--data", "emoji-scenes"]) == 2
    assert "give --paper N too" in capsys.readouterr().err


def test_weights_are_held_once(hf_llava: Any) -> None:
    hf = copy.deepcopy(hf_llava)
    second = twin(hf)
    storages = {p.data_ptr() for p in hf.parameters()}
    assert {p.data_ptr() for p in second.parameters()} == storages
    assert not {id(m) for m in hf.modules()} & {id(m) for m in second.modules()}
    model = gl.HookedVLM.from_module(hf, make_llava_processor())
    third = running._plain_of(model)
    assert {p.data_ptr() for p in third.parameters()} <= storages
    ids = torch.tensor([[1, 30, 31, 32]])
    with torch.no_grad():
        want = hf_llava(input_ids=ids).logits
        for plain in (second, third):
            assert torch.equal(plain(input_ids=ids).logits, want)


def test_the_reference_leaves_nothing_on_its_model(hf_llava: Any, tiny_llava: Any) -> None:
    plain = Plain(copy.deepcopy(hf_llava))
    before = [m.config._attn_implementation for m in plain.hf.modules() if hasattr(m, "config")]
    bench = opened(tiny_llava, plain.hf, [make_picture(), make_picture(seed=1)])
    for check in CHECKS[:3]:
        outcome_of(check, bench)
    for check in CHECKS:
        if check.name in ("knockout, zero", "edit"):
            assert outcome_of(check, bench).status == "pass"
    after = [m.config._attn_implementation for m in plain.hf.modules() if hasattr(m, "config")]
    assert before == after and not any("_cut" in m.__dict__ for m in plain.hf.modules())
    hooks: list[Any] = [
        h for m in plain.hf.modules() for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
    ]
    # transformers leaves its own, which only look and only when asked
    assert {hook.__module__ for hook in hooks} <= {output_capturing.__name__}


NAMES = (
    "logits, padded batch",
    "residual stream",
    "attention patterns",
    "generation",
    "knockout, zero",
    "edit",
)


@pytest.mark.parametrize(
    "family, dtype",
    [("qwen3-vl", torch.float32), ("paligemma2", torch.bfloat16), ("chameleon", torch.bfloat16)],
    ids=["qwen3-vl", "paligemma2", "chameleon"],
)
def test_families_with_a_twist(family: str, dtype: torch.dtype) -> None:
    """Pictures added between layers; capped scores, which SDPA has not; codes of an encoder that is not local."""
    case = cases()[family]
    hf = case.model().to(dtype)
    plain = twin(hf)
    model = gl.HookedVLM.from_module(hf, case.processor())
    bench = opened(model, plain, [case.picture(0), case.picture(0, seed=3)])
    outcomes = {check.name: outcome_of(check, bench) for check in CHECKS if check.name in NAMES}
    assert {o.status for o in outcomes.values()} == {"pass"}, outcomes
    said = outcomes["residual stream"].reason
    assert ("3 of 3 are transformers' hidden_states" in said) == (family != "qwen3-vl")
    boxes = outcome_of(next(c for c in CHECKS if c.name == "pixel boxes"), bench)
    assert boxes.status == ("not applicable" if family == "chameleon" else "pass")


def test_a_name_without_its_path(tiny_llava: Any, tmp_path: Path) -> None:
    assert public_name("organism:gated", tiny_llava) == "organism:gated"
    assert public_name("llava-hf/llava-1.5-7b-hf", tiny_llava) == "llava-hf/llava-1.5-7b-hf"
    (tmp_path / "mine").mkdir()
    assert public_name(str(tmp_path / "mine"), tiny_llava) == "folder mine"
    assert public_name(tmp_path / "mine", tiny_llava) == "folder mine"


def test_a_verification_without_a_check_has_not_passed(tmp_path: Path) -> None:
    empty = Verification({"model": "mine"}, "within rounding")
    empty.save(tmp_path)
    for result in (empty, Verification.load(tmp_path)):
        assert not result.passed and not result.finished
