"""The papers' data sets: from the Hugging Face hub, or from a local copy with the same columns.

``entries.py`` declares each data set in a few lines, ``rows.py`` reads rows from wherever they lie, ``dataset.py``
turns rows into examples and says which row is bad.
"""

from gatelens.data.hub.dataset import HubDataset
from gatelens.data.hub.entries import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry", "HubDataset"]
