"""The house as ``docs/architecture.md`` draws it: who imports whom, no circle, no file or function too long.

The contracts between rooms stand in ``pyproject.toml``. Every check here is also shown to fail, on a small package
that breaks the rule.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import gatelens

PACKAGE = Path(gatelens.__file__).parent
REPOSITORY = Path(__file__).parents[1]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
LAZY = "cli"  # the command line imports when a command runs, so that --help answers at once


def imports(package: str) -> dict[str, set[str]]:
    """What each module imports of its package, wherever in the file the import stands."""
    graph = grimp.build_graph(package, cache_dir=None, exclude_type_checking_imports=False)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circle(package: str) -> list[str]:
    """Modules that import each other in a loop; empty where there is none."""
    try:
        graphlib.TopologicalSorter(imports(package)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def broken_contracts(repository: Path) -> str:
    """What the import linter says against the contracts of ``pyproject.toml``; in a process of its own, as it changes
    how its process logs."""
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=repository, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


def modules(folder: Path) -> Iterator[tuple[str, ast.Module, int]]:
    """Path in the package, syntax tree and number of lines of every module."""
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        yield str(file.relative_to(folder)), ast.parse(text), len(text.splitlines())


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a module."""
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def too_long(folder: Path) -> list[str]:
    """Files and functions over their number of lines, docstrings included."""
    offenders = []
    for path, tree, n_lines in modules(folder):
        if n_lines > MOST_LINES:
            offenders.append(f"{path}: {n_lines} lines")
        for function in functions(tree):
            n_lines = (function.end_lineno or 0) - function.lineno + 1
            if n_lines > MOST_LINES_OF_A_FUNCTION:
                offenders.append(f"{path}: {function.name} has {n_lines} lines")
    return offenders


def odd_imports(folder: Path, package: str) -> list[str]:
    """Relative imports, imports for type checkers alone, and imports of the package inside a function."""
    offenders = []
    for path, tree, _ in modules(folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                offenders.append(f"{path}: relative import of {node.module}")
            if isinstance(node, ast.Name | ast.Attribute) and "TYPE_CHECKING" in ast.unparse(node):
                offenders.append(f"{path}: TYPE_CHECKING")
        if path.split("/")[0] == LAZY:
            continue
        for function in functions(tree):
            for node in ast.walk(function):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == package for name in names):
                    offenders.append(f"{path}: {function.name} imports {', '.join(names)}")
    return offenders


def test_the_contracts_between_rooms_hold() -> None:
    assert broken_contracts(REPOSITORY) == ""


def test_no_modules_import_each_other() -> None:
    assert circle("gatelens") == []


def test_what_families_share_knows_none_of_them() -> None:
    common = "gatelens.families.common"
    of_families = {
        (module, imported)
        for module, all_imported in imports("gatelens").items()
        if module.startswith(common)
        for imported in all_imported
        if imported.startswith("gatelens.families") and not imported.startswith(common)
    }
    assert of_families == set()


def test_imports_stand_at_the_top_and_are_absolute() -> None:
    assert odd_imports(PACKAGE, "gatelens") == []


def test_no_file_and_no_function_is_too_long() -> None:
    assert too_long(PACKAGE) == []


def test_each_public_name_is_said_once() -> None:
    assert len(gatelens.__all__) == len(set(gatelens.__all__))
    homes = [home for name, home in gatelens._PUBLIC.items() if name != "metrics"]  # a module by another name
    assert len(homes) == len(set(homes))


def write_package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, str]) -> Path:
    """A package on the path."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    for file, text in files.items():
        (package / file).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return package


@pytest.mark.parametrize(
    "kind, text",
    [
        ("plain", "import {package}.high\n"),
        ("in_function", "def f():\n    from {package}.high import g\n    return g\n"),
        (
            "for_types",
            "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from {package}.high import g\n",
        ),
    ],
)
def test_a_circle_is_seen(kind: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"circle_{kind}"
    files = {"low.py": text.format(package=name), "high.py": f"import {name}.low\n"}
    package = write_package(tmp_path, monkeypatch, name, files)
    assert {f"{name}.low", f"{name}.high"} == set(circle(name))
    assert len(odd_imports(package, name)) == (0 if kind == "plain" else 1)


def test_what_is_too_long_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "    pass\n" * MOST_LINES_OF_A_FUNCTION
    files = {"a.py": f"def f():\n{body}", "b.py": "x = 1\n" * (MOST_LINES + 1), "c.py": "from . import a\n"}
    package = write_package(tmp_path, monkeypatch, "lengths", files)
    assert too_long(package) == ["a.py: f has 61 lines", "b.py: 401 lines"]
    assert odd_imports(package, "lengths") == ["c.py: relative import of None"]


def test_a_broken_contract_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, monkeypatch, "layered", {"low.py": "import layered.high\n", "high.py": ""})
    (tmp_path / "pyproject.toml").write_text(
        '[tool.importlinter]\nroot_package = "layered"\n[[tool.importlinter.contracts]]\nname = "layers"\n'
        'type = "layers"\ncontainers = ["layered"]\nlayers = ["high", "low"]\n'
    )
    assert "layered.low is not allowed to import layered.high" in broken_contracts(tmp_path)
