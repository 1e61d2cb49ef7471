"""Is there a narrow gate? The study of Serra et al. (arXiv 2412.06646) on any model and data set.

Knockout table, attention shares, patching of the gate, a verdict in words; tables, figures and a report on
disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.data.base import kind
from gatelens.engine import look
from gatelens.errors import DataError
from gatelens.measures.attention import AttentionShare
from gatelens.runs import Run, check_writable
from gatelens.studies import gate_patching as patching
from gatelens.studies import knockout_table as table
from gatelens.studies.common import (
    Labels,
    Progress,
    auto_batch_size,
    chunks,
    chunks_by_length,
    data_fingerprint,
    data_uri,
    draw,
    model_fingerprint,
    model_name,
    prepare,
    provenance,
    resolve_data,
    resolve_model,
)
from gatelens.studies.verdict import task_verdicts, verdict

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM

STUDY = "narrow-gate"
SHOWN = {"vqa": 3, "class": 2, "caption": 3}  # example pictures in the report, the first drawn of each task


def narrow_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] | None = None,
    *,
    how: str = "zero",
    limit: int | None = None,
    seed: int = 0,
    n_class: int = 500,
    n_vqa: int = 500,
    n_caption: int = 200,
    n_pairs: int = 100,
    n_attention: int = 200,
    random_tokens: int = 10,
    random_repeats: int = 3,
    vqa_tokens: int = 20,
    caption_tokens: int = 60,
    n_boot: int = 1000,
    batch_size: int | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Run:
    """Run the study, or finish one that was cut short in the same folder.

    Args:
        model: a model or its name.
        data: a data set, its name or a folder (see :func:`gatelens.data.load`); tasks it lacks are left out. The
            paper's settings: ``narrow_gate(model, out=..., **gatelens.data.preset("paper").arguments())``.
        out: folder of the run; None keeps the tables in memory and draws no figures.
        how: ``"zero"`` (after the softmax, as the paper's code does), ``"mask"`` (before it), ``"both"``.
        limit: at most this many examples a task (and patched pairs).
        seed: draws examples, pairs, random tokens and bootstrap samples.
        n_class, n_vqa, n_caption: examples of each task.
        n_pairs, n_attention: pairs to patch; examples the attention shares are averaged over.
        random_tokens, random_repeats: image tokens of the random row, and how often it is drawn anew.
        vqa_tokens, caption_tokens: most tokens generated.
        batch_size: None fits it to the length of the prompts.
        skip_bad: leave bad rows of data given by name out, and list them in the manifest, instead of stopping.
        device, dtype: where to load a model given by name.

    Returns:
        The run: ``run.table("knockout")``, ``"attention"``, ``"patching"``, ``"tasks"``, ``"predictions"``,
        ``run.json("verdict")``; with ``out`` also ``figures/knockout.png``, …, ``report.html``.

    Raises:
        OutputError: ``out`` can't be written or holds other settings (before any compute).
        DataError: the data has none of the tasks, or examples lack pictures or answers.
    """
    hows = table.hows(how)
    if out is not None:
        check_writable(out)
    for name, value in (
        ("limit", limit),
        ("batch_size", batch_size),
        ("n_boot", n_boot),
        ("random_repeats", random_repeats),
    ):
        if value is not None and value < 1:
            raise DataError(f"{name}={value} leaves nothing to do; give at least 1")
    name = model_name(model)
    options = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    source = resolve_data(
        data, skip_bad
    )  # before the model, which takes longer to load than bad data to find
    wanted = {"class": n_class, "vqa": n_vqa, "caption": n_caption}
    capped = {task: n if limit is None else min(n, limit) for task, n in wanted.items()}
    tasks = [task for asked in capped for task in source.tasks if kind(task) == asked]
    drawn = {task: draw(source, task, capped[kind(task)], seed) for task in tasks}
    drawn = {task: found for task, found in drawn.items() if found}
    if not drawn:
        raise DataError(
            f"data {source.name!r} has none of the tasks {', '.join(wanted)} (it has: "
            f"{', '.join(source.tasks)})"
        )
    everything = [e for found in drawn.values() for e in found]
    vlm = resolve_model(model, **options)
    size = batch_size or auto_batch_size(vlm, max(everything, key=lambda e: len(e.prompt)))
    settings = {
        "model": name,
        "weights": model_fingerprint(vlm),
        "data": source.name,
        "examples": data_fingerprint(everything),
        "n": {task: len(found) for task, found in drawn.items()},
        "how": how,
        "seed": seed,
        "n_pairs": n_pairs if limit is None else min(n_pairs, limit),
        "n_attention": n_attention if limit is None else min(n_attention, limit),
        "random_tokens": random_tokens,
        "random_repeats": random_repeats,
        "max_new_tokens": {"vqa": vqa_tokens, "caption": caption_tokens},
        "n_boot": n_boot,
        "batch_size": size,
        "dtype": str(vlm.dtype),
    }
    info = {
        "device": str(vlm.device),
        "model_class": type(vlm.hf).__name__,
        "n_layers": int(vlm.cfg.n_layers),
        **provenance(source),
    }
    run = Run.open(out, study=STUDY, settings=settings, info=info)
    study = _Study(vlm, source, drawn, hows, size, run)
    with table.inference():
        study.run_all(progress)
    if out is not None:
        # The one place where a study reaches for a later stage: its last act is to have itself drawn.
        from gatelens.views.report import write_report

        write_report(run)
    return run


@dataclass
class _Study:
    """The stages of one run, in order."""

    model: HookedVLM
    data: Dataset
    drawn: dict[str, list[Example]]
    hows: Sequence[table.How]
    size: int
    run: Run

    def run_all(self, progress: bool) -> None:
        self.set = self.run.manifest["settings"]
        self.rows = table.table_rows(self.set["random_tokens"], self.set["random_repeats"])
        self.labels = Labels(self.model)
        pairs = patching.draw_pairs(self.drawn.get("class", []), self.set["n_pairs"], self.set["seed"])
        looked = next(
            found
            for asked in ("vqa", "class", "caption")
            for t, found in self.drawn.items()
            if kind(t) == asked
        )[: self.set["n_attention"]]
        per_batch = len(self.hows) * sum(row.repeats for row in self.rows)
        tasks = [
            (t, *chunk)
            for t, found in self.drawn.items()
            for chunk in chunks_by_length(self.model, found, self.size)
        ]
        patches = list(chunks(pairs, self.size))
        total = sum(per_batch for t, number, *_ in tasks if not self.run.done(f"shards/{t}-{number:04d}"))
        total += sum(1 for number, *_ in patches if not self.run.done(f"shards/patching-{number:04d}"))
        total += 0 if self.run.done("attention") else len(list(chunks(looked, self.size)))
        with Progress(total, progress) as self.bar:
            self._describe(looked[0])
            answers = [self._answers(*task) for task in tasks]
            self.run.stage("attention", lambda: self._attention(looked))
            patched = [self._patched(number, start, part) for number, start, part in patches]
        self._conclude(pd.concat(answers, ignore_index=True), patched)

    def _describe(self, example: Example) -> None:
        """Store who is where in one prompt, and what the gate is."""
        if self.run.done("tokens"):
            return
        tokens = prepare(self.model, [example]).tokens
        where = tokens.positions("gate")
        if not where:
            raise DataError(
                f"example {example.id!r}: its prompt has no position after the image, so there is no gate"
            )
        literal = bool(tokens.mask("eoi").any())
        shown = tokens.show()
        gate = {"string": tokens.strings[0][where[-1]], "literal": literal, "position": where[-1]}
        value = {"header": list(shown.header[1:]), "rows": [list(r[1:]) for r in shown.rows], "gate": gate}
        self.run.save_json(
            "tokens", {**value, "prompt": example.prompt, "n_image": int(tokens.mask("image").sum())}
        )

    def _answers(self, task: str, number: int, start: int, part: Sequence[Example]) -> pd.DataFrame:
        """Every row of the knockout table on one batch."""

        def compute() -> pd.DataFrame:
            longest = self.set["max_new_tokens"].get(kind(task), 1)
            places = [(how, row, r) for how in self.hows for row in self.rows for r in range(row.repeats)]
            # the unmodified run is the same for every kind of knockout
            keys = [(None if row.keys is None else how, row.name, r) for how, row, r in places]
            runs = {
                key: table.specs(row, r, self.set["seed"], how)
                for key, (how, row, r) in zip(keys, places, strict=True)
            }
            inputs = prepare(self.model, part, start)
            outcomes = table.outcomes(self.model, inputs, task, list(runs.values()), longest)
            said = dict(zip(runs, outcomes, strict=True))
            found: list[pd.DataFrame] = []
            for key, (how, row, repeat) in zip(keys, places, strict=True):
                answers = table.evaluate(self.model, part, task, said[key], self.labels, self.data.classes)
                found.append(table.labelled(task, how, row, repeat, answers))
                self.bar.step(f"{task}, {row.name}")
            return pd.concat(found, ignore_index=True)

        return self.run.stage(f"shards/{task}-{number:04d}", compute)

    def _attention(self, examples: Sequence[Example]) -> pd.DataFrame:
        share = AttentionShare(int(self.model.cfg.n_layers))
        for _, start, part in chunks(examples, self.size):
            inputs = prepare(self.model, part, start)
            with share.looking(inputs.tokens, table.QUERIES) as see:
                look(self.model, inputs, table.QUERIES, see)
            self.bar.step("attention share")
        return share.table()

    def _patched(self, number: int, start: int, part: Sequence[patching.Pair]) -> pd.DataFrame:
        def compute() -> pd.DataFrame:
            found = patching.patch_layers(self.model, part, start, self.labels)
            self.bar.step("patching the gate")
            return found

        return self.run.stage(f"shards/patching-{number:04d}", compute)

    def _conclude(self, answers: pd.DataFrame, patched: Sequence[pd.DataFrame]) -> None:
        """Tables, verdict and examples from the stored answers; cheap, so always made anew."""
        boot, seed, run = self.set["n_boot"], self.set["seed"], self.run
        predictions = answers
        for task in (t for t in self.drawn if kind(t) == "caption"):
            predictions = table.score_captions(predictions, self.drawn[task], task)
        run.save_table("predictions", predictions)
        run.save_table("knockout", table.summarise(predictions, boot, seed))
        tasks = task_verdicts(predictions, len(self.data.classes), boot, seed)
        run.save_table("tasks", tasks)
        curve = None
        if patched:
            pairs = pd.concat(patched, ignore_index=True)
            run.save_table("patching_pairs", pairs)
            curve = patching.summarise_patching(pairs, boot, seed)
            run.save_table("patching", curve)
        gate = run.json("tokens")["gate"]
        called = (
            f"the end-of-image token {gate['string']}"
            if gate["literal"]
            else "the first token after the image"
        )
        run.save_json("verdict", verdict(tasks, run.table("attention"), curve, called))
        run.save_json("examples", self._examples(predictions))

    def _examples(self, predictions: pd.DataFrame) -> list[dict[str, Any]]:
        """The first drawn examples of each task with every row's answer: not chosen by what they show."""
        shown = predictions[(predictions.how == self.hows[0]) & (predictions["repeat"] == 0)]
        out = []
        for task, n in ((t, n) for asked, n in SHOWN.items() for t in self.drawn if kind(t) == asked):
            for e in self.drawn[task][:n]:
                part = shown[(shown.task == task) & (shown.id == e.id)]
                rows = part[["row", "prediction", "score"]].to_dict("records")
                picture = data_uri(e.image) if e.image is not None else ""
                wanted = list(table.labels_of(e))
                out.append(
                    {
                        "task": task,
                        "id": e.id,
                        "prompt": e.prompt,
                        "answers": wanted,
                        "picture": picture,
                        "rows": rows,
                    }
                )
        return out
