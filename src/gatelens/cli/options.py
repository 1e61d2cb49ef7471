"""The application, and the options its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gatelens.first_import import loading_libraries

app = typer.Typer(
    name="gatelens",
    help="Find which tokens carry the image to the text in a vision-language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Model = Annotated[
    str, typer.Option("--model", help="A shipped organism (organism:gated), a hub name, or a folder.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: the model's own choice.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; an interrupted run there is resumed.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of worker processes on this machine; with --ray, of actors."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Measure on a Ray cluster: the one at HOST:PORT, or the one this machine belongs to.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Skip bad rows of the data; the manifest lists them.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def load_libraries(quiet: bool = False) -> None:
    """Import torch and TransformerLens ahead of a command that needs them; at a terminal a line says so."""
    with loading_libraries(quiet):
        import gatelens.model  # noqa: F401


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
    """Find which tokens carry the image to the text in a vision-language model."""
