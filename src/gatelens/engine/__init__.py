"""Runs interventions, and computes only what they can change.

``run`` is one pass, ``generate`` decodes, ``sweep`` is a grid, ``last_logits`` and ``generate_many`` are several
runs on one batch, ``look`` shows a run's attention, ``draw`` samples image tokens, ``describe`` and ``compress`` put
questions to a context cut down to few tokens. ``plan`` decides what each run computes, ``clean`` is the run they
start from, ``replay`` runs several at once from there, ``cuts`` are knockouts inside attention, ``explain`` says it
in words.
"""

from gatelens.engine.compress import Described, compress, describe
from gatelens.engine.context import CompressedContext
from gatelens.engine.decode import Generation, generate, generate_many
from gatelens.engine.draw import Drawing, draw, draw_many
from gatelens.engine.explain import explain
from gatelens.engine.look import look
from gatelens.engine.many import Many, last_logits
from gatelens.engine.run import compile_for, run
from gatelens.engine.sweep import sweep

__all__ = [
    "CompressedContext",
    "Described",
    "Drawing",
    "Generation",
    "Many",
    "compile_for",
    "compress",
    "describe",
    "draw",
    "draw_many",
    "explain",
    "generate",
    "generate_many",
    "last_logits",
    "look",
    "run",
    "sweep",
]
