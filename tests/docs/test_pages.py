"""Every block of code in docs and README runs as printed, or is marked with why not and calls only what is there.

A block that is not run stands after a comment ``<!-- not run: why -->``.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pytest
import typer

import gatelens as gl
from gatelens.cli import bench, explore, main, models, plan, runs, studies, verify  # noqa: F401  (commands)
from gatelens.cli.options import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n\n?)?"
    r"^```(?P<kind>python|\{code-cell\} python|bash)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
OPTIONS = re.compile(r"^:\w+:.*\n", re.MULTILINE)  # of a cell, such as :tags: [hide-input]
# pages with a test of their own, which runs their blocks on fewer examples or under other names
ELSEWHERE = {
    "docs/activation-store.md": "tests/activation_store/test_page.py",
    "docs/add-your-vlm.md": "tests/test_docs.py",
}


class Block(NamedTuple):
    page: str
    line: int
    code: str
    why_not: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path, *kinds: str) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found = [match for match in BLOCK.finditer(text) if match["kind"] in kinds]
    first = {m: text.count("\n", 0, m.start("code")) + 1 for m in found}
    return [Block(name, first[m], OPTIONS.sub("\n", m["code"]), m["why"]) for m in found]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = {page.relative_to(ROOT).as_posix(): blocks(page, "python", "{code-cell} python") for page in PAGES}
RUN = [name for name, found in PYTHON.items() if name not in ELSEWHERE and any(not b.why_not for b in found)]
RUN.remove("README.md")  # has a test of its own
COMMANDS = [
    (block.place, line)
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.code.replace("\\\n", " ").splitlines()
    if line.startswith("gatelens ")
]


@pytest.mark.organism
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for block in PYTHON[page]:
        if not block.why_not:
            padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's line
            exec(compile(padded, str(ROOT / page), "exec"), names)


def test_the_readme_shows_what_its_lines_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ((code, shown),) = re.findall(r"^```python\n(.*?)^```\n\n```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("page", ELSEWHERE)
def test_pages_that_are_run_elsewhere_are(page: str) -> None:
    assert Path(page).name in (ROOT / ELSEWHERE[page]).read_text(encoding="utf-8")


def words(text: str) -> int:
    """Words of a page that are read: all but its code and its header."""
    return len(re.sub(r"\A---.*?^---$|^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).split())


HOW_TO = re.findall(
    r":caption: How-to\n:hidden:\n\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL
)
TASKS = re.findall(r"<([\w-]+)>", HOW_TO[0])


@pytest.mark.parametrize("page", TASKS)
def test_a_how_to_page_is_a_goal_then_code(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert re.search(r"^# (Use|Run|Store|Train|Save|Explore|Check|Add)\b", text, re.MULTILINE), (
        "named by the task"
    )
    before, found, _ = text.partition("\n```")
    assert found and words(before) <= (60 if page != "add-your-vlm" else 120)
    assert words(text) <= (950 if page == "verify" else 600)  # verify: tables of its checks


def test_the_plan_of_a_7b_model_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
    ((command, shown),) = re.findall(r"```bash\ngatelens (plan.*?)\n```\n\n```\n(.*?)\n```", text, re.DOTALL)
    folder = ROOT / "tests" / "planning" / "chameleon-7b"  # its config, as published
    assert main(shlex.split(command.replace("facebook/chameleon-7b", str(folder)))) == 0
    said = capsys.readouterr().out.splitlines()
    start, end = shown.split("\n…\n")
    assert start.splitlines() == said[: start.count("\n") + 1] and end == said[-1]


def test_the_readme_counts_the_gallery() -> None:
    (n,) = re.findall(
        r"\]\(docs/gallery\): (\d+) short", (ROOT / "README.md").read_text(encoding="utf-8")
    ) or [""]
    assert int(n) == len(list((ROOT / "docs" / "gallery").glob("*.py")))


def wrong_calls(code: str) -> list[str]:
    """Calls of ``gl.…`` and ``model.…`` whose function or keyword is not there."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        root, *path = called.split(".")
        value: Any = {"gl": gl, "model": gl.HookedVLM}.get(root)
        if value is None or not re.fullmatch(r"[\w.]+", called):  # a method of what another call gives
            continue
        for name in path:
            value = getattr(value, name, None)
        if value is None:
            wrong.append(f"{called} is not there")
            continue
        parameters = inspect.signature(value).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            known = {p.name for p in parameters}
            wrong += [f"{called}({k.arg}=)" for k in node.keywords if k.arg not in {*known, None}]
    return wrong


@pytest.mark.parametrize("page", PYTHON)
def test_what_blocks_call_is_there(page: str) -> None:
    found = [*blocks(ROOT / page, "python", "{code-cell} python")]
    assert [f"{block.place}: {one}" for block in found for one in wrong_calls(block.code)] == []


def test_wrong_calls_are_seen() -> None:
    assert wrong_calls("gl.knockout('text', 'image', hows='zero')") == ["gl.knockout(hows=)"]
    assert wrong_calls("gl.knock('text')\nmodel.run_with_cache(x)") == ["gl.knock is not there"]
    assert wrong_calls("model.forwards(x)") == ["model.forwards is not there"]


@pytest.mark.parametrize(
    "place, line", COMMANDS, ids=[f"{place}-{i}" for i, (place, _) in enumerate(COMMANDS)]
)
def test_commands_are_there_with_their_options(place: str, line: str) -> None:
    name, *words = shlex.split(line, comments=True)
    command: Any = typer.main.get_command(app)
    context = command.make_context(name, [], resilient_parsing=True)
    while hasattr(command, "get_command"):
        name, *words = words
        command = command.get_command(context, name)
        assert command is not None, f"{place}: no command {name!r}"
        if hasattr(command, "with_options"):  # a study, which knows its options once it is asked for
            command = command.with_options()
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    parameters = command.get_params(context)
    options = {option for one in parameters for option in (*one.opts, *one.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, f"{place}: {line}"
