"""Patching the gate: its residual stream comes from a prompt of another class; whose answer comes out?

For a pair of pictures of different classes, *base* runs with the gate's ``resid_pre`` of one layer taken from
*target*'s run. Both runs' own next-token distributions are the yardsticks, each from its own picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from gatelens.engine import last_logits
from gatelens.errors import DataError
from gatelens.measures.overlap import distribution_overlap
from gatelens.measures.stats import bootstrap_interval
from gatelens.studies.common import Labels, chunks, labels_of, prepare
from gatelens.studies.narrow_gate.section import Context, Piece, Section
from gatelens.studies.narrow_gate.verdict import patching_evidence

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM

Pair = tuple["Example", "Example"]
SITE: Literal["resid_pre"] = "resid_pre"


def draw_pairs(examples: Sequence[Example], n: int, seed: int) -> list[Pair]:
    """``n`` seeded (base, target) pairs of different classes.

    Raises:
        DataError: all examples are of one class.
    """
    if n == 0 or not examples:
        return []
    names = [labels_of(e)[0] for e in examples]
    if len(set(names)) < 2:
        raise DataError(
            f"patching needs examples of two classes, the data drawn has only {names[0]!r}; raise the limit"
        )
    rng = np.random.default_rng([seed, 77])
    pairs: list[Pair] = []
    while len(pairs) < n:
        i, j = (int(x) for x in rng.integers(0, len(examples), size=2))
        if names[i] != names[j]:
            pairs.append((examples[i], examples[j]))
    return pairs


def patch_layers(model: HookedVLM, pairs: Sequence[Pair], start: int, labels: Labels) -> pd.DataFrame:
    """One row a pair and layer; layer −1 is the base run with nothing patched.

    ``base, target`` overlaps Σ min(p, q) with the clean runs; ``flippable``: the clean predictions differ;
    ``flipped``: the patched prediction is the target's clean one; ``base_right, target_right``: clean ones
    are.
    """
    from gatelens.interventions import hook_name, patch

    bases, targets = [p[0] for p in pairs], [p[1] for p in pairs]
    layers = range(int(model.cfg.n_layers))
    base_inputs, target_inputs = prepare(model, bases, start), prepare(model, targets, start)
    names = [hook_name(SITE, layer) for layer in layers]
    target_logits, cache = model.run_with_cache(target_inputs, names_filter=names)
    target_p = target_logits[:, -1].float().softmax(-1).cpu()
    runs = [[], *([patch(cache, at="gate", site=SITE, layers=[layer])] for layer in layers)]
    base_p, *patched = (x.float().softmax(-1).cpu() for x in last_logits(model, base_inputs, runs))
    base_best, target_best = base_p.argmax(-1), target_p.argmax(-1)
    right = [
        [
            int(best[i]) in [labels.first_token(e.prompt, name) for name in labels_of(e)]
            for i, e in enumerate(side)
        ]
        for best, side in ((base_best, bases), (target_best, targets))
    ]
    tables = []
    for layer in (-1, *layers):
        p = base_p if layer < 0 else patched[layer]
        columns = {
            "pair": range(start, start + len(pairs)),
            "base_id": [e.id for e in bases],
            "target_id": [e.id for e in targets],
            "layer": layer,
            "base": distribution_overlap(p, base_p).tolist(),
            "target": distribution_overlap(p, target_p).tolist(),
            "flippable": (base_best != target_best).tolist(),
            "flipped": (p.argmax(-1) == target_best).tolist(),
            "base_right": right[0],
            "target_right": right[1],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def summarise_patching(pairs: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """``layer, measure (base | target | flipped), mean, low, high, n``; ``flipped`` is over the flippable
    pairs."""
    rows = []
    for layer, part in pairs.groupby("layer"):
        flippable = part[part.flippable]
        for measure, values in (("base", part.base), ("target", part.target), ("flipped", flippable.flipped)):
            if len(values):
                numbers = values.to_numpy(dtype=np.float64)
                low, high = bootstrap_interval(numbers, n_boot=n_boot, seed=seed)
                rows.append((int(layer), measure, numbers.mean(), low, high, len(numbers)))
    return pd.DataFrame(rows, columns=["layer", "measure", "mean", "low", "high", "n"])


def pieces(context: Context) -> list[Piece]:
    """A piece a batch of pairs."""
    n = context.options("patching")["n_pairs"]
    pairs = draw_pairs(context.drawn.get("class", []), n, context.seed)
    found = []
    for number, start, part in chunks(pairs, context.size):

        def compute(start: int = start, part: Sequence[Pair] = part) -> pd.DataFrame:
            return patch_layers(context.model, part, start, context.labels)

        found.append(Piece(f"shards/patching-{number:04d}", "patching the gate", compute))
    return found


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``patching_pairs`` and ``patching``."""
    if tables:
        pairs = pd.concat(tables, ignore_index=True)
        context.run.save_table("patching_pairs", pairs)
        context.run.save_table("patching", summarise_patching(pairs, context.n_boot, context.seed))


SECTION = Section(
    "patching",
    "the gate's activations taken from another picture, layer by layer",
    pieces,
    conclude,
    lambda run: patching_evidence(run.table("patching")) if run.done("patching") else [],
    {"n_pairs": 100},
)
