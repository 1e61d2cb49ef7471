"""The templates, styles and scripts of pages."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, Template
from markupsafe import Markup


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
    """The style sheet of all pages, and further ones."""
    return Markup("".join(_text(name) for name in ("base.css", *more)))


def script(name: str) -> Markup:
    """A script as it stands in its file."""
    return Markup(_text(name))


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text))


def _text(name: str) -> str:
    return resources.files("gatelens.plots").joinpath("templates", name).read_text(encoding="utf-8")
