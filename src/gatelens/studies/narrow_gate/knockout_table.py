"""The knockout table: every row of it, evaluated on one batch; and the table with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from gatelens.data import Example
from gatelens.data.base import kind
from gatelens.engine import generate_many, last_logits
from gatelens.examples import Labels, labels_of
from gatelens.inputs import VLMInputs
from gatelens.interventions import knockout
from gatelens.measures.answers import accuracy, restricted_accuracy, vqa_accuracy
from gatelens.measures.captions import cider_d
from gatelens.measures.stats import SHARE, Bounds, mean_interval
from gatelens.model import HookedVLM
from gatelens.studies.options import How
from gatelens.studies.section import span_of

NONE, GATE, IMAGE = "none", "gate → text", "image → text"
LAST, FLOOR = "last image → text", "gate + image → text"
QUERIES = "text - gate"
IMAGE_SIDE = "boi | image | row_break"
METRICS = {"class": "class accuracy", "vqa": "VQA accuracy", "caption": "CIDEr-D"}
RESTRICTED = "class accuracy among the class names"


def metric_of(task: str) -> str:
    """The metric of a task, with the data set's name where several have it: ``CIDEr-D (coco)``."""
    return METRICS[kind(task)] + task.removeprefix(kind(task))


def bounds_of(task: str) -> Bounds | None:
    """The minimum and maximum of an example's score in a task; CIDEr-D weighs words by how rare they are."""
    return None if kind(task) == "caption" else SHARE


@dataclass(frozen=True)
class Row:
    """One row of the table: which keys the text can no longer read."""

    name: str
    keys: str | None
    repeats: int = 1

    def interventions(self, repeat: int, seed: int, how: How) -> list[Any]:
        """The interventions of one repeat (random rows draw other tokens each time)."""
        if self.keys is None:
            return []
        return [knockout(queries=QUERIES, keys=self.keys.format(seed=seed * 1000 + repeat), how=how)]


def table_rows(random_tokens: int, random_repeats: int) -> list[Row]:
    """The rows, in the order of the table. The last is a control: nothing of the image reaches the text."""
    return [
        Row(NONE, None),
        Row(GATE, "gate"),
        Row(IMAGE, IMAGE_SIDE),
        Row(f"random-{random_tokens} → text", f"random_image:{random_tokens}@{{seed}}", random_repeats),
        Row(LAST, "last_image"),
        Row(FLOOR, f"gate | {IMAGE_SIDE}"),
    ]


def outcomes(
    model: HookedVLM, inputs: VLMInputs, task: str, runs: Sequence[Sequence[Any]], max_new_tokens: int
) -> Sequence[Tensor | list[str]]:
    """What each run says of one batch: logits Float[batch, d_vocab] for ``class``, else texts."""
    if kind(task) == "class":
        return last_logits(model, inputs, runs)
    return [out.texts for out in generate_many(model, inputs, runs, max_new_tokens)]


def evaluate(
    model: HookedVLM,
    examples: Sequence[Example],
    task: str,
    outcome: Tensor | list[str],
    labels: Labels,
    classes: Sequence[str],
) -> pd.DataFrame:
    """Answers of one batch in one run: ``id, prediction, score, restricted`` (captions are scored later)."""
    nothing = [float("nan")] * len(examples)
    if isinstance(outcome, Tensor):
        logits = outcome.float().cpu()
        wanted = [[labels.first_token(e.prompt, name) for name in labels_of(e)] for e in examples]
        among = [labels.first_token(examples[0].prompt, name) for name in classes]
        score = accuracy(logits, wanted).float().tolist()
        restricted = restricted_accuracy(logits, wanted, among).float().tolist() if among else nothing
        best = logits.argmax(-1).tolist()
        decoded, tokens = model.decode([[i] for i in best]), model.tokenizer.convert_ids_to_tokens(best)
        words = zip(decoded, tokens, best, strict=True)
        texts = [
            text or token or f"token {i}" for text, token, i in words
        ]  # special tokens decode to nothing
    else:
        texts, score, restricted = outcome, nothing, nothing
        if kind(task) == "vqa":
            score = [vqa_accuracy(t, e.answers) for t, e in zip(texts, examples, strict=True)]
    ids = [e.id for e in examples]
    texts = [t.strip() for t in texts]
    return pd.DataFrame({"id": ids, "prediction": texts, "score": score, "restricted": restricted})


def score_captions(
    predictions: pd.DataFrame, examples: Sequence[Example], task: str = "caption"
) -> pd.DataFrame:
    """Fill in the scores of the caption rows, whose word weights need the references of all pictures."""
    references = {e.id: list(e.answers) for e in examples}
    out = predictions.copy()
    chosen = out[out.task == task]
    for _, part in chosen.groupby(["how", "row", "repeat"], sort=False):
        out.loc[part.index, "score"] = cider_d(list(part.prediction), [references[i] for i in part.id])
    return out


def by_example(predictions: pd.DataFrame) -> pd.DataFrame:
    """What the knockout table averages: ``how, row, task, metric, id, value, span, repeats``.

    The repeats of a random row are averaged within each example. ``span``: see
    :func:`gatelens.studies.section.span_of`.
    """
    keys = ["how", "row", "task", "id"]
    means = predictions.groupby(keys, sort=False).agg(
        score=("score", "mean"), restricted=("restricted", "mean"), repeats=("repeat", "nunique")
    )
    means = means.reset_index()
    means["span"] = [span_of(bounds_of(task)) for task in means.task]
    scores = means.assign(metric=means.task.map(metric_of), value=means.score)
    # only where class names are known, and then of every example
    restricted = means[means.restricted.notna()].assign(metric=RESTRICTED, value=means.restricted)
    order = pd.concat([scores, restricted], ignore_index=True)
    return order[["how", "row", "task", "metric", "id", "value", "span", "repeats"]]


def summarise(predictions: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """The knockout table: ``how, row, task, metric, mean, low, high, n, repeats``; intervals are over examples."""
    rows = []
    for (how, name, task), part in by_example(predictions).groupby(["how", "row", "task"], sort=False):
        for metric, values in part.groupby("metric", sort=False):
            interval = mean_interval(values.value, bounds_of(task), n_boot=n_boot, seed=seed)
            numbers = (values.value.mean(), *interval, len(values))
            rows.append((how, name, task, metric, *numbers, part.repeats.max()))
    return pd.DataFrame(rows, columns=["how", "row", "task", "metric", "mean", "low", "high", "n", "repeats"])


def kinds_shown(table: pd.DataFrame, name: str) -> list[tuple[str, str, str]]:
    """Each kind of knockout in a table, with the name and title of its part of the page; no title where it is alone."""
    hows = list(table.how.unique())
    if len(hows) == 1:
        return [(hows[0], name, "")]
    return [(how, f"{name}_{how}", f"Knockout {how}") for how in hows]
