"""``gatelens bench``: a method, or those built in, on models whose answer is planted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
        Path | None,
        typer.Option("--out", help="Folder of the run, with results/; a run cut short there goes on."),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose how scores become sets by the F1 on these plants; only on dev."),
    ] = False,
    rules: Annotated[
        Path | None,
        typer.Option(
            "--rules", help="rules.json of a run with --tune: how scores of your methods become sets."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Measure in so many processes.")] = None,
    quiet: Quiet = False,
) -> None:
    """How good a method is at finding where the picture enters, on models whose answer is planted."""
    from gatelens.bench import read_rules, score, write_results
    from gatelens.bench.rules import write_rules
    from gatelens.errors import InputError

    if tune and split != "dev":
        raise InputError("--tune with --split heldout: rules are tuned on dev; leave one of them out")
    methods = _methods(method, baseline or [])
    known = read_rules() | (read_rules(rules) if rules is not None else {})
    result = score(methods, n, split, rules=known, out=out, progress=not quiet, workers=workers)
    if tune:
        tuned = result.tuned()
        for name, rule in tuned.items():
            typer.echo(f"rule of {name}: share {rule.share:.2f}, floor {rule.floor:.3g}")
        result = result.with_rules(tuned)
        if out is not None:
            made = {"by": "gatelens bench --tune", "split": split, "plants": n, "pictures": result.pictures}
            write_rules(out / "rules.json", tuned, made)
    if out is not None:
        write_results(result, out / "results")
    typer.echo(str(result))


def _methods(file: Path | None, baseline: list[str]) -> dict[str, Any]:
    """The methods asked for, by name."""
    from gatelens.bench import METHODS
    from gatelens.bench.scoring import method_of
    from gatelens.errors import InputError, did_you_mean

    asked = list(METHODS) if "all" in baseline else baseline
    wrong = next((name for name in asked if name not in METHODS), None)
    if wrong is not None:
        raise InputError(
            f"--baseline {wrong!r}: there are {', '.join(METHODS)}{did_you_mean(wrong, METHODS)}"
        )
    methods = {name: METHODS[name] for name in asked}
    if file is not None:
        methods[file.stem] = method_of(file)
    if not methods:
        raise InputError(
            "there is no method: give a file with a function method(model, task), or --baseline all"
        )
    return methods
