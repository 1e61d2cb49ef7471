"""The narrow-gate runs before and after, side by side, and what changed in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.narrow_gate.verdict import EITHER, INCONCLUSIVE, MIXED

BEFORE = "before"


def knockouts(runs: Mapping[str, Run]) -> pd.DataFrame:
    """The knockout tables of all runs: ``stage`` and the columns of a run's ``knockout``."""
    return pd.concat(
        [run.table("knockout").assign(stage=name) for name, run in runs.items()], ignore_index=True
    )


def shares(runs: Mapping[str, Run]) -> pd.DataFrame:
    """What cutting the gate, and the image tokens, removes in each run: ``stage`` and the columns of ``tasks``."""
    return pd.concat([run.table("tasks").assign(stage=name) for name, run in runs.items()], ignore_index=True)


def conclusion(
    runs: Mapping[str, Run], shares: pd.DataFrame, losses: Mapping[str, pd.DataFrame]
) -> dict[str, Any]:
    """``headline``, ``sentence``, and by stage its verdict: before, and after each training."""
    how = shares.how.iloc[0]
    first = shares[shares.how == how]
    found = {name: run.json("verdict") for name, run in runs.items()}
    after = [name for name in runs if name not in (BEFORE, "control")]
    last = after[-1] if after else BEFORE
    headline = f"{found[BEFORE]['headline']} → {_called(found[last], first[first.stage == last])}"
    parts = [_removed(name, first[first.stage == name]) + _patched(run) for name, run in runs.items()]
    return {
        "verdict": found[last]["verdict"],
        "headline": headline,
        "sentence": " ".join(parts),
        "stages": [
            {
                "name": name,
                "verdict": found[name]["verdict"],
                "headline": found[name]["headline"],
                "sentence": found[name]["sentence"],
                "loss": _last_loss(losses.get(name)),
            }
            for name in runs
        ],
    }


def _called(verdict: dict[str, Any], rows: pd.DataFrame) -> str:
    """The verdict's headline; "mixed" by its reason, where all tasks have the same."""
    usable = rows[rows.verdict != INCONCLUSIVE]
    if verdict["verdict"] == MIXED and len(usable) and usable.why.str.startswith(EITHER).all():
        return EITHER
    return verdict["headline"]


def _removed(name: str, rows: pd.DataFrame) -> str:
    usable = rows[rows.verdict != INCONCLUSIVE]
    if usable.empty:
        return f"{_titled(name)}: nothing can be said."
    parts = [
        f"{percent(r.gate)} of {r.metric} (image tokens {percent(r.image)})" for r in usable.itertuples()
    ]
    return f"{_titled(name)}, cutting the gate removes {', '.join(parts)}."


def _patched(run: Run) -> str:
    """Which way wins where the two disagree: the gate of another picture beside the picture itself."""
    if not run.done("patching"):
        return ""
    table = run.table("patching")
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    if flips.empty:
        return ""
    best = flips.loc[flips["mean"].idxmax()]
    where = "at the best layer" if best["mean"] > 0 else "in any layer"
    return f" Another picture's gate flips {percent(best['mean'])} of predictions {where}."


def _titled(name: str) -> str:
    return {BEFORE: "Before", "control": "Trained as long with nothing cut"}.get(name, f"After “{name}”")


def _last_loss(log: pd.DataFrame | None) -> float | None:
    """Mean of the last twentieth of the steps, nats a token."""
    if log is None or log.empty:
        return None
    return float(np.mean(log.loss.tail(max(1, len(log) // 20))))
