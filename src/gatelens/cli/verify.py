"""``gatelens verify``: whether a wrapped checkpoint is the model that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gatelens.cli.options import Device, Dtype, Quiet, app, load_libraries
from gatelens.cli.stopping import going_on


@app.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(help="A shipped organism (organism:gated), a hub name, or a folder.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for verify.json, .md and .html; an interrupted run there is resumed."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the hub repository.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture for the prompts; repeat for a second one.")
    ] = None,
    paper: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also run the paper's table on N examples of each task.")
    ] = 0,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The data for --paper, as in `gatelens study`. Default: the paper's."),
    ] = None,
    show: Annotated[
        Path | None, typer.Option("--show", help="Print this verify.json, and run nothing.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Check that a wrapped model equals plain transformers: logits, tokens, interventions, traps; exit 1 if not."""
    from gatelens.errors import InputError
    from gatelens.verification.result import Verification

    if (model is None) == (show is None):
        raise InputError("give a model to verify, or --show FILE to print a result")
    if data is not None and not paper:
        raise InputError("--data is for the paper's table: give --paper N too")
    if show is not None:
        result = Verification.load(show)
        typer.echo(str(result))
    else:
        for path in image or []:
            if not path.is_file():
                raise InputError(f"there is no picture {str(path)!r}; give a file")
        result = _verified(
            model, out, image, paper, data, quiet, device=device, dtype=dtype, revision=revision
        )
    if not result.passed:
        raise typer.Exit(1)


def _verified(
    model: str | None, out: Path | None, image: Any, paper: int, data: str | None, quiet: bool, **load: Any
) -> Any:
    load_libraries(quiet)
    from gatelens.verification.text import paper_lines
    from gatelens.verification.verify import verify as run

    with going_on(out):
        result = run(
            str(model),
            images=[str(path) for path in image] if image else None,
            paper=paper,
            data=data,
            out=out,
            progress=False if quiet else typer.echo,
            **{name: value for name, value in load.items() if value is not None},
        )
    if result.paper:
        typer.echo("\n".join(["", *paper_lines(result.paper)]))
    typer.echo(f"\n{result.headline}" if not quiet else result.headline)
    if out is not None:
        typer.echo(f"result: {out / 'verify.json'}\npage: {out / 'verify.html'}")
    return result
