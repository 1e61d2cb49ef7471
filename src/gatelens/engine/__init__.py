"""Runs interventions: one pass, decoding, and grids."""

from gatelens.engine.decode import Generation, generate
from gatelens.engine.run import compile_for, run
from gatelens.engine.shared_prefix import SharedPrefix
from gatelens.engine.sweep import sweep

__all__ = ["Generation", "SharedPrefix", "compile_for", "generate", "run", "sweep"]
