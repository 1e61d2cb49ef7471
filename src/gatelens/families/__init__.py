"""The VLM families gatelens knows: every module here declares one (``FAMILY``) or several (``FAMILIES``).

To add one, add a module, or call ``register(Family(...))`` from your own package.

>>> family = gl.families.family_of("LlavaForConditionalGeneration")
>>> family.name, family.architectures
('llava', ('LlavaForConditionalGeneration',))
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

from gatelens.errors import ModelError
from gatelens.families.common.base import Family
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Drawn, Layout
from gatelens.families.common.plan import FixedGrid, Picture, PicturePlan
from gatelens.families.common.reading import token_map

__all__ = [
    "Drawn",
    "Family",
    "FixedGrid",
    "Geometry",
    "Layout",
    "Picture",
    "PicturePlan",
    "all_families",
    "family_of",
    "register",
    "token_map",
]

_BY_ARCHITECTURE: dict[str, Family] = {}
_SPECIAL: dict[str, dict[str, Family]] = {}  # families for some configs of an architecture, by name


def register(family: Family) -> Family:
    """Make a family known, and its adapter to TransformerLens. The last one wins.

    The adapter of a family with ``when`` must also do for the other configs of its architectures.

    Example:
        >>> from dataclasses import replace
        >>> llava = gl.families.family_of("LlavaForConditionalGeneration")
        >>> mine = gl.families.register(replace(llava, name="mine", architectures=("MyLlava",)))
        >>> gl.families.family_of("MyLlava").name
        'mine'
    """
    _know(family)
    if family.adapter is not None:
        for architecture in family.architectures:
            ArchitectureAdapterFactory.register_adapter(architecture, family.adapter)
    return family


def _know(family: Family) -> None:
    for architecture in family.architectures:
        if family.when is None:
            _BY_ARCHITECTURE[architecture] = family
        else:
            _SPECIAL.setdefault(architecture, {})[family.name] = family


@contextmanager
def adapted(architecture: str, family: Family) -> Iterator[None]:
    """TransformerLens builds the architecture with the family's adapter as long as the block lasts.

    Afterwards it has its own again: importing gatelens changes no bridge built elsewhere. What
    TransformerLens lacks it has from the entry points in pyproject.toml, for everybody.
    """
    ArchitectureAdapterFactory.discover_entry_points()  # now: later it would warn of what stands here
    adapters = ArchitectureAdapterFactory._adapters
    before = adapters.get(architecture)
    if family.adapter is not None:
        adapters[architecture] = family.adapter
    try:
        yield
    finally:
        if before is not None:
            adapters[architecture] = before
        elif family.adapter is not None:
            del adapters[architecture]


def family_of(architecture: str, config: Any = None) -> Family:
    """The family of a transformers class name, and of this config where the class has several.

    Args:
        architecture: a class name of transformers, as in ``architectures`` of a config.
        config: the model's config; needed where families share a class.

    Raises:
        ModelError: there is none; the message names what is supported.

    Example:
        >>> gl.families.family_of("LlavaForConditionalGeneration").name
        'llava'
    """
    for family in _SPECIAL.get(architecture, {}).values():
        if config is not None and family.when is not None and family.when(config):
            return family
    if architecture not in _BY_ARCHITECTURE:
        raise ModelError(
            f"no family for '{architecture}': supported are {', '.join(sorted(_BY_ARCHITECTURE))}; "
            "add one with gatelens.families.register, or pass layout= to HookedVLM.from_module"
        )
    return _BY_ARCHITECTURE[architecture]


def all_families() -> tuple[Family, ...]:
    """Every registered family, once, by name.

    Example:
        >>> [family.name for family in gl.families.all_families()][:3]
        ['chameleon', 'emu3', 'gemma3']
    """
    special = [family for some in _SPECIAL.values() for family in some.values()]
    unique = {id(family): family for family in (*_BY_ARCHITECTURE.values(), *special)}
    return tuple(sorted(unique.values(), key=lambda family: family.name))


def _discover() -> None:
    for info in pkgutil.iter_modules(__path__):
        if not info.ispkg:
            module = importlib.import_module(f"{__name__}.{info.name}")
            for family in getattr(module, "FAMILIES", None) or (module.FAMILY,):
                _know(family)


_discover()
