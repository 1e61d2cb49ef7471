"""The fixtures the tests of the engine share with those of interventions."""

from intervention_helpers import batch, blocks, plain_with_cuts, real, stepwise

__all__ = ["batch", "blocks", "plain_with_cuts", "real", "stepwise"]
