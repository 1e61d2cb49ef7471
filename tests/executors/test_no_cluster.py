"""Where there is no Ray cluster: one line that names the address and why."""

from __future__ import annotations

import socket
import threading

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


@pytest.mark.parametrize("answer", [b"HTTP/1.0 400 Bad Request\r\n\r\n", b""])
def test_another_server_is_one_line(answer: bytes) -> None:
    """Such as the port of Ray's own dashboard."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as one:
                one.recv(1)
                one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            pytest.raises(WorkerError, match=r"\((what listens there is not Ray|.*reset)"),
            executing(ray=f"127.0.0.1:{server.getsockname()[1]}"),
        ):
            pass
        thread.join()
