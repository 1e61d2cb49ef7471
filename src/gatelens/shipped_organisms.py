"""The model organisms that ship in the package: their names and folders. Light, for the command line's help.

An organism with weights of its own is a folder with a config. A *graded* one is a folder inside that of its base, with
a difference to the base's weights, and is named after both: ``open/gate-at-image-47``.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from gatelens.errors import ModelError

ORGANISM = "organism:"  # what an organism's name begins with where a model is asked for
DIFFERENCE_FILE = "difference.safetensors"
_WEIGHTS = Path(str(resources.files("gatelens"))) / "organisms" / "weights"


def organism_names() -> list[str]:
    """Names of the organisms with weights of their own.

    Example:
        >>> gl.organisms.names()
        ['gated', 'llava', 'open', 'varied']
    """
    return sorted(config.parent.name for config in _WEIGHTS.glob("*/config.json"))


def graded_names() -> list[str]:
    """Names of those that are stored as a difference to another one's weights."""
    found = _WEIGHTS.glob(f"*/*/{DIFFERENCE_FILE}")
    return sorted(file.parent.relative_to(_WEIGHTS).as_posix() for file in found)


def organism_folder(name: str) -> Path:
    """The folder of an organism: ``organism_folder("gated")`` is one for transformers' ``from_pretrained``.

    Raises:
        ModelError: no organism of this name ships with the package.

    Example:
        >>> (gl.organisms.folder("gated") / "config.json").exists()
        True
    """
    names = organism_names() + graded_names()
    if name not in names:
        raise ModelError(f"no organism '{name}': this package ships {', '.join(names) or 'none'}")
    return _WEIGHTS / name


def organism_name(folder: str | os.PathLike[str]) -> str | None:
    """The name of the organism in a folder; None for any other folder."""
    path = Path(folder)
    if not path.is_relative_to(_WEIGHTS):
        return None
    name = path.relative_to(_WEIGHTS).as_posix()
    return name if name in organism_names() + graded_names() else None


def weights_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder with the config and weights: of a graded organism its base's, else the folder itself."""
    path = Path(folder)
    return path.parent if (path / DIFFERENCE_FILE).is_file() else path
