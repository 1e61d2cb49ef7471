"""gatelens: where and how a vision-language model passes its picture on to its words.

The public face is the stub ``__init__.pyi`` beside this file. Its names are imported on first use, so that
``import gatelens`` and ``gatelens --help`` stay quick.
"""

from __future__ import annotations

import ast
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from gatelens.first_import import loading_libraries

__version__ = "0.1.0"

# public name -> (module, name there)
_PUBLIC = {
    alias.asname: (str(statement.module), alias.name)
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
    if alias.asname
}

__all__ = ["__version__", *_PUBLIC]


# tqdm says so in red where a notebook has no ipywidgets, and then draws its bars as text
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gatelens' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    with loading_libraries():
        if module == __name__:
            return import_module(f"{module}.{attribute}")
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
