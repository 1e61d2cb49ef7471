"""What the words on a report page mean; one paragraph each, shown under "How it was measured"."""

from __future__ import annotations

from gatelens.measures.stats import IN_WORDS
from gatelens.plots.numbers import percent
from gatelens.runs import Run
from gatelens.studies.narrow_gate.knockout_table import METRICS, RESTRICTED
from gatelens.studies.narrow_gate.verdict import (
    APART,
    BEYOND,
    FEWEST,
    FLIPS,
    GATE_SHARE,
    GATE_TIMES,
    LEAST_ABOVE_FLOOR,
    MOST,
)

ALWAYS_SAID = ("X → text", "interval", "verdict", "errors of the verdict", "evidence")

METHOD = {
    "knockout zero": (
        "The attention to the cut tokens is set to 0 after the softmax, and the row is not renormalised "
        "(the paper's code)."
    ),
    "knockout mask": (
        "The attention scores of the cut tokens are −∞ before the softmax, so that the row renormalises."
    ),
    "X → text": (
        "Text positions after the gate cannot read X, in any layer or head, also while generating. The gate "
        "itself goes on reading the image. Image means the image tokens with their start and row-break "
        "markers."
    ),
    METRICS["class"]: "The most likely next token, of the whole vocabulary, is the label's first token.",
    RESTRICTED: "The same, when only the class names' first tokens compete.",
    METRICS["vqa"]: (
        "Greedy answer of at most {vqa} tokens; with ten annotators the VQA v2 formula, else an exact match "
        "with an accepted answer, both normalised as in the VQA evaluation."
    ),
    METRICS["caption"]: (
        "Greedy caption of at most {caption} tokens; CIDEr-D as the COCO caption evaluation computes it, its "
        "factor 10 included (1.00 is often written 100), words split by a plain tokeniser."
    ),
    "interval": IN_WORDS,
    "verdict": (
        "Of the difference between the unmodified model and the floor (gate and image both cut; for classes at least "
        "chance, for questions at least what is guessed from the question alone), the share each knockout removes. "
        f"Narrow: the gate's share lies above {percent(MOST)}, the image tokens' below, and they are more than "
        f"{100 * APART:.0f} points apart, intervals considered; distributed: the reverse. It needs {FEWEST} examples a "
        f"task and a difference of at least {LEAST_ABOVE_FLOOR}. A share below 0 means that the cut helps. {BEYOND}"
    ),
    "errors of the verdict": (
        "Drawn from models whose truth is set, with 24 to 500 examples: a gate that removes exactly half is called "
        "narrow in at most 4 studies of 100; one that removes 70 % while the image tokens remove 10 % is found in 41 "
        "of 100 with 24 examples, in 62 with 50 and in all with 200; paths that are both needed or each enough are "
        "never called narrow or distributed (python -m benchmarks.verdicts; docs/statistics.md)."
    ),
    "evidence": (
        f"Patching says narrow where the interval of the answers turned lies above {percent(FLIPS[1])}, distributed "
        f"where it lies below {percent(FLIPS[0])}: a truth on the bound is taken for one beyond it in 3 studies of "
        f"100. Attention says narrow where the gate takes at least {percent(GATE_SHARE)} of what the image side gets "
        f"in some layer, however many positions it has, and {GATE_TIMES:g} times an even share; random scores hardly "
        "ever do."
    ),
}


def words(run: Run) -> dict[str, str]:
    """The terms that every report of this study explains."""
    return {term: METHOD[term] for term in ALWAYS_SAID}
