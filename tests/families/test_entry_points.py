"""Plain TransformerLens users: installing gatelens gives them what TransformerLens lacks, and changes nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from case import cases
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.sources import build_bridge_from_module

from gatelens.families import all_families
from gatelens.model import HookedVLM

GROUP = "transformer_lens.architectures"
LACKING = {
    architecture: family.adapter
    for family in all_families()
    if family.adapter is not None
    for architecture in family.architectures
    if architecture not in SUPPORTED_ARCHITECTURES
}
CASES = cases()


def ours() -> dict[str, Any]:
    return {e.name: e for e in entry_points(group=GROUP) if e.dist is not None and e.dist.name == "gatelens"}


def test_exactly_what_transformerlens_lacks_is_offered() -> None:
    """After a change of pyproject.toml install again: pip install --no-deps -e ."""
    assert {name: entry.load() for name, entry in ours().items()} == LACKING


def first_case(architecture: str) -> str:
    for name, case in CASES.items():
        if case.wrap is None and type(case.model()).__name__ == architecture:
            return name
    raise AssertionError(f"no case has {architecture}")


@pytest.mark.parametrize("architecture", sorted(LACKING))
def test_a_plain_bridge_says_what_transformers_says(architecture: str) -> None:
    """TransformerLens' own attention this time, with our adapter: a picture and words, no gatelens hooks."""
    case = CASES[first_case(architecture)]
    plain = case.model()
    inputs = HookedVLM.from_module(copy.deepcopy(plain), case.processor()).prepare(
        case.picture(1), case.texts[0]
    )
    hf = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*attempted to override.*")
        bridge = build_bridge_from_module(hf, architecture, hf_config=hf.config)
    name, seen = "blocks.1.attn.hook_pattern", []
    bridge.hook_dict[name].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    with torch.no_grad():
        want, got = plain(**inputs.tensors).logits, hf(**inputs.tensors).logits
    assert (got - want).abs().max() <= 1e-5
    n = inputs.tokens.n_pos
    assert seen == [(1, bridge.cfg.n_heads, n, n)]


ALONE = f"""
factory.discover_entry_points()
assert set(factory._adapters) >= {set(LACKING)!r}
assert all(factory._adapters[name] is adapter for name, adapter in native.items())
import gatelens.model
"""
FIRST_GATELENS = """
from gatelens.model import HookedVLM
from cases import paligemma, qwen_vl
case = paligemma.CASES[0]
HookedVLM.from_module(case.model(), case.processor())
for case in qwen_vl.CASES:
    HookedVLM.from_module(case.model(), case.processor())
"""
# Each in a process of its own, in which TransformerLens is all that has been imported.
PROGRAM = f"""
import os, sys, warnings
warnings.filterwarnings("error", message=".*(attempted to override|Failed to).*")
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES as native, ArchitectureAdapterFactory as factory)
assert not any(name.startswith("gatelens") for name in sys.modules)
for program in ({ALONE!r}, {FIRST_GATELENS!r}):
    child = os.fork()
    if not child:
        exec(program)
        assert set(factory._adapters) >= {set(LACKING)!r}
        assert all(factory._adapters[name] is adapter for name, adapter in native.items())
        print("held", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_no_warning_and_no_native_adapter_replaced() -> None:
    """Whether TransformerLens asks for adapters before gatelens is imported, or gatelens wraps models first."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "held\nheld\n", done.stderr[-2000:]


def test_another_adapter_stays_after_a_wrap() -> None:
    """A family's own adapter stands in only while its bridge is built."""
    native = ArchitectureAdapterFactory._adapters["Qwen2_5_VLForConditionalGeneration"]
    case = CASES["qwen2.5-vl"]
    HookedVLM.from_module(case.model(), case.processor())
    assert ArchitectureAdapterFactory._adapters["Qwen2_5_VLForConditionalGeneration"] is native
    assert native.__module__.startswith("transformer_lens")
