"""Workers on a Ray cluster of two nodes on this machine: equal tables, killed actors, other versions, no cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from executor_helpers import attempts_of, units_of

import gatelens as gl
from gatelens.errors import WorkerError
from gatelens.executors import executing
from gatelens.executors.on_ray import check_versions, versions_here
from gatelens.runs import Run
from gatelens.units import measured

pytest.importorskip("ray")

pytestmark = pytest.mark.xdist_group("ray")  # one worker runs this file, so what it starts is started once


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the head keeps the address 127.0.0.1
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # what actors unpickle is importable on every node
        patch.setenv("PYTHONPATH", os.pathsep.join(os.path.abspath(one) for one in sys.path))
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
        )
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        yield cluster
        cluster.shutdown()


@pytest.mark.organism
def test_the_table_is_that_of_one_process(cluster: Any) -> None:
    model, threads = gl.HookedVLM.from_pretrained("organism:gated"), torch.get_num_threads()
    torch.set_num_threads(1)

    def sweep(**where: Any) -> pd.DataFrame:
        return gl.sweep(
            model, "emoji-scenes", {"layer": [1, 3]}, {"right": gl.metrics.logit(lambda e: e.label)}, False,
            task="class", limit=8, batch_size=2,
            make=lambda layer: gl.knockout("text - gate", "gate", layers=[layer]), **where,
        )  # fmt: skip

    before = signal.getsignal(signal.SIGTERM)
    try:
        pd.testing.assert_frame_equal(sweep(ray=cluster.address), sweep(), check_exact=True)
    finally:
        torch.set_num_threads(threads)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_killed_actor_costs_what_it_measured(cluster: Any, tmp_path: Path) -> None:
    run, log = Run.open(tmp_path / "run", study="toy", settings={}), tmp_path / "log"
    with executing(ray=cluster.address) as executor:
        tables = measured(run, "s", units_of(log, {1: "once-killed"}, n=4), False, executor=executor)
    assert [one["squares"].square.item() for one in tables] == [i**2 for i in range(4)]
    assert attempts_of(log) == {0: 1, 1: 2, 2: 1, 3: 1}


def test_other_versions_are_refused() -> None:
    check_versions(dict(versions_here()))
    with pytest.raises(WorkerError, match=r"other versions: torch 1.0 there, .* here; install the same"):
        check_versions({**versions_here(), "torch": "1.0"})
    with pytest.raises(WorkerError, match="gatelens' code 0123 there"):
        check_versions({**versions_here(), "gatelens' code": "0123"})


def test_no_cluster_is_one_line() -> None:
    with (
        pytest.raises(WorkerError, match=r"cannot connect to a Ray cluster at '127\.0\.0\.1:1'") as failed,
        executing(ray="127.0.0.1:1"),
    ):
        pass
    assert "\n" not in str(failed.value)
