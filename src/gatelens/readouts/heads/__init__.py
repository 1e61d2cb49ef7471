"""What every head of a decoder does, over data."""

from __future__ import annotations

from gatelens.readouts.heads.result import HeadsTable
from gatelens.readouts.heads.table import heads_table

__all__ = ["HeadsTable", "heads_table"]
