"""docs/transformer-lens.md lists every public name of TransformerLens that takes a model, and nothing else."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformer_lens
from transformer_lens import head_detector, patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis

from gatelens.model.vlm_bridge import REFUSED

PAGE = (Path(__file__).parents[1] / "docs" / "transformer-lens.md").read_text()


def listed(title: str) -> list[str]:
    """The names in the first column of a table."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def own_names(module: ModuleType) -> set[str]:
    """Functions, partials of them, and classes that a module makes."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            getattr(value, "__module__", None) == module.__name__
            or name.startswith(("get_act_patch", "layer_", "make_"))
        )
    }


def of_bridge() -> set[str]:
    """What a bridge has of its own, torch's names aside unless it overrides them."""
    torchs = set(dir(torch.nn.Module))
    names = {name for name in dir(TransformerBridge) if not name.startswith("_")}
    return {name for name in names if name not in torchs or name in TransformerBridge.__dict__}


NAMES = {
    "HookedVLM": of_bridge(),
    "ActivationCache": {name for name in dir(transformer_lens.ActivationCache) if not name.startswith("_")},
    "transformer_lens.patching": own_names(patching),
    "transformer_lens.head_detector": own_names(head_detector),
    "transformer_lens.tools.analysis": set(analysis.__all__),
}


@pytest.mark.parametrize("title", NAMES)
def test_every_name_is_listed_once(title: str) -> None:
    names = listed(title)
    assert len(names) == len(set(names))
    assert set(names) - NAMES[title] == set(), "listed, and not in TransformerLens"
    assert NAMES[title] - set(names) == set(), (
        "in TransformerLens, and not listed: say what it does with pictures"
    )


def test_what_is_refused_is_listed_as_refused() -> None:
    (row,) = [line for line in PAGE.splitlines() if "refused, with what to do instead" in line]
    assert {*re.findall(r"`(\w+)`", row.split("|")[1]), "compile"} == set(REFUSED)


def test_functions_of_tensors_take_no_model() -> None:
    (row,) = [line for line in PAGE.splitlines() if "take tensors, no model" in line]
    for name in re.findall(r"`(\w+)`", row.split("|")[1]):
        value = getattr(analysis, name)
        if not (inspect.isclass(value) and issubclass(value, Exception)):
            assert not {"model", "bridge"} & set(inspect.signature(value).parameters), name
