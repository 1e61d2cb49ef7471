"""A data set of a few coloured squares, for tests of studies, views and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from gatelens.plots.pictures import picture_uri
from gatelens.runs import Run
from gatelens.studies.narrow_gate.attention.section import listed
from gatelens.studies.narrow_gate.knockout_table import summarise
from gatelens.studies.narrow_gate.patching.section import summarise_patching
from gatelens.studies.narrow_gate.verdict import (
    attention_evidence,
    patching_evidence,
    task_verdicts,
    verdict,
)

COLORS = {"red": (220, 40, 40), "blue": (40, 60, 220), "dog": (90, 200, 90), "cat": (230, 200, 40)}


def picture(name: str, seed: int, size: int = 16) -> Image.Image:
    """Noise around the colour that stands for the name."""
    noise = np.random.default_rng(seed).integers(-30, 30, size=(size, size, 3))
    return Image.fromarray(np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8))


@dataclass
class TinyData:
    """Classes, questions of two lengths, and captions over the same pictures."""

    name: str = "tiny"
    tasks: tuple[str, ...] = ("class", "vqa", "caption")
    classes: tuple[str, ...] = ("dog", "cat", "red", "blue")
    n: int = 12
    asked: list[str] = field(default_factory=list)

    def examples(self, task: str, limit: int | None = None, seed: int = 0) -> list[Any]:
        self.asked.append(task)
        names = list(self.classes)
        rng = np.random.default_rng(seed)
        out = []
        for i in range(min(self.n, limit or self.n)):
            label = names[i % len(names)]
            prompt, answers = {
                "class": ("<image>this animal is a", (label,)),
                "vqa": (("<image>what color is the dog ?", "<image>what color ?")[i % 2], (label,)),
                "caption": (
                    "<image>it shows",
                    (f"a {label} dog left of the {label} cat", f"a {label} cat and a dog"),
                ),
            }[task]
            image = picture(label, int(rng.integers(1 << 30)))
            out.append(
                SimpleNamespace(
                    image=image,
                    prompt=prompt,
                    answers=answers,
                    task=task,
                    id=f"{task}-{i}",
                    label=label if task == "class" else None,
                    meta={},
                )
            )
        return out


ROWS = ("none", "gate → text", "image → text", "random-10 → text", "last image → text", "gate + image → text")
SCORES = {  # mean score of class, vqa and caption by row
    "narrow": (
        (0.96, 0.88, 3.1),
        (0.11, 0.31, 0.3),
        (0.95, 0.85, 3.0),
        (0.96, 0.88, 3.1),
        (0.96, 0.88, 3.1),
        (0.1, 0.3, 0.2),
    ),
    "open": (
        (0.97, 0.9, 3.2),
        (0.95, 0.88, 3.2),
        (0.12, 0.33, 0.2),
        (0.94, 0.86, 3.0),
        (0.96, 0.9, 3.2),
        (0.1, 0.3, 0.2),
    ),
}


def synthetic_predictions(kind: str, n: int = 200, how: str = "zero") -> pd.DataFrame:
    """Answers as a study stores them, with scores drawn around known means."""
    rng = np.random.default_rng(0)
    rows = []
    for name, means in zip(ROWS, SCORES[kind], strict=True):
        for task, mean in zip(("class", "vqa", "caption"), means, strict=True):
            for repeat in range(3 if name.startswith("random") else 1):
                for i in range(n):
                    score = float(rng.gamma(4, mean / 4)) if task == "caption" else float(rng.random() < mean)
                    restricted = score if task == "class" else float("nan")
                    text = (
                        "a red dog left of a blue cat" if task == "caption" else ("dog" if score else "cat")
                    )
                    rows.append((task, how, name, repeat, f"{task}-{i}", text, score, restricted))
    columns = ["task", "how", "row", "repeat", "id", "prediction", "score", "restricted"]
    return pd.DataFrame(rows, columns=columns)


def synthetic_attention(kind: str, layers: int = 6) -> pd.DataFrame:
    """Shares of every position of an image side of 64 tokens, as a study's table ``attention``."""
    rows = []
    for layer in range(layers):
        gate = (0.45 - 0.04 * layer) if kind == "narrow" else 0.04
        image = (0.97 - gate) / 64
        places = [("boi", -1, 0.03, "start of image <racm3:break>", 0)]
        places += [("image", i, image, f"image token {i}", 1 + i) for i in range(64)]
        places += [("gate", -1, gate, "gate <eoss>", 65)]
        rows += [
            (layer, *place[:3], 0.01, 0.6, 200, 200, "", -1, -1, -1, place[4], place[3]) for place in places
        ]
    columns = ["layer", "kind", "index", "share", "se", "image_side_mass", "n", "held"]
    return pd.DataFrame(rows, columns=[*columns, "token", "row", "col", "tile", "order", "name"])


def synthetic_pairs(kind: str, layers: int = 6) -> pd.DataFrame:
    """Patched pairs of pictures as a study stores them, without what is right of them."""
    rng, rows = np.random.default_rng(1), []
    for pair in range(60):
        for layer in range(-1, layers):
            moved = 0.0 if layer < 0 or kind != "narrow" else max(0.0, 0.95 - 0.2 * max(0, layer - 2))
            base = min(1.0, max(0.05, 1 - moved + 0.02 * rng.random()))
            rows.append((pair, layer, base, max(0.06, moved), True, bool(rng.random() < moved)))
    return pd.DataFrame(rows, columns=["pair", "layer", "base", "target", "flippable", "flipped"])


TOKENS = {
    "header": ["role", "positions", "n", "tokens", "grid"],
    "rows": [
        ["system", "0", "1", "<s>", ""],
        ["boi[0]", "1", "1", "<racm3:break>", ""],
        ["image[0]", "2–65", "64", "<image> … <image>", "8x8 tokens, picture of 64x64 pixels"],
        ["eoi[0]", "66", "1", "<eoss>", ""],
        ["query", "67–70", "4", "This animal is a", ""],
    ],
    "gate": {"string": "<eoss>", "literal": True, "position": 66},
    "prompt": "<image>This animal is a",
    "n_image": 64,
}


def synthetic_examples(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """The first example of each task with its answers, as a study's report shows it."""
    examples = []
    for task, prompt in (
        ("vqa", "<image>What color is the dog?"),
        ("class", "<image>This animal is a"),
        ("caption", "<image>"),
    ):
        part = predictions[(predictions.id == f"{task}-0") & (predictions["repeat"] == 0)]
        examples.append(
            {
                "task": task,
                "id": f"{task}-0",
                "prompt": prompt,
                "answers": ["dog"],
                "picture": picture_uri(picture("dog", 0, 64)),
                "rows": part[["row", "prediction", "score"]].to_dict("records"),
            }
        )
    return examples


def synthetic_run(path: Any, kind: str, n: int = 200, model: str = "") -> Run:
    """A finished run of made-up numbers, without any model and without a report."""
    settings = {
        "model": model or f"organism:{kind}",
        "data": "tiny",
        "how": "zero",
        "seed": 0,
        "max_new_tokens": {"vqa": 20, "caption": 60},
        "sections": {
            "knockouts": {},
            "attention": {"n": 200, "least": 0.01, "times": 2.0},
            "patching": {"n_pairs": 60},
        },
    }
    run = Run.open(path, study="narrow-gate", settings=settings)
    predictions = synthetic_predictions(kind, n)
    run.save("predictions", predictions)
    run.save("knockout", summarise(predictions, 200, 0))
    tasks = task_verdicts(predictions, 20, 200, 0)
    run.save("tasks", tasks)
    attention = synthetic_attention(kind)
    run.save("attention", attention)
    image = attention.kind == "image"
    group = attention.kind.where(~image, "internal_image").mask(
        image & (attention["index"] == 63), "last_image"
    )
    groups = attention.assign(group=group).groupby(["layer", "group"], as_index=False)
    groups = groups.agg(share=("share", "sum"), positions=("share", "size"), n=("n", "first"))
    run.save("attention_groups", groups.assign(low=groups.share, high=groups.share))
    run.save("attention_positions", listed(attention, 0.01, 2.0))
    patching = summarise_patching(synthetic_pairs(kind), 200, 0)
    run.save("patching", patching)
    run.save("patching_attention", patching)
    further = attention_evidence(attention) + patching_evidence(patching)
    run.save("verdict", verdict(tasks, further, "<eoss>"))
    run.save("tokens", TOKENS)
    run.save("examples", synthetic_examples(predictions))
    return run
