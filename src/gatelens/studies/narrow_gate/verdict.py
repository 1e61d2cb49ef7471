"""From the numbers to words: is there a narrow gate, or does the text read many image tokens?

The knockout decides; attention and patching are further evidence, and the verdict says where they disagree. Where
both cuts remove most, patching decides which of them does damage (:func:`told_from_damage`).
For each task, with *floor* what is left when gate and image are both cut off from the text (for classes at
least 1 / number of classes, for questions at least what is guessed from the question alone), the share of the
picture's contribution that a knockout removes is ``(none − knocked out) / (none − floor)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gatelens.measures.stats import drawn_means, middle
from gatelens.plots.numbers import percent, percent_cell
from gatelens.plots.opening import Path
from gatelens.studies.gate_finder.verdict import FLIPS
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE, bounds_of, metric_of

NARROW, DISTRIBUTED, MIXED, INCONCLUSIVE = "narrow", "distributed", "mixed", "inconclusive"
ANOTHER = "another gate"  # what the search says of a narrow set that does not hold the study's gate
FINDER = "gate finder"  # what its evidence is called
MOST = 0.5  # a knockout "removes most" when its interval lies above this share
APART = 0.25  # …and the two knockouts differ when the interval of their difference lies above this
LEAST_ABOVE_FLOOR = 0.1  # accuracy (or CIDEr-D) the picture must be worth for a share of it to mean anything
EITHER = "either path alone is enough"
NEEDED = "both paths are needed"
BEYOND = "Above 100 %, answers with the cut are worse than without any picture: the cut does damage besides."
DAMAGE = "cutting the {cut} too removes most, by damage: taken from another picture, the gate changes {turns} answers"
ATTENTION = "attention share"  # what its evidence is called
PATCHED, PATCHED_INPUT = "patching the gate", "patching the gate’s attention input"
FEWEST = 20  # examples of a task
# attention: the gate stands out when in some layer it takes this much of what the image side gets, however many
# positions share it, and this many times an even share, which a third is not where there are few
GATE_SHARE, GATE_TIMES = 0.3, 5.0


@dataclass(frozen=True)
class Candidate:
    """A narrow set of positions that the search found and that is not the study's gate alone.

    Attributes:
        name: its positions.
        holds_gate: whether the study's gate is among them.
        text: what was measured of it, on classes.
    """

    name: str
    holds_gate: bool
    text: str


def task_verdicts(
    predictions: pd.DataFrame,
    n_classes: int,
    n_boot: int,
    seed: int,
    chances: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One row a ``how`` and task: what the picture is worth, the shares the two knockouts remove, and the verdict.

    Columns ``how, task, metric, n, none, chance, floor, worth, gate, gate_low, gate_high, image, image_low, image_high,
    verdict, why``; intervals are over examples, the cuts paired (95 %). ``chances``: what a blind guesser
    scores in a task, a lower limit for its floor.
    """
    rows = []
    for (how, task), part in predictions.groupby(["how", "task"], sort=False):
        wide = part.groupby(["id", "row"], sort=False)["score"].mean().unstack("row")
        scores = [wide[name].to_numpy(dtype=np.float64) for name in (NONE, GATE, IMAGE, FLOOR)]
        none, gate, image, floor = (values.mean() for values in scores)
        chance = 1 / n_classes if task == "class" and n_classes > 1 else 0.0
        chance = max(chance, (chances or {}).get(task, 0.0))
        row: dict[str, Any] = {"how": how, "task": task, "metric": metric_of(task), "n": len(wide)}
        row |= {"none": none, "chance": chance, "floor": max(floor, chance)}
        row["worth"] = row["none"] - row["floor"]
        draws = _shares(drawn_means(*scores, bounds=bounds_of(task), n_boot=n_boot, seed=seed), chance)
        reason = ""
        if len(wide) < FEWEST:
            reason = f"only {len(wide)} examples (at least {FEWEST} are needed)"
        elif row["worth"] < LEAST_ABOVE_FLOOR or middle(draws["worth"])[0] <= 0:
            reason = (
                f"the unmodified {row['metric']} {row['none']:.2f} is too near the floor {row['floor']:.2f} "
                "for a share of the difference to mean anything"
            )
        for name, left in (("gate", gate), ("image", image)):
            share = (none - left) / row["worth"] if row["worth"] > 0 else float("nan")
            low, high = middle(draws[name], around=share) if not reason else (float("nan"),) * 2
            row |= {name: share, f"{name}_low": low, f"{name}_high": high}
        row["verdict"], row["why"] = (INCONCLUSIVE, reason) if reason else _judge(row, draws)
        rows.append(row)
    return pd.DataFrame(rows)


def _shares(means: np.ndarray, chance: float) -> dict[str, np.ndarray]:
    """What the picture is worth and the share that each cut removes, of draws of the four means."""
    none, gate, image, floor = means
    worth = none - np.maximum(floor, chance)
    whole = np.where(worth > 1e-9, worth, np.inf)  # where the picture is worth nothing, nothing is removed
    return {"worth": worth, "gate": (none - gate) / whole, "image": (none - image) / whole}


def _judge(row: dict[str, Any], draws: dict[str, np.ndarray]) -> tuple[str, str]:
    apart = middle(draws["gate"] - draws["image"])
    most = "cutting {} removes most of what the picture is worth, cutting {} little"
    if row["gate_low"] > MOST and apart[0] > APART and row["image"] < MOST:
        return NARROW, most.format("the gate", "the image tokens")
    if row["image_low"] > MOST and apart[1] < -APART and row["gate"] < MOST:
        return DISTRIBUTED, most.format("the image tokens", "the gate")
    if row["gate"] > MOST and row["image"] > MOST:
        return MIXED, f"{NEEDED}: cutting either removes most of what the picture is worth"
    if row["gate"] < MOST and row["image"] < MOST:
        return MIXED, f"{EITHER}: cutting one or the other removes less than half"
    return MIXED, "the intervals of the two knockouts are too wide or too close to tell the paths apart"


def told_from_damage(tasks: pd.DataFrame, further: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The tasks, with those of classes judged again where cutting either path removes most.

    A cut can hurt where nothing of the picture passes: where the answer needs a constant that the position brings.
    Patching leaves it there. With all that is read at the gate taken from another picture, answers that follow came
    through the gate, and answers that stay came past it.
    """
    says = {e["kind"]: e["says"] for e in further}
    turned = says.get(PATCHED_INPUT, INCONCLUSIVE)
    opposite = {NARROW: DISTRIBUTED, DISTRIBUTED: NARROW}.get(turned)
    if opposite is None or says.get(PATCHED) == opposite or tasks.empty:
        return tasks
    damaged = (tasks.task == "class") & (tasks.verdict == MIXED) & (tasks.gate > MOST) & (tasks.image > MOST)
    cut, turns = ("image tokens", "most") if turned == NARROW else ("gate", "few")
    out = tasks.copy()
    out.loc[damaged, ["verdict", "why"]] = turned, DAMAGE.format(cut=cut, turns=turns)
    return out


def agreed(verdicts: Iterable[str]) -> str:
    """Narrow or distributed where half of the verdicts that say anything are, and none is the other."""
    usable = [v for v in verdicts if v != INCONCLUSIVE]
    for one, other in ((NARROW, DISTRIBUTED), (DISTRIBUTED, NARROW)):
        if usable and other not in usable and 2 * usable.count(one) >= len(usable):
            return one
    return MIXED if usable else INCONCLUSIVE


def verdict(
    tasks: pd.DataFrame, further: Sequence[dict[str, str]], gate: str, found: Candidate | None = None
) -> dict[str, Any]:
    """The verdict over all tasks of the first ``how``, in words, with its evidence.

    The knockouts of the study's gate decide; where both cuts remove most of classes, patching tells which of them does
    damage (:func:`told_from_damage`). Where they do not find it narrow and the search found a narrow set of
    other positions, the verdict is a narrow gate there: what speaks against the study's gate does not speak against it.

    Args:
        tasks: from :func:`task_verdicts`.
        further: evidence of the other sections, each ``kind, says, text``.
        gate: what the gate token is called in the sentence.
        found: the search's narrow set where it is not this gate alone.

    Returns:
        ``verdict`` (narrow, distributed, mixed, inconclusive), ``headline``, ``sentence``, ``answer``, ``evidence``
        (list of ``kind, says, text, line``), ``disagree`` (kinds), ``how``, and ``gate``, what the narrow gate is
        called, or None.
    """
    how = str(tasks.how.iloc[0]) if len(tasks) else "none"
    tasks = told_from_damage(tasks, further)
    first = tasks[tasks.how == how] if len(tasks) else tasks
    of_gate = agreed(first.verdict if len(tasks) else ())
    found = found if of_gate in (DISTRIBUTED, MIXED) else None
    evidence = [_knockout_evidence(row) for row in first.to_dict("records")]
    for row in tasks.drop(first.index).to_dict("records"):
        entry = _knockout_evidence(row)
        evidence.append({**entry, "kind": f"{entry['kind']} (how={row['how']})"})
    evidence += [dict(e) for e in further]
    overall, decided = NARROW if found else of_gate, found is not None or of_gate in (NARROW, DISTRIBUTED)
    disagree = [e["kind"] for e in evidence if decided and _disagrees(e, overall, found)]
    for e in evidence:
        if e["kind"] in disagree and not found and (why := _why(e, overall, first, gate)):
            e["text"] += f". Why it disagrees: {why}"
            e["line"] += f", yet a cut there loses at most {percent(_most_lost(first, overall))}"
    sentence = _sentence(of_gate, first, gate) if found is None else _found_sentence(found, first, gate)
    if disagree:
        sentence += f" Evidence that disagrees: {', '.join(disagree)}."
    elif decided and not found and sum(e["says"] == overall for e in evidence) > 1:
        sentence += " All other conclusive evidence agrees."
    name = (found.name if found else gate) if overall == NARROW else None
    return {
        "verdict": overall,
        "headline": f"narrow gate at {name}" if name else overall,
        "sentence": sentence,
        "answer": _answer(of_gate, first, found),
        "evidence": evidence,
        "disagree": disagree,
        "how": how,
        "gate": name,
    }


def _disagrees(evidence: dict[str, str], overall: str, found: Candidate | None) -> bool:
    """Whether a piece of evidence speaks against the verdict; all but the search's is about the study's gate."""
    if found is None:
        return evidence["says"] not in (overall, INCONCLUSIVE)
    return evidence["says"] == NARROW and evidence["kind"] != FINDER and not found.holds_gate


def _why(evidence: dict[str, str], overall: str, tasks: pd.DataFrame, gate: str) -> str:
    """The measured reason a piece of evidence differs from the verdict; nothing where none was measured."""
    if evidence["kind"] != ATTENTION:
        return ""
    if _most_lost(tasks, overall) > MOST:  # not so in every task
        return ""
    most = percent(_most_lost(tasks, overall))
    looked, it = ("the image tokens", "them") if overall == NARROW else (gate, "it")
    return (
        f"the text looks at {looked} without using {it}: cutting {it} off removes at most {most} of "
        "what the picture is worth"
    )


def _most_lost(tasks: pd.DataFrame, overall: str) -> float:
    """The share that cutting the other path removes in the task where it is largest."""
    used = tasks[tasks.verdict != INCONCLUSIVE]
    return max(0.0, float((used.image if overall == NARROW else used.gate).max()))


def paths_of(tasks: pd.DataFrame) -> tuple[Path, Path]:
    """The path through the gate and the one past it, with the shares lost in the tasks that say anything."""
    first = tasks[tasks.how == tasks.how.iloc[0]] if len(tasks) else tasks
    used = first[first.verdict != INCONCLUSIVE] if len(tasks) else first
    gate, image = (list(used[name]) if len(used) else [] for name in ("gate", "image"))
    return Path(GATE, gate, "gate"), Path(IMAGE, image, "image")


def _answer(of_gate: str, tasks: pd.DataFrame, found: Candidate | None) -> str:
    """The sentence the report opens with."""
    gate, image = (path.said for path in paths_of(tasks))
    if found is not None:
        beside = "and not through the gate alone" if found.holds_gate else "and not through the gate"
        return f"The image reaches the answer through {found.name} {beside}, whose cut loses {gate}."
    if of_gate == INCONCLUSIVE:
        return f"Nothing can be said: {tasks.why.iloc[0] if len(tasks) else 'no task was measured'}."
    harm = ", by damage" if _by_damage(tasks).any() else ""
    if of_gate == NARROW:
        opening = "The text reads the image through the gate: cutting it loses"
        return f"{opening} {gate} of what the picture is worth, cutting the image tokens {image}{harm}."
    if of_gate == DISTRIBUTED:
        opening = "The text reads the image tokens directly: cutting them loses"
        return f"{opening} {image} of what the picture is worth, cutting the gate {gate}{harm}."
    reasons = [why for why in (EITHER, NEEDED) if tasks[tasks.verdict == MIXED].why.str.startswith(why).all()]
    opening = reasons[0].capitalize() if reasons else "Neither path explains it all"
    return f"{opening}: cutting the gate loses {gate} of what the picture is worth, cutting the image tokens {image}."


def _found_sentence(found: Candidate, tasks: pd.DataFrame, gate: str) -> str:
    alone = " alone" if found.holds_gate else ""
    return (
        f"The image reaches the answer through {found.name}, not through {gate}{alone}: {found.text}. This was "
        f"searched for with classes. Of {gate}: {_removes(tasks[tasks.verdict != INCONCLUSIVE], gate)}"
    )


def _sentence(overall: str, tasks: pd.DataFrame, gate: str) -> str:
    if overall == INCONCLUSIVE:
        reasons = [f"{r.metric}: {r.why}" for r in tasks.itertuples()] or ["no task was measured"]
        return "Nothing can be said: " + "; ".join(reasons) + "."
    used = tasks[tasks.verdict != INCONCLUSIVE]
    opening = {
        NARROW: f"The image reaches the text through {gate}.",
        DISTRIBUTED: f"The text reads the image tokens directly; {gate} is not a gate.",
        MIXED: "Neither a narrow gate nor direct reading of the image tokens explains all of it.",
    }[overall]
    text = f"{opening} {_removes(used, gate)}"
    told = used[used.verdict == MIXED] if overall == MIXED else used[_by_damage(used)]
    if len(told):
        text += " " + "; ".join(f"{r.metric}: {r.why}" for r in told.itertuples()) + "."
    return text


def _by_damage(tasks: pd.DataFrame) -> pd.Series:
    """The tasks in which one of the cuts does damage."""
    decided = tasks.verdict.isin([NARROW, DISTRIBUTED])
    return decided & (tasks.gate > MOST) & (tasks.image > MOST)


def _removes(used: pd.DataFrame, gate: str) -> str:
    """What both cuts remove, by task."""
    numbers = ", ".join(
        f"{percent(r.gate)} in {r.metric} (cutting the image tokens: {percent(r.image)})"
        for r in used.itertuples()
    )
    text = f"Of what the picture is worth to the answers, cutting {gate} off from the text removes {numbers}."
    beyond = any(round(share, 2) > 1 for share in [*used.gate, *used.image])
    return f"{text} {BEYOND}" if beyond else text


def _knockout_evidence(row: dict[str, Any]) -> dict[str, str]:
    kind = f"knockout, {row['metric']}"
    if row["verdict"] == INCONCLUSIVE:
        return {"kind": kind, "says": INCONCLUSIVE, "text": row["why"], "line": row["why"]}
    shares = [percent_cell(row[k], row[f"{k}_low"], row[f"{k}_high"]) for k in ("gate", "image")]
    line = f"{GATE} loses {shares[0]}, {IMAGE} {shares[1]} (n = {row['n']})"
    gate, image = (percent_cell(row[k], row[f"{k}_low"], row[f"{k}_high"]) for k in ("gate", "image"))
    text = (
        f"unmodified {row['none']:.2f}, floor {row['floor']:.2f} (n = {row['n']}); of the difference "
        f"gate → text removes {gate}, image → text {image}: {row['why']}"
    )
    return {"kind": kind, "says": row["verdict"], "text": text, "line": line}


def gate_stands_out(share: float, n_positions: int) -> bool:
    """Whether a share of the attention to an image side with this number of positions is that of a gate."""
    return share >= max(GATE_SHARE, GATE_TIMES / n_positions)


def attention_evidence(table: pd.DataFrame) -> list[dict[str, str]]:
    """What the attention-share table says: narrow where the gate stands out in some layer."""
    if table.empty:
        return []
    gate = table[table.kind == "gate"].set_index("layer").share
    image = table[table.kind == "image"].groupby("layer").share.sum()
    peak = int(gate.idxmax())
    n_image = int((table.kind == "image").sum() / table.layer.nunique())
    n_side = len(table) // table.layer.nunique()
    out = gate_stands_out(float(gate.max()), n_side)
    says = NARROW if out else DISTRIBUTED if image.mean() > MOST else INCONCLUSIVE
    text = (
        f"of text's attention to the image side the gate takes {percent(gate.mean())} on average over "
        f"layers, most in layer {peak} ({percent(gate.max())}, {gate.max() * n_side:.1f} times an even share); the "
        f"{n_image} image tokens together take {percent(image.mean())}. Attention shows where text looks, not what it "
        "uses"
    )
    line = (
        f"the gate gets at most {percent(gate.max())} (layer {peak}), the {n_image} image tokens get "
        f"{percent(image.mean())}"
    )
    return [{"kind": ATTENTION, "says": says, "text": text, "line": line}]


def patching_evidence(table: pd.DataFrame) -> list[dict[str, str]]:
    """What the patching table says: narrow where the gate alone flips the answer."""
    if table.empty:
        return []
    flips = table[(table.measure == "flipped") & (table.layer >= 0)]
    if flips.empty:
        text = "no pair of pictures has two different clean predictions, so none can flip"
        return [{"kind": PATCHED, "says": INCONCLUSIVE, "text": text, "line": text}]
    best = flips.loc[flips["mean"].idxmax()]
    where = f"at the best layer, {int(best.layer)}" if best["mean"] > 0 else "whatever the layer"
    few = best.n < FEWEST
    text = (
        f"the gate's residual stream of another picture flips the prediction to that picture's in {_of_pairs(best)} "
        f"{where}" + (f"; only {int(best.n)} pairs, at least {FEWEST} are needed" if few else "")
    )
    line = f"another picture’s gate changes {_of_pairs(best)} to that picture’s answer" + (
        f" (layer {int(best.layer)}, the best)" if best["mean"] > 0 else ""
    )
    says = INCONCLUSIVE if few else _turns(best)
    return [{"kind": PATCHED, "says": says, "text": text, "line": line}]


def attention_input_evidence(table: pd.DataFrame) -> list[dict[str, str]]:
    """What cumulative patching of the gate's attention input says.

    From layer 0 on it puts all that text ever reads at the gate in the target's place: narrow where that makes the
    answer the target's class, distributed where it leaves the base's.
    """
    rows = table[(table.measure == "success") & (table.layer == 0)]
    n = 0 if rows.empty else int(rows.n.iloc[0])
    if n < FEWEST:
        text = f"only {n} pairs have two right clean predictions, at least {FEWEST} are needed"
        return [{"kind": PATCHED_INPUT, "says": INCONCLUSIVE, "text": text, "line": text}]
    line = f"all that is read at the gate, from another picture, changes {_of_pairs(rows.iloc[0])}"
    text = (
        "with all that the attention reads at the gate taken from another picture, in every layer, the prediction is "
        f"that picture's class in {_of_pairs(rows.iloc[0])}"
    )
    return [{"kind": PATCHED_INPUT, "says": _turns(rows.iloc[0]), "text": text, "line": line}]


def _turns(row: pd.Series) -> str:
    return NARROW if row.low > FLIPS[1] else DISTRIBUTED if row.high < FLIPS[0] else MIXED


def _of_pairs(row: pd.Series) -> str:
    return f"{percent_cell(row['mean'], row.low, row.high)} of {int(row.n)} pairs"
