"""See it: attention heads, values over the picture, curves, the report page.

Imported at once, not lazily: a view and its module share a name, and ``gl.views.heads`` must be the function.
"""

from __future__ import annotations

from gatelens.plots.heads import HeadsView, heads
from gatelens.plots.overlay import overlay
from gatelens.views.compare import compare, compare_html
from gatelens.studies.gate_finder.figures import gate_figure
from gatelens.studies.gate_finder.tables import gate_table
from gatelens.views.narrow_gate.attention import attention_shares
from gatelens.views.narrow_gate.knockouts import knockout_bars
from gatelens.views.narrow_gate.patching import patching_curve
from gatelens.views.report import figure, render_report, write_report

__all__ = [
    "HeadsView",
    "attention_shares",
    "compare",
    "compare_html",
    "figure",
    "gate_figure",
    "gate_table",
    "heads",
    "knockout_bars",
    "overlay",
    "patching_curve",
    "render_report",
    "write_report",
]
