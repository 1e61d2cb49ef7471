"""Is there a narrow gate? The study of Serra et al. (arXiv 2412.06646) on any model and data set.

The sections of ``sections.py`` in order, a verdict in words; tables, figures and a report on disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.data.base import kind
from gatelens.errors import DataError, GatelensError
from gatelens.runs import Run, check_writable
from gatelens.studies.common import (
    Labels,
    Progress,
    auto_batch_size,
    data_fingerprint,
    data_uri,
    draw,
    inference,
    kinds_of_knockout,
    labels_of,
    model_fingerprint,
    model_name,
    prepare,
    provenance,
    resolve_data,
    resolve_model,
)
from gatelens.studies.narrow_gate.asking import REPEATS, Repeats, as_asked, check_repeats, turned_kinds
from gatelens.studies.narrow_gate.section import Context, Piece
from gatelens.studies.narrow_gate.sections import BY_NAME, Chosen
from gatelens.studies.narrow_gate.sections import chosen as chosen_sections
from gatelens.studies.narrow_gate.verdict import verdict

if TYPE_CHECKING:
    from gatelens.data import Dataset
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
    sections: Chosen = None,
    random_tokens: int = 10,
    random_repeats: Repeats = REPEATS,
    vqa_tokens: int = 20,
    caption_tokens: int = 60,
    chat: bool | None = None,
    n_boot: int = 1000,
    batch_size: int | None = None,
    skip_bad: bool = False,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Run:
    """Run the study, or finish one that was cut short in the same folder.

    Args:
        model: a model or its name.
        data: a data set, its name or a folder (see :func:`gatelens.data.load`); tasks it lacks are left out. The
            paper's settings: ``narrow_gate(model, out=..., **gatelens.studies.preset("paper").arguments())``.
        out: folder of the run; None keeps the tables in memory and draws no figures.
        how: ``"zero"`` (after the softmax, as the paper's code does), ``"mask"`` (before it), ``"both"``.
        limit: at most this many examples a task and section.
        seed: draws examples, pairs, random tokens and bootstrap samples.
        n_class, n_vqa, n_caption: examples of each task.
        sections: None for all, names, or names with options, ``{"all": {}, "patching": {"n_pairs": 20}}``;
            :data:`gatelens.studies.narrow_gate.sections.SECTIONS` lists them. ``knockouts``, on which the verdict
            stands, is always among them.
        random_tokens, random_repeats: image tokens of the random row, and how often it is drawn anew: a number, or
            one for each kind of task, ``{"vqa": 5, "caption": 3, "class": 3}``.
        vqa_tokens, caption_tokens: most tokens generated.
        chat: whether questions and caption prompts are asked as a user's turn of a chat; None is what the paper did:
            with Pixtral, Janus and Emu3. Class prompts are sentences for the model to go on with, and never turns.
        batch_size: None fits it to the length of the prompts.
        skip_bad: leave bad rows of data given by name out, and list them in the manifest, instead of stopping.
        name: what the run calls the model; None is its own name.
        device, dtype: where to load a model given by name.

    Returns:
        The run: ``run.table("knockout")``, ``"attention"``, ``"patching"``, ``"tasks"``, ``"predictions"``,
        ``run.json("verdict")``; with ``out`` also ``figures/knockout.png``, …, ``report.html``.

    Raises:
        OutputError: ``out`` can't be written or holds other settings (before any compute).
        DataError: the data has none of the tasks, or examples lack pictures or answers.
    """
    hows = kinds_of_knockout(how)
    asked = chosen_sections(sections, limit)
    repeats = check_repeats(random_repeats)
    if out is not None:
        check_writable(out)
    for option, value in (
        ("limit", limit),
        ("batch_size", batch_size),
        ("n_boot", n_boot),
    ):
        if value is not None and value < 1:
            raise DataError(f"{option}={value} leaves nothing to do; give at least 1")
    if seed < 0:
        raise DataError(f"seed={seed} draws nothing; give a whole number, 0 or more")
    name = name or model_name(model)
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
    vlm = resolve_model(model, **options)
    turned = turned_kinds(vlm, chat)
    drawn = as_asked(vlm, drawn, turned)
    everything = [e for found in drawn.values() for e in found]
    size = batch_size or auto_batch_size(vlm, max(everything, key=lambda e: len(e.prompt)))
    settings = {
        "model": name,
        "weights": model_fingerprint(vlm),
        "data": source.name,
        "examples": data_fingerprint(everything),
        "n": {task: len(found) for task, found in drawn.items()},
        "how": how,
        "seed": seed,
        "sections": asked,
        "random_tokens": random_tokens,
        "random_repeats": repeats,
        "chat": turned,
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
    context = Context(vlm, source, drawn, hows, size, run, Labels(vlm), Progress(0, progress))
    try:
        with inference():
            run_sections(context, list(asked))
    except GatelensError:
        run.withdraw()
        raise
    if out is not None:
        # The one place where a study reaches for a later stage: its last act is to have itself drawn.
        from gatelens.views.report import write_report

        write_report(run)
    return run


def run_sections(context: Context, names: Sequence[str]) -> None:
    """All pieces of the sections that are not there yet, then their tables, the verdict and the examples."""
    chosen = [BY_NAME[name] for name in names]
    work = {section.name: section.pieces(context) for section in chosen}
    todo = [p for pieces in work.values() for p in pieces if not context.run.done(p.stage)]
    with Progress(sum(p.units for p in todo), context.bar.enabled) as context.bar:
        _describe(context)
        for section in chosen:
            tables = [_piece(context, piece) for piece in work[section.name]]
            section.conclude(context, tables)
    run = context.run
    gate = run.json("tokens")["gate"]
    called = (
        f"the end-of-image token {gate['string']}" if gate["literal"] else "the first token after the image"
    )
    run.save_json("absent", [f"{s.name} ({s.about})" for s in chosen if not work[s.name]])
    further = [e for section in chosen for e in section.evidence(run)]
    run.save_json("verdict", verdict(run.table("tasks"), further, called))
    run.save_json("examples", _examples(context, run.table("predictions")))


def _piece(context: Context, piece: Piece) -> pd.DataFrame:
    if context.run.done(piece.stage):
        return context.run.table(piece.stage)
    before = context.bar.done
    context.bar.say(piece.label)
    found = context.run.stage(piece.stage, piece.compute)
    context.bar.step(piece.label, max(0, piece.units - (context.bar.done - before)))
    return found


def _describe(context: Context) -> None:
    """Store who is where in one prompt, and what the gate is."""
    if context.run.done("tokens"):
        return
    example = context.examples("vqa", "class", "caption")[0][1][0]
    tokens = prepare(context.model, [example]).tokens
    where = tokens.positions("gate")
    if not where:
        raise DataError(
            f"example {example.id!r}: its prompt has no position after the image, so there is no gate"
        )
    literal = bool(tokens.mask("eoi").any())
    shown = tokens.show()
    gate = {"string": tokens.strings[0][where[-1]], "literal": literal, "position": where[-1]}
    value = {"header": list(shown.header[1:]), "rows": [list(r[1:]) for r in shown.rows], "gate": gate}
    context.run.save_json(
        "tokens", {**value, "prompt": example.prompt, "n_image": int(tokens.mask("image").sum())}
    )


def _examples(context: Context, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """The first drawn examples of each task with every row's answer: not chosen by what they show."""
    shown = predictions[(predictions.how == context.hows[0]) & (predictions["repeat"] == 0)]
    out = []
    for asked, n in SHOWN.items():
        for task, examples in context.examples(asked):
            for e in examples[:n]:
                part = shown[(shown.task == task) & (shown.id == e.id)]
                rows = part[["row", "prediction", "score"]].to_dict("records")
                picture = data_uri(e.image) if e.image is not None else ""
                facts = {"task": task, "id": e.id, "prompt": e.prompt, "answers": list(labels_of(e))}
                out.append({**facts, "picture": picture, "rows": rows})
    return out
