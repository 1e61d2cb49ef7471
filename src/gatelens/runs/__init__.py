"""A run on disk: what was asked of it (``manifest``), its tables, one atomic file a unit of work (``run``), and which
units are being measured (``claims``)."""

from gatelens.runs.claims import Claims
from gatelens.runs.run import Run

__all__ = ["Claims", "Run"]
