"""Patching by attribute: which layer's gate holds the class, the colour, the shape…, each asked for by a question.

Two pictures are asked the same question and have different answers. The gate comes from the other picture's run, and
the answer that comes out tells whether it holds what the question asks for. The kinds of question are what the data
call them; the depth of a fact is the layer in which replacing the gate changes most answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gatelens.data import Example
from gatelens.measures.stats import summary
from gatelens.studies.narrow_gate.blind import kind_of
from gatelens.studies.narrow_gate.class_pairs import class_of, take_turns

CLASS = "class"
FEWEST_PAIRS = 10  # of an attribute, to be patched at all
HALF = 0.5  # an attribute stands in the layers in which success is at least this part of its highest


def attribute_pairs(
    examples: Sequence[Example], n: int, seed: int
) -> dict[str, list[tuple[Example, Example]]]:
    """By kind of question, up to ``n`` seeded (base, target) pairs of one prompt and different answers.

    Prompts take turns, and no pair is drawn twice. Kinds with fewer than :data:`FEWEST_PAIRS` are left out.
    """
    alike: dict[str, dict[str, list[Example]]] = {}
    for e in examples:
        kind = kind_of(e)
        if kind is not None:
            alike.setdefault(kind, {}).setdefault(e.prompt, []).append(e)
    rng = np.random.default_rng([seed, 79])
    found = {}
    for kind, by_prompt in sorted(alike.items()):
        turns = []
        for _, some in sorted(by_prompt.items()):
            both = [(a, b) for a in some for b in some if class_of(a) != class_of(b)]
            turns.append([both[int(i)] for i in rng.permutation(len(both))[:n]])
        pairs = take_turns(turns)[:n]
        if len(pairs) >= FEWEST_PAIRS:
            found[kind] = pairs
    return found


def summarise_attributes(pairs: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """``attribute, layer, mean, low, high, n``: the share of patched answers that are the target's.

    Args:
        pairs: rows of one site, with ``attribute``; pairs count whose two unpatched answers are both right.
        n_boot, seed: of the intervals.
    """
    right = pairs[pairs.both_right & (pairs.layer >= 0)].sort_values(["layer"], kind="stable")
    order = pd.concat([right[right.attribute == name] for name in pairs.attribute.unique()])
    return summary(order, ["attribute", "layer"], "success", "pair", n_boot=n_boot, seed=seed)


def depths(table: pd.DataFrame) -> pd.DataFrame:
    """The depth of each attribute at the gate, from :func:`summarise_attributes`.

    ``attribute, layer, mean, low, high, n, first, last``: the layer of the highest share, and the layers around it in
    which it is at least half as high; −1 where the gate changes no answer measurably in any layer.
    """
    rows = []
    for name, part in table.groupby("attribute", sort=False):
        part = part.sort_values("layer").reset_index(drop=True)
        best = part.loc[int(part["mean"].idxmax())]
        row: dict[str, object] = {"attribute": name, **best[["layer", "mean", "low", "high", "n"]].to_dict()}
        enough = part["mean"] >= HALF * best["mean"]
        block = (enough != enough.shift()).cumsum()
        around = part.layer[block == block[best.name]]
        row |= {
            "layer": int(best.layer),
            "n": int(best.n),
            "first": int(around.min()),
            "last": int(around.max()),
        }
        if best.low <= _untouched(part):
            row |= {"layer": -1, "first": -1, "last": -1}
        rows.append(row)
    return pd.DataFrame(rows, columns=["attribute", "layer", "mean", "low", "high", "n", "first", "last"])


def _untouched(part: pd.DataFrame) -> float:
    """The share in the first layer patched, where the gate knows nothing of a picture yet."""
    return float(part["mean"].iloc[0])


def in_words(table: pd.DataFrame) -> str:
    """Each attribute with its depth, off :func:`depths`."""
    return ", ".join(
        f"{row['attribute']} in {'no layer' if row['layer'] < 0 else 'layer ' + str(row['layer'])}"
        for row in table.to_dict("records")
    )


def styles(names: Sequence[str]) -> Mapping[str, tuple[str, str, str]]:
    """Colour, line and marker of each attribute's curve; the class is the gate's orange."""
    looks = [
        ("image", "-", "s"), ("third", "-", "^"), ("ink", "--", "x"), ("neutral", "-", "D"), ("image", "--", "v"),
        ("third", ":", "P"), ("ink", ":", "*"),
    ]  # fmt: skip
    others = [name for name in names if name != CLASS]
    return {CLASS: ("gate", "-", "o")} | {name: looks[i % len(looks)] for i, name in enumerate(others)}
