"""Downloads of scripts that share code: each is made complete, as the shared file is not beside a single download."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

SHARED = re.compile(r"^from (_\w+) import [^\n]+\n", re.MULTILINE)


def complete(script: str, folder: Path) -> str:
    """A script with the code of the files ``_name.py`` of a folder in place of their imports."""

    def code(found: re.Match[str]) -> str:
        text = (folder / f"{found[1]}.py").read_text(encoding="utf-8")
        text = re.sub(r'\A""".*?"""\n', "", text, flags=re.DOTALL)
        return text.replace("from __future__ import annotations\n", "").strip("\n") + "\n\n\n"

    return SHARED.sub(code, script)


def complete_notebook(notebook: str, folder: Path) -> str:
    """The same of a notebook, as JSON."""
    cells = json.loads(notebook)
    for cell in cells["cells"]:
        if cell["cell_type"] == "code":
            whole = complete("".join(cell["source"]) + "\n", folder)
            cell["source"] = whole.rstrip("\n").splitlines(keepends=True)
    return json.dumps(cells, indent=1)


def complete_all(site: Path, folder: Path) -> None:
    """Every script, notebook and zip below ``site/_downloads``, in place."""
    makers = {".py": complete, ".ipynb": complete_notebook}
    for file in (site / "_downloads").rglob("*"):
        if file.suffix in makers:
            file.write_text(makers[file.suffix](file.read_text(encoding="utf-8"), folder), encoding="utf-8")
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as old:
                texts = {name: old.read(name) for name in old.namelist()}
            new = io.BytesIO()
            with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as made:
                for name, text in texts.items():
                    maker = makers.get(Path(name).suffix)
                    made.writestr(name, maker(text.decode(), folder) if maker else text)
            file.write_bytes(new.getvalue())
