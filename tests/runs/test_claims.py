"""Claims on batches: one holder at a time, whoever asks, and none of a process that has ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from gatelens.errors import OutputError
from gatelens.runs import Claims


def test_a_batch_is_claimed_by_one(tmp_path: Path) -> None:
    with Claims(tmp_path) as mine, Claims(tmp_path) as others:
        assert mine.take("org/name-0") and not others.take("org/name-0") and others.take("b")
        mine.release("org/name-0")
        assert others.take("org/name-0")
    assert list(tmp_path.iterdir()) == []
    assert all(Claims(None).take("a") for _ in range(2))  # in memory there are no others


def test_of_many_that_ask_again_and_again_one_holds_it(tmp_path: Path) -> None:
    """Also while holders delete the file that others have just opened."""
    holders, most = [0], [0]

    def ask() -> None:
        for _ in range(200):
            with Claims(tmp_path) as claims:
                if claims.take("a"):
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                    time.sleep(0)
                    holders[0] -= 1

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and list(tmp_path.iterdir()) == []


def claim_and_be_killed(folder: Path) -> None:
    assert Claims(folder).take("a")
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=claim_and_be_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert [file.name for file in tmp_path.iterdir()] == [".a.lock"]
    with Claims(tmp_path) as claims:
        claims.wait("a")
        assert claims.take("a")
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_claim_does(tmp_path: Path) -> None:
    mine, waited = Claims(tmp_path), threading.Event()
    assert mine.take("a")
    thread = threading.Thread(target=lambda: (Claims(tmp_path).wait("a"), waited.set()))
    thread.start()
    assert not waited.wait(0.1)
    mine.release("a")
    assert waited.wait(10)
    thread.join()
    Claims(tmp_path).wait("a")  # nobody holds it


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write '.*file/\.a\.lock'"):
        Claims(tmp_path / "file").take("a")
