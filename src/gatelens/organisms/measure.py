"""Measure an organism on scenes it never saw and write its card.

    python -m gatelens.organisms.measure src/gatelens/organisms/weights/gated

Everything in the card comes from here: the narrow-gate study's knockout table at a larger n, easy-vqa's test
questions, the facts that go through its gate (``truth``), and, for the native organisms, pictures they drew, read
back by themselves. Scenes are the recipe's: those of ``varied`` also in the style that no training scene has.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gatelens import data
from gatelens.drawing import codec
from gatelens.drawing.pictures import draw_pictures
from gatelens.measures.answers import vqa_accuracy
from gatelens.measures.stats import mean_interval
from gatelens.model import HookedVLM
from gatelens.organisms import card
from gatelens.organisms.recipes import RECIPES
from gatelens.organisms.truth import truth
from gatelens.studies import narrow_gate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1000, help="examples of each measurement")
    parser.add_argument("--n-drawn", type=int, default=500, help="pictures drawn")
    parser.add_argument("--seed", type=int, default=123, help="not the studies' default: other scenes")
    parser.add_argument("--n-truth", type=int, default=200, help="pairs of scenes for each fact")
    args = parser.parse_args()
    model = HookedVLM.from_pretrained(str(args.folder))
    scenes = RECIPES[args.folder.name].scenes
    measured = measure(model, scenes, args.n, args.n_drawn, args.n_truth, args.seed)
    (args.folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    training = json.loads((args.folder / "training.json").read_text())
    (args.folder / "README.md").write_text(card.write(args.folder.name, model, training, measured))
    print((args.folder / "README.md").read_text())


def measure(model: HookedVLM, scenes: str, n: int, n_drawn: int, n_truth: int, seed: int) -> dict[str, Any]:
    """All numbers of the card, each with its 95 % interval and n, on scenes of a data set."""
    run = narrow_gate(
        model, scenes, seed=seed, n_class=n, n_vqa=n, n_caption=min(n, 500), sections=["knockouts"],
        random_repeats=5,
    )  # fmt: skip
    knockout = run.table("knockout")
    measured: dict[str, Any] = {
        "seed": seed,
        "knockout": knockout[["row", "metric", "mean", "low", "high", "n"]].to_dict("records"),
        "question kinds": _by_kind(run.table("predictions"), scenes, n, seed),
        "easy-vqa test": _easy_vqa(model, n, seed),
        "truth": truth(model, data.load(scenes), n_truth, seed).to_dict("records"),
    }
    if scenes == "varied-scenes":
        measured["truth, style"] = truth(model, data.load(scenes, "style"), n_truth, seed).to_dict("records")
    if (Path(model.hf.name_or_path) / codec.DECODER_FILE).is_file():
        measured["drawn"] = _drawn(model, scenes, n_drawn, seed)
    return measured


def _by_kind(predictions: pd.DataFrame, scenes: str, n: int, seed: int) -> list[dict[str, Any]]:
    """VQA accuracy without intervention, by kind of question."""
    kinds = {e.id: e.meta["kind"] for e in data.load(scenes).examples("vqa", n, seed)}
    clean = predictions[(predictions.task == "vqa") & (predictions["row"] == "none")]
    scores = clean.groupby(clean.id.map(kinds)).score
    return [{"kind": str(kind), **_interval(part.tolist())} for kind, part in scores]


def _easy_vqa(model: HookedVLM, n: int, seed: int) -> dict[str, float]:
    examples = data.load("easy-vqa").examples("vqa", n, seed)
    scores: list[float] = []
    for start in range(0, len(examples), 100):
        part = examples[start : start + 100]
        inputs = model.prepare(images=[e.image for e in part], text=[e.prompt for e in part])
        texts = model.generate(inputs, max_new_tokens=4)
        scores += [vqa_accuracy(t, e.answers) for t, e in zip(texts, part, strict=True)]
    return _interval(scores)


def _drawn(model: HookedVLM, scenes: str, n: int, seed: int) -> dict[str, float]:
    """Asked for a held-out combination, the model draws; shown its picture, it is asked what it is."""
    examples = data.load(scenes).examples("draw", n, seed)
    hits: list[float] = []
    for start in range(0, n, 100):
        part = examples[start : start + 100]
        pictures = draw_pictures(model, [e.prompt for e in part], seed=seed + start)
        shown = model.prepare(images=pictures, text=["<image>this is a"] * len(part))
        said = model.decode(model(shown)[:, -1].argmax(-1, keepdim=True).tolist())
        hits += [float(word.strip() == e.label) for word, e in zip(said, part, strict=True)]
    return _interval(hits)


def _interval(values: Sequence[float]) -> dict[str, float]:
    low, high = mean_interval(values, n_boot=2000)
    mean = math.fsum(values) / len(values)
    return {"mean": mean, "low": float(low), "high": float(high), "n": len(values)}


if __name__ == "__main__":
    main()
