"""From object F1 under knockouts to words: where is what the text says of the picture stored, and where is it read?

F1 counts the objects of the unmodified description that are still named. *Floor* is what is left when no row after
the image sees it (image → both), and at least chance, the F1 of other pictures' descriptions. Of the difference to
the unmodified model, a knockout keeps ``(knocked out − floor) / (1 − floor)``:

- with image → generated cut, what is kept was *stored* in the prompt's tokens after the image and read from there;
- with image → query cut, what is kept was *read* from the image by the generated tokens themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.stats import drawn_means, middle
from gatelens.plots.numbers import number, percent, percent_cell
from gatelens.plots.opening import Path
from gatelens.studies.whats_in_the_image.configurations import (
    ALL,
    BOTH,
    FROM,
    GENERATED,
    NONE,
    OUTSIDE,
    QUERY,
    WITHIN,
    span,
)
from gatelens.studies.whats_in_the_image.planted import Planted
from gatelens.studies.whats_in_the_image.scores import F1

STORED, DIRECT, EITHER, NEEDED, MIXED, INCONCLUSIVE = (
    "stored",
    "direct",
    "either",
    "needed",
    "mixed",
    "inconclusive",
)
NOTE = "note"  # evidence that tells where, not which
MOST = 0.5  # a path keeps or loses "most" when the interval lies on that side of this share
APART = 0.25  # two paths differ when the interval of the difference lies above this
LEAST_WORTH = 0.1  # F1 the picture must be worth for a share of it to mean anything
FEWEST = 20  # descriptions that name an object
HEADLINES = {
    STORED: "stored in the query tokens",
    DIRECT: "read directly from the image",
    EITHER: "stored in the query tokens and read from the image: either is enough",
    NEEDED: "both ways are needed: query tokens and direct reading",
    MIXED: "mixed",
    INCONCLUSIVE: "inconclusive",
}
TONES = {  # colours of the page, by what a verdict or a piece of evidence says
    STORED: "gate",
    DIRECT: "image",
    EITHER: "mixed",
    NEEDED: "mixed",
    MIXED: "mixed",
    INCONCLUSIVE: "none",
    NOTE: "none",
}


def kept_shares(predictions: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """One row a ``how``: what each path, cut in all layers, leaves of what the picture is worth, and the verdict.

    Columns ``how, n, floor, worth, generated, generated_low, generated_high, query, query_low, query_high,
    verdict, why``; intervals are over pictures, the paths paired (95 %).

    Args:
        predictions: ``id, how, path, scope, f1, chance`` of the study; ``f1`` is missing where the unmodified
            description names no object.
        n_boot, seed: of the bootstrap.
    """
    rows = []
    for how, part in predictions[predictions.path != NONE].groupby("how", sort=False):
        cut = part[(part.scope == ALL) & part.f1.notna()]
        scores = cut.pivot_table(index="id", columns="path", values="f1", sort=False)
        chance = cut.groupby("id", sort=False).chance.first().reindex(scores.index)
        rows.append({"how": how, "n": len(scores), **_kept(scores.assign(chance=chance), n_boot, seed)})
    return pd.DataFrame(rows)


def _kept(scores: pd.DataFrame, n_boot: int, seed: int) -> dict[str, Any]:
    """``floor … why`` of one kind of knockout.

    Args:
        scores: F1 of each picture by path, and ``chance``.
        n_boot, seed: of the bootstrap.
    """
    reason = ""
    if len(scores) < FEWEST:
        reason = f"only {len(scores)} unmodified descriptions name an object (at least {FEWEST} are needed)"
    if not len(scores):
        names = ("generated", "query")
        numbers = ["floor", "worth", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))]
        return {**dict.fromkeys(numbers, float("nan")), "verdict": INCONCLUSIVE, "why": reason}
    columns = [scores[name].to_numpy(np.float64) for name in (GENERATED, QUERY, BOTH, "chance")]
    floor = max(columns[2].mean(), columns[3].mean())
    worth = 1 - floor
    row: dict[str, Any] = {"floor": floor, "worth": worth}
    draws = _draws(columns, n_boot, seed)
    if not reason and (worth < LEAST_WORTH or middle(draws["worth"])[0] <= 0):
        reason = f"without the image F1 is still {floor:.2f}: nothing to keep or lose"
    for name, values in (("generated", columns[0]), ("query", columns[1])):
        low = high = share = float("nan")
        if not reason:
            share = (values.mean() - floor) / worth
            low, high = middle(draws[name], around=share)
        row |= {name: share, f"{name}_low": low, f"{name}_high": high}
    row["verdict"], row["why"] = (INCONCLUSIVE, reason) if reason else _judge(row, draws)
    return row


def _draws(columns: list[np.ndarray], n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """Draws of the picture's worth and of both shares, on the same pictures."""
    generated, query, both, chance = drawn_means(*columns, n_boot=n_boot, seed=seed)
    floor = np.maximum(both, chance)
    worth = 1 - floor
    whole = np.where(worth > 1e-9, worth, np.inf)  # where the picture is worth nothing, nothing is kept
    return {"worth": worth, "generated": (generated - floor) / whole, "query": (query - floor) / whole}


def _judge(row: dict[str, Any], draws: dict[str, np.ndarray]) -> tuple[str, str]:
    """The verdict of one kind of knockout, and why."""
    apart_low, apart_high = middle(draws["generated"] - draws["query"])
    if row["query_high"] < MOST and apart_low > APART:
        return (
            STORED,
            "what the query tokens cannot read is lost, what the generated ones cannot read much less",
        )
    if row["generated_high"] < MOST and apart_high < -APART:
        return (
            DIRECT,
            "what the generated tokens cannot read is lost, what the query tokens cannot read much less",
        )
    if row["generated_low"] > MOST and row["query_low"] > MOST:
        return EITHER, "cutting one or the other path keeps more than half: the other one is enough"
    if row["generated_high"] < MOST and row["query_high"] < MOST:
        return NEEDED, "cutting either path loses more than half: one alone is not enough"
    return MIXED, "the two paths are too close, or their intervals too wide, to be told apart"


def verdict(
    shares: pd.DataFrame,
    knockouts: pd.DataFrame,
    window: Mapping[str, Any] | None,
    notes: Sequence[Mapping[str, str]],
    planted: Planted | None,
) -> dict[str, Any]:
    """The verdict of the first ``how`` in words, with its evidence.

    Args:
        shares: from :func:`kept_shares`.
        knockouts: the knockout table.
        window: ``start, stop, reason`` of the window found from the curve.
        notes: evidence from attention, localisation and the compressed context.
        planted: what is known of this model, if anything.

    Returns:
        ``verdict, headline, sentence, answer, evidence`` (list of ``kind, says, text, line``), ``disagree`` (kinds),
        ``how`` and ``planted`` (None, or ``truth, checks``, a list of ``text, holds``, and ``accordingly``).
    """
    if shares.empty:
        shares = pd.DataFrame(
            [{"how": "none", "n": 0, "verdict": INCONCLUSIVE, "why": "nothing was measured"}]
        )
    first = shares.iloc[0].to_dict()
    overall = str(first["verdict"])
    evidence = [_knockout_evidence(row) for row in shares.to_dict("records")]
    for entry in evidence[1:]:
        entry["kind"] += ", the other kind"
    table = knockouts[knockouts.how.isin([first["how"], NONE]) & (knockouts.metric == F1)]
    evidence += [*_curve_evidence(table), *_window_evidence(table, window), *map(dict, notes)]
    decided = overall not in (MIXED, INCONCLUSIVE)
    disagree = [e["kind"] for e in evidence if decided and e["says"] not in (overall, NOTE, INCONCLUSIVE)]
    sentence = _sentence(overall, first)
    if disagree:
        sentence += f" Evidence that disagrees: {', '.join(disagree)}."
    return {
        "verdict": overall,
        "headline": HEADLINES[overall],
        "sentence": sentence,
        "answer": _answer(overall, first),
        "evidence": evidence,
        "disagree": disagree,
        "how": first["how"],
        "planted": None if planted is None else _against_planted(planted, first),
    }


def _sentence(overall: str, row: Mapping[str, Any]) -> str:
    if overall == INCONCLUSIVE:
        return f"Nothing can be said: {row['why']}."
    opening = {
        STORED: "The text finds the picture in the prompt's tokens after it, which have read it before.",
        DIRECT: "The generated tokens read the image tokens themselves; the query tokens hold little of the picture.",
        EITHER: "The query tokens hold the picture, and the generated tokens can read it from the image as well.",
        NEEDED: "The description draws on the query tokens and on the image tokens; neither is enough alone.",
        MIXED: "The two paths cannot be told apart.",
    }[overall]
    return (
        f"{opening} Of what the picture is worth to the objects named, {_share(row, 'generated')} stay when generated "
        f"tokens cannot see the image, and {_share(row, 'query')} when the query tokens cannot."
    )


def paths_of(row: Mapping[str, Any]) -> tuple[Path, Path]:
    """The path through the query tokens and the one past them, with the share of the objects named that a cut loses."""
    kept = {path: row.get(name, float("nan")) for path, name in ((QUERY, "query"), (GENERATED, "generated"))}
    lost = {path: [1 - float(share)] if np.isfinite(share) else [] for path, share in kept.items()}
    return Path(QUERY, lost[QUERY], "gate"), Path(GENERATED, lost[GENERATED], "image")


def _answer(overall: str, row: Mapping[str, Any]) -> str:
    """The sentence the report opens with."""
    if overall == INCONCLUSIVE:
        return f"Nothing can be said: {row['why']}."
    query, generated = (path.said for path in paths_of(row))
    opening = {
        STORED: "The text reads the query tokens: hiding the image from them",
        DIRECT: "The text reads the image directly: hiding it from query tokens",
        EITHER: "Either way is enough: hiding the image from query tokens",
        NEEDED: "Both ways are needed: hiding the image from query tokens",
        MIXED: "The two ways cannot be told apart: hiding the image from query tokens",
    }[overall]
    return f"{opening} loses {query} of the objects named, from generated tokens {generated}."


def _share(row: Mapping[str, Any], name: str) -> str:
    return percent_cell(row[name], row[f"{name}_low"], row[f"{name}_high"])


def lost_share(row: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """``mean, low, high`` of what a knockout loses: all but what it keeps."""
    return 1 - row[name], 1 - row[f"{name}_high"], 1 - row[f"{name}_low"]


def _knockout_evidence(row: Mapping[str, Any]) -> dict[str, str]:
    kind = f"knockout ({row['how']}), all layers"
    if row["verdict"] == INCONCLUSIVE:
        return {"kind": kind, "says": INCONCLUSIVE, "text": row["why"], "line": row["why"]}
    lost = [percent_cell(*lost_share(row, name)) for name in ("generated", "query")]
    line = f"{GENERATED} cut loses {lost[0]}, {QUERY} cut {lost[1]} (n = {row['n']})"
    text = (
        f"{GENERATED} keeps {_share(row, 'generated')}, {QUERY} {_share(row, 'query')} of the F1 between the floor "
        f"{row['floor']:.2f} and 1 (n = {row['n']}): {row['why']}"
    )
    return {"kind": kind, "says": row["verdict"], "text": text, "line": line}


def _curve_evidence(table: pd.DataFrame) -> list[dict[str, str]]:
    """The layers in which F1 rises, and from which on little is read, off the image → both curve."""
    curve = table[(table.path == BOTH) & table.scope.isin([ALL, FROM])].sort_values("start")
    if len(curve) < 2:
        return []
    floor = float(curve["mean"].iloc[0])
    enough = curve[curve["mean"] >= floor + 0.9 * (1 - floor)]
    rises = curve["mean"].diff()
    steepest = int(curve.start[rises.idxmax()])
    text = f"with {BOTH} cut from layer l on, F1 rises most ({rises.max():+.2f}) as l reaches {steepest}"
    if len(enough):
        text += (
            f"; cut from layer {int(enough.start.iloc[0])} on it is {enough['mean'].iloc[0]:.2f}, so that little of "
            "the picture is read there or later"
        )
    else:
        text += (
            "; however late the cut begins, more than a tenth is lost: the last layers still read the picture"
        )
    step = list(curve.start).index(steepest)
    before, after = (number(curve["mean"].iloc[i]) for i in (step - 1, step))
    line = f"F1 rises most, from {before} to {after}, when the cut of {BOTH} starts only at layer {steepest}"
    return [{"kind": "layers", "says": NOTE, "text": text, "line": line}]


def _window_evidence(table: pd.DataFrame, window: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """F1 with the path cut only in the window, and everywhere else."""
    inside, outside = (
        table[(table.path == BOTH) & (table.scope == scope)]["mean"] for scope in (WITHIN, OUTSIDE)
    )
    if window is None or not len(inside) or not len(outside):
        return []
    text = (
        f"layers {span(window['start'], window['stop'])} ({window['reason']}): with {BOTH} cut only there F1 is "
        f"{inside.iloc[0]:.2f}, with it cut everywhere else {outside.iloc[0]:.2f}"
    )
    layers = span(window["start"], window["stop"])
    line = (
        f"{BOTH} cut only in layers {layers} leaves F1 {inside.iloc[0]:.2f}; cut everywhere else, "
        f"{outside.iloc[0]:.2f}"
    )
    return [{"kind": "the window", "says": NOTE, "text": text, "line": line}]


def _against_planted(planted: Planted, row: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the configurations come out as what is known of the model demands."""
    if row["verdict"] == INCONCLUSIVE:
        return {"truth": planted.truth, "checks": [], "accordingly": None}
    share = {GENERATED: row["generated"], QUERY: row["query"]}
    carries, other = share[planted.carries], share[planted.other]
    lost = f"{planted.carries} must take most of it away: {percent(carries)} is left"
    left = f"{planted.other} must leave clearly more than that: {percent(other)} is left"
    wanted = STORED if planted.carries == QUERY else DIRECT
    checks = [
        {"text": lost, "holds": bool(carries < MOST)},
        {"text": left, "holds": bool(other - carries > APART)},
        {"text": f"the verdict must be “{HEADLINES[wanted]}”", "holds": row["verdict"] == wanted},
    ]
    return {"truth": planted.truth, "checks": checks, "accordingly": all(c["holds"] for c in checks)}
