"""Every public name's docstring has an example that runs, and a function's says what goes in and comes out."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gatelens as gl

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from _site import api  # noqa: E402

MODULES = {name: value for name in gl.__all__ if isinstance(value := getattr(gl, name), ModuleType)}
# what the reference shows is what is public
SHOWN = {entry.name.removeprefix("gatelens."): entry for room in api.ROOMS for entry in api.entries(room)}
WHOLE_STUDIES = (
    "studies.find_gate",
    "studies.finetune_gate",
)  # seconds and minutes at least, with examples elsewhere
CODE = {
    name: entry.value
    for name, entry in SHOWN.items()
    if inspect.isclass(entry.value) or inspect.isroutine(entry.value)
}
NAMES = {name: value for name, value in (MODULES | CODE).items() if name not in WHOLE_STUDIES}
FUNCTIONS = {name: value for name, value in CODE.items() if inspect.isfunction(value)}
CONSTANTS = SHOWN.keys() - CODE.keys()


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    """What the reference page says its examples start from."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/reference.md").read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    exec(block, names)
    return names


@pytest.mark.organism
@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(
    name: str, session: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = dict(gl.families._BY_ARCHITECTURE)  # what an example registers is gone afterwards
    monkeypatch.setattr(gl.families, "_BY_ARCHITECTURE", families)
    names = {**session, "folder": tmp_path / "out"}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(NAMES[name]) or "", names, name, None, None)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert result.attempted > 0, f"{name}: no example"
    assert any(part.want for part in example.examples), f"{name}: its example shows nothing"
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_a_section_of_their_own(name: str) -> None:
    """Under another heading they would be shown as a part of it."""
    text = inspect.getdoc(NAMES[name]) or ""
    before = text[: text.index(">>>")].rstrip().splitlines()[-1]
    assert before == "Example:" or isinstance(NAMES[name], ModuleType)
    assert "+SKIP" not in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take_and_give(name: str) -> None:
    text, signature = inspect.getdoc(FUNCTIONS[name]) or "", inspect.signature(FUNCTIONS[name])
    if len(signature.parameters) > 1:
        assert "Args:" in text
    if "Tensor" in str(signature):
        assert re.search(r"(Float|Int|Bool)\[|\[(batch|d_model|row)", str(signature) + text), "no shape"


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_constants_say_what_they_are(name: str) -> None:
    assert SHOWN[name].summary.endswith(".")
