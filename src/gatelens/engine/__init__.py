"""Runs interventions, and computes only what they can change.

``run`` is one pass, ``generate`` decodes, ``sweep`` is a grid, ``last_logits`` and ``generate_many`` are several
runs on one batch. ``plan`` decides what each run computes, ``clean`` is the run they start from, ``replay`` runs
several at once from there, ``cuts`` are knockouts inside attention, ``explain`` says it in words.
"""

from gatelens.engine.decode import Generation, generate, generate_many
from gatelens.engine.explain import explain
from gatelens.engine.look import look
from gatelens.engine.many import Many, last_logits
from gatelens.engine.run import compile_for, run
from gatelens.engine.sweep import sweep

__all__ = [
    "Generation",
    "Many",
    "compile_for",
    "explain",
    "generate",
    "generate_many",
    "last_logits",
    "look",
    "run",
    "sweep",
]
