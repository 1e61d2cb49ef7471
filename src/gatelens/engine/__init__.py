"""Runs interventions, and computes only what they can change.

``run`` is one pass, ``generate`` decodes, ``sweep`` is a grid, ``last_logits`` and ``generate_many`` are several
runs on one batch, ``look`` shows a run's attention, ``draw`` samples image tokens, ``describe`` and ``compress`` put
questions to a context cut down to few tokens. ``plan`` decides what each run computes, ``clean_run`` is the run they
start from, ``replay`` runs several at once from there, ``decoding`` is the one loop that writes tokens, ``cuts`` are
knockouts inside attention, ``explain`` says it in words.

>>> clean, cut = gl.engine.last_logits(model, inputs, [None, gl.knockout("last", "gate")])
>>> clean.shape
torch.Size([1, 1121])
>>> [model.tokenizer.decode(logits.argmax()) for logits in (clean, cut)]
['sunflower', 'fox']
"""

from gatelens.engine.attention_rows import look
from gatelens.engine.compressed_context import CompressedContext, Described
from gatelens.engine.compression import compress, describe
from gatelens.engine.decoding import Sampling
from gatelens.engine.drawing import Drawing, draw, draw_many
from gatelens.engine.explanation import explain
from gatelens.engine.full_run import run
from gatelens.engine.generation import Generation, generate, generate_many
from gatelens.engine.grid import sweep
from gatelens.engine.run_batch import last_logits

__all__ = [
    "CompressedContext",
    "Described",
    "Drawing",
    "Generation",
    "Sampling",
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
