"""Section *patching*: what the gate holds is taken from a prompt of another class; whose answer comes out?

For a pair of pictures of different classes, *base* runs with the gate's activations taken from *target*'s run
(NG, activation patching), in two ways: the residual stream entering one layer, and what the attention reads at
the gate in every layer from one to the last. Both runs' own next-token distributions are the yardsticks, each
from its own picture. Pairs that differ in another attribute than the class are asked for it (:mod:`.attributes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from gatelens.data import Example
from gatelens.engine import last_logits
from gatelens.errors import DataError
from gatelens.examples import Labels, labels_of, prepare
from gatelens.interventions import hook_name, patch
from gatelens.measures.overlap import distribution_overlap
from gatelens.measures.stats import SHARE, summary
from gatelens.model import HookedVLM
from gatelens.runs import Run
from gatelens.studies.narrow_gate.class_pairs import (
    AskedPairs,
    Every,
    all_pairs,
    by_class,
    class_of,
    given_pairs,
    layers_visited,
    take_turns,
)
from gatelens.studies.narrow_gate.patching.attributes import (
    CLASS,
    attribute_pairs,
    depths,
    in_words,
    summarise_attributes,
)
from gatelens.studies.narrow_gate.patching.page import ANY, cards
from gatelens.studies.narrow_gate.verdict import attention_input_evidence, patching_evidence
from gatelens.studies.options import AtLeastTwo, Examples, Options
from gatelens.studies.section import (
    VALUES,
    Absent,
    Batch,
    Evidence,
    Measured,
    Section,
    Setup,
    Tables,
    cells,
    span_of,
)

PicturePair = tuple[Example, Example]  # base and target
SITE: Literal["resid_pre"] = "resid_pre"  # of one layer
INPUT: Literal["attn_in"] = "attn_in"  # of every layer from one to the last


class PatchingOptions(Options):
    """Pairs of pictures, their classes and attributes, and the layers."""

    n_pairs: Annotated[Examples, Field(description="Pairs of pictures.")] = 224
    n_by_attribute: Annotated[
        Examples, Field(description="Pairs with one question and two answers, of each kind of question.")
    ] = 48
    pairs: AskedPairs = None
    classes: Annotated[
        AtLeastTwo | None, Field(description="Without pairs: the maximum number of classes, drawn.")
    ] = 8
    every: Every = None


@dataclass(frozen=True)
class Patch(Batch):
    """Pairs that differ in an attribute, each patched in every layer visited; ``start`` numbers the first."""

    start: int
    pairs: Sequence[PicturePair]
    every: int | None
    attribute: str = CLASS


def draw_pairs(
    examples: Sequence[Example], n: int, seed: int, pairs: Any = None, classes: int | None = None
) -> list[PicturePair]:
    """``n`` seeded (base, target) pairs of examples, spread evenly over pairs of different classes; fewer where there
    are no more.

    Args:
        examples: of the task ``class``.
        n, seed: how many are drawn.
        pairs: see :func:`~gatelens.studies.narrow_gate.class_pairs.given_pairs`; None is all of ``classes``.
        classes: without ``pairs``: the maximum number of classes, drawn; None is all.

    Raises:
        DataError: all examples are of one class; a pair of classes that is not there.
    """
    if n == 0 or not examples:
        return []
    pictures = by_class(examples)
    rng = np.random.default_rng([seed, 77])
    if pairs is None and len(pictures) < 2:
        raise DataError(
            f"patching needs examples of two classes, the data drawn has only {next(iter(pictures))!r}; raise the limit"
        )
    names = list(pictures)
    wanted = all_pairs(names, classes or len(names), rng) if pairs is None else given_pairs(pairs, names)
    # every combination of a class pair's pictures once, in a drawn order; then the class pairs take turns
    turns = []
    for base, target in wanted:
        grid = rng.permutation(len(pictures[base]) * len(pictures[target]))[:n]
        places = (divmod(int(k), len(pictures[target])) for k in grid)
        turns.append([(pictures[base][i], pictures[target][j]) for i, j in places])
    return take_turns(turns)[:n]


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """Pairs, each patched in every layer visited."""
    options: PatchingOptions = setup.section_options["patching"]
    tasks = setup.examples("class")
    if not tasks or (options.pairs is None and len(by_class(tasks[0][1])) < 2):
        raise Absent("it needs pictures of two classes")
    pairs = draw_pairs(tasks[0][1], options.n_pairs, setup.options.seed, options.pairs, options.classes)
    if not pairs:
        raise Absent("no pairs were asked for")
    work: list[Batch] = [
        Patch(f"{i:04d}", start, part, options.every, units=4) for i, start, part in setup.batched(pairs)
    ]
    asked = [e for _, drawn in setup.examples("vqa") for e in drawn]
    first = len(pairs)
    for k, (name, some) in enumerate(
        attribute_pairs(asked, options.n_by_attribute, setup.options.seed).items()
    ):
        for i, start, part in setup.batched(some):
            work.append(Patch(f"attribute-{k}-{i:04d}", first + start, part, options.every, name, units=2))
        first += len(some)
    return work


def measure(model: HookedVLM, batch: Patch) -> Tables:
    """``pairs``: see :func:`patch_layers`, with the ``attribute`` in which they differ."""
    sites = (SITE, INPUT) if batch.attribute == CLASS else (SITE,)
    table = patch_layers(model, batch.pairs, batch.start, Labels(model, any_word=True), batch.every, sites)
    return {"pairs": table.assign(attribute=batch.attribute)}


def patch_layers(
    model: HookedVLM,
    pairs: Sequence[PicturePair],
    start: int,
    labels: Labels,
    every: int | None = None,
    sites: Sequence[str] = (SITE, INPUT),
) -> pd.DataFrame:
    """One row per pair, site and layer; layer −1 is the base run with nothing patched.

    ``site``: ``resid_pre`` of that layer alone, or ``attn_in`` of that layer and all after it. ``base, target``
    overlaps Σ min(p, q) with the clean runs; ``flippable``: the clean predictions differ; ``flipped``: the patched
    prediction is the target's clean one; ``base_right, target_right``: clean ones are; ``both_right``: both, and no
    label of one class begins as a label of the other; ``success``: the patched prediction is a label of the target's
    class, whatever its clean prediction was.
    """
    bases, targets = [p[0] for p in pairs], [p[1] for p in pairs]
    n_layers = int(model.cfg.n_layers)
    visited = layers_visited(n_layers, every)
    base_inputs, target_inputs = prepare(model, bases, start), prepare(model, targets, start)
    names = [hook_name(SITE, n) for n in visited]
    if INPUT in sites:
        names += [hook_name(INPUT, n) for n in range(n_layers)]
    target_logits, cache = model.run_with_cache(target_inputs, names_filter=names, positions="gate")
    target_p = target_logits[:, -1].float().softmax(-1).cpu()
    runs: dict[tuple[str, int], Any] = {(SITE, -1): []}
    runs |= {(SITE, n): patch(cache, at="gate", site=SITE, layers=[n]) for n in visited}
    if INPUT in sites:
        runs |= {(INPUT, n): patch(cache, at="gate", site=INPUT, layers=range(n, n_layers)) for n in visited}
    outcomes = last_logits(model, base_inputs, list(runs.values()))
    said = {key: x.float().softmax(-1).cpu() for key, x in zip(runs, outcomes, strict=True)}
    if INPUT in sites:
        said[INPUT, -1] = said[SITE, -1]
    return _judged(pairs, start, said, target_p, labels)


def _judged(
    pairs: Sequence[PicturePair],
    start: int,
    said: Mapping[tuple[str, int], Float[Tensor, "batch d_vocab"]],
    target_p: Float[Tensor, "batch d_vocab"],
    labels: Labels,
) -> pd.DataFrame:
    """Next-token distributions by site and layer as rows, see :func:`patch_layers`."""
    bases, targets = zip(*pairs, strict=True)
    base_p = said[SITE, -1]
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
            "pair": range(start, start + len(bases)),
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
    values = pairs.assign(flipped=pairs.flipped.where(pairs.flippable)).sort_values("layer", kind="stable")
    measures = {name: name for name in ("base", "target", "flipped")}
    if "success" in pairs:
        values["success"] = pairs.success.where(pairs.both_right)
        measures["success"] = "success"
    scored = dict.fromkeys(("flipped", "success"), SHARE)  # overlaps are measured
    return summary(
        values, ["layer"], measures, "pair", bounds=scored, n_boot=n_boot, seed=seed, missing="skip"
    )


def class_table(pairs: pd.DataFrame, layer: int, n_boot: int, seed: int) -> pd.DataFrame:
    """``base_class, target_class, layer, measure, mean, low, high, n``: success by class pair, in one layer.

    ``pairs``: rows of one site; class pairs without a pair of right clean predictions are left out. A row in which
    one of the classes is :data:`ANY` pools all pairs that have the other.
    """
    keys = ["base_class", "target_class"]
    part = pairs[(pairs.layer == layer) & pairs.both_right]
    pooled = [part.assign(**{key: ANY}) for key in reversed(keys)]
    tables = [
        summary(some, [*keys, "layer"], {"success": "success"}, "pair", n_boot=n_boot, seed=seed)
        for some in (rows.sort_values(keys, kind="stable") for rows in (part, *pooled))
    ]
    return pd.concat(tables, ignore_index=True)


def best_layer(table: pd.DataFrame, measure: str = "success") -> int | None:
    """The layer with the highest mean of a measure, the first of equals; None where it was not measured."""
    part = table[(table.measure == measure) & (table.layer >= 0)]
    return None if part.empty else int(part.loc[part["mean"].idxmax()].layer)


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``patching_pairs``; ``patching`` (residual stream), ``patching_attention`` (cumulative) and ``patching_classes``
    of classes; ``patching_attributes`` and ``patching_depths`` of every attribute."""
    pairs, intervals = measured.table("pairs"), (setup.options.n_boot, setup.options.seed)
    classes, resid = pairs[pairs.attribute == CLASS], pairs[pairs.site == SITE]
    table = summarise_patching(classes[classes.site == SITE], *intervals)
    tables = {
        "patching_pairs": pairs,
        "patching": table,
        "patching_attention": summarise_patching(classes[classes.site == INPUT], *intervals),
    }
    layer = best_layer(table)
    if layer is not None:
        tables["patching_classes"] = class_table(resid[resid.attribute == CLASS], layer, *intervals)
    if resid.both_right.any():
        tables["patching_attributes"] = summarise_attributes(resid, *intervals)
        tables["patching_depths"] = depths(tables["patching_attributes"])
    return tables


def evidence(run: Run) -> list[Evidence]:
    """What the two curves say, and the depth of each attribute."""
    said = patching_evidence(run.table("patching"))
    if said and run.has("patching_depths"):
        said[0]["text"] += f". The gate holds {in_words(run.table('patching_depths'))}"
    return said + (attention_input_evidence(run.table("patching_attention")) if said else [])


def compared(run: Run) -> pd.DataFrame:
    """The curves by layer, for the comparison of two runs."""
    parts = []
    for name, what in (("patching", "gate"), ("patching_attention", "attention input at the gate")):
        table = run.table(name)
        parts.append(cells(table, f"{what} patched", table.measure + ", layer " + table.layer.astype(str)))
    return pd.concat(parts, ignore_index=True)


def compared_values(run: Run) -> pd.DataFrame:
    """What the curves are the means of, by pair of pictures."""
    pairs = run.table("patching_pairs")
    pairs = pairs[pairs.attribute == CLASS].assign(id=lambda t: t.base_id + " → " + t.target_id, how="")
    counted = {"base": None, "target": None, "flipped": "flippable", "success": "both_right"}
    parts = []
    for site, what in ((SITE, "gate"), (INPUT, "attention input at the gate")):
        mine = pairs[pairs.site == site]
        for measure, where in counted.items():
            part = mine if where is None else mine[mine[where]]
            names = {"metric": f"{what} patched", "row": f"{measure}, layer " + part.layer.astype(str)}
            parts.append(
                part.assign(
                    **names, value=part[measure].astype(float), span=span_of(SHARE if where else None)
                )[VALUES]
            )
    return pd.concat(parts, ignore_index=True)


SECTION = Section(
    "patching",
    "the gate’s activations taken from another picture, layer by layer",
    batches,
    measure,
    conclude,
    PatchingOptions,
    evidence,
    cards,
    cells=compared,
    values=compared_values,
)
