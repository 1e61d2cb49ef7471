"""Workers on a Ray cluster of two nodes on this machine: equal tables, killed actors and drivers, a lost node."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from executor_helpers import attempts_of, begun, driver, gone, units_of

import gatelens as gl
from gatelens.errors import WorkerError
from gatelens.executors import Executor, executing
from gatelens.runs import Run
from gatelens.units import measured

pytest.importorskip("ray")

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
# a node that is gone is known to be within a second or two
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 2,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the head keeps the address 127.0.0.1
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # on a busy machine too these tests end
        # what actors unpickle is importable on every node
        patch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(one) for one in sys.path))
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        assert len(cluster.list_all_nodes()) == 2
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def actors(cluster: Any) -> Iterator[Executor]:
    """One on each node."""
    before = signal.getsignal(signal.SIGTERM)
    with executing(workers=2, ray=cluster.address) as executor:
        assert signal.getsignal(signal.SIGTERM) is before
        yield executor


@pytest.mark.organism
def test_the_table_is_that_of_one_process(actors: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    model, threads = gl.HookedVLM.from_pretrained("organism:gated"), torch.get_num_threads()

    def sweep(**where: Any) -> pd.DataFrame:
        return gl.sweep(
            model, "emoji-scenes", {"layer": [1, 3]}, {"right": gl.metrics.logit(lambda e: e.label)}, False,
            task="class", limit=8, batch_size=2,
            make=lambda layer: gl.knockout("text - gate", "gate", layers=[layer]), **where,
        )  # fmt: skip

    torch.set_num_threads(1)
    try:
        here = sweep()
        monkeypatch.setattr("gatelens.sweeps.executing", lambda workers, ray: nullcontext(actors))
        pd.testing.assert_frame_equal(sweep(ray="auto"), here, check_exact=True)
    finally:
        torch.set_num_threads(threads)


def test_a_killed_actor_costs_what_it_measured(actors: Executor, tmp_path: Path) -> None:
    run, log = Run.open(tmp_path / "run", study="toy", settings={}), tmp_path / "log"
    tables = measured(run, "s", units_of(log, {1: "once-killed"}, n=4), False, executor=actors)
    assert [one["squares"].square.item() for one in tables] == [i**2 for i in range(4)]
    assert attempts_of(log) == {0: 1, 1: 2, 2: 1, 3: 1} and not run.has("faults")


def test_a_session_on_another_cluster_is_refused(actors: Executor) -> None:
    with (
        pytest.raises(WorkerError, match=r"connected to the Ray cluster at .*, not to '127\.0\.0\.1:1'"),
        executing(ray="127.0.0.1:1"),
    ):
        pass


def test_actors_end_with_their_driver(cluster: Any, tmp_path: Path) -> None:
    """The rest is measured by the next call, here in this process, and nothing twice but what was being measured."""
    log, node = tmp_path / "log", cluster.add_node(**NODE)  # room beside the actors of other tests
    process = driver(tmp_path, f"workers=1, ray={cluster.address!r}", {2: "slow"})
    pids = set(begun(log, range(3)).values())
    process.kill()
    assert process.wait(20) == -9 and len(pids) == 1 and gone(pids)
    cluster.remove_node(node)
    tables = measured(Run.load(tmp_path / "run"), "s", units_of(log), False)
    assert [one["squares"].square.item() for one in tables] == [0, 1, 4, 9, 16, 25]
    assert attempts_of(log) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}


def test_a_lost_node_costs_what_it_measured(cluster: Any, actors: Executor, tmp_path: Path) -> None:
    """The last test: the node does not come back."""
    run, log = Run.open(tmp_path / "run", study="toy", settings={}), tmp_path / "log"
    lost: list[int] = []

    def lose() -> None:
        pids = begun(log, (0, 1))
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        lost.extend(number for number, pid in pids.items() if parent(pid) in raylets)
        cluster.remove_node(raylets[parent(pids[lost[0]])], allow_graceful=False)
        gone([pids[lost[0]]])  # else it would finish its unit
        (log / "go").touch()

    losing = threading.Thread(target=lose)
    losing.start()
    tables = measured(run, "s", units_of(log, {0: "held", 1: "held"}), False, executor=actors)
    losing.join()
    assert [one["squares"].square.item() for one in tables] == [0, 1, 4, 9, 16, 25]
    assert len(lost) == 1 and attempts_of(log) == {i: 1 + (i in lost) for i in range(6)}
    assert not run.has("faults")


def parent(pid: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
