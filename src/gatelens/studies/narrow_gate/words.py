"""What the words on a report page mean: those of the first screen, and those of “How it was measured”."""

from __future__ import annotations

from gatelens.data.base import kind
from gatelens.measures.stats import IN_WORDS
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import METRICS, RESTRICTED
from gatelens.studies.narrow_gate.verdict import (
    APART,
    FEWEST,
    FLIPS,
    GATE_SHARE,
    GATE_TIMES,
    LEAST_ABOVE_FLOOR,
    MOST,
)

ALWAYS_SAID = ("interval", "verdict", "errors of the verdict", "evidence")

METHOD = {
    "gate": (
        "The model’s own end-of-image token, or the first token after the image where it has none. The image side is "
        "the image tokens with their start and row-break markers."
    ),
    "X → text": (
        "A knockout: text after the gate cannot read X in any layer or head, nor while generating. The gate itself "
        "still reads the image."
    ),
    "knockout zero": (
        "Attention to the cut tokens is set to 0 after the softmax. The row is not renormalised, as in the paper’s "
        "code."
    ),
    "knockout mask": "Attention scores of the cut tokens are −∞ before the softmax, so the row renormalises.",
    "what the picture is worth": (
        "The unmodified score minus the floor. The floor is the score with gate and image both cut. It is at least "
        "chance for classes, and at least a blind guess for questions."
    ),
    "lost": (
        "The share of that worth a knockout removes. Above 100 %, the cut does more damage than taking the picture "
        "away; below 0 %, it helps."
    ),
    METRICS["class"]: "The most likely next token, of the whole vocabulary, is the label’s first token.",
    RESTRICTED: "The same when only the class names’ first tokens compete.",
    METRICS["vqa"]: (
        "Greedy answer of at most {vqa} tokens, normalised as in the VQA evaluation. With ten annotators it is the "
        "VQA v2 score, otherwise an exact match with an accepted answer."
    ),
    METRICS["caption"]: (
        "Greedy caption of at most {caption} tokens, scored as the COCO evaluation does, with its factor of 10. "
        "1.00 is often written 100. Words are split by a plain tokeniser."
    ),
    "interval": IN_WORDS,
    "verdict": (
        f"Narrow: the gate’s share lost is above {percent(MOST)}, the image tokens’ is below, and they are more than "
        f"{100 * APART:.0f} points apart. Intervals are taken into account. Distributed: the reverse. "
        "Where both shares of classes are above, patching tells which of the cuts does damage. A task needs "
        f"{FEWEST} examples and a picture worth at least {LEAST_ABOVE_FLOOR}."
    ),
    "errors of the verdict": (
        "From simulated models with a known truth. A gate that removes exactly half is called narrow in at most 4 of "
        "100 studies. One that removes 70 % (image tokens 10 %) is found in 41 of 100 with 24 examples. With 50 it "
        "is found in 62, with 200 in all. Paths that are both needed, or each enough, are never called narrow or "
        "distributed. Of small models with a planted answer, none of "
        "117 studies of 200 examples erred. See the page Statistics of the documentation."
    ),
    "evidence": (
        f"Patching says narrow where the interval of answers changed lies above {percent(FLIPS[1])}, distributed below "
        f"{percent(FLIPS[0])}. A truth on the bound is misjudged in 3 of 100 studies. Attention says narrow where the "
        f"gate takes at least {percent(GATE_SHARE)} of the image side’s attention in some layer, and {GATE_TIMES:g} "
        "times an even share. Random scores hardly ever do."
    ),
}


def words(run: Run) -> dict[str, str]:
    """The terms that every report of this study explains under “How it was measured”."""
    return {term: METHOD[term] for term in ALWAYS_SAID}


def first_words(run: Run) -> dict[str, str]:
    """The terms of the first screen."""
    knockout, longest = run.table("knockout"), run.settings["max_new_tokens"]
    used = {"gate", "X → text", "what the picture is worth", "lost", *knockout.metric}
    used |= {f"knockout {how}" for how in knockout.how} | {METRICS[kind(task)] for task in knockout.task}
    return {term: text.format(**longest) for term, text in METHOD.items() if term in used}
