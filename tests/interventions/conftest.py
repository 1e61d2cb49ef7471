"""The fixtures the tests of interventions share with those of the engine."""

from typing import Any

import pytest

from intervention_helpers import batch, blocks, plain_with_cuts, real, stepwise

__all__ = ["batch", "blocks", "plain_with_cuts", "real", "stepwise"]


@pytest.fixture(autouse=True)
def exactly(request: pytest.FixtureRequest) -> Any:
    """Tests here compare bits; that fused attention agrees is tested with the engine."""
    if "tiny" in request.fixturenames:
        request.getfixturevalue("stepwise")
