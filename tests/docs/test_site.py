"""The site builds without a warning and holds what it promises; scripts and pages are run by the tests beside this."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

pytest.importorskip("sphinx")
pytest.importorskip("sphinx_gallery")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from _site import api, docstrings, downloads, links  # noqa: E402

import gatelens  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDEST = (
    "index",
    "transformer-lens",
    "your-model",
    "concepts/tokens",
    "gallery/index",
    "genindex",
    "api/readouts",
    "organisms/open",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    command = [
        sys.executable,
        "docs/build.py",
        "--no-run",
        "--out",
        folder / "site",
        "--work",
        folder / "work",
    ]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]  # Sphinx was given -W: a warning is an error
    return folder / "site"


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = {page.stem: page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")}
    for room in api.ROOMS:
        for entry in api.entries(room):
            assert f'id="{entry.name}"' in text[room], entry.name
    shown = "".join(text.values())
    modules = {name for name in gatelens.__all__ if type(getattr(gatelens, name)).__name__ == "module"}
    for name in {*gatelens.__all__} - modules - {"__version__"}:
        assert f'id="gatelens.{name}"' in shown, name


def test_shapes_are_shown_as_written(site: Path) -> None:
    page = re.sub(r"<.*?>", "", (site / "api" / "metrics.html").read_text(encoding="utf-8"))
    assert "batch pos d_vocab" in page.replace("&#39;", "'")


def test_what_comes_before_a_colon_is_no_type() -> None:
    read = {}
    for room in api.ROOMS:
        for entry in api.entries(room):
            read[entry.name] = docstrings.as_read(entry.doc, "function")
            for name in api.own_members(entry.value) if isinstance(entry.value, type) else ():
                member = getattr(entry.value, name)
                what = "property" if isinstance(member, property) else "method"
                read[f"{entry.name}.{name}"] = docstrings.as_read(inspect.getdoc(member) or "", what)
    assert not [name for name, lines in read.items() if any(re.match(":(r?type|vartype)", x) for x in lines)]
    assert any(line.startswith(":returns: One row per point and example") for line in read["gatelens.sweep"])
    assert any(line.startswith(r":param with\_:") for line in read["gatelens.ablate"])


def test_downloads_of_papers_need_no_file_beside_them(site: Path) -> None:
    papers = ROOT / "docs" / "papers"
    names = {script.stem for script in papers.glob("[!_]*.py")}
    zips = {file.stem: file for file in (site / "_downloads").rglob("*.zip") if file.stem in names}
    assert set(zips) == names
    for name, file in zips.items():
        with zipfile.ZipFile(file) as packed:
            script, notebook = (packed.read(f"{name}{suffix}").decode() for suffix in (".py", ".ipynb"))
        cells = [
            "".join(cell["source"]) for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"
        ]
        for code in (script, "\n".join(cells)):
            assert "_common" not in code and "def save(" in code
            compile(code, name, "exec")
    alone = [f for f in (site / "_downloads").rglob("*") if f.suffix in (".py", ".ipynb") and f.stem in names]
    assert len(alone) == 2 * len(names) and not any("_common" in file.read_text() for file in alone)
    assert downloads.complete("import gatelens as gl\n", papers) == "import gatelens as gl\n"


class _Prompts(HTMLParser):
    """Counts prompts of examples, ``>>>``, inside lists of parameters and errors and outside them."""

    def __init__(self) -> None:
        super().__init__()
        self.lists: list[bool] = []
        self.inside = self.outside = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        if tag == "dl":
            self.lists.append("field-list" in classes)
        self.inside += "gp" in classes and any(self.lists)
        self.outside += "gp" in classes and not any(self.lists)

    def handle_endtag(self, tag: str) -> None:
        if tag == "dl":
            self.lists.pop()


def test_no_example_is_read_as_an_error_or_a_parameter(site: Path) -> None:
    shown = 0
    for page in (site / "api").glob("*.html"):
        found = _Prompts()
        found.feed(page.read_text(encoding="utf-8"))
        assert found.inside == 0, page.name
        shown += found.outside
    assert shown > 100


def test_the_site_has_its_pages_and_llms_txt_lists_them(site: Path) -> None:
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    for page in (
        "index",
        "quickstart",
        "transformer-lens",
        "gallery/index",
        "reference",
        "concepts/tokens",
        "changelog",
    ):
        assert (site / f"{page}.html").is_file()
        assert f"({page}.html)" in listed
    for name in ("gl.HookedVLM", "gl.knockout", "gl.metrics.logit_diff", "gl.errors.GatelensError"):
        assert f"`{name}`: " in listed


def test_the_gallery_index_leads_to_every_script(site: Path) -> None:
    index = links.Page((site / "gallery" / "index.html").read_text(encoding="utf-8"))
    led = {urlsplit(link).path for link in index.links}
    for script in (ROOT / "docs" / "gallery").glob("*.py"):
        assert f"{script.stem}.html" in led


def test_the_reference_shows_the_scripts_that_use_a_function(site: Path) -> None:
    page = links.Page((site / "api" / "interventions.html").read_text(encoding="utf-8"))
    assert "../gallery/window_knockout.html" in {urlsplit(link).path for link in page.links}


def test_no_page_scrolls_sideways_on_a_phone(site: Path, page: Page) -> None:
    beyond = (
        "(() => { const e = document.querySelector('.content'); return e.scrollWidth - e.clientWidth })()"
    )
    page.set_viewport_size({"width": 390, "height": 844})
    for name in WIDEST:
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate(beyond) <= 0, name
    page.evaluate("document.querySelector('article p').style.width = '500px'")
    assert page.evaluate(beyond) > 0  # what is too wide is seen


def test_broken_and_foreign_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#x">b</a><a href="c.html">c</a><a href="https://arxiv.org">d</a>'
    )
    (tmp_path / "b.html").write_text('<p id="y"></p><script src="https://cdn.example/x.js"></script>')
    assert set(links.broken(tmp_path)) == {
        "a.html: b.html#x leads to no place of that page",
        "a.html: c.html leads to no file",
        "b.html: fetches https://cdn.example/x.js",
    }
