"""The pages in docs say what is so: code blocks are run, tests they name exist."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / room) for room in ("families", "bridge")]

import test_conformance as suite  # noqa: E402
import test_towers as towers  # noqa: E402

from gatelens import families  # noqa: E402
from gatelens.errors import ModelError  # noqa: E402

PAGE = (ROOT / "docs" / "add-your-vlm.md").read_text()


def block(name: str) -> Any:
    """The module a code block of the page makes."""
    (code,) = re.findall(rf"```python\n# \S*{name}\n(.*?)```", PAGE, flags=re.DOTALL)
    module = types.ModuleType(f"docs_{Path(name).stem}")
    module.__dict__["__name__"] = module.__name__
    sys.modules[module.__name__] = module
    exec(compile(code, name, "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def vipllava() -> Iterator[Any]:
    """The page's case; its family is known to gatelens while the tests here run."""
    case = block("cases/vipllava.py").CASE
    with pytest.raises(ModelError, match="no family for 'VipLlavaForConditionalGeneration': supported are"):
        suite.Built(case)
    known = families._BY_ARCHITECTURE
    families._know(block("families/vipllava.py").FAMILY)
    yield suite.Built(case)
    del known["VipLlavaForConditionalGeneration"]


@pytest.mark.parametrize("kind", ["one", "two", "batch"])
def test_the_example_has_transformers_logits(vipllava: Any, kind: str) -> None:
    suite.test_logits_equal_transformers(vipllava, kind)
    if kind != "two":
        suite.test_cached_decoding_equals_transformers(vipllava, kind)


def test_the_example_places_its_tokens(vipllava: Any) -> None:
    suite.test_roles_cover_every_position_and_images_are_where_features_go(vipllava)
    for which in (0, 1):
        suite.test_pixel_boxes(vipllava, which)


def test_the_example_takes_interventions(vipllava: Any) -> None:
    suite.test_nothing_after_the_picture_depends_on_it_when_it_is_cut_off(vipllava)
    suite.test_the_residual_stream_adds_up(vipllava)
    for site in ("resid_pre", "q", "z", "mlp_out"):
        suite.test_self_patch_changes_nothing_and_zeroing_does(vipllava, site)
    for how in ("mask", "zero"):
        suite.test_knockouts_equal_plain_transformers(vipllava, suite.Reference(vipllava.plain), how, [1])
    towers.test_every_point_acts_or_refuses(towers.Built(vipllava.case))


def test_the_example_builds_at_full_size(vipllava: Any) -> None:
    suite.CASES["vipllava"] = vipllava.case
    try:
        suite.test_full_size_builds_without_weights("vipllava", "7B")
    finally:
        del suite.CASES["vipllava"]


PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[p.name for p in PAGES])
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text)):
        assert (ROOT / name).exists() or "vipllava" in name, name
    for file, test in set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)):
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
