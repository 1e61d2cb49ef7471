"""A gate search with numbers put in, for tests of what is said and drawn of one."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

from gatelens.engine import last_logits
from gatelens.examples import Labels, labels_of, prepare
from gatelens.studies.gate_finder.measurements import CutAnswers, PatchedAnswers
from gatelens.studies.gate_finder.places import Place, find_places, varying_inputs
from gatelens.studies.gate_finder.spliced import SplicedAnswers
from gatelens.studies.gate_finder.study import GateSearch
from gatelens.studies.gate_finder.verdict import gate_verdict

HOWS = ("zero", "mask")
GONE = ("resample", *HOWS)
FACTS: dict[str, Any] = {
    "n": 96, "n_pairs": 48, "seed": 0,
    "how": list(HOWS), "narrow": 4, "chance": 0.1, "accuracy": 0.9, "probability": 0.88, "floor": 0.1, "worth": 0.78,
    "worth_low": 0.7, "worth_high": 0.85, "information": 5.0, "information_low": 4.0, "information_high": 6.0,
    "naming_p": 0.001, "joint_mean": 0.95, "joint_low": 0.9, "joint_high": 1.0, "around": 0.0, "around_low": -0.01,
    "around_high": 0.02, "overlap_by_chance": 0.07, "part": 0.9, "redundant": [], "complementary": [],
}  # fmt: skip


def made_up(
    n_picture: int = 64, gate: int = 0, words: tuple[str, ...] = ("<eoss>", "this", "is"), **facts: Any
) -> Any:
    """A search with numbers put in: the place ``gate`` after the picture carries everything."""
    places = [Place(i, "image", i, "<image>", 2 + i, True) for i in range(n_picture)]
    places += [Place(n_picture + i, "query", i, w, 2 + n_picture + i, False) for i, w in enumerate(words)]
    chosen = n_picture + gate
    rows = []
    for place in places:
        strong = place.number == chosen
        for measure in (
            "attention",
            "overlap",
            "zero accuracy",
            "zero log_prob",
            "mask accuracy",
            "mask log_prob",
        ):
            mean = 0.8 if strong else 0.05 + 0.001 * (place.number % 7)
            rows.append((place.number, measure, mean, mean - 0.02, mean + 0.02, 96, 1))
        rows.append(
            (
                place.number,
                "flipped",
                0.95 if strong else 0.0,
                0.9 if strong else 0,
                1.0 if strong else 0,
                48,
                -1,
            )
        )
    measures = pd.DataFrame(rows, columns=["place", "measure", "mean", "low", "high", "n", "layer"])
    blocks = measures[
        measures.place.isin(range(0, n_picture, 8)) & (measures.measure == "zero accuracy")
    ].assign(measure="shared")
    blocks["last"] = (blocks.place + 7).clip(upper=n_picture - 1)
    one = {
        "size": 1, "low": 1, "high": 1, "share": 0.99, "share_low": 0.95, "share_high": 1.02, "places": [chosen],
        "damage": [n_picture + 1],
    }  # fmt: skip
    sets = {how: dict(one) for how in GONE}
    settings = FACTS | {"n_picture": n_picture, "n_after": len(words), "patched": [chosen]} | facts
    sizes = [1, 2, 4, n_picture]
    curves = pd.concat(
        [
            pd.DataFrame({"how": h, "size": sizes, "share": 0.99, "low": 0.9, "high": 1.0, "added": 0})
            for h in GONE
        ]
    )
    layers = pd.DataFrame(
        [
            (measure, layer, mean, mean - 0.05, mean + 0.05, 48)
            for layer, mean in enumerate((0.1, 0.9, 0.2))
            for measure in ("flipped", "target overlap")
        ],
        columns=["measure", "layer", "mean", "low", "high", "n"],
    )
    said = gate_verdict(places, measures, sets, settings)
    return GateSearch(
        "made-up", "<image>this is", tuple(places), measures, blocks, curves, layers, settings, said
    )


class Measurements:
    """The measurements of the finder on examples a test holds, in batches of ``size``, without the search."""

    def __init__(self, model: Any, examples: Any, size: int = 6) -> None:
        labels = Labels(model)
        ids = [labels.first_token(e.prompt, labels_of(e)[0]) for e in examples]
        self.model, self.examples, self.tokens = model, examples, tuple(sorted(set(ids)))
        self.labels = [self.tokens.index(i) for i in ids]
        numbers = range(len(examples))
        self.parts = [tuple(numbers[i : i + size]) for i in range(0, len(examples), size)]
        tables = [
            varying_inputs(model, [examples[i] for i in part], part, examples[0] if at else None)
            for at, part in enumerate(self.parts)
        ]
        self.positions = pd.concat(tables, ignore_index=True)
        self.layout = find_places(self.positions, len(examples))

    def placed(self, numbers: Any) -> dict[str, Any]:
        """What every batch of placed prompts holds."""
        return {
            "numbers": tuple(numbers), "examples": [self.examples[i] for i in numbers],
            "places": self.layout.places, "tokens": self.tokens,
            "labels": tuple(self.labels[i] for i in numbers),
        }  # fmt: skip

    def measured(self, kind: Any, table: str, **asked: Any) -> pd.DataFrame:
        """One table of a measurement over all parts."""
        batches = [kind(str(i), **self.placed(part), **asked) for i, part in enumerate(self.parts)]
        return pd.concat([batch.measure(self.model)[table] for batch in batches], ignore_index=True)

    def cut(self, how: Any, sets: Any) -> pd.DataFrame:
        """Answers with sets of places cut."""
        return self.measured(CutAnswers, "answers", how=how, sets=sets)

    def patched(self, pairs: dict[int, int], sets: Any) -> pd.DataFrame:
        """Answers with sets of places patched."""
        sources = [self.examples[i] for i in pairs.values()]
        return PatchedAnswers("0", **self.placed(pairs), sources=sources, sets=sets).measure(self.model)[
            "moved"
        ]

    def spliced(self, pairs: dict[int, int], sets: Any) -> pd.DataFrame:
        """Answers with sets of places kept, and taken."""
        sources = [self.examples[i] for i in pairs.values()]
        labels = tuple(self.labels[i] for i in pairs.values())
        batch = SplicedAnswers("0", **self.placed(pairs), sources=sources, source_labels=labels, sets=sets)
        return batch.measure(self.model)["spliced"]

    def answers(self) -> torch.Tensor:
        """The unmodified answers' distributions."""
        logits = [
            last_logits(self.model, prepare(self.model, [self.examples[i] for i in part]), [None])[0]
            for part in self.parts
        ]
        return torch.cat(logits).float().softmax(-1)
