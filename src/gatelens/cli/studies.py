"""``gatelens study …``, ``find-gate`` and ``sections``: commands that run a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gatelens.cli.models import entry
from gatelens.cli.options import BatchSize, Device, Dtype, Model, Out, Quiet, SkipBad, app

study = typer.Typer(help="Run an experiment from the literature on any model.", no_args_is_help=True)
app.add_typer(study, name="study")


@study.command("narrow-gate")
def narrow_gate(
    model: Model,
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="emoji-scenes (default), easy-vqa, a folder, or the papers' data: vqav2, flickr30k, coco, imagenet, "
            "mme; a copy as vqav2:FOLDER; several with commas.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper: its data, sizes, seed and decoding; other options count instead."),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(help="Knockout: zero (after the softmax; default), mask (before it) or both."),
    ] = None,
    sections: Annotated[
        str | None,
        typer.Option(help="Parts of the study, with commas (see: gatelens sections). Default: all."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="A section's option, as progressive.window=1; repeat for more."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Ask questions and captions as a user's turn. Default: as the paper did, by family.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many examples a task.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws examples, pairs and random tokens. Default: 0, or the preset's.")
    ] = None,
    batch_size: BatchSize = None,
    skip_bad: SkipBad = False,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Does one token after the image carry it to the text? (Serra et al., arXiv 2412.06646)"""
    from gatelens.data import presets
    from gatelens.runs import check_writable
    from gatelens.studies.common import kinds_of_knockout

    chosen = presets.preset(preset) if preset else presets.NONE
    asked = parse_sections(sections, option or [], chosen.settings.get("sections", {}))
    kinds_of_knockout(how or "zero")
    check_writable(out)  # before the slow imports and the model
    from gatelens.studies import narrow_gate as run_study

    run = run_study(
        model,
        out=out,
        chat=chat,
        batch_size=batch_size,
        skip_bad=skip_bad,
        device=device,
        dtype=dtype,
        progress=not quiet,
        **chosen.arguments(data=data, how=how, limit=limit, seed=seed, sections=asked),
    )
    _say(run, out)


@study.command("whats-in-the-image")
def whats_in_the_image(
    model: Model,
    out: Out,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="emoji-scenes (default), easy-vqa, a folder, or the papers' data: coco-objects, mme; a copy as "
            "mme:FOLDER; several with commas.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper: its data, prompt, length, size; other options count instead."),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(help="Knockout: mask (before the softmax; default), zero (after it) or both."),
    ] = None,
    first_token: Annotated[
        str, typer.Option(help="Under image → generated the first token sees the image, or is blocked.")
    ] = "sees",
    prompt: Annotated[
        str | None, typer.Option(help="Asks for the description, with <image> in it. Default: the data's.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest description. Default: 60.")] = None,
    judge: Annotated[
        str, typer.Option(help="offline (a list of objects) or llm (GATELENS_JUDGE_URL, _MODEL, _KEY).")
    ] = "offline",
    limit: Annotated[int | None, typer.Option(help="At most this many pictures.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws pictures and questions. Default: 0, or the preset's.")
    ] = None,
    batch_size: BatchSize = None,
    skip_bad: SkipBad = False,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Where is what the text says of the picture stored, and where read? (Kaduri et al., arXiv 2411.17491)"""
    from gatelens.data import presets
    from gatelens.runs import check_writable

    chosen = presets.preset(preset, "whats-in-the-image") if preset else presets.NONE
    check_writable(out)  # before the slow imports and the model
    from gatelens.studies import whats_in_the_image as run_study

    run = run_study(
        model,
        out=out,
        first_token=first_token,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        judge=judge,
        batch_size=batch_size,
        skip_bad=skip_bad,
        device=device,
        dtype=dtype,
        progress=not quiet,
        **chosen.arguments(data=data, how=how, limit=limit, seed=seed),
    )
    found = _say(run, out, "")
    if found["planted"] is not None and found["planted"]["accordingly"] is not None:
        said = "come" if found["planted"]["accordingly"] else "do not come"
        typer.echo(f"what was planted in this model is known: the configurations {said} out accordingly")
    typer.echo(f"report: {out / 'report.html'}")


@study.command("gate-finetuning")
def gate_finetuning(
    model: Model,
    out: Out,
    data: Annotated[str, typer.Option("--data", help="Measured on.")] = "emoji-scenes",
    train_data: Annotated[
        str | None, typer.Option(help="Trained on. Default: the train split of the data.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps with the gate masked from the text.")] = 1500,
    swap_steps: Annotated[
        int, typer.Option(help="Further steps in which the text reads another picture's gate.")
    ] = 0,
    control: Annotated[bool, typer.Option("--control", help="Also train as long with nothing cut.")] = False,
    n_train: Annotated[int, typer.Option(help="Training examples.")] = 12_000,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. Default: 1e-3 for small models, 1e-5 for large.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Measure on at most this many examples a task.")] = None,
    seed: Annotated[int, typer.Option(help="Draws examples and batches.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune with the gate masked, so that the text learns to read the image itself; before and after."""
    from gatelens.runs import check_writable

    check_writable(out)  # before the slow imports and the model
    from gatelens.studies import finetune_gate

    run = finetune_gate(
        model,
        data,
        out,
        train_data=train_data,
        steps=steps,
        swap_steps=swap_steps,
        control=control,
        n_train=n_train,
        lr=lr,
        seed=seed,
        measured={"limit": limit},
        device=device,
        dtype=dtype,
        progress=not quiet,
    )
    _say(run, out)


@app.command("find-gate")
def find_gate(
    model: Model,
    data: Annotated[
        str, typer.Option("--data", help="emoji-scenes, or a folder, with classes.")
    ] = "emoji-scenes",
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write tables, figure and page into this folder.")
    ] = None,
    how: Annotated[
        str, typer.Option(help="Knockout: zero (after the softmax), mask (before it) or both.")
    ] = "both",
    n: Annotated[int, typer.Option("--n", help="Examples.")] = 96,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Asked instead of the data's own, with <image> in it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws examples, halves and pairs.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Which positions carry the picture to the answer: a few (a gate), many, or none?"""
    from gatelens.runs import check_writable
    from gatelens.studies.common import kinds_of_knockout

    kinds_of_knockout(how)
    if out is not None:
        check_writable(out)
    from gatelens.studies import find_gate as search

    options: dict[str, Any] = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    found = search(model, data, n=n, how=how, prompt=prompt, seed=seed, progress=not quiet, **options)
    typer.echo(str(found))
    if out is not None:
        found.save(out)
        typer.echo(f"report: {out / 'report.html'}")


@app.command()
def sections() -> None:
    """The sections of the narrow-gate study and their options, for --sections and --option."""
    from gatelens.studies.narrow_gate.sections import SECTIONS

    for section in SECTIONS:
        typer.echo(f"{section.name}: {section.about}")
        entry("options", ", ".join(f"{section.name}.{k}={v}" for k, v in section.options.items()))


def parse_sections(
    names: str | None, options: list[str], preset: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """``--sections`` and ``--option`` as what ``narrow_gate(sections=...)`` takes; they count before a preset's.

    Raises:
        InputError: an option not of the form section.name=value.
    """
    import json

    from gatelens.errors import InputError

    wanted = [n.strip() for n in (names or "all").split(",") if n.strip()]
    asked: dict[str, dict[str, Any]] = {name: dict(preset.get(name, {})) for name in wanted}
    if "all" in asked:
        asked |= {name: dict(found) for name, found in preset.items() if name != "all"}
    for option in options:
        place, equals, value = option.partition("=")
        section, dot, name = place.partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"--option {option!r}: write SECTION.NAME=VALUE, as progressive.window=1")
        try:
            asked.setdefault(section.strip(), {})[name.strip()] = json.loads(value)
        except json.JSONDecodeError:  # a word
            asked.setdefault(section.strip(), {})[name.strip()] = value
    return asked


def _say(run: Any, out: Path, report: str = "report: ") -> dict[str, Any]:
    """A finished study in a few lines; its verdict."""
    left_out = run.manifest["info"].get("bad_rows_left_out")
    if left_out:
        typer.echo(f"bad rows left out: {left_out['n']}, listed in {out / 'manifest.json'}")
    found = run.json("verdict")
    typer.echo(f"{found['headline']}\n{found['sentence']}")
    if report:
        typer.echo(f"{report}{out / 'report.html'}")
    return found
