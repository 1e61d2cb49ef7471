"""Interactive views: heads and overlays of a prompt, a run's figures and report, two runs side by side.

>>> logits, cache = model.run_with_cache(inputs)
>>> view = gl.views.heads(cache, inputs, layer=3)
>>> view.save(folder / "heads.html").name
'heads.html'
"""

from __future__ import annotations

from matplotlib.figure import Figure

from gatelens.plots.overlay import overlay
from gatelens.runs import Run
from gatelens.studies import report
from gatelens.studies.catalogue import study_of
from gatelens.studies.compare import compare, compare_html
from gatelens.views.heads_view import HeadsView, heads
from gatelens.views.lens_view import LensView, lens
from gatelens.views.words_view import WordsView, words

__all__ = [
    "HeadsView",
    "LensView",
    "WordsView",
    "compare",
    "compare_html",
    "figure",
    "heads",
    "lens",
    "overlay",
    "render_report",
    "words",
    "write_report",
]


def figure(run: Run, name: str, dark: bool = False) -> Figure:
    """One figure of a run's report, drawn from its tables: ``gl.views.figure(run, "progressive")``.

    Args:
        run: a run of any study.
        name: of the figure, as its file is called in ``figures/`` of a report.
        dark: draw on dark ground.

    Raises:
        DataError: the report has no such figure; the message lists those it has.
        OutputError: the run lacks a finished table, or is of an unknown study.

    Example:
        >>> figure = gl.views.figure(run, "knockout")
        >>> len(figure.axes)
        3
    """
    with report.read_from(run):
        return report.figure(study_of(run), run, name, dark)


def render_report(run: Run) -> str:
    """The report of a run as one HTML page that needs no network. Raises as :func:`figure`.

    Example:
        >>> page = gl.views.render_report(run)
        >>> page[:15], "<script src=" in page
        ('<!doctype html>', False)
    """
    with report.read_from(run):
        return report.render_report(study_of(run), run)


def write_report(run: Run) -> None:
    """Draw the figures of a run and write ``report.html`` beside its tables. Raises as :func:`figure`.

    Example:
        >>> gl.views.write_report(run)
        >>> (Path(run.path) / "report.html").exists()
        True
    """
    with report.read_from(run):
        report.write_report(study_of(run), run)
