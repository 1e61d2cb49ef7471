"""gatelens: where and how a vision-language model passes its picture on to its words.

The public face, imported on first use so that ``import gatelens`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module that holds it (a module itself where both end alike)
_PUBLIC = {
    "HookedVLM": "model",
    "VLMInputs": "inputs",
    "TokenMap": "tokens",
    "Role": "tokens",
    "Selection": "selectors",
    "Family": "families",
    "Layout": "families",
    "families": "families",
    "errors": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gatelens' has no attribute '{name}'")
    module = import_module(f".{_PUBLIC[name]}", __name__)
    return module if name == _PUBLIC[name].rpartition(".")[2] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
