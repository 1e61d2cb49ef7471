"""``gatelens report`` and ``compare``: what runs left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gatelens.cli.options import app, load_libraries


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Redraw a run's figures and report from its tables."""
    from gatelens.atomic_files import check_writable
    from gatelens.runs import Run

    run = Run.load(folder)
    check_writable(folder)
    load_libraries()
    from gatelens.views import write_report

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
    """Compare two runs side by side."""
    from gatelens.atomic_files import check_writable, write_atomic
    from gatelens.runs import Run

    first, second = Run.load(a), Run.load(b)
    if out is not None:
        check_writable(out.parent)
    load_libraries()
    from gatelens.studies.compare import compare_html, compare_text

    typer.echo(compare_text(first, second))
    if out is not None:
        write_atomic(out, compare_html(first, second).encode())
        typer.echo(f"page: {out}")
