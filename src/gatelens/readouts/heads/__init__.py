"""What every head of a decoder does, over data."""

from __future__ import annotations

from gatelens.readouts.heads.table import HeadsTable, heads_table

__all__ = ["HeadsTable", "heads_table"]
