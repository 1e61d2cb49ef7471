"""The VLM families gatelens knows, and how to add one: ``register(Family(...))``."""

from __future__ import annotations

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

from ..errors import ModelError
from . import chameleon, llava
from .base import Family
from .geometry import Geometry
from .layout import Layout, token_map

__all__ = ["Family", "Geometry", "Layout", "all_families", "family_of", "register", "token_map"]

_BY_ARCHITECTURE: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known, and its adapter to TransformerLens. The last one wins."""
    for architecture in family.architectures:
        _BY_ARCHITECTURE[architecture] = family
        if family.adapter is not None:
            ArchitectureAdapterFactory.register_adapter(architecture, family.adapter)
    return family


def family_of(architecture: str) -> Family:
    """The family of a transformers class name. Raises ModelError naming what is supported."""
    if architecture not in _BY_ARCHITECTURE:
        raise ModelError(
            f"no family for '{architecture}': supported are {', '.join(sorted(_BY_ARCHITECTURE))}; "
            "add one with gatelens.families.register, or pass layout= to HookedVLM.from_module"
        )
    return _BY_ARCHITECTURE[architecture]


def all_families() -> tuple[Family, ...]:
    """Every registered family, once, by name."""
    return tuple(sorted({id(f): f for f in _BY_ARCHITECTURE.values()}.values(), key=lambda f: f.name))


for _family in (chameleon.FAMILY, llava.FAMILY):
    register(_family)
