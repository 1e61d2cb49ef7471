"""``gatelens plan``: what an experiment needs, before any weights are downloaded."""

from __future__ import annotations

from typing import Annotated

import typer

from gatelens.cli.options import Dtype, app, load_libraries


@app.command()
def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model", help="A shipped organism, a hub name, a folder, or a config.json; no weights are read."
        ),
    ],
    device_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory of the device, such as 80GB or 24GiB; the number of simultaneous runs is chosen to fit."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Use the longest prompt of this data; needs the model's processor."),
    ] = None,
    image_tokens: Annotated[int | None, typer.Option(help="Tokens of the picture.")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the text after it. Default: 32.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Prompts per batch.")] = 1,
    study: Annotated[str | None, typer.Option(help="Plan the runs of a study: narrow-gate.")] = None,
    dtype: Dtype = None,
) -> None:
    """Memory, forward passes and simultaneous runs of an experiment, from the model's config alone."""
    load_libraries()
    from gatelens import planning
    from gatelens.errors import InputError

    if data is not None and (image_tokens is not None or prompt_tokens is not None):
        raise InputError("--data and --image-tokens or --prompt-tokens were both given: give one")
    if data is None and image_tokens is None:
        raise InputError("how long is the prompt? give --image-tokens and --prompt-tokens, or --data")
    bare = planning.bare_model(model, dtype)
    if data is not None:
        image_tokens, prompt_tokens = planning.longest_prompt(bare, model, data)
    assert image_tokens is not None
    text = planning.GUESSED_TEXT if prompt_tokens is None else prompt_tokens
    planning.check_length(bare, image_tokens, text)
    tokens = planning.prompt_of(image_tokens, text, batch)
    for line in planning.report(bare, planning.planned(bare, tokens, study, device_memory), device_memory):
        typer.echo(line)
