"""``llms.txt``: what the package is, its public names with a line each, and the pages of the site."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from . import api

ABOUT = """\
# gatelens

> gatelens is a Python toolkit on TransformerLens 4 for the mechanistic interpretability of vision-language models:
> load a model, say which tokens (image, end-of-image, question, generated) and what to do to them (knock attention
> out, patch, steer, ablate), and get numbers, pictures and a report.

Import it as `import gatelens as gl`. `gl.HookedVLM.from_pretrained("organism:gated")` loads a small model that ships in
the package, without a network. Results of readouts have `.tensor`, `.table` (a DataFrame) and `.show()`.
"""
TITLE = re.compile(r"<title>(.*?)(?: - gatelens)?</title>", re.DOTALL)


def write(site: Path) -> None:
    """Write ``llms.txt`` into a built site."""
    pages = [
        file
        for file in sorted(site.rglob("*.html"))
        if file.stem not in ("genindex", "search", "py-modindex")
    ]
    listed = [
        f"- [{title(file)}]({file.relative_to(site).as_posix()})"
        for file in pages
        if "_modules" not in file.parts
    ]
    names = []
    for key, room in api.ROOMS.items():
        names += ["", f"### {room.title} ([api/{key}.html](api/{key}.html))"]
        names += [f"- `{api.short(entry.name)}`: {entry.summary}".rstrip(": ") for entry in api.entries(key)]
    text = "\n".join([ABOUT, "## Pages", *listed, "", "## Public names", *names, ""])
    (site / "llms.txt").write_text(text, encoding="utf-8")


def title(page: Path) -> str:
    """The title of a page."""
    found = TITLE.search(page.read_text(encoding="utf-8"))
    return unescape(re.sub(r"<.*?>", "", found[1])).strip() if found else page.stem
