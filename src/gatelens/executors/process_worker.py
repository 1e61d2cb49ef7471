"""The program of a worker process: units in by its connection, replies out."""

from __future__ import annotations

import os
import queue
import sys
import threading
from functools import partial
from multiprocessing.connection import Connection

from gatelens.executors.worker import Worker

Message = tuple[
    int, bytes, bytes
]  # key and bytes of the shared function (none where it was sent before), the unit's own


def main(connection: Connection, threads: int) -> None:
    """Measure units until the driver ends."""
    messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    worker = Worker(threads)
    connection.send_bytes(worker.ready())
    while True:
        key, shared, own = messages.get()
        connection.send_bytes(worker.reply(key, partial(bytes, shared), own))


def _listen(connection: Connection, messages: queue.SimpleQueue[Message]) -> None:
    """Pass messages on. When the driver is gone, whatever is being measured is abandoned."""
    try:
        while True:
            messages.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])), int(sys.argv[2]))
