"""The command line: ``gatelens study | find-gate | report | compare | tokens | models``.

Heavy imports wait until a command runs, so that ``--help`` answers at once. An error the user can mend is one
line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="gatelens",
    help="Ask a vision-language model which tokens carry the image to the text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study = typer.Typer(help="Run an experiment from the literature on any model.", no_args_is_help=True)
app.add_typer(study, name="study")

Model = Annotated[
    str, typer.Option("--model", help="A shipped organism (organism:gated), a hub name, or a folder.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the model's own choice.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]


def _version(value: bool) -> None:
    if value:
        from importlib import metadata

        try:
            number = metadata.version("gatelens")
        except metadata.PackageNotFoundError:
            number = "(not installed)"
        typer.echo(f"gatelens {number}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask a vision-language model which tokens carry the image to the text."""


@study.command("narrow-gate")
def narrow_gate(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; a run cut short there is continued.")
    ],
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
    limit: Annotated[int | None, typer.Option(help="At most this many examples a task.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Draws examples, pairs and random tokens. Default: 0, or the preset's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: fits the length of the prompts.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows of the data out; the manifest lists them.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Does one token after the image carry it to the text? (Serra et al., arXiv 2412.06646)"""
    from gatelens.data import presets
    from gatelens.runs import check_writable
    from gatelens.studies.common import kinds_of_knockout

    chosen = presets.preset(preset) if preset else presets.NONE
    kinds_of_knockout(how or "zero")
    check_writable(out)  # before the slow imports and the model
    from gatelens.studies import narrow_gate as run_study

    run = run_study(
        model,
        out=out,
        batch_size=batch_size,
        skip_bad=skip_bad,
        device=device,
        dtype=dtype,
        progress=not quiet,
        **chosen.arguments(data=data, how=how, limit=limit, seed=seed),
    )
    left_out = run.manifest["info"].get("bad_rows_left_out")
    if left_out:
        typer.echo(f"bad rows left out: {left_out['n']}, listed in {out / 'manifest.json'}")
    found = run.json("verdict")
    typer.echo(f"{found['headline']}\n{found['sentence']}")
    typer.echo(f"report: {out / 'report.html'}")


@study.command("whats-in-the-image")
def whats_in_the_image(
    model: Model,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run; a run cut short there is continued.")
    ],
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
    batch_size: Annotated[int | None, typer.Option(help="Default: fits the length of the prompts.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows of the data out; the manifest lists them.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Where is what the text says of the picture stored, and where read? (Kaduri et al., arXiv 2411.17491)"""
    from gatelens.data import presets
    from gatelens.runs import check_writable
    from gatelens.studies.whats_in_the_image.configurations import check_words

    chosen = presets.preset(preset, "whats-in-the-image") if preset else presets.NONE
    check_words(how or "mask", first_token)
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
    left_out = run.manifest["info"].get("bad_rows_left_out")
    if left_out:
        typer.echo(f"bad rows left out: {left_out['n']}, listed in {out / 'manifest.json'}")
    found = run.json("verdict")
    typer.echo(f"{found['headline']}\n{found['sentence']}")
    if found["planted"] is not None and found["planted"]["accordingly"] is not None:
        said = "come" if found["planted"]["accordingly"] else "do not come"
        typer.echo(f"what was planted in this model is known: the configurations {said} out accordingly")
    typer.echo(f"report: {out / 'report.html'}")


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
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
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
        typer.echo(f"page: {out / 'gate.html'}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Render a run's figures and report again, from its tables."""
    from gatelens.runs import Run, check_writable

    run = Run.load(folder)
    check_writable(folder)
    from gatelens.views.report import write_report

    write_report(run)
    typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(help="Folder of another run of the same study.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the comparison as this HTML file.")
    ] = None,
) -> None:
    """Two runs side by side."""
    from gatelens.runs import Run, check_writable, write_atomic

    first, second = Run.load(a), Run.load(b)
    if out is not None:
        check_writable(out.parent)
    from gatelens.views.compare import compare_html, compare_text

    typer.echo(compare_text(first, second))
    if out is not None:
        write_atomic(out, compare_html(first, second).encode())
        typer.echo(f"page: {out}")


@app.command()
def tokens(
    model: Model,
    text: Annotated[str, typer.Option("--text", help="The prompt, with <image> where a picture goes.")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; repeat for more.")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Who is where in a prompt: roles, positions, the picture's token grid."""
    from gatelens.errors import InputError

    for path in image or []:
        if not path.is_file():
            raise InputError(f"there is no picture {str(path)!r}; give a file")
    from gatelens.model import HookedVLM

    options = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    vlm = HookedVLM.from_pretrained(model, **options)
    inputs = vlm.prepare(images=[str(p) for p in image or []], text=text)
    typer.echo(str(inputs.tokens.show()))
    gates = inputs.tokens.positions("gate")
    if gates:
        named = ", ".join(f"{p} ({inputs.tokens.strings[0][p]})" for p in gates)
        typer.echo(f"gate: position {named}")


@app.command()
def models() -> None:
    """The model families, how each lays out a picture, and the small trained models that ship with the package."""
    from gatelens.families import all_families
    from gatelens.interventions import SITES

    trained = _trained()
    for family in all_families():
        typer.echo(f"{family.name}: {', '.join(family.architectures)}")
        _entry("markers", family.markers)
        _entry("grid", family.grid)
        _entry("note", family.note)
        _entry("from", ", ".join(family.checkpoints))
        _entry("trained", ", ".join(trained.get(family.name, [])))
    typer.echo(
        "any other decoder of transformers: HookedVLM.from_parts, with a layout (VILA-U is shown that way)"
    )
    typer.echo("in every family:")
    _entry("sites", f"{' '.join(SITES)}; attention knockouts how=mask and how=zero, per query head")
    _entry(
        "verified",
        "the conformance suite (tests/families): a tiny random model of the real class with its real image "
        "processor, against plain transformers: logits, cached decoding, which tokens are the picture and which "
        "pixels each shows (by changing pixels), knockouts, heads, every site. Full-size configs are built "
        "without weights. Published weights were not run.",
    )
    _entry("trained", f"in the package, no download: {', '.join(f'organism:{n}' for n in organism_names())}")


def _entry(label: str, words: str) -> None:
    """A labelled line, folded to the width of a terminal; nothing when there is nothing to say."""
    import textwrap

    if words:
        fold = textwrap.TextWrapper(96, break_on_hyphens=False, break_long_words=False)
        for line, text in enumerate(fold.wrap(words)):
            typer.echo(f"  {'' if line else label:9}{text}")


def _trained() -> dict[str, list[str]]:
    """The shipped organisms by family."""
    import json
    from importlib import resources

    from gatelens.families import family_of

    weights = resources.files("gatelens").joinpath("organisms", "weights")
    found: dict[str, list[str]] = {}
    for name in organism_names():
        config = json.loads(weights.joinpath(name, "config.json").read_text())
        found.setdefault(family_of(config["architectures"][0]).name, []).append(f"organism:{name}")
    return found


def organism_names() -> list[str]:
    """Names of the organisms whose weights are in the package."""
    from importlib import resources

    folder = resources.files("gatelens").joinpath("organisms", "weights")
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code."""
    from gatelens.errors import GatelensError

    try:
        code = app(args=arguments, standalone_mode=False)
    except GatelensError as error:
        line = " ".join(str(error).split())
        print(f"gatelens: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gatelens: stopped; the same command continues where it was", file=sys.stderr)
        return 130
    except typer.Abort:
        return 130
    except Exception as error:  # usage errors carry their own exit code and message
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            print(f"gatelens: error: {error.format_message()}", file=sys.stderr)
            return int(error.exit_code)
        raise
    return int(code or 0)


if __name__ == "__main__":
    sys.exit(main())
