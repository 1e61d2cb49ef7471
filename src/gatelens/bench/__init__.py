"""``gl.bench``: how good a method is at finding where the picture enters, on models whose answer is planted.

``declared`` draws what a plant is from a seed; ``plants`` makes it, over ``pictures``, ``shells`` (the classes of
transformers) and what is written into the decoder (``wiring``, of ``circuits`` and ``neurons``); ``checks`` measures
its truth by passes of plain transformers (:mod:`gatelens.plain_runs`) and refuses a plant that does not do what was
declared.
``scoring`` runs methods on plants and compares what they find with the truth (``cases``); ``methods`` are those of the
field, ``rules`` make sets of their scores, and ``results`` are the page and figures of a run.

>>> plant.kind, plant.questions[0].carriers  # the reference page makes this plant
('gate', (35,))
"""

from gatelens.bench.cases import Case, Method, MethodError, Prediction, Rule, Task
from gatelens.bench.checks import Refused, measure, numbers_of, plant
from gatelens.bench.declared import KINDS
from gatelens.bench.methods import METHODS
from gatelens.bench.plants import Plant, Question
from gatelens.bench.results import write_results
from gatelens.bench.rules import read_rules
from gatelens.bench.scoring import BenchResult, score

__all__ = [
    "KINDS",
    "METHODS",
    "BenchResult",
    "Case",
    "Method",
    "MethodError",
    "Plant",
    "Prediction",
    "Question",
    "Refused",
    "Rule",
    "Task",
    "measure",
    "numbers_of",
    "plant",
    "read_rules",
    "score",
    "write_results",
]
