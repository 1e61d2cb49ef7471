"""Run the tutorials and save their outputs in place.

    python tutorials/execute.py              all of them
    python tutorials/execute.py 01_the_gate  those whose name starts so

Needs the ``dev`` extra (nbclient, ipykernel). Interactive pages (circuitsvis brings 1.3 MB of script) are kept out of
the saved file: a viewer that does not trust the notebook would not run them anyway; run the cell to see one.
Nothing is saved when a cell fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
# No progress bars, and no warning where their notebook widgets are not installed: neither belongs into a saved file.
QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
LARGEST_HTML = 200_000  # characters of one output
TIMEOUT = 600  # seconds a cell
PATIENCE = "gatelens: importing"
INSTEAD = "(interactive view: run this cell to see it)"


def execute(path: Path, timeout: int = TIMEOUT) -> NotebookNode:
    """The notebook at ``path`` with fresh outputs, run in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; the message shows which.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=timeout,
            resources={"metadata": {"path": folder}},
            record_timing=False,  # times would make every refresh a difference in every cell
        )
        return client.execute(env={**os.environ, **QUIET})


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Large interactive outputs replaced by a line of text, and what depends on the machine left out.

    So is the line that gatelens writes where its first import takes long.
    """
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if not one.get("text", "").startswith(PATIENCE)]
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            if len(shown.get("text/html", "")) > LARGEST_HTML:
                shown["text/html"] = f"<p><em>{INSTEAD}</em></p>"
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="beginnings of file names; default: every tutorial")
    names = parser.parse_args().names
    paths = [p for p in sorted(FOLDER.glob("*.ipynb")) if not names or p.name.startswith(tuple(names))]
    if not paths:
        parser.error(f"no tutorial in {FOLDER} starts with {' or '.join(names)}")
    for path in paths:
        notebook = tidy(execute(path))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
