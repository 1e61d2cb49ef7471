"""What stands beside the knockouts: attention by token type, localisation and the compressed context, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gatelens.measures.stats import bootstrap_interval
from gatelens.plots.numbers import percent
from gatelens.studies.whats_in_the_image.verdict import NOTE

PROMPT_KINDS = ("query", "system", "markers")  # the paper's query tokens: the prompt without the image


def by_paper(types: pd.DataFrame) -> pd.DataFrame:
    """The token-type table with the paper's three kinds: ``layer, kind (image, query, generated), share, even``."""
    kinds = types.kind.where(~types.kind.isin(PROMPT_KINDS), "query")
    return types.assign(kind=kinds).groupby(["layer", "kind"], as_index=False)[["share", "even"]].sum()


def localisation_table(hits: Sequence[pd.DataFrame], n_boot: int, seed: int) -> pd.DataFrame:
    """Means over named objects, by band of layers, with bootstrap intervals over objects.

    Columns ``first, last, hit, hit_low, hit_high, chance, near, near_low, near_high, chance_near, mass, n``; empty
    when no named object has a mask.
    """
    whole = pd.concat([h for h in hits if len(h)] or [pd.DataFrame()], ignore_index=True)
    rows = []
    for (first, last), part in whole.groupby(["first", "last"]) if len(whole) else ():
        row: dict[str, float] = {"first": int(first), "last": int(last)}
        for name, chance in (("hit", "chance"), ("near", "chance_near")):
            values = part[name].to_numpy(np.float64)
            low, high = bootstrap_interval(values, n_boot=n_boot, seed=seed)
            row |= {
                name: values.mean(),
                f"{name}_low": low,
                f"{name}_high": high,
                chance: part[chance].mean(),
            }
        rows.append({**row, "mass": part["mass"].mean(), "n": len(part)})
    return pd.DataFrame(rows)


def notes(types: pd.DataFrame, places: pd.DataFrame, trade: pd.DataFrame | None) -> list[dict[str, str]]:
    """Evidence that tells where the text looks and what little is enough; it decides nothing."""
    out = []
    if len(types):
        image = by_paper(types).query("kind == 'image'").set_index("layer")
        peak = int(image.share.idxmax())
        text = (
            f"generated tokens give the image {percent(image.share.mean())} of their attention on average over layers "
            f"({percent(image.even.mean())} if every position were looked at alike), most in layer {peak} "
            f"({percent(image.share.max())}). Attention shows where text looks, not what it uses"
        )
        out.append({"kind": "attention by token type", "says": NOTE, "text": text})
    if len(places):
        best = places.loc[places.hit.idxmax()]
        text = (
            f"the word of a named object looks hardest at a point of that object in {percent(best.hit)} "
            f"[{percent(best.hit_low)}, {percent(best.hit_high)}] of {int(best.n)} cases in "
            f"{band_name(best)}, the best; chance is {percent(best.chance)}"
        )
        out.append({"kind": "localisation", "says": NOTE, "text": text})
    if trade is not None and len(trade):
        out.append({"kind": "compressed context", "says": NOTE, "text": trade_text(trade)})
    return out


def band_name(row: pd.Series) -> str:
    """ "layer 3", or "layers 4–7"."""
    first, last = int(row["first"]), int(row["last"])
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def trade_text(trade: pd.DataFrame) -> str:
    """What is left of the accuracy when only some of the context is kept."""
    full = trade[trade.keep == 1].iloc[-1]
    parts = [
        f"{r.accuracy:.2f} [{r.low:.2f}, {r.high:.2f}] from {r.context} ({r.tokens:.0f} tokens)"
        for r in trade[trade.keep < 1].itertuples()
    ]
    return (
        f"questions are answered with accuracy {full.accuracy:.2f} from the full context ({full.tokens:.0f} tokens), "
        f"{', '.join(parts)} (n = {int(full.n_questions)})"
    )
