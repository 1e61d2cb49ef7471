"""The report page of a run: one HTML file that needs no network, rendered from the run's tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from matplotlib.figure import Figure

from gatelens.errors import DataError, OutputError
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.views import gate_finetuning
from gatelens.views.gate_finder import report as gate_finder
from gatelens.views.narrow_gate import report as narrow_gate

PAGES: dict[str, ModuleType] = {
    "narrow-gate": narrow_gate,
    "gate-finetuning": gate_finetuning,
    "find-gate": gate_finder,
}


def write_report(run: Run) -> None:
    """Draw the figures of a run (``figures/*.png``) and write ``report.html`` beside its tables.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    light = {name: png(draw(False)) for name, draw in _page(run).figures(run).items()}
    for name, data in light.items():
        run.save_file(f"figures/{name}", ".png", data)
    run.save_file("report", ".html", render_report(run, light).encode())


def render_report(run: Run, light: Mapping[str, bytes] | None = None) -> str:
    """The report page as HTML. ``light``: the figures on light ground as PNG, where they are drawn already.

    Raises:
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    return _page(run).render(run, light)


def figure(run: Run, name: str, dark: bool = False) -> Figure:
    """One figure of a run's report, drawn from its tables: ``gl.views.figure(run, "progressive")``.

    Args:
        run: a finished run, also one in memory.
        name: as its file in ``figures/`` is called, without the suffix.
        dark: draw on dark ground.

    Raises:
        DataError: the report has no such figure; the message lists those it has.
        OutputError: the run lacks a finished table, or is of a study without a report.
    """
    found = _page(run).figures(run)
    if name not in found:
        raise DataError(f"run {run.label} has no figure {name!r}; it has {', '.join(found)}")
    return found[name](dark)


def _page(run: Run) -> ModuleType:
    study = run.manifest["study"]
    if study not in PAGES:
        known = ", ".join(repr(name) for name in PAGES)
        raise OutputError(f"run {run.label} is of study {study!r}, whose report is not known; known: {known}")
    return PAGES[study]
