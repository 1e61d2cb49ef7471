"""A run on disk: what was asked of it (``manifest``), and its tables, one atomic file a unit of work (``run``)."""

from gatelens.runs.run import Run

__all__ = ["Run"]
