"""Build the documentation site.

    python docs/build.py              run every script and page, build site/
    python docs/build.py --no-run     the same pages without outputs, in seconds

Sources are copied into a folder of their own, where the API reference is written beside them; ``docs/`` stays as it
is. Warnings of Sphinx and links that lead nowhere are errors. Neither building nor reading needs a network. Pictures
of interactive views are taken with Chromium.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))

from _site import api, downloads, links, llms  # noqa: E402

QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def stage(folder: Path) -> None:
    """Copy what the site is made of, and write what is made from the code."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        DOCS, folder, ignore=shutil.ignore_patterns("gallery", "papers", "__pycache__", "build.py")
    )
    for name in ("gallery", "papers"):
        if any((DOCS / name).glob("*.py")):
            scripts = folder / "_scripts" / name
            shutil.copytree(DOCS / name, scripts, ignore=shutil.ignore_patterns("__pycache__"))
            for script in scripts.glob("[!_]*.py"):
                script.write_text(titled(script.read_text(encoding="utf-8")), encoding="utf-8")
            for shared in scripts.glob("_*.py"):  # imported by the scripts, and no script itself
                shutil.move(shared, folder / shared.name)
            header = scripts / "GALLERY_HEADER.rst"
            if not header.exists():
                header.write_text(f"{name.title()}: figures\n{'=' * 40}\n", encoding="utf-8")
    shutil.copytree(
        ROOT / "tutorials", folder / "tutorials", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    shutil.copy(ROOT / "CHANGELOG.md", folder / "changelog.md")
    (folder / "organisms").mkdir()
    for card in (ROOT / "src/gatelens/organisms/weights").glob("*/README.md"):
        text = card.read_text(encoding="utf-8").split("---\n", 2)[2]  # without the hub's front matter
        (folder / "organisms" / f"{card.parent.name}.md").write_text(text, encoding="utf-8")
    for page in folder.rglob("*.md"):
        page.write_text(on_site(page.read_text(encoding="utf-8")), encoding="utf-8")
    api.write(folder / "api")


def on_site(text: str) -> str:
    """A page whose links to scripts lead to their pages; files outside of ``docs`` are not on the site."""
    text = re.sub(r"\]\(((?:gallery|papers)/\w+)\.py\)", r"](\1.rst)", text)
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)


def titled(script: str) -> str:
    """A script whose documentation begins with an underlined title, as sphinx-gallery wants it."""
    said = ast.get_docstring(ast.parse(script)) or ""
    first, _, rest = said.partition("\n\n")
    if "\n==" in first:
        return script
    title = " ".join(first.split()).rstrip(".")
    code = script[script.index('"""', 3) + 3 :]
    return f'r"""\n{title}\n{"=" * len(title)}\n\n{rest}\n"""{code}'


def build(out: Path, work: Path, run: bool = True) -> int:
    """Build the site into ``out``, with ``work`` for what lies between; the exit status.

    Raises:
        ValueError: a public name has no place in the reference.
    """
    os.environ.update(QUIET, GATELENS_DOCS_RUN=str(int(run)))
    from sphinx.cmd.build import main as sphinx

    stage(work / "source")
    shutil.rmtree(out, ignore_errors=True)
    status = sphinx(
        [
            "-q",
            "-W",
            "--keep-going",
            "-b",
            "html",
            "-d",
            str(work / "doctrees"),
            str(work / "source"),
            str(out),
        ]
    )
    if status:
        return status
    llms.write(out)
    downloads.complete_all(out, DOCS / "papers")
    broken = links.broken(out)
    for line in broken:
        print(line, file=sys.stderr)
    return int(bool(broken))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "docs", help="folder for files in between"
    )
    parser.add_argument("--no-run", action="store_true", help="build without running scripts and pages")
    given = parser.parse_args()
    status = build(given.out.resolve(), given.work.resolve(), not given.no_run)
    if not status:
        print(f"{given.out}/index.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
