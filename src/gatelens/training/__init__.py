"""Training under interventions: a model learns while some of its tokens cannot read others.

``batches`` turns examples into a batch and what is to be predicted; ``loop`` trains, with checkpoints;
``others_gate`` is an intervention that differs from batch to batch.
"""

from __future__ import annotations

from gatelens.training.loop import fine_tune
from gatelens.training.others_gate import OthersGate

__all__ = ["OthersGate", "fine_tune"]
