"""``gl.bench``: how good a method is at finding where the picture enters, on models whose answer is planted.

``plants`` declares and makes a model from a seed, over ``pictures``, ``shells`` (the classes of transformers) and
``circuits`` (what is written into the decoder); ``checks`` measures its truth by ``truth``, plain passes of
transformers, and refuses a plant that does not do what was declared.
"""

from gatelens.bench.checks import Refused, check, measure, plant
from gatelens.bench.plants import KINDS, Declared, Plant, Question, declare, make

__all__ = [
    "KINDS",
    "Declared",
    "Plant",
    "Question",
    "Refused",
    "check",
    "declare",
    "make",
    "measure",
    "plant",
]
