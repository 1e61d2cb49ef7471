"""Training under interventions: a model learns while some of its tokens cannot read others.

``batches`` turns examples into a batch and its targets; ``loop`` trains, with checkpoints;
``others_gate`` is an intervention that differs from batch to batch.

>>> examples = gl.data.load("emoji-scenes", "train").examples("class", limit=4)
>>> student = gl.HookedVLM.from_pretrained("organism:gated")  # it is changed in place
>>> losses = gl.training.fine_tune(student, examples, steps=2, batch_size=2, progress=False)
>>> losses.columns.tolist(), len(losses)
(['step', 'loss', 'lr'], 2)
"""

from __future__ import annotations

from gatelens.training.loop import fine_tune
from gatelens.training.others_gate import OthersGate

__all__ = ["OthersGate", "fine_tune"]
