"""Measure what an organism's gate carries, fact by fact: what is left when it is cut, and when it is all there is.

    python -m gatelens.organisms.truth src/gatelens/organisms/weights/gated --data varied-scenes --split style

Prompts are pairs of scenes that differ in one fact (:mod:`gatelens.data.scene_pairs`), half of them the other way
round, so that a fact has its two answers equally often; the row ``constant`` says what the best constant answer
gives. A cut is measured in three kinds: ``mask`` (hidden before the softmax), ``zero`` (after it) and ``resample``
(all activations at the positions come from the pair's other scene, in which the question has another answer).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens import data
from gatelens.data.base import Example
from gatelens.data.pairing import pairs as make_pairs
from gatelens.data.scene_pairs import KINDS
from gatelens.interventions import Intervention, knockout, patch
from gatelens.measures.stats import mean_interval
from gatelens.model import HookedVLM

BATCH = 50
TEXT = "text - gate"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="emoji-scenes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=200, help="pairs of each fact")
    parser.add_argument("--seed", type=int, default=321)
    parser.add_argument("--facts", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--layers", action="store_true", help="also the gate cut from each layer on")
    parser.add_argument("--out", type=Path, help="the table as CSV")
    args = parser.parse_args()
    model = HookedVLM.from_pretrained(str(args.folder))
    scenes = data.load(args.data, args.split)
    table = truth(model, scenes, args.n, args.seed, args.facts, args.layers)
    if args.out:
        table.to_csv(args.out, index=False)
    print(table.pivot(index=["row", "answer"], columns="fact", values="mean").round(2).to_string())


def truth(
    model: HookedVLM,
    scenes: Any,
    n: int,
    seed: int,
    facts: Sequence[str] = tuple(KINDS),
    by_layer: bool = False,
) -> pd.DataFrame:
    """Accuracy by fact and cut.

    Args:
        scenes: a data set that gives pairs of every kind.
        n: pairs of each fact.
        facts: of :data:`gatelens.data.scene_pairs.KINDS`.
        by_layer: also rows in which the gate is hidden, picture included, from each layer on.

    Returns:
        Columns ``fact``, ``row`` (what is cut), ``answer`` (``own``: right for the scene shown; ``other``: for the
        scene that activations come from), ``mean``, ``low``, ``high`` (95 % interval), ``n``.
    """
    rows: list[dict[str, Any]] = []
    for fact in facts:
        pairs = make_pairs(scenes, differ=fact, n=n, seed=seed)
        sides = [(p.clean, p.corrupt) if i % 2 == 0 else (p.corrupt, p.clean) for i, p in enumerate(pairs)]
        own = [a.answers[0] for a, _ in sides]
        said: dict[str, list[str]] = {"constant": [Counter(own).most_common(1)[0][0]] * n}
        for start in range(0, n, BATCH):
            for row, words in _said(model, sides[start : start + BATCH], by_layer).items():
                said.setdefault(row, []).extend(words)
        for row, words in said.items():
            rows.append({"fact": fact, "row": row, "answer": "own", **_share(words, own)})
            if "resample" in row:
                other = [b.answers[0] for _, b in sides]
                rows.append({"fact": fact, "row": row, "answer": "other", **_share(words, other)})
    return pd.DataFrame(rows)


def _said(model: HookedVLM, sides: Sequence[tuple[Example, Example]], by_layer: bool) -> dict[str, list[str]]:
    """The first word of each answer, by what is cut."""
    shown, other = (
        model.prepare(images=[e.image for e in one], text=[e.prompt for e in one])
        for one in zip(*sides, strict=True)
    )
    (logits, clean), (_, donor) = (
        model.run_with_cache(one, names_filter=_residual) for one in (shown, other)
    )
    cuts: dict[str, list[Intervention]] = {}
    for how in ("mask", "zero"):
        cuts[f"gate, {how}"] = [knockout(TEXT, "gate", how=how)]
        cuts[f"image, {how}"] = [knockout(TEXT, "image", how=how)]
        cuts[f"gate and image, {how}"] = [knockout(TEXT, "gate | image", how=how)]
    cuts["gate, resample"] = [patch(donor, at="gate")]
    # the gate has read its own picture, and the text another's
    cuts["image, resample"] = [patch(donor, at="image"), patch(clean, at="gate")]
    for layer in range(model.cfg.n_layers) if by_layer else ():
        late = list(range(layer, model.cfg.n_layers))
        cuts[f"gate and image, mask from layer {layer} on"] = [knockout(TEXT, "gate | image", layers=late)]
    said = {"none": logits} | {row: model.run(shown, cut) for row, cut in cuts.items()}
    return {row: _words(model, all_logits) for row, all_logits in said.items()}


def _residual(name: str) -> bool:
    """What the patches read."""
    return name.endswith("hook_resid_pre")


def _words(model: HookedVLM, logits: Any) -> list[str]:
    return [text.strip() for text in model.decode(logits[:, -1].argmax(-1, keepdim=True).tolist())]


def _share(words: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    right = [float(word == answer) for word, answer in zip(words, answers, strict=True)]
    low, high = mean_interval(right)
    return {"mean": sum(right) / len(right), "low": float(low), "high": float(high), "n": len(right)}


if __name__ == "__main__":
    main()
