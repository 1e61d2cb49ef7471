"""What a module is, before it is wrapped: fresh, of which family, with which decoder."""

from __future__ import annotations

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from gatelens.errors import ModelError
from gatelens.families import Family, Layout, family_of


def check_fresh(hf_model: Any) -> None:
    """Raises ModelError for a module that carries hooks already."""
    if any(isinstance(module, GeneralizedComponent) for module in hf_model.modules()):
        raise ModelError(f"this {type(hf_model).__name__} is wrapped already: wrap a fresh one")


def decoder_of(language_model: Any) -> str:
    """The class of a decoder, or the first of its base classes, that TransformerLens has an adapter for."""
    ArchitectureAdapterFactory.discover_entry_points()
    for base in type(language_model).__mro__:
        if base.__name__ in SUPPORTED_ARCHITECTURES or base.__name__ in ArchitectureAdapterFactory._adapters:
            return base.__name__
    raise ModelError(
        f"TransformerLens has no adapter for the decoder {type(language_model).__name__}: give a causal language "
        "model with its head, such as LlamaForCausalLM, or register an adapter"
    )


def family_for(hf_model: Any, layout: Layout | None) -> tuple[str, Family]:
    """(architecture, family) of a model or the first of its base classes that is known."""
    names = [base.__name__ for base in type(hf_model).__mro__]
    for name in names:
        try:
            return name, family_of(name, getattr(hf_model, "config", None))
        except ModelError:
            continue
    ArchitectureAdapterFactory.discover_entry_points()
    if layout is not None and names[0] in ArchitectureAdapterFactory._adapters:
        return names[0], Family(names[0], (names[0],), lambda config, processor: layout)
    return names[0], family_of(names[0])
