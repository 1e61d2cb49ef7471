"""``gatelens explore``: a local page to intervene on one prompt and watch the effect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gatelens.cli.options import Device, Dtype, app, load_libraries

MODEL, DATA = "organism:gated", "emoji-scenes"


@app.command()
def explore(
    run: Annotated[Path | None, typer.Argument(help="Folder of a run: its model and its examples.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help=f"An organism, a hub name or a folder. Default: {MODEL}.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help=f"Data for sample pictures and classes. Default: {DATA}.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Default: a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """A local page: change one prompt by knockouts, patches and steering, and see what the model answers."""
    from gatelens.errors import InputError

    load_libraries()
    try:
        from gatelens.explore import opening, server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("gatelens"):
            raise
        raise InputError(
            f"the explorer needs {error.name}, which is not installed: pip install 'gatelens[explore]'"
        ) from error
    options = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    with server.listen(port) as listening:
        explorer = opening.open_explorer(run, model, data, MODEL, DATA, options)
        typer.echo("explorer: http://{}:{}/  (Ctrl-C stops it)".format(*listening.getsockname()))
        server.serve(explorer, listening, open_browser=not no_browser)
