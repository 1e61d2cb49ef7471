"""Section *patching*: what the gate holds is taken from a prompt of another class; whose answer comes out?

For a pair of pictures of different classes, *base* runs with the gate's activations taken from *target*'s run
(NG, activation patching), in two ways: the residual stream entering one layer, and what the attention reads at
the gate in every layer from one to the last. Both runs' own next-token distributions are the yardsticks, each
from its own picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from gatelens.engine import last_logits
from gatelens.errors import DataError
from gatelens.measures.overlap import distribution_overlap
from gatelens.measures.stats import bootstrap_interval
from gatelens.plots.numbers import percent
from gatelens.studies.common import Labels, chunks, labels_of, prepare
from gatelens.studies.narrow_gate.class_pairs import (
    ClassPair,
    all_pairs,
    by_class,
    class_of,
    given_pairs,
    layers_visited,
)
from gatelens.studies.narrow_gate.section import Context, Evidence, Piece, Section
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    FEWEST,
    FLIPS,
    INCONCLUSIVE,
    MIXED,
    NARROW,
    patching_evidence,
)

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM
    from gatelens.runs import Run

Pair = tuple["Example", "Example"]
SITE: Literal["resid_pre"] = "resid_pre"  # of one layer
INPUT: Literal["attn_in"] = "attn_in"  # of every layer from one to the last
COLUMNS = ["layer", "measure", "mean", "low", "high", "n"]


def draw_pairs(
    examples: Sequence[Example], n: int, seed: int, pairs: Any = None, classes: int | None = None
) -> list[Pair]:
    """``n`` seeded (base, target) pairs of examples, spread evenly over pairs of different classes.

    Args:
        examples: of the task ``class``.
        n: how many; fewer where the examples give fewer different ones.
        seed: draws them.
        pairs: class pairs, see :func:`gatelens.studies.narrow_gate.class_pairs.given_pairs`; None is every
            pair of the classes drawn.
        classes: without ``pairs``: of at most so many classes, drawn; None is all.

    Raises:
        DataError: all examples are of one class; a pair of classes that is not there.
    """
    if n == 0 or not examples:
        return []
    found = by_class(examples)
    rng = np.random.default_rng([seed, 77])
    if pairs is None and len(found) < 2:
        raise DataError(
            f"patching needs examples of two classes, the data drawn has only {next(iter(found))!r}; raise the limit"
        )
    wanted: list[ClassPair] = (
        all_pairs(list(found), classes or len(found), rng)
        if pairs is None
        else given_pairs(pairs, list(found))
    )
    # every combination of a class pair's pictures once, in a drawn order; then the class pairs take turns
    turns = []
    for base, target in wanted:
        grid = rng.permutation(len(found[base]) * len(found[target]))[:n]
        places = (divmod(int(k), len(found[target])) for k in grid)
        turns.append([(found[base][i], found[target][j]) for i, j in places])
    drawn = [turn[k] for k in range(max(map(len, turns), default=0)) for turn in turns if k < len(turn)]
    return drawn[:n]


def patch_layers(
    model: HookedVLM, pairs: Sequence[Pair], start: int, labels: Labels, every: int | None = None
) -> pd.DataFrame:
    """One row a pair, site and layer; layer −1 is the base run with nothing patched.

    ``site``: ``resid_pre`` of that layer alone, or ``attn_in`` of that layer and all after it.
    ``base, target`` overlaps Σ min(p, q) with the clean runs; ``flippable``: the clean predictions differ;
    ``flipped``: the patched prediction is the target's clean one; ``base_right, target_right``: clean ones
    are; ``both_right``: both, and no label of one class begins as a label of the other; ``success``: the
    patched prediction is a label of the target's class, whatever its clean prediction was.
    """
    from gatelens.interventions import hook_name, patch

    bases, targets = [p[0] for p in pairs], [p[1] for p in pairs]
    n_layers = int(model.cfg.n_layers)
    visited = layers_visited(n_layers, every)
    base_inputs, target_inputs = prepare(model, bases, start), prepare(model, targets, start)
    names = [hook_name(SITE, n) for n in visited] + [hook_name(INPUT, n) for n in range(n_layers)]
    target_logits, cache = model.run_with_cache(target_inputs, names_filter=names, positions="gate")
    target_p = target_logits[:, -1].float().softmax(-1).cpu()
    runs: dict[tuple[str, int], Any] = {(SITE, -1): []}
    runs |= {(SITE, n): patch(cache, at="gate", site=SITE, layers=[n]) for n in visited}
    runs |= {(INPUT, n): patch(cache, at="gate", site=INPUT, layers=range(n, n_layers)) for n in visited}
    outcomes = last_logits(model, base_inputs, list(runs.values()))
    said = {key: x.float().softmax(-1).cpu() for key, x in zip(runs, outcomes, strict=True)}
    said[INPUT, -1] = base_p = said[SITE, -1]
    base_best, target_best = base_p.argmax(-1).tolist(), target_p.argmax(-1).tolist()
    words = [
        [{labels.first_token(e.prompt, w) for w in labels_of(e)} for e in side] for side in (bases, targets)
    ]
    right = [
        [best in of for best, of in zip(chosen, side, strict=True)]
        for chosen, side in ((base_best, words[0]), (target_best, words[1]))
    ]
    both = [a and b and not (x & y) for a, b, x, y in zip(*right, *words, strict=True)]
    tables = []
    for (site, layer), p in said.items():
        best = p.argmax(-1).tolist()
        columns = {
            "pair": range(start, start + len(pairs)),
            "base_id": [e.id for e in bases],
            "target_id": [e.id for e in targets],
            "base_class": [class_of(e) for e in bases],
            "target_class": [class_of(e) for e in targets],
            "site": site,
            "layer": layer,
            "base": distribution_overlap(p, base_p).tolist(),
            "target": distribution_overlap(p, target_p).tolist(),
            "flippable": [a != b for a, b in zip(base_best, target_best, strict=True)],
            "flipped": [a == b for a, b in zip(best, target_best, strict=True)],
            "base_right": right[0],
            "target_right": right[1],
            "both_right": both,
            "success": [a in of for a, of in zip(best, words[1], strict=True)],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def summarise_patching(pairs: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """``layer, measure (base | target | flipped | success), mean, low, high, n`` of one site's rows.

    ``flipped`` is over the flippable pairs, ``success`` over those with both clean predictions right (it is
    left out where the rows do not say).
    """
    rows = []
    for layer, part in pairs.groupby("layer"):
        measures = {"base": part.base, "target": part.target, "flipped": part[part.flippable].flipped}
        if "success" in part:
            measures["success"] = part[part.both_right].success
        for measure, values in measures.items():
            if len(values):
                rows.append((int(layer), measure, *_interval(values, n_boot, seed)))
    return pd.DataFrame(rows, columns=COLUMNS)


def class_table(pairs: pd.DataFrame, layer: int, n_boot: int, seed: int) -> pd.DataFrame:
    """``base_class, target_class, layer, measure, mean, low, high, n``: success by class pair, in one layer.

    ``pairs``: rows of one site; class pairs without a pair of right clean predictions are left out.
    """
    rows = []
    part = pairs[(pairs.layer == layer) & pairs.both_right]
    for names, mine in part.groupby(["base_class", "target_class"]):
        rows.append((*names, layer, "success", *_interval(mine.success, n_boot, seed)))
    return pd.DataFrame(rows, columns=["base_class", "target_class", *COLUMNS])


def best_layer(table: pd.DataFrame, measure: str = "success") -> int | None:
    """The layer with the highest mean of a measure, the first of equals; None where it was not measured."""
    part = table[(table.measure == measure) & (table.layer >= 0)]
    return None if part.empty else int(part.loc[part["mean"].idxmax()].layer)


def _interval(values: pd.Series, n_boot: int, seed: int) -> tuple[float, float, float, int]:
    numbers = values.to_numpy(dtype=np.float64)
    return (float(numbers.mean()), *bootstrap_interval(numbers, n_boot=n_boot, seed=seed), len(numbers))


def pieces(context: Context) -> list[Piece]:
    """A piece a batch of pairs; none where all pictures are of one class and no pair was asked for."""
    options, tasks = context.options("patching"), context.examples("class")
    if not tasks or (options["pairs"] is None and len(by_class(tasks[0][1])) < 2):
        return []
    pairs = draw_pairs(tasks[0][1], options["n_pairs"], context.seed, options["pairs"], options["classes"])
    found = []
    for number, start, part in chunks(pairs, context.size):

        def compute(start: int = start, part: Sequence[Pair] = part) -> pd.DataFrame:
            return patch_layers(context.model, part, start, context.labels, options["every"])

        found.append(Piece(f"shards/patching-{number:04d}", "patching the gate", compute, 4))
    return found


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``patching_pairs``; ``patching`` (residual stream), ``patching_attention`` (cumulative), ``patching_classes``."""
    if not tables:
        return
    run, n_boot, seed = context.run, context.n_boot, context.seed
    pairs = pd.concat(tables, ignore_index=True)
    run.save_table("patching_pairs", pairs)
    resid = pairs[pairs.site == SITE]
    table = summarise_patching(resid, n_boot, seed)
    run.save_table("patching", table)
    run.save_table("patching_attention", summarise_patching(pairs[pairs.site == INPUT], n_boot, seed))
    layer = best_layer(table)
    if layer is not None:
        run.save_table("patching_classes", class_table(resid, layer, n_boot, seed))


def evidence(run: Run) -> list[Evidence]:
    """What the two curves say."""
    found = patching_evidence(run.table("patching")) if run.done("patching") else []
    return found + (attention_input_evidence(run.table("patching_attention")) if found else [])


def attention_input_evidence(table: pd.DataFrame) -> list[Evidence]:
    """What cumulative patching of the gate's attention input says.

    From layer 0 on it puts all that text ever reads at the gate in the target's place: narrow where that
    makes the answer the target's class, distributed where it leaves the base's.
    """
    rows = table[(table.measure == "success") & (table.layer == 0)]
    kind = "patching the gate's attention input"
    if rows.empty or rows.n.iloc[0] < FEWEST:
        n = 0 if rows.empty else int(rows.n.iloc[0])
        text = f"only {n} pairs have two right clean predictions, at least {FEWEST} are needed"
        return [{"kind": kind, "says": INCONCLUSIVE, "text": text}]
    row = rows.iloc[0]
    says = NARROW if row.low > FLIPS[1] else DISTRIBUTED if row.high < FLIPS[0] else MIXED
    text = (
        "with all that the attention reads at the gate taken from another picture, in every layer, the "
        f"prediction is that picture's class in {percent(row['mean'])} [{percent(row.low)}, {percent(row.high)}] "
        f"of {int(row.n)} pairs"
    )
    return [{"kind": kind, "says": says, "text": text}]


SECTION = Section(
    "patching",
    "the gate's activations taken from another picture, layer by layer",
    pieces,
    conclude,
    evidence,
    {"n_pairs": 224, "pairs": None, "classes": 8, "every": None},
)
