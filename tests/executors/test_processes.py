"""Workers that are processes: equal tables, faults, kills, and models that cannot be sent."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from executor_helpers import attempts_of, begun, driver, gone, units_of

import gatelens as gl
from gatelens.errors import GatelensError, InputError, InterventionError, ModelError, WorkerError
from gatelens.executors import Pool, Processes, Unit, executing
from gatelens.executors.pool import check_versions
from gatelens.executors.processes import gpu_of
from gatelens.runs import Run
from gatelens.runs.manifest import CODE, versions
from gatelens.studies import STUDIES
from gatelens.studies.runner import run_study
from gatelens.units import measured

USERS = (
    "sweeps",
    "readouts.patch_maps",
    "readouts.gradients.attribution_map",
    "readouts.heads.table",
    "activation_store.collecting",
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two workers for all tests of this file, one thread each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = Pool(Processes(2))
    yield pool
    pool.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> gl.HookedVLM:
    return gl.HookedVLM.from_pretrained("organism:gated")


def sweep(model: Any, **where: Any) -> pd.DataFrame:
    shift = 0.5
    metrics = {
        "right": gl.metrics.logit(lambda e: e.label),
        "high": lambda logits: logits[:, -1].amax(-1) + shift,
    }
    return gl.sweep(
        model, "emoji-scenes", {"layer": [1, 3]}, metrics, False, task="class", limit=6, batch_size=2,
        make=lambda layer: gl.knockout("text - gate", "gate", layers=[layer]), **where,
    )  # fmt: skip


def patch_map(model: Any, **where: Any) -> pd.DataFrame:
    pairs = gl.pairs("emoji-scenes", differ="class", n=9)
    return gl.patch_map(model, pairs, over=("layer", "role"), layers=[1, 4], progress=False, **where).table


def attribution_map(model: Any, **where: Any) -> pd.DataFrame:
    pairs = gl.pairs("emoji-scenes", differ="class", n=2)
    return gl.attribution_map(model, pairs, over="layer", check=3, progress=False, **where).table


def heads_table(model: Any, **where: Any) -> pd.DataFrame:
    data = gl.data.load("emoji-scenes").examples("class", limit=10)
    return gl.heads_table(model, data, parts=["attention", "attribution"], progress=False, **where)


def collected(model: Any, folder: Path, data: Any = "emoji-scenes", **where: Any) -> gl.ActivationStore:
    asked: dict[str, Any] = {"task": "class", "limit": 6} if isinstance(data, str) else {}
    return gl.collect(
        model, data, sites=["resid_post", "z"], layers=[1, 3], at="image | last", batch_size=2, shard_rows=140,
        out=folder, progress=False, **asked, **where,
    )  # fmt: skip


def rows(model: Any, **where: Any) -> pd.DataFrame:
    """All that a store holds, and what it says of its files: lengths and checksums."""
    with tempfile.TemporaryDirectory() as folder:
        store = collected(model, Path(folder) / "s", **where)
        values = [pd.DataFrame(store.read(site=s, layer=i).flatten(1).numpy()) for s, i in store.points]
        records = [pd.read_parquet(p) for p in sorted(store.path.glob("shards/collect/*/shard.parquet"))]
        assert len(records) == 3
        return pd.concat([store.index, *values, pd.concat(records, ignore_index=True)], axis=1)


@pytest.mark.organism
@pytest.mark.parametrize("work", [sweep, patch_map, attribution_map, heads_table, rows])
def test_tables_are_those_of_one_process(
    work: Callable[..., pd.DataFrame], model: Any, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = work(model)
    for user in USERS:
        module = importlib.import_module(f"gatelens.{user}")
        monkeypatch.setattr(module, "executing", lambda workers, ray: nullcontext(pool))
    pd.testing.assert_frame_equal(work(model, workers=2), here, check_exact=True)


FEW: dict[str, dict[str, Any]] = {
    "narrow-gate": {"sections": "knockouts,attention", "limit": 6},
    "whats-in-the-image": {"limit": 2, "max_new_tokens": 4},
    "find-gate": {"n": 20, "how": "zero", "sections": {"finder": {"n_pairs": 2, "refine": 1, "narrow": 1}}},
    "gate-finetuning": {
        "steps": 2, "n_train": 8, "batch_size": 4, "limit": 4,
        "measured": {"sections": ["knockouts"], "n_vqa": 0, "n_caption": 0, "random_repeats": 1},
    },
}  # fmt: skip


@pytest.mark.organism
@pytest.mark.parametrize("study", FEW)
def test_a_study_is_that_of_one_process(
    study: str, model: Any, pool: Pool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(folder: str, **where: Any) -> Run:
        trains = study == "gate-finetuning"  # which needs a folder
        asked = {**FEW[study], "n_boot": 20, "progress": trains, **where}
        return run_study(
            STUDIES[study], model, "emoji-scenes", tmp_path / folder if trains else None, **asked
        )

    here, there = run("here"), run("there", executor=pool)
    assert here.tables() == there.tables() and here.settings == there.settings
    for name in here.tables():
        sides = [one.table(name) for one in (here, there)]
        measured = [c for c in sides[0].columns if not c.startswith("seconds")]  # the clock differs
        pd.testing.assert_frame_equal(sides[0][measured], sides[1][measured], check_exact=True)
    assert here.json("verdict") == there.json("verdict")
    told = "stages: one after the other in this process; the workers measure the studies within them"
    assert capfd.readouterr().err.count(told) == (study == "gate-finetuning")


@pytest.mark.organism
def test_a_killed_worker_costs_its_shard(model: Any, pool: Pool, tmp_path: Path, monkeypatch: Any) -> None:
    mark, here, measured = tmp_path / "killed", os.getpid(), tmp_path / "measured"
    measured.mkdir()

    class Deadly(gl.data.Example):
        def __getattribute__(self, name: str) -> Any:
            if name == "prompt" and os.getpid() != here:
                (measured / f"{vars(self)['id']}-{os.getpid()}").touch()
                if vars(self)["id"] == dies and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__getattribute__(name)

    data = gl.data.load("emoji-scenes").examples("class", limit=6)
    data, dies = [Deadly(**vars(one)) for one in data], data[2].id
    monkeypatch.setattr(
        "gatelens.activation_store.collecting.executing", lambda workers, ray: nullcontext(pool)
    )
    store = collected(model, tmp_path / "s", data, workers=2)
    by = Counter(file.name.rsplit("-", 1)[0] for file in measured.iterdir())
    assert [by[one.id] for one in data] == [1, 1, 2, 1, 1, 1] and mark.exists()
    store.verify(progress=False)
    assert list(dict.fromkeys(store.index.example)) == [one.id for one in data]


def test_faults_are_tried_again_and_named_and_the_rest_is_kept(pool: Pool, tmp_path: Path) -> None:
    run, log = Run.open(tmp_path / "run", study="toy", settings={}), tmp_path / "log"
    befalls = {0: "once-failing", 2: "failing", 3: "killed"}
    with pytest.raises(WorkerError) as failed:
        measured(run, "s", units_of(log, befalls), False, executor=pool)
    assert "s: 2 units failed 3 times (" in str(failed.value) and "the same call tries again" in str(
        failed.value
    )
    assert attempts_of(log) == {0: 2, 1: 1, 2: 3, 3: 3, 4: 1, 5: 1}
    assert [run.has_batch("s", f"{i:02d}") for i in range(6)] == [True, True, False, False, True, True]
    faults = {
        (f["unit"], f["attempt"]): f["error"] for f in sorted(run.json("faults"), key=itemgetter("attempt"))
    }
    assert list(faults) == [(unit, i) for i in (1, 2, 3) for unit in ("02", "03")]  # the others are measured
    assert faults["02", 3] == "no square of 2" and "signal 9" in faults["03", 3]
    again = measured(run, "s", units_of(log), False, executor=pool)
    assert [tables["squares"].square.item() for tables in again] == [0, 1, 4, 9, 16, 25]
    assert attempts_of(log) == {0: 2, 1: 1, 2: 4, 3: 4, 4: 1, 5: 1}  # what was kept is not measured again
    assert not run.has("faults")


def test_an_error_of_a_user_is_the_same_and_not_tried_again(pool: Pool, tmp_path: Path) -> None:
    run = Run.open(None, study="toy", settings={})
    with pytest.raises(InterventionError, match="a row left with nothing"):
        measured(run, "s", units_of(tmp_path, {0: "refused"}), False, executor=pool)
    assert attempts_of(tmp_path)[0] == 1 and not run.has("faults")


@pytest.mark.organism
def test_what_cannot_be_sent_is_refused(
    pool: Pool, model: Any, tiny_llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = lambda what: list(pool.run([unit_about(what)], lambda steps: None))  # noqa: E731
    with pytest.raises(ModelError, match="wrapped by from_module or from_parts: save it by"):
        sent(tiny_llava)
    with pytest.raises(InputError, match="the work cannot be sent to workers"):
        sent(threading.Lock())
    name = "blocks.0.hook_resid_pre"
    model.add_hook(name, lambda x, hook: x)
    with pytest.raises(ModelError, match="the model has hooks from add_hook"):
        sent(model)
    model.reset_hooks()
    with monkeypatch.context() as patch:
        patch.setattr(model, "loaded_from", ("/mnt/here/alone", {}))
        with pytest.raises(
            ModelError, match=r"a worker on .* cannot load the model \(.*'/mnt/here/alone'"
        ) as failed:
            sent(model)
    assert "\n" not in str(failed.value)
    other = gl.HookedVLM.from_pretrained("organism:gated")
    next(other.hf.parameters()).data.add_(1)
    with pytest.raises(ModelError, match="gets other weights than the model has here"):
        sent(other)


def unit_about(what: Any) -> Any:
    return Unit("one", 1, partial(holding, what))


def holding(what: Any, done: Any) -> dict[str, pd.DataFrame]:
    """A unit that is about a thing."""
    return {"t": pd.DataFrame({"kind": [type(what).__name__]})}


@pytest.mark.parametrize(
    "number, n_workers", [(signal.SIGKILL, 2), (signal.SIGINT, 1)], ids=["killed", "interrupted"]
)
def test_workers_end_with_their_driver(number: int, n_workers: int, pool: Pool, tmp_path: Path) -> None:
    """Whatever ends it; the rest is measured by the next, and nothing twice but what was being measured."""
    log, slow = tmp_path / "log", range(2, 2 + n_workers)
    process = driver(tmp_path, f"workers={n_workers}", dict.fromkeys(slow, "slow"))
    pids = set(begun(log, range(2 + n_workers)).values())
    process.send_signal(number)
    assert process.wait(20) != 0 and len(pids) == n_workers and gone(pids)
    run = Run.load(tmp_path / "run")
    measured(run, "s", units_of(log), False, executor=pool)
    assert attempts_of(log) == {i: 1 + (i in slow) for i in range(6)}


def test_a_number_of_workers_is_one() -> None:
    for wrong in (0, -1, 1.5, "two", True):
        with pytest.raises(InputError, match="give a whole number, 1 or more"), executing(wrong):  # type: ignore[arg-type]
            pass


def test_each_worker_is_shown_its_gpu() -> None:
    assert gpu_of(1, 1, None) == gpu_of(0, 0, None) == {}
    assert [gpu_of(i, 2, None)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["0", "1", "0"]
    assert gpu_of(1, 2, "4,6") == {"CUDA_VISIBLE_DEVICES": "6"}


def test_other_versions_are_refused() -> None:
    check_versions(dict(versions()))
    with pytest.raises(WorkerError, match=r"other versions: torch 1.0 there, .* here; install the same"):
        check_versions({**versions(), "torch": "1.0"})
    with pytest.raises(WorkerError, match="gatelens' code 0123 there"):
        check_versions({**versions(), CODE: "0123"})


def test_workers_that_never_start_end_the_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(GatelensError, match=r"workers end before they are ready \(exit code 1\)"),
        executing(1) as pool,
    ):
        list(pool.run(units_of(tmp_path), lambda steps: None))
