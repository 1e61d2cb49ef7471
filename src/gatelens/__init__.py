"""gatelens: where and how a vision-language model passes its picture on to its words.

The public face, imported on first use so that ``import gatelens`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ below does the same
    from gatelens import data, engine, errors, families, interventions, measures, organisms, studies, views
    from gatelens.engine.explanation import explain
    from gatelens.engine.generation import Generation
    from gatelens.engine.grid import sweep
    from gatelens.families import Family, FixedGrid, Geometry, Layout
    from gatelens.inputs import VLMInputs
    from gatelens.interventions import ablate, knockout, patch, steer
    from gatelens.measures import logits as metrics
    from gatelens.model import HookedVLM
    from gatelens.roles import Role
    from gatelens.runs import Run
    from gatelens.selectors import Selection
    from gatelens.tokens import TokenMap

_MODULES = (
    "data",
    "engine",
    "errors",
    "families",
    "interventions",
    "measures",
    "organisms",
    "studies",
    "views",
)
# public name -> the module that holds it
_NAMES = {
    "HookedVLM": "model",
    "VLMInputs": "inputs",
    "TokenMap": "tokens",
    "Role": "roles",
    "Selection": "selectors",
    "Family": "families",
    "Layout": "families",
    "FixedGrid": "families",
    "Geometry": "families",
    "Generation": "engine",
    "Run": "runs",
    "knockout": "interventions",
    "patch": "interventions",
    "steer": "interventions",
    "ablate": "interventions",
    "explain": "engine",
    "sweep": "engine",
}

__all__ = [
    "Family",
    "FixedGrid",
    "Generation",
    "Geometry",
    "HookedVLM",
    "Layout",
    "Role",
    "Run",
    "Selection",
    "TokenMap",
    "VLMInputs",
    "__version__",
    "ablate",
    "data",
    "engine",
    "errors",
    "explain",
    "families",
    "interventions",
    "knockout",
    "measures",
    "metrics",
    "organisms",
    "patch",
    "steer",
    "studies",
    "sweep",
    "views",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("gatelens.measures.logits")
    if name in _MODULES:
        return import_module(f"gatelens.{name}")
    if name in _NAMES:
        return getattr(import_module(f"gatelens.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'gatelens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
