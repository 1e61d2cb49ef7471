"""``gatelens bench``: your method, or the built-in ones, on models with a planted answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gatelens.cli.options import Quiet, app, load_libraries


@app.command()
def bench(
    method: Annotated[
        Path | None,
        typer.Argument(help="Python file with a function method(model, task). Default: none."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", help="A built-in method, or all; repeat for more."),
    ] = None,
    organism: Annotated[
        list[str] | None,
        typer.Option("--organism", help="A graded organism instead of plants, or all; repeat for more."),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=1, help="Plants (64), or pairs of scenes for each fact of an organism (24)."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only plants of this kind; repeat for more.")
    ] = None,
    split: Annotated[
        Literal["dev", "heldout"], typer.Option(help="Plants: dev to develop a method, heldout to report it.")
    ] = "dev",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run, with results/; an interrupted run there is resumed."),
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
    workers: Annotated[int | None, typer.Option(min=1, help="Number of worker processes.")] = None,
    quiet: Quiet = False,
) -> None:
    """Score how well a method finds where the picture enters, on models with a planted answer."""
    load_libraries(quiet)
    from gatelens.bench import read_rules, score, write_results
    from gatelens.errors import InputError

    if organism and (tune or kind or split != "dev"):
        raise InputError("--organism with --tune, --kind or --split: these are for plants; leave them out")
    if tune and split != "dev":
        raise InputError("--tune with --split heldout: rules are tuned on dev; leave one of them out")
    methods = _methods(method, baseline or [])
    known = read_rules() | (read_rules(rules) if rules is not None else {})
    result = score(
        methods, _cases(organism, kind, n), split, rules=known, out=out, progress=not quiet, workers=workers
    )
    result = _tuned(result, out) if tune else result
    if out is not None:
        write_results(result, out / "results")
    typer.echo(str(result))


def _tuned(result: Any, out: Path | None) -> Any:
    """The result read by rules that are chosen on it; they are printed, and stored in the run's folder."""
    from gatelens.bench.rules import write_rules

    tuned = result.tuned()
    for name, rule in tuned.items():
        typer.echo(f"rule of {name}: share {rule.share:.2f}, floor {rule.floor:.3g}")
    if out is not None:
        made = {
            "by": "gatelens bench --tune",
            "split": result.split,
            "plants": result.n,
            "pictures": result.pictures,
        }
        write_rules(out / "rules.json", tuned, made)
    return result.with_rules(tuned)


def _cases(organism: list[str] | None, kind: list[str] | None, n: int | None) -> Any:
    """What methods are scored on, as ``score`` takes it."""
    from gatelens.bench import numbers_of

    if organism:
        return _organisms(organism, n or 24)
    return numbers_of(kind, n or 64) if kind else n or 64


def _organisms(asked: list[str], n: int) -> dict[str, Any]:
    """The graded organisms asked for, as cases."""
    from gatelens.errors import InputError, did_you_mean
    from gatelens.organisms.graded.cases import graded_case
    from gatelens.shipped_organisms import ORGANISM, graded_names

    known = graded_names()
    names = known if "all" in asked else [name.removeprefix(ORGANISM) for name in asked]
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None:
        raise InputError(f"--organism {wrong!r}: there are {', '.join(known)}{did_you_mean(wrong, known)}")
    return {name.replace("/", "-"): partial(graded_case, name, n) for name in names}


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
            "no method is given: give a file with a function method(model, task), or --baseline all"
        )
    return methods
