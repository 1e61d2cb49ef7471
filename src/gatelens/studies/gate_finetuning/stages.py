"""What is trained: each stage is a way the text may read the picture while it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gatelens.errors import DataError
from gatelens.interventions import knockout
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.training import OthersGate

MASKED, SWAPPED, CONTROL = "masked", "swapped", "control"


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: of its folder.
        says: what it does, for people.
        holds: the interventions of every step.
        goes_on: whether it starts from the weights of the stage before it, or from the model given.
    """

    name: str
    says: str
    holds: Any
    goes_on: bool = False


def stages(swapped: bool, control: bool) -> list[Stage]:
    """The stages in order: masked always, the others where wanted."""
    found = [Stage(MASKED, "the text cannot read the gate", [knockout(queries=QUERIES, keys="gate")])]
    if swapped:
        found.append(Stage(SWAPPED, "then the text reads another picture's gate", OthersGate(), goes_on=True))
    if control:
        found.append(Stage(CONTROL, "trained as long with nothing cut", []))
    return found


def check_apart(trained_on: list[Any], measured_on: list[str], name: str) -> None:
    """Refuse training data that the measurements use.

    Raises:
        DataError: an example of both.
    """
    both = {e.id for e in trained_on} & set(measured_on)
    if both:
        raise DataError(
            f"data {name!r}: example {min(both)!r} is both trained on and measured on; give train_data= of "
            "another split"
        )
