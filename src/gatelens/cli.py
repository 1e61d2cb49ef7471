"""The command line: ``gatelens study | report | compare | tokens | models``.

Heavy imports wait until a command runs, so that ``--help`` answers at once. An error the user can mend is one
line on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

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
        str, typer.Option("--data", help="emoji-scenes, easy-vqa, or a folder.")
    ] = "emoji-scenes",
    how: Annotated[
        str, typer.Option(help="Knockout: zero (after the softmax), mask (before it) or both.")
    ] = "zero",
    limit: Annotated[int | None, typer.Option(help="At most this many examples a task.")] = None,
    seed: Annotated[int, typer.Option(help="Draws examples, pairs and random tokens.")] = 0,
    batch_size: Annotated[int | None, typer.Option(help="Default: fits the length of the prompts.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Does one token after the image carry it to the text? (Serra et al., arXiv 2412.06646)"""
    from gatelens.runs import check_writable
    from gatelens.studies.knockout_table import hows

    hows(how)
    check_writable(out)  # before the slow imports and the model
    from gatelens.studies.narrow_gate import narrow_gate as run_study

    run = run_study(
        model,
        data,
        out,
        how=how,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        progress=not quiet,
    )
    found = run.json("verdict")
    typer.echo(f"{found['headline']}\n{found['sentence']}")
    typer.echo(f"report: {out / 'report.html'}")


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
    """The model families known, and the small trained models that ship with the package."""
    from gatelens.families import all_families

    typer.echo("families, with the transformers classes they read:")
    for family in all_families():
        note = f"  ({family.note})" if family.note else ""
        typer.echo(f"  {family.name:16}{', '.join(family.architectures)}{note}")
    typer.echo("organisms (in the package, no download):")
    for name in organism_names():
        typer.echo(f"  organism:{name}")


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
