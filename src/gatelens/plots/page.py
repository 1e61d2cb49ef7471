"""What the pages of all studies share: templates, styles, figures on light and dark ground, the facts of a run."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from gatelens.plots.style import png
from gatelens.runs import Run

Figures = Mapping[str, Callable[[bool], Figure]]  # by name; called with whether the ground is dark


def template(name: str) -> Any:
    """A page template; everything put into it is escaped."""
    found = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text))
    return found.get_template(name)


def css(*more: str) -> Markup:
    """The pages' style sheet, and further ones."""
    return Markup("".join(_text(name) for name in ("base.css", *more)))


def script(name: str) -> Markup:
    """A script as it stands in its file."""
    return Markup(_text(name))


def _text(name: str) -> str:
    return resources.files("gatelens.plots").joinpath("templates", name).read_text(encoding="utf-8")


def drawn(figures: Figures, light: Mapping[str, bytes] | None = None) -> dict[str, Markup]:
    """The figures as pictures that follow the reader's light or dark ground.

    ``light``: those on light ground as PNG, where they are drawn already.
    """
    done = light or {}
    return {
        name: _picture(name, done.get(name) or png(draw(False)), png(draw(True)))
        for name, draw in figures.items()
    }


def _picture(name: str, *pngs: bytes) -> Markup:
    light, dark = (base64.b64encode(data).decode() for data in pngs)
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{}">'
        '<img alt="figure: {}" src="data:image/png;base64,{}"></picture>'
    ).format(dark, name.replace("_", " "), light)


def facts(run: Run) -> list[tuple[str, str]]:
    """Settings, machine, time and versions of a run, in words."""

    def words(value: Any) -> str:
        return (
            ", ".join(f"{k} {words(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        )

    found = [(k.replace("_", " "), words(v)) for k, v in run.manifest["settings"].items()]
    found += [(k.replace("_", " "), words(v)) for k, v in run.manifest.get("info", {}).items()]
    seconds = sum(e.get("seconds", 0) for e in run.manifest["stages"].values())
    found.append(("compute", f"{seconds:.0f} s"))
    found.append(("versions", words(run.manifest.get("versions", {}))))
    return found
