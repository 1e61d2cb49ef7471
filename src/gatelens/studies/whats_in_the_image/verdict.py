"""From object F1 under knockouts to words: where is what the text says of the picture stored, and where is it read?

F1 counts the objects of the unmodified description that are still named. *Floor* is what is left when no row after
the image sees it (image → both), and at least chance, the F1 of other pictures' descriptions. Of the difference to
the unmodified model, a knockout keeps ``(knocked out − floor) / (1 − floor)``:

- with image → generated cut, what is kept was *stored* in the prompt's tokens after the image and read from there;
- with image → query cut, what is kept was *read* from the image by the generated tokens themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.stats import bootstrap_replicates
from gatelens.plots.numbers import percent
from gatelens.studies.whats_in_the_image.configurations import (
    ALL,
    BOTH,
    FROM,
    GENERATED,
    NONE,
    OUTSIDE,
    QUERY,
    WITHIN,
)
from gatelens.studies.whats_in_the_image.planted import Planted

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


def kept_shares(predictions: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """One row a ``how``: what each path, cut in all layers, leaves of what the picture is worth, and the verdict.

    Columns ``how, n, floor, worth, generated, generated_low, generated_high, query, query_low, query_high,
    verdict, why``; intervals are paired bootstrap intervals over pictures (95 %).

    Args:
        predictions: ``id, how, path, scope, f1, chance`` of the study; ``f1`` is missing where the unmodified
            description names no object.
        n_boot, seed: of the bootstrap.
    """
    rows = []
    for how, part in predictions[predictions.path != NONE].groupby("how", sort=False):
        whole = part[(part.scope == ALL) & part.f1.notna()]
        wide = whole.pivot_table(index="id", columns="path", values="f1", sort=False)
        chance = whole.groupby("id", sort=False).chance.first().reindex(wide.index)
        row: dict[str, Any] = {"how": how, "n": len(wide)}
        reason, draws = "", None
        if len(wide) < FEWEST:
            reason = f"only {len(wide)} unmodified descriptions name an object (at least {FEWEST} are needed)"
        if len(wide):
            columns = [wide[path].to_numpy(np.float64) for path in (GENERATED, QUERY, BOTH)]
            columns.append(chance.to_numpy(np.float64))
            row["floor"] = max(columns[2].mean(), columns[3].mean())
            row["worth"] = 1 - row["floor"]
            draws = _draws(columns, n_boot, seed)
            if not reason and (row["worth"] < LEAST_WORTH or np.percentile(draws["worth"], 2.5) <= 0):
                reason = f"without sight of the image F1 is still {row['floor']:.2f}: nothing to keep or lose"
            for name, values in (("generated", columns[0]), ("query", columns[1])):
                known = not reason and row["worth"] > 0
                row[name] = (values.mean() - row["floor"]) / row["worth"] if known else float("nan")
                low, high = np.percentile(draws[name], [2.5, 97.5]) if known else (float("nan"),) * 2
                row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        row["verdict"], row["why"] = (INCONCLUSIVE, reason) if reason or draws is None else _judge(row, draws)
        rows.append(row)
    return pd.DataFrame(rows)


def _draws(columns: list[np.ndarray], n_boot: int, seed: int) -> dict[str, np.ndarray]:
    """Bootstrap replicates of the picture's worth and of both shares, on the same draws of pictures."""

    def kept(index: int | None) -> np.ndarray:
        def statistic(*drawn: np.ndarray) -> np.ndarray:
            floor = np.maximum(drawn[2].mean(-1), drawn[3].mean(-1))
            worth = 1 - floor
            if index is None:
                return worth
            return (drawn[index].mean(-1) - floor) / np.where(np.abs(worth) < 1e-9, np.nan, worth)

        return np.nan_to_num(bootstrap_replicates(statistic, *columns, n_boot=n_boot, seed=seed))

    return {"worth": kept(None), "generated": kept(0), "query": kept(1)}


def _judge(row: dict[str, Any], draws: dict[str, np.ndarray]) -> tuple[str, str]:
    apart = np.percentile(draws["generated"] - draws["query"], [2.5, 97.5])
    if row["query_high"] < MOST and apart[0] > APART:
        return (
            STORED,
            "what the query tokens cannot read is lost, what the generated ones cannot read much less",
        )
    if row["generated_high"] < MOST and apart[1] < -APART:
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
    window: dict[str, Any] | None,
    notes: list[dict[str, str]],
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
        ``verdict, headline, sentence, evidence`` (list of ``kind, says, text``), ``disagree`` (kinds), ``how`` and
        ``planted`` (None, or ``truth, checks``, a list of ``text, holds``, and ``accordingly``).
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
    table = knockouts[knockouts.how.isin([first["how"], NONE]) & (knockouts.metric == "object F1")]
    evidence += _layer_evidence(table, window) + notes
    decided = overall not in (MIXED, INCONCLUSIVE)
    disagree = [e["kind"] for e in evidence if decided and e["says"] not in (overall, NOTE, INCONCLUSIVE)]
    sentence = _sentence(overall, first)
    if disagree:
        sentence += f" Evidence that does not agree: {', '.join(disagree)}."
    return {
        "verdict": overall,
        "headline": HEADLINES[overall],
        "sentence": sentence,
        "evidence": evidence,
        "disagree": disagree,
        "how": first["how"],
        "planted": None if planted is None else _against_planted(planted, first),
    }


def _sentence(overall: str, row: dict[str, Any]) -> str:
    if overall == INCONCLUSIVE:
        return f"Nothing can be said: {row['why']}."
    opening = {
        STORED: "The text finds the picture in the prompt's tokens after it, which have read it before.",
        DIRECT: "The generated tokens read the image tokens themselves; the query tokens hold little of the picture.",
        EITHER: "The query tokens hold the picture, and the generated tokens can read it from the image as well.",
        NEEDED: "The description draws on the query tokens and on the image tokens; neither is enough alone.",
        MIXED: "The two paths cannot be told apart.",
    }[overall]
    generated, query = (_share(row, name) for name in ("generated", "query"))
    return (
        f"{opening} Of what the picture is worth to the objects named, {generated} stay when generated tokens "
        f"cannot see the image, and {query} when the query tokens cannot."
    )


def _share(row: dict[str, Any], name: str) -> str:
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def _knockout_evidence(row: dict[str, Any]) -> dict[str, str]:
    kind = f"knockout ({row['how']}), all layers"
    if row["verdict"] == INCONCLUSIVE:
        return {"kind": kind, "says": INCONCLUSIVE, "text": row["why"]}
    text = (
        f"{GENERATED} keeps {_share(row, 'generated')}, {QUERY} {_share(row, 'query')} of the F1 between the floor "
        f"{row['floor']:.2f} and 1 (n = {row['n']}): {row['why']}"
    )
    return {"kind": kind, "says": row["verdict"], "text": text}


def _layer_evidence(table: pd.DataFrame, window: dict[str, Any] | None) -> list[dict[str, str]]:
    """Which layers carry the flow, read off the curve and the window."""
    out = []
    curve = table[(table.path == BOTH) & table.scope.isin([ALL, FROM])].sort_values("start")
    if len(curve) > 1:
        floor = float(curve["mean"].iloc[0])
        enough = curve[curve["mean"] >= floor + 0.9 * (1 - floor)]
        steepest = curve["mean"].diff().idxmax()
        rise, after = curve["mean"].diff().max(), curve.loc[steepest]
        text = f"with {BOTH} cut from layer l on, F1 rises most ({rise:+.2f}) as l reaches {int(after.start)}"
        text += (
            f"; cut from layer {int(enough.start.iloc[0])} on it is {enough['mean'].iloc[0]:.2f}, so that little of "
            "the picture is read there or later"
            if len(enough)
            else "; however late the cut begins, more than a tenth is lost: the last layers still read the picture"
        )
        out.append({"kind": "layers", "says": NOTE, "text": text})
    if window is not None:
        inside, outside = (
            table[(table.path == BOTH) & (table.scope == scope)]["mean"] for scope in (WITHIN, OUTSIDE)
        )
        if len(inside) and len(outside):
            span = f"{window['start']}–{window['stop'] - 1}"
            text = (
                f"layers {span} ({window['reason']}): with {BOTH} cut only there F1 is {inside.iloc[0]:.2f}, "
                f"with it cut everywhere else {outside.iloc[0]:.2f}"
            )
            out.append({"kind": "the window", "says": NOTE, "text": text})
    return out


def _against_planted(planted: Planted, row: dict[str, Any]) -> dict[str, Any]:
    """Whether the configurations come out as what is known of the model demands."""
    if row["verdict"] == INCONCLUSIVE:
        return {"truth": planted.truth, "checks": [], "accordingly": None}
    share = {GENERATED: row["generated"], QUERY: row["query"]}
    carries, other = share[planted.carries], share[planted.other]
    lost = f"{planted.carries} must take most of it away: {percent(carries)} is left"
    left = f"{planted.other} must leave clearly more than that: {percent(other)} is left"
    wanted = STORED if planted.verdict == "query" else DIRECT
    checks = [
        {"text": lost, "holds": bool(carries < MOST)},
        {"text": left, "holds": bool(other - carries > APART)},
        {"text": f"the verdict must be “{HEADLINES[wanted]}”", "holds": row["verdict"] == wanted},
    ]
    return {"truth": planted.truth, "checks": checks, "accordingly": all(c["holds"] for c in checks)}
