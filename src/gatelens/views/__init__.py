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
from gatelens.studies.gate_finder.figures import gate_figure
from gatelens.studies.gate_finder.tables import gate_table
from gatelens.studies.narrow_gate.attention.figures import attention_shares
from gatelens.studies.narrow_gate.knockouts import knockout_bars
from gatelens.studies.narrow_gate.patching.page import patching_curve
from gatelens.views.heads_view import HeadsView, heads
from gatelens.views.lens_view import LensView, lens
from gatelens.views.words_view import WordsView, words

__all__ = [
    "HeadsView",
    "LensView",
    "WordsView",
    "attention_shares",
    "compare",
    "compare_html",
    "figure",
    "gate_figure",
    "gate_table",
    "heads",
    "knockout_bars",
    "lens",
    "overlay",
    "patching_curve",
    "render_report",
    "words",
    "write_report",
]


def figure(run: Run, name: str, dark: bool = False) -> Figure:
    """One figure of a run's report, drawn from its tables: ``gl.views.figure(run, "progressive")``.

    Raises:
        DataError: the report has no such figure; the message lists those it has.
        OutputError: the run lacks a finished table, or is of an unknown study.
    """
    with report.read_from(run):
        return report.figure(study_of(run), run, name, dark)


def render_report(run: Run) -> str:
    """The report of a run as one HTML page that needs no network. Raises as :func:`figure`."""
    with report.read_from(run):
        return report.render_report(study_of(run), run)


def write_report(run: Run) -> None:
    """Draw the figures of a run and write ``report.html`` beside its tables. Raises as :func:`figure`."""
    with report.read_from(run):
        report.write_report(study_of(run), run)
