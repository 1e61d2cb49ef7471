"""``gatelens models`` and ``tokens``: the supported models, and how a prompt is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gatelens.cli.options import Device, Dtype, Model, app, load_libraries
from gatelens.shipped_organisms import graded_names, organism_folder, organism_names


@app.command()
def tokens(
    model: Model,
    text: Annotated[str, typer.Option("--text", help="The prompt, with <image> where a picture goes.")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="A picture; repeat for more.")] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """How a prompt is laid out: roles, positions, the picture's token grid."""
    from gatelens.errors import InputError

    for path in image or []:
        if not path.is_file():
            raise InputError(f"there is no picture {str(path)!r}; give a file")
    load_libraries()
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
    load_libraries()
    from gatelens.families import all_families
    from gatelens.interventions import SITES

    trained = _trained()
    for family in all_families():
        typer.echo(f"{family.name}: {', '.join(family.architectures)}")
        entry("markers", family.markers)
        entry("grid", family.grid)
        entry("note", family.note)
        entry("from", ", ".join(family.checkpoints))
        entry("trained", ", ".join(trained.get(family.name, [])))
    typer.echo("any other transformers decoder: HookedVLM.from_parts, with a layout (VILA-U is an example)")
    typer.echo("in every family:")
    entry("sites", f"{' '.join(SITES)}; attention knockouts how=mask and how=zero, per query head")
    entry(
        "verified",
        "the conformance suite (tests/families): a tiny random model of the real class with its real image "
        "processor, against plain transformers: logits, cached decoding, which tokens are the picture and which "
        "pixels each shows (by changing pixels), knockouts, heads, every site. Full-size configs are built "
        "without weights. Published weights: check them with `gatelens verify MODEL`.",
    )
    entry("trained", f"in the package, no download: {', '.join(f'organism:{n}' for n in organism_names())}")
    graded = ", ".join(f"organism:{n}" for n in graded_names())
    entry(
        "graded",
        f"fine-tunes of these, in which known positions carry known facts: {graded}" if graded else "",
    )


def entry(label: str, words: str) -> None:
    """A labelled line, folded to the width of a terminal; nothing when there is nothing to say."""
    import textwrap

    if words:
        fold = textwrap.TextWrapper(96, break_on_hyphens=False, break_long_words=False)
        for line, text in enumerate(fold.wrap(words)):
            typer.echo(f"  {'' if line else label:9}{text}")


def _trained() -> dict[str, list[str]]:
    """The shipped organisms by family."""
    import json

    from gatelens.families import family_of

    shipped: dict[str, list[str]] = {}
    for name in organism_names():
        config = json.loads((organism_folder(name) / "config.json").read_text())
        shipped.setdefault(family_of(config["architectures"][0]).name, []).append(f"organism:{name}")
    return shipped
