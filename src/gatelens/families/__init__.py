"""The VLM families gatelens knows: every module here declares one (``FAMILY``) or several (``FAMILIES``).

To add one, add a module, or call ``register(Family(...))`` from your own package.
"""

from __future__ import annotations

import importlib
import pkgutil

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

from ..errors import ModelError
from .common.base import Family
from .common.geometry import Geometry
from .common.layout import Drawn, Layout, token_map
from .common.plan import FixedGrid, Picture, Plan

__all__ = [
    "Drawn",
    "Family",
    "FixedGrid",
    "Geometry",
    "Layout",
    "Picture",
    "Plan",
    "all_families",
    "family_of",
    "register",
    "token_map",
]

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


def _discover() -> None:
    for info in pkgutil.iter_modules(__path__):
        if not info.ispkg:
            module = importlib.import_module(f"{__name__}.{info.name}")
            for family in getattr(module, "FAMILIES", None) or (module.FAMILY,):
                register(family)


_discover()
