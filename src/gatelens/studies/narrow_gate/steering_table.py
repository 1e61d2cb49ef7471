"""From steered answers to the tables of section *steering*, the file of directions, and what they say of the gate."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from gatelens.measures.captions import caption_words
from gatelens.measures.stats import bootstrap_interval
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.common import data_uri
from gatelens.studies.narrow_gate.class_pairs import pair_name
from gatelens.studies.narrow_gate.section import Context, Evidence
from gatelens.studies.narrow_gate.steering_fit import (
    PLACES,
    SITE,
    chosen_layer,
    directions_at,
    layer_scores,
)
from gatelens.studies.narrow_gate.steering_push import MEANS, NOTHING, RANDOM, REFERENCE
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    FEWEST,
    FLIPS,
    INCONCLUSIVE,
    MIXED,
    NARROW,
)

ALL = "all"
SUCCESS, KEPT, ELSEWHERE = "success", "base kept", "elsewhere"
ABOVE = "success above random"
CAPTION_SUCCESS, CAPTION_KEPT = "caption names the target", "rest of the caption kept"
VQA, VQA_OVERLAP = "VQA accuracy", "VQA overlap"
COLUMNS = ["pair", "layer", "dose", "direction", "measure", "mean", "low", "high", "n"]
WORDING = 0.9  # a word in this share of the unsteered captions is wording, not content
FEWEST_FOR_WORDING = 10
FEWEST_TO_FIT = 10  # pictures of a class, for a direction that turns little to mean anything
SHOWN, SHOWN_DOSES = 4, (0.0, 0.5, 1.0, 2.0, 4.0)  # pictures on the page, and the doses of their captions
Summary = Callable[[str, float, str, str, pd.Series], None]


def names(text: str, name: str) -> bool:
    """Whether a text has the name as a word of its own, also in the plural."""
    return re.search(rf"\b{re.escape(name.lower())}(?:e?s)?\b", text.lower()) is not None


def content_words(
    caption: str, leave_out: Sequence[str], wording: frozenset[str] = frozenset()
) -> Counter[str]:
    """How often each word of a caption stands in it, without the names to leave out and the wording."""
    text = caption.lower()
    for name in leave_out:
        text = re.sub(rf"\b{re.escape(name.lower())}(?:e?s)?\b", " ", text)
    return Counter(w for w in caption_words(text) if w not in wording)


def wording_of(captions: Sequence[str]) -> frozenset[str]:
    """Words in at least nine captions of ten; none where there are fewer than ten captions."""
    if len(captions) < FEWEST_FOR_WORDING:
        return frozenset()
    count = Counter(w for text in captions for w in set(caption_words(text)))
    return frozenset(w for w, n in count.items() if n >= WORDING * len(captions))


def words_kept(before: Counter[str], after: Counter[str]) -> float:
    """F1 of two bags of words: 2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    total = before.total() + after.total()
    return 2 * (before & after).total() / total if total else 1.0


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """``steering``, ``steering_layers``, the answers behind them, and ``directions.safetensors``."""
    if not tables:
        return
    run, fitted = context.run, tables[0]
    pictures, captions, questions = (
        _joined(tables[1:], column) for column in ("p_target", "caption", "prediction")
    )
    if captions is not None:
        captions = score_captions(captions)
        run.save_table("steering_captions", captions)
        run.save_json("steering_examples", _examples(context, captions))
    if questions is not None:
        run.save_table("steering_questions", questions)
    run.save_table("steering_pictures", pictures)
    layers = {place: chosen_layer(fitted, place) for place in PLACES}
    run.save_table("steering", summarise(pictures, captions, questions, layers, context.n_boot, context.seed))
    scores = [layer_scores(fitted, place).assign(place=place) for place in PLACES]
    scores = [s.assign(chosen=s.layer == layers[place]) for s, place in zip(scores, PLACES, strict=True)]
    run.save_table("steering_layers", pd.concat(scores, ignore_index=True))
    run.save_file("directions", ".safetensors", as_safetensors(fitted, layers["gate"]))


def _joined(tables: Sequence[pd.DataFrame], column: str) -> pd.DataFrame | None:
    mine = [t for t in tables if column in t]
    return pd.concat(mine, ignore_index=True) if mine else None


def _examples(context: Context, captions: pd.DataFrame) -> list[dict[str, object]]:
    """The first picture of the first pairs with its captions by dose, for the page."""
    images = {
        e.id: e.image for _, found in context.examples("class")[:1] for e in found if e.image is not None
    }
    mine = captions[captions.direction.isin((NOTHING, MEANS)) & captions.dose.isin(SHOWN_DOSES)]
    first = captions.drop_duplicates(["base", "target"]).head(SHOWN)
    shown: list[dict[str, object]] = []
    for one in first.itertuples():
        said = mine[(mine.id == one.id) & (mine.base == one.base) & (mine.target == one.target)]
        shown.append(
            {
                "id": one.id,
                "pair": [one.base, one.target],
                "picture": data_uri(images[one.id]),
                "captions": [[float(r.dose), r.caption] for r in said.sort_values("dose").itertuples()],
            }
        )
    return shown


def as_safetensors(fitted: pd.DataFrame, layer: int) -> bytes:
    """The directions of the chosen layer by ``base-target``, Float[d_model]; the metadata says how to add them."""
    from safetensors.torch import save

    tensors = {pair_name(pair): v for pair, v in directions_at(fitted, layer).items()}
    how = {"at": "gate", "site": SITE, "layers": json.dumps([layer])}
    return save(tensors, metadata=how)


def score_captions(captions: pd.DataFrame) -> pd.DataFrame:
    """Adds ``named_base`` (unsteered), ``success`` (the caption names the target, not the base) and ``kept`` (F1 of
    the content words with the unsteered caption's, the two names aside)."""
    clean = captions[captions.direction == NOTHING]
    before = {(r.id, r.base, r.target): r.caption for r in clean.itertuples()}
    wording = wording_of(list(clean.caption))
    rows = []
    for r in captions.itertuples():
        own = before[r.id, r.base, r.target]
        bags = [content_words(text, (r.base, r.target), wording) for text in (own, r.caption)]
        turned = names(r.caption, r.target) and not names(r.caption, r.base)
        rows.append((names(own, r.base) and not names(own, r.target), turned, words_kept(*bags)))
    return captions.assign(
        **dict(zip(("named_base", "success", "kept"), zip(*rows, strict=True), strict=True))
    )


def summarise(
    pictures: pd.DataFrame,
    captions: pd.DataFrame | None,
    questions: pd.DataFrame | None,
    layers: dict[str, int],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """The table of the section: ``pair, layer, dose, direction, measure, mean, low, high, n``.

    Measures of the class answer are over pictures answered rightly when unsteered: ``success`` (the prediction is
    the target class), ``base kept``, ``elsewhere`` (probability on neither class), ``success above random`` (paired
    differences with the mean of the random directions). Repeats are averaged within a picture first.
    """
    rows: list[tuple[object, ...]] = []

    def add(pair: str, dose: float, direction: str, measure: str, values: pd.Series) -> None:
        numbers = values.to_numpy(dtype=np.float64)
        if len(numbers):
            low, high = bootstrap_interval(numbers, n_boot=n_boot, seed=seed)
            layer = layers["last" if direction == REFERENCE else "gate"]
            rows.append((pair, layer, dose, direction, measure, numbers.mean(), low, high, len(numbers)))

    _class_rows(pictures, add)
    if captions is not None:
        for (direction, dose), part in captions.groupby(["direction", "dose"]):
            add(ALL, dose, direction, CAPTION_SUCCESS, part[part.named_base].success)
            add(ALL, dose, direction, CAPTION_KEPT, part.kept)
    if questions is not None:
        for (direction, dose), part in questions.groupby(["direction", "dose"]):
            add(ALL, dose, direction, VQA, part.score)
            add(ALL, dose, direction, VQA_OVERLAP, part.overlap)
    return pd.DataFrame(rows, columns=COLUMNS)


def _class_rows(pictures: pd.DataFrame, add: Summary) -> None:
    right = pictures[pictures.right].copy()
    right[SUCCESS], right[KEPT] = right.is_target.astype(float), right.is_base.astype(float)
    right[ELSEWHERE] = (1 - right.p_base - right.p_target).clip(lower=0)
    keys = ["direction", "dose", "base", "target", "id"]
    means = right.groupby(keys)[[SUCCESS, KEPT, ELSEWHERE]].mean()  # over the repeats of a random direction
    for (direction, dose), part in means.groupby(level=["direction", "dose"]):
        for measure in (SUCCESS, KEPT, ELSEWHERE):
            add(ALL, dose, direction, measure, part[measure])
        if direction == MEANS:
            for pair, mine in part.groupby(level=["base", "target"]):
                add(pair_name(pair), dose, direction, SUCCESS, mine[SUCCESS])
            control = means.xs((RANDOM, dose))[SUCCESS] if (RANDOM, dose) in means.index else None
            if control is not None:
                add(ALL, dose, direction, ABOVE, part.loc[direction, dose][SUCCESS] - control)


def evidence(run: Run) -> list[Evidence]:
    """Narrow where the difference of means, added once at the gate, turns the answer; distributed where no dose
    does although the same recipe works at the last position; nothing can be said where it works at neither, or
    where it works a little with means of few pictures."""
    if not run.done("steering"):
        return []
    kind = "steering the gate"
    table = run.table("steering")
    above = table[(table.pair == ALL) & (table.measure == ABOVE)].set_index("dose")
    right = table[(table.pair == ALL) & (table.measure == SUCCESS)].n
    n = 0 if right.empty else int(right.max())
    if above.empty or n < FEWEST:
        text = (
            f"only {n} pictures are answered rightly unsteered, at least {FEWEST} are needed"
            if n < FEWEST
            else "without a random direction there is nothing to compare with"
        )
        return [{"kind": kind, "says": INCONCLUSIVE, "text": text}]
    once, best = above.loc[1.0], above.loc[above["mean"].idxmax()]
    at_last = table[(table.direction == REFERENCE) & (table.measure == SUCCESS)]["mean"].iloc[0]
    note = ""
    if once.low > FLIPS[1]:
        says = NARROW
    elif best.high < FLIPS[0]:
        says = DISTRIBUTED if at_last > FLIPS[1] else INCONCLUSIVE
        note = f"; at the last position the same recipe turns {percent(at_last)}"
    else:
        says = MIXED
        n_fit = int(run.table("steering_layers").n_fit.min())
        if n_fit < FEWEST_TO_FIT:
            says = INCONCLUSIVE
            note = f"; a class mean of {n_fit} pictures says little, at least {FEWEST_TO_FIT} are needed"
    most = (
        f"at best, dose {best.name:g}, in {percent(best['mean'])}"
        if best["mean"] > 0
        else f"no dose up to {above.index.max():g} turns more than that"
    )
    text = (
        f"the difference of class means added at the gate in layer {int(once.layer)} turns the answer to the target "
        f"class in {percent(once['mean'])} [{percent(once.low)}, {percent(once.high)}] of {int(once.n)} pictures more "
        f"than a random push of its length does; {most}{note}"
    )
    return [{"kind": kind, "says": says, "text": text}]
