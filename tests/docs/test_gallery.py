"""Every script of the gallery runs and ends in something to look at, and each has its picture."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gatelens.views.page import View

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("*.py"))
LONGEST = 25  # lines of code

# what a newcomer looks for, and a call the script that shows it makes
EXPECTED = {
    "lens_on_image_tokens": "gl.logit_lens",
    "head_map": "gl.views.heads",
    "patching_map": "gl.patch_map",
    "attribution_with_check": "gl.attribution_map",
    "path_patching": "gl.path_patch",
    "heads_alone": "gl.ablate",
    "head_ablation": "gl.ablate",
    "steering_by_contrast": "gl.direction",
    "probe_from_a_store": "gl.collect",
    "window_knockout": "gl.knockout",
    "object_mask": "gl.knockout",
    "words_over_the_picture": "gl.words_table",
    "different_lengths": "gl.patch",
    "resumable_sweep": "gl.sweep",
    "direct_logit_attribution": "gl.attribute",
    "sae_feature": "gl.SAE",
    "two_models": "gl.patch_map",
}


def pictures() -> Any:
    """``docs/_site/pictures.py``, by its path: ``docs`` is not a package."""
    path = ROOT / "docs" / "_site" / "pictures.py"
    spec = importlib.util.spec_from_file_location("gallery_pictures", path)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


def run(path: Path) -> Any:
    """The value of the expression a script ends in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    last = tree.body.pop()
    assert isinstance(last, ast.Expr), "the last line is not an expression"
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(tree, str(path), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(path), "eval"), names)


@pytest.mark.organism
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_runs_and_shows_something(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matplotlib.use("Agg")
    plt.close("all")
    value = run(path)
    assert isinstance(value, Figure | Axes | pd.DataFrame | View)
    if not isinstance(value, View):  # pictures of views are a browser's
        pictures().thumbnail(getattr(value, "figure", value), tmp_path / "thumbnail.png")
        assert (tmp_path / "thumbnail.png").stat().st_size > 2000


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    title, line, _, *prose = (ast.get_docstring(tree) or "").splitlines()
    assert set(line) == {"="} and len(line) == len(title)
    assert len(re.findall(r"[.?](?:\s|$)", "\n".join(prose))) >= 2
    first = tree.body[1].lineno - 1
    code = [one for one in text.splitlines()[first:] if one.strip() not in ("", "# %%")]
    assert len(code) <= LONGEST, f"{len(code)} lines of code"


def test_the_gallery_has_what_a_newcomer_looks_for() -> None:
    assert {path.stem for path in SCRIPTS} == set(pictures().ORDER)
    for name, call in EXPECTED.items():
        assert f"{call}(" in (ROOT / "docs" / "gallery" / f"{name}.py").read_text(), name
