"""What the scripts that run in a rival's own environment share. They know nothing of gatelens.

The folder they get holds the weights (``model/facebook/chameleon-7b``, as transformers saves them) and
``work.json``: the prompt, the rows and columns to cut, the layer each run starts in.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch


class Work:
    """The runs asked for: from each start layer on, ``queries`` cannot read ``keys``."""

    def __init__(self, folder):
        self.folder = Path(folder)
        spec = json.loads((self.folder / "work.json").read_text())
        self.ids = torch.tensor(spec["ids"])
        self.mask = torch.ones_like(self.ids)
        self.queries, self.keys = spec["queries"], spec["keys"]
        self.starts, self.n_layers, self.n_heads = spec["starts"], spec["n_layers"], spec["n_heads"]
        self.repeats, self.words = spec["repeats"], spec["words"]
        self.model = self.folder / "model" / "facebook" / "chameleon-7b"

    def entries(self):
        """Bool[1, 1, pos, pos]: what is cut."""
        n = self.ids.shape[1]
        rows, columns = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        rows[self.queries] = True
        columns[self.keys] = True
        return (rows[:, None] & columns[None, :])[None, None]


def report(name, how, prepare):
    """Measure one toolkit and print a line of JSON.

    ``prepare(work)`` gives ``run(start, how) -> logits of the query rows``. Whatever goes wrong becomes the
    toolkit's line in the table.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    work = Work(sys.argv[1])
    found = {"name": name, "versions": versions()}
    try:
        run = prepare(work)
    except Exception as error:
        print(json.dumps({**found, "error": line(error)}))
        return
    for kind in how:
        try:
            with torch.no_grad():
                logits = torch.stack([run(start, kind).float() for start in work.starts])  # warms up as well
                seconds = []
                for _ in range(work.repeats):
                    begin = time.perf_counter()
                    for start in work.starts:
                        run(start, kind)
                    seconds.append((time.perf_counter() - begin) / len(work.starts))
            torch.save(logits.cpu(), work.folder / f"{name}-{kind}.pt")
            found[kind] = {"seconds": seconds, "logits": f"{name}-{kind}.pt"}
        except Exception as error:
            found[kind] = {"error": line(error)}
    print(json.dumps(found))


def versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers")}


def line(error):
    """An exception in one line, with the place it came from."""
    text = (str(error).strip().splitlines() or [""])[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text[:200]} ({Path(last.filename).name}:{last.lineno})"
