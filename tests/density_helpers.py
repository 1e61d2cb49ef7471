"""Point sets with the outputs DADApy gave on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gatelens.measures.neighbours import Neighbours, nearest

STORED = Path(__file__).parent / "measures" / "stored"
PLAIN = ["plane", "five", "ten", "moons", "roll", "one", "apart", "mixed"]


def stored(name: str) -> tuple[dict[str, np.ndarray], Neighbours]:
    """DADApy's outputs on a point set, and our neighbours of its points."""
    with np.load(STORED / f"density_{name}.npz") as file:
        reference = dict(file)
    x = torch.from_numpy(reference["x"].astype(np.float64))
    return reference, nearest(x, 128, str(reference["metric"]))  # type: ignore[arg-type]
