"""Where there is no Ray cluster: one line that names the address and why."""

from __future__ import annotations

import pytest

from gatelens.errors import WorkerError
from gatelens.executors import executing

pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nowhere.invalid:6379", "not known|resolution"),
        ("no address", "Invalid address format"),
        ("127.0.0.1:x", "port number"),
    ],
)
def test_no_cluster_is_one_line(address: str, why: str) -> None:
    with (
        pytest.raises(
            WorkerError, match=rf"cannot connect to a Ray cluster at '{address}' \(.*({why})"
        ) as failed,
        executing(ray=address),
    ):
        pass
    assert "\n" not in str(failed.value)
