"""The API reference: every public name, once, in its room.

The public names are those of ``gatelens/__init__.pyi`` and, of the modules among them, of their ``__all__``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import gatelens


@dataclass(frozen=True)
class Room:
    """A page of the reference.

    Attributes:
        title, about: what the page says at its top.
        names: public names of ``gatelens``; of a module, all it offers is on the page.
        explained_in: a module whose own documentation stands below ``about``: what several of the names refer to.
    """

    title: str
    about: str
    names: str
    explained_in: str = ""


ROOMS = {
    "models": Room(
        "Models",
        "A model, what it takes and what it keeps.",
        "HookedVLM VLMInputs ActivationCache organisms",
    ),
    "tokens": Room(
        "Tokens and selectors",
        "The role and place of every position, and how to say which.",
        "TokenMap Role Selection",
    ),
    "families": Room(
        "Families",
        "What gatelens knows of a family of models, and what a new one declares.",
        "Family Layout FixedGrid Geometry families",
    ),
    "interventions": Room(
        "Interventions",
        "What to do to a run. All of them compose in a list.",
        "knockout drop patch steer ablate edit hooks interventions",
        explained_in="gatelens.interventions.sites",
    ),
    "engine": Room(
        "Engine and sweeps",
        "Runs that compute only what an intervention changes.",
        "sweep explain Generation Run engine",
    ),
    "readouts": Room(
        "Readouts",
        "What one looks at in runs: tensors with named axes, as a table and as a picture.",
        "LabelledTensor logit_lens LogitLens attribute Attribution patch_map EffectMap attribution_map AttributionMap "
        "path_patch PathEffects circuit Circuit heads_table HeadsTable words_table WordsTable",
    ),
    "metrics": Room(
        "Metrics",
        "Functions of logits, one number per example: what a sweep or a map measures. A token is an id, as "
        '``model.to_single_token("cat")`` gives it.',
        "metrics",
        explained_in="gatelens.measures.logits",
    ),
    "measures": Room("Measures", "Functions of tensors, strings and tables; none runs a model.", "measures"),
    "data": Room("Data", "Pictures, questions, masks, and pairs that differ in one fact.", "data pairs"),
    "directions": Room(
        "Directions",
        "Steering vectors, what they turn and what they cost.",
        "direction SteeringVector dose_curve DoseCurve",
    ),
    "stores": Room(
        "Stores and SAEs",
        "Activations on disk, and sparse autoencoders on them.",
        "collect ActivationStore SAE FeatureHits",
    ),
    "studies": Room(
        "Studies and training",
        "Whole studies, kept in a folder that can be continued; training under interventions.",
        "studies training",
    ),
    "views": Room("Views", "Interactive pages and figures.", "views"),
    "bench": Room("GateBench", "Models with a planted answer, and methods scored on them.", "bench"),
    "verify": Room(
        "Verification", "Check a wrapped model against plain transformers.", "verify Verification"
    ),
    "errors": Room(
        "Errors",
        "An error a user can cause and fix is a ``GatelensError``: one line that names the offender and the fix.",
        "errors",
    ),
}


@dataclass(frozen=True)
class Entry:
    """A public name: ``gatelens.knockout`` or ``gatelens.measures.two_nn``."""

    name: str
    value: Any

    @property
    def summary(self) -> str:
        """The first paragraph of what is said of it."""
        return self.doc.split("\n\n")[0].replace("\n", " ")

    @property
    def doc(self) -> str:
        """Its docstring; of a constant, the string below it."""
        if inspect.isclass(self.value) or inspect.isroutine(self.value):
            return inspect.getdoc(self.value) or ""
        room, name = self.name.split(".")[1:]
        return constant_doc(getattr(gatelens, room), name)

    def lines(self) -> Iterator[str]:
        """The directive that documents it; of a class with the members that gatelens defines."""
        if inspect.isclass(self.value):
            yield f".. autoclass:: {self.name}"
            members = ", ".join(own_members(self.value))
            if members:
                yield f"   :members: {members}"
        elif inspect.isfunction(self.value) or inspect.ismethod(self.value):
            yield f".. autofunction:: {self.name}"
        else:  # a constant or the name of a type
            yield f".. py:data:: {self.name}"
            names = list(self.value) if isinstance(self.value, dict | tuple | frozenset) else []
            yield f"   :value: {', '.join(map(repr, names)) if names else str(self.value).replace('typing.', '')}"
            yield from ("", *(f"   {line}" for line in self.doc.splitlines()))


def own_members(cls: type) -> list[str]:
    """Documented methods and properties that gatelens gives a class."""
    kinds = (FunctionType, property, classmethod, staticmethod, cached_property)
    found = {}
    for base in cls.__mro__:
        if base.__module__.startswith("gatelens"):
            for name, value in vars(base).items():
                if not name.startswith("_") and isinstance(value, kinds):
                    found.setdefault(name, value)
    return [
        name for name in found if not (inspect.getdoc(getattr(cls, name)) or "Refused").startswith("Refused")
    ]


def constant_doc(module: ModuleType, name: str) -> str:
    """The string below a constant, in the module that makes it, where autodoc looks only for names it offers."""
    body = ast.parse(inspect.getsource(module)).body
    for node, below in pairwise([*body, ast.Pass()]):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return constant_doc(import_module(str(node.module)), name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in [getattr(target, "id", "") for target in targets] and isinstance(below, ast.Expr):
            text = getattr(below.value, "value", "")
            return inspect.cleandoc(text) if isinstance(text, str) else ""
    return ""


def offered(module: ModuleType) -> list[str]:
    """The public names of a module."""
    own = [
        n
        for n, v in vars(module).items()
        if getattr(v, "__module__", None) == module.__name__ and n[0] != "_"
    ]
    return list(getattr(module, "__all__", own))


def entries(room: str) -> Iterator[Entry]:
    """The names on the page of a room. What ``gatelens`` itself offers is not repeated under its module."""
    top = {id(getattr(gatelens, name)) for name in gatelens.__all__}
    for name in ROOMS[room].names.split():
        value = getattr(gatelens, name)
        if not isinstance(value, ModuleType):
            yield Entry(f"gatelens.{name}", value)
            continue
        for inner in offered(value):
            if id(getattr(value, inner)) not in top:
                yield Entry(f"gatelens.{name}.{inner}", getattr(value, inner))


def write(folder: Path) -> None:
    """A page a room, and their index.

    Raises:
        ValueError: a public name is in no room, or in two.
    """
    placed = [name for room in ROOMS.values() for name in room.names.split()]
    public = {name for name in gatelens.__all__ if name != "__version__"}
    wrong = (public - set(placed)) | (set(placed) - public) | {n for n in placed if placed.count(n) > 1}
    if wrong:
        raise ValueError(
            f"docs/_site/api.py: each public name is in one room; look at {', '.join(sorted(wrong))}"
        )
    folder.mkdir(parents=True)
    for key, room in ROOMS.items():
        (folder / f"{key}.rst").write_text("\n".join(page(key, room)), encoding="utf-8")


def page(key: str, room: Room) -> Iterator[str]:
    """The lines of a room's page: a table of its names, then each in full."""
    shown = list(entries(key))
    yield from (
        room.title,
        "=" * len(room.title),
        "",
        room.about,
        "",
        # names after the module's own documentation are written in full, so it must not stay the current module
        *(
            (f".. automodule:: {room.explained_in}", "", ".. py:currentmodule:: None", "")
            if room.explained_in
            else ()
        ),
        ".. list-table::",
        "   :widths: auto",
        "",
    )
    for entry in shown:
        yield f"   * - :py:obj:`{short(entry.name)} <{entry.name}>`"
        yield f"     - {entry.summary}"
    for entry in shown:
        title = short(entry.name)
        yield from ("", title, "-" * len(title), "")
        yield from (*entry.lines(), "")
        if inspect.isfunction(entry.value):
            yield from (f".. minigallery:: {entry.name}", "")


def short(name: str) -> str:
    return name.replace("gatelens.", "gl.", 1)
