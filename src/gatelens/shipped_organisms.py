"""The model organisms that ship in the package: their names and folders. Light, for the command line's help."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from gatelens.errors import ModelError

ORGANISM = "organism:"  # what an organism's name begins with where a model is asked for
_WEIGHTS = Path(str(resources.files("gatelens"))) / "organisms" / "weights"


def organism_names() -> list[str]:
    """Names of the organisms whose weights are in the package."""
    return sorted(config.parent.name for config in _WEIGHTS.glob("*/config.json"))


def organism_folder(name: str) -> Path:
    """The folder of an organism, for transformers' ``from_pretrained``: ``organism_folder("gated")``.

    Raises:
        ModelError: no organism of this name ships with the package.
    """
    if name not in organism_names():
        raise ModelError(f"no organism '{name}': this package ships {', '.join(organism_names()) or 'none'}")
    return _WEIGHTS / name
