"""A gate search to look at: figures, tables, its page."""

from __future__ import annotations
