"""``gatelens bench``: a method, or those built in, on models whose answer is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gatelens.cli.options import Quiet, app


@app.command()
def bench(
    method: Annotated[
        Path | None,
        typer.Argument(help="Python file with a function method(model, task). Default: none of yours."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="A method that is built in, or all; repeat for more."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Plants.")] = 64,
    split: Annotated[
        Literal["dev", "heldout"], typer.Option(help="Plants to develop a method on, or to report it on.")
    ] = "dev",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; a run cut short there is continued.")
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose how scores become sets by the F1 on these plants; only on dev."),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Measure in so many processes.")] = None,
    quiet: Quiet = False,
) -> None:
    """How good a method is at finding where the picture enters, on models whose answer is planted."""
    from gatelens.errors import InputError, did_you_mean

    if tune and split != "dev":
        raise InputError("--tune with --split heldout: rules are tuned on dev; leave one of them out")
    from gatelens.bench.methods import METHODS, RULES
    from gatelens.bench.scoring import method_of, score

    asked = list(METHODS) if "all" in (baseline or ()) else list(baseline or ())
    wrong = next((name for name in asked if name not in METHODS), None)
    if wrong is not None:
        raise InputError(
            f"--baseline {wrong!r}: there are {', '.join(METHODS)}{did_you_mean(wrong, METHODS)}"
        )
    methods = {name: METHODS[name] for name in asked}
    if method is not None:
        methods[method.stem] = method_of(method)
    if not methods:
        raise InputError(
            "there is no method: give a file with a function method(model, task), or --baseline all"
        )
    rules = {name: rule for name, rule in RULES.items() if name in methods}
    result = score(methods, n, split, rules=rules, out=out, progress=not quiet, workers=workers)
    if tune:
        tuned = result.tuned()
        for name, rule in tuned.items():
            typer.echo(f"rule of {name}: share {rule.share:.2f}, floor {rule.floor:.3g}")
        result = result.with_rules(tuned)
    typer.echo(str(result))
