"""A view as a page: in a notebook, or as one file that needs no network."""

from __future__ import annotations

import html
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gatelens.atomic_files import check_writable, write_atomic
from gatelens.errors import OutputError
from gatelens.plots.templating import script, template

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg")
FRAME = "width:100%;height:46rem;border:0;border-radius:8px"


class View(ABC):
    """What one looks at, with a mouse or by keyboard, on light and dark ground. It never runs a model."""

    title: str

    @abstractmethod
    def page(self) -> str:
        """The view as one HTML document; scripts, styles and pictures are inside."""

    def _repr_html_(self) -> str:
        # a frame keeps the styles of a notebook and of a view apart, and runs scripts in every front end
        name, inside = html.escape(self.title), html.escape(self.page())
        return f'<iframe title="{name}" style="{FRAME}" srcdoc="{inside}"></iframe>'

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page as one HTML file that opens without a network.

        Raises:
            OutputError: the file can't be written, or its name is that of a picture.
        """
        file = Path(path).expanduser()
        if file.suffix.lower() in PICTURES:
            still = f"; for a still picture, view.figure().savefig({file.name!r})"
            raise OutputError(
                f"{file}: a view is a page; save it as {file.with_suffix('.html').name}"
                f"{still if hasattr(self, 'figure') else ''}"
            )
        check_writable(file.parent)
        write_atomic(file, self.page().encode())
        return file


def render(name: str, scripts: Sequence[str], data: Mapping[str, Any], **values: Any) -> str:
    """A template of a view filled in.

    Args:
        name: of the template.
        scripts: files of scripts, in order.
        data: what the scripts read, as JSON.
        values: what the template shows; it is escaped.
    """
    return template(name).render(
        css=script("view.css"),
        scripts=[script(one) for one in scripts],
        data=as_json(data),
        **values,
    )


def as_json(data: Any) -> Markup:
    """JSON that is safe within a script element."""
    return Markup(json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
