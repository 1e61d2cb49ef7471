"""The templates, styles and scripts of pages."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, Template
from markupsafe import Markup

from gatelens.plots.style import theme_css


def template(name: str) -> Template:
    """A template by its file name; everything put into it is escaped."""
    return _environment().get_template(name)


def fragment(name: str, **values: Any) -> Markup:
    """A template filled in, as a piece of a page."""
    return Markup(template(name).render(**values))


def macro(name: str, called: str) -> Any:
    """A macro of a template, to be called like a function."""
    return getattr(template(name).module, called)


def css(*more: str) -> Markup:
    """The colours and the style sheet of all pages, and further ones."""
    return Markup(theme_css() + "".join(_text(name) for name in ("base.css", *more)))


def script(name: str) -> Markup:
    """A script as it is in its file."""
    return Markup(_text(name))


def by_number(text: str) -> list[str]:
    """A text cut at its numbers, which have the odd places: ``["lost: ", "12 %", " of it"]``."""
    return re.split(r"(?<![\w\-.])([−-]?\d[\d.]*(?:\u00a0%)?)(?!\w)", text)


def unbroken(text: str) -> str:
    """A text whose numbers stay on one line with their unit and with the name before them: ``n = 8``, ``95 %``."""
    return text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")


@cache
def _environment() -> Environment:
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text))
    made.filters |= {"by_number": by_number, "unbroken": unbroken}
    return made


def _text(name: str) -> str:
    return resources.files("gatelens.plots").joinpath("templates", name).read_text(encoding="utf-8")
