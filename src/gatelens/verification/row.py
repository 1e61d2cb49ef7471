"""One check and its outcome."""

from __future__ import annotations

from dataclasses import dataclass

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"


@dataclass(frozen=True)
class Row:
    """One check and its outcome.

    Attributes:
        group, name, what: the check.
        status: ``pass``, ``fail`` or ``not applicable``.
        reason: why, in a line.
        measured, bound: numbers of one unit, ``measured`` at most ``bound`` where it passes.
        effect: what the edit does in plain transformers, in the same unit.
        seconds: of the check.
    """

    group: str
    name: str
    what: str
    status: str
    reason: str = ""
    measured: float | None = None
    bound: float | None = None
    effect: float | None = None
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Which check it is."""
        return f"{self.group}/{self.name}"
