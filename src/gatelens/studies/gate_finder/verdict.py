"""What a gate search says, in words: narrow, distributed or nothing found, and which measures agree.

What sets of positions carry decides, with another picture's activations in place of theirs. Knockouts, attention,
overlap and patching are further evidence: each is asked what it would have said alone, and is named where that is
something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gatelens.plots.numbers import cell, interval, percent, percent_cell
from gatelens.studies.gate_finder.places import Place
from gatelens.studies.section import Evidence

Facts = Mapping[str, Any]
NARROW, DISTRIBUTED = "narrow", "distributed"
RESAMPLE = "resample"  # what it is called that a set has another picture's activations
NOTHING, INCONCLUSIVE = "no communication found", "inconclusive"
# probability of the right answer the picture must be worth for a share of it to mean anything
LEAST_WORTH = 0.1
CHANCE = 0.05  # answers name the right classes when shuffled names fit as well less often than this
FLIPS = (0.2, 0.5)  # patching: below, a position does not carry the class; above, it does
# positions stand out when the low ends of their intervals are this many times the high ends of all others
STANDS_OUT = 1.5
ALONG = "interval is over examples, along the one order in which positions were added"


def gate_verdict(
    places: Sequence[Place], measures: pd.DataFrame, sets: Mapping[str, Facts], facts: Facts
) -> dict[str, Any]:
    """The verdict with its evidence.

    Args:
        places: the candidates.
        measures: one row a place and measure, as :class:`~gatelens.studies.gate_finder.study.GateSearch` has them.
        sets: by what being gone means (``resample``, or a kind of knockout) the smallest set that carries the effect:
            ``size, low, high, share …, places, damage``; the first decides.
        facts: what the picture is worth, what patching the set did, the limit of a narrow set.

    Returns:
        ``verdict`` (narrow, distributed, no communication found, inconclusive), ``headline``, ``sentence``,
        ``places`` (of the set that decided), ``evidence`` (``kind, says, text``), ``disagree`` (kinds), ``sets``.
    """
    first = next(iter(sets.values()))
    reading = _reading(facts)
    says = reading or _size_says(first, facts["narrow"])
    gate = named(places, first["places"]) if says == NARROW else ""
    evidence: list[Evidence] = []
    if reading is None:
        evidence = [_knockout(places, how, one, facts) for how, one in sets.items()]
        evidence.append(_patching(places, facts))
        for measure in ("attention", "overlap"):
            evidence.append(_standing_out(measure, places, measures, says, first, facts))
    disagree: list[str] = []
    sentence = _sentence(says, gate, first, facts)
    if says in (NARROW, DISTRIBUTED):
        disagree = [e["kind"] for e in evidence if e["says"] not in (says, INCONCLUSIVE)]
        against = f"Evidence that disagrees: {', '.join(disagree)}."
        sentence += f" {against if disagree else 'All conclusive measures agree.'}"
    return {
        "verdict": says,
        "headline": {NARROW: f"narrow gate at {gate}"}.get(says, says),
        "sentence": sentence,
        "places": list(first["places"]),
        "evidence": evidence,
        "disagree": disagree,
        "sets": {how: dict(one) for how, one in sets.items()},
    }


def _reading(facts: Facts) -> str | None:
    """What can be said before any position is looked at; None when the picture is worth a search."""
    if facts["worth"] >= LEAST_WORTH and facts["worth_low"] > 0:
        return None
    return NOTHING if facts["worth"] < LEAST_WORTH and facts["naming_p"] > CHANCE else INCONCLUSIVE


def _size_says(one: Facts, limit: int) -> str:
    if one["size"] is not None and one["high"] <= limit:
        return NARROW
    return DISTRIBUTED if one["low"] > limit else INCONCLUSIVE


def _size(one: Facts) -> str:
    noun = "1 position" if one["size"] == 1 else f"at most {one['size']} positions"
    return f"{noun} [{one['low']}, {one['high']}]"


def how_sure(one: Facts) -> str:
    """What the size of a set and its interval leave open."""
    if one["size"] == 1:
        return f"The {ALONG}"
    return f"The number is an upper bound, as another set of fewer positions may carry as much; its {ALONG}"


def _sentence(says: str, gate: str, first: Facts, facts: Facts) -> str:
    between = interval(facts["information_low"], facts["information_high"])
    read = (
        f"The answers hold {facts['information']:.2f} nats {between} about their own picture's class (names shuffled, "
        f"as much or more in {percent(facts['naming_p'])} of the cases)"
    )
    scores = (
        f"probability of the right answer {facts['probability']:.2f}, with the picture cut off or by chance "
        f"{facts['floor']:.2f}; accuracy {facts['accuracy']:.2f}"
    )
    if says == NOTHING:
        return f"{read}; {scores}: the model does not read the class off the picture, so there is no gate to look for."
    if _reading(facts) is not None:
        return (
            f"{read}; {scores}: too little for a share of it to mean anything. Give a prompt that the class name "
            "follows, or more examples."
        )
    worth = f"what the picture is worth ({scores})"
    size = "no set" if first["size"] is None else _size(first)
    if says == NARROW:
        around = percent_cell(facts["around"], facts["around_low"], facts["around_high"])
        return (
            f"The picture reaches the answer through {gate}: kept alone and taken away, {size} "
            f"{'carries' if first['size'] == 1 else 'carry'} {percent(min(first['share'], 1.0))} of {worth}. "
            f"{how_sure(first)}. "
            "With that left reading the picture, cutting the picture's other positions from everything else lowers "
            f"accuracy by {around}."
        )
    smallest = f"The smallest set found to carry {percent(facts['part'])} of {worth} holds {size}"
    if says == DISTRIBUTED:
        return f"{smallest} of {facts['n_picture'] + facts['n_after']}. {how_sure(first)}."
    limit = f"the limit of {facts['narrow']} for a narrow gate"
    return f"{smallest}: the interval reaches across {limit}; give more examples."


def _knockout(places: Sequence[Place], how: str, one: Facts, facts: Facts) -> Evidence:
    size, text = one["size"], "no set that was measured carries it"
    if size is not None:
        shown = f" ({named(places, one['places'])})" if size <= facts["narrow"] else ""
        share = percent_cell(*(min(one[name], 1.0) for name in ("share", "share_low", "share_high")))
        does = "kept alone and taken away carr" if how == RESAMPLE else "cut jointly take"
        ends = ("ies", "y") if how == RESAMPLE else ("s", "")
        text = f"{_size(one)}{shown} {does}{ends[size != 1]} {share}"
        for kind, does in (("redundant", "stand in for each other"), ("complementary", "need each other")):
            if how == RESAMPLE and facts.get(kind):
                text += f" ({named(places, facts[kind])} {does})"
    if one["damage"]:
        text += (
            f"; cutting {named(places, one['damage'])} also hurts, but patching it carries nothing of the picture: "
            "damage, not communication"
        )
    line = text.split(";")[0]
    kind = "resampling" if how == RESAMPLE else f"knockout {how}"
    return {"kind": kind, "says": _size_says(one, facts["narrow"]), "text": text, "line": line}


def _patching(places: Sequence[Place], facts: Facts) -> Evidence:
    if "joint_mean" not in facts:
        text = "no pair of examples has two different clean answers, so none can flip"
        return {"kind": "patching", "says": INCONCLUSIVE, "text": text}
    low, high = facts["joint_low"], facts["joint_high"]
    says = NARROW if low > FLIPS[1] else DISTRIBUTED if high < FLIPS[0] else INCONCLUSIVE
    text = (
        f"patched in all layers from an example of another class, {named(places, facts['patched'])} changes "
        f"{percent_cell(facts['joint_mean'], low, high)} of the answers into that example's"
    )
    turns = percent_cell(facts["joint_mean"], low, high)
    line = f"{named(places, facts['patched'])} of another class changes {turns} of the answers to that class"
    return {"kind": "patching", "says": says, "text": text, "line": line}


def _standing_out(
    measure: str, places: Sequence[Place], measures: pd.DataFrame, verdict: str, first: Facts, facts: Facts
) -> Evidence:
    """What a measure that knows no cut says: whether a few positions stand out, and whether they are the gate."""
    floor = facts["overlap_by_chance"] if measure == "overlap" else 0.0
    part = measures[measures.measure == measure].sort_values("mean", ascending=False, kind="stable")
    few: list[int] = []
    for size in range(1, min(facts["narrow"], len(part) - 1) + 1):
        if part.low.iloc[:size].min() - floor > STANDS_OUT * max(part.high.iloc[size:].max() - floor, 0.0):
            few = part.place.iloc[:size].tolist()
            break
    top = part.iloc[0]
    text = f"highest at {named(places, [top.place])}: {cell(top['mean'], top.low, top.high)}"
    if floor:
        text += f" (by chance {floor:.2f})"
    if not few:
        return {"kind": measure, "says": DISTRIBUTED, "text": f"{text}; no position stands out"}
    text += f"; {named(places, few)} stand{'s' * (len(few) == 1)} out"
    if verdict == NARROW and not set(few) & set(first["places"]):
        text += ", which the knockout does not confirm"
        return {"kind": measure, "says": "another gate", "text": text}
    alone = measures[(measures.place == few[0]) & (measures.measure == f"{facts['how'][0]} accuracy")]
    if verdict == DISTRIBUTED and len(alone):
        what = "looked at" if measure == "attention" else "where the class can be read"
        text += f": it is {what}, but cut alone it costs {percent(alone['mean'].iloc[0])} of accuracy"
    return {"kind": measure, "says": NARROW, "text": text}


def named(places: Sequence[Place], numbers: Sequence[int]) -> str:
    """Places by name and position."""
    return ", ".join(f"{places[p].name} (position {places[p].position})" for p in numbers)
