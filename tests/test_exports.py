"""What packages offer under their own name: all of it is there, and each is the thing its module holds."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import gatelens


@pytest.mark.parametrize(
    "package",
    [
        "",
        ".data",
        ".engine",
        ".families",
        ".interventions",
        ".measures",
        ".organisms",
        ".studies",
        ".training",
    ],
)
def test_every_name_is_there_once(package: str) -> None:
    module = import_module(f"gatelens{package}")
    names = module.__all__
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    "package, module, names",
    [
        ("engine", "compression", "compress describe"),
        ("engine", "compressed_context", "CompressedContext Described"),
        ("engine", "attention_rows", "look"),
        ("measures", "mme", "mme_scores yes_or_no"),
        (
            "measures",
            "concentration",
            "Carriers label_information naming_p_value share_removed smallest_carrying",
        ),
    ],
)
def test_functions_are_not_hidden_by_modules_of_their_name(package: str, module: str, names: str) -> None:
    holder = import_module(f"gatelens.{package}.{module}")
    assert isinstance(holder, ModuleType)
    offered = import_module(f"gatelens.{package}")
    for name in names.split():
        assert getattr(offered, name) is getattr(holder, name) and name in offered.__all__
        assert not isinstance(getattr(offered, name), ModuleType)


def test_the_public_face_is_the_stub() -> None:
    """What type checkers see is what there is, and each public name stands there once."""
    stub = Path(gatelens.__file__).with_suffix(".pyi").read_text()
    names = re.findall(r"^from \S+ import \w+ as (\w+)$", stub, flags=re.MULTILINE)
    assert len(names) == len(set(names)) == len(stub.split("import ")) - 1
    assert {*names, "__version__"} == set(gatelens.__all__) == set(dir(gatelens))
    with pytest.raises(AttributeError, match="no attribute 'knockouts'"):
        _ = gatelens.knockouts  # type: ignore[attr-defined]
    for name in (
        "knockout",
        "patch",
        "steer",
        "ablate",
        "sweep",
        "metrics",
        "HookedVLM",
        "TokenMap",
        "Selection",
    ):
        assert name in names and getattr(gatelens, name) is not None
    assert gatelens.metrics is import_module("gatelens.measures.logits")


NOTEBOOK = """
import sys, types
kernel = types.ModuleType("IPython")
kernel.get_ipython = lambda: types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["IPython"], sys.modules["ipywidgets"] = kernel, None
sys.ps1 = ">>> "
import gatelens
gatelens.HookedVLM
"""


def test_the_first_use_in_a_notebook_warns_of_nothing_and_says_what_takes_so_long() -> None:
    done = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=True)
    assert "IProgress" not in done.stderr and "TqdmWarning" not in done.stderr
    assert "gatelens: importing torch, transformers and TransformerLens" in done.stderr
