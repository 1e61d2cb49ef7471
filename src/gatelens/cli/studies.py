"""``gatelens study …``: a command for each study, made from its options; and ``gatelens sections``."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from gatelens.cli.models import entry
from gatelens.cli.options import Device, Dtype, Model, Out, Quiet, Ray, SkipBad, Workers, app, load_libraries
from gatelens.cli.stopping import going_on
from gatelens.errors import InputError

ABOUT = {  # kept here, as a study's own module imports what takes seconds
    "narrow-gate": "Does one token after the image carry it to the text? (Serra et al., arXiv 2412.06646)",
    "whats-in-the-image": "Where is visual information stored and read? (Kaduri et al., arXiv 2411.17491)",
    "find-gate": "Which positions carry the picture to the answer: a few (a gate), many, or none?",
    "gate-finetuning": "Fine-tune with the gate masked, so that the text learns to read the image itself; before and "
    "after.",
}
SEARCH = "find-gate"  # also a command of its own, as its result can be printed without a folder
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="emoji-scenes (default), varied-scenes, easy-vqa, a folder, or the papers' data: vqav2, flickr30k, coco, "
        "imagenet, mme, coco-objects; a copy as vqav2:FOLDER; several with commas.",
    ),
]
OutOrNone = Annotated[
    Path | None,
    typer.Option("--out", help="Also save it in this folder; an interrupted search there is resumed."),
]
Preset = Annotated[
    str | None, typer.Option(help="paper: its data, sizes, seed and decoding; other options override it.")
]
Sections = Annotated[
    str | None,
    typer.Option(help="Sections of the study, separated by commas (see: gatelens sections). Default: all."),
]
SectionOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="A section's option, e.g. progressive.window=1; repeat for more."),
]
COMMON = {
    "model": (Model, inspect.Parameter.empty),
    "out": (Out, inspect.Parameter.empty),
    "data": (Data, None),
    "preset": (Preset, None),
    "sections": (Sections, None),
    "option": (SectionOptions, None),
    "skip_bad": (SkipBad, False),
    "device": (Device, None),
    "dtype": (Dtype, None),
    "workers": (Workers, None),
    "ray": (Ray, None),
    "quiet": (Quiet, False),
}


class StudyCommand(TyperCommand):
    """The command of a study; its options are made of the study's, which is imported when the command is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=ABOUT[name], rich_markup_mode=None)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        load_libraries(quiet="--quiet" in args)
        return self.with_options().make_context(info_name, with_address(args), parent, **extra)

    def with_options(self) -> TyperCommand:
        """The command with an option for each field of the study's options."""
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        one.command(self.name)(study_command(str(self.name)))
        return cast(TyperCommand, typer.main.get_command(one))


def with_address(args: list[str]) -> list[str]:
    """The arguments with the address that ``--ray`` alone stands for: the cluster this machine belongs to."""
    alone = [
        a == "--ray" and (not after or after.startswith("-"))
        for a, after in zip(args, [*args[1:], ""], strict=True)
    ]
    return [f"{a}=auto" if one else a for a, one in zip(args, alone, strict=True)]


class StudyGroup(TyperGroup):
    """One command per study."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(ABOUT)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return StudyCommand(cmd_name) if cmd_name in ABOUT else None


class RootGroup(TyperGroup):
    """The commands of ``gatelens``, and the search for a gate."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), SEARCH]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name == SEARCH:
            return StudyCommand(SEARCH)
        return super().get_command(ctx, cmd_name)


app.info.cls = RootGroup
app.add_typer(
    typer.Typer(
        cls=StudyGroup, help="Run an experiment on any model.", no_args_is_help=True, callback=lambda: None
    ),
    name="study",
)


def study_command(name: str) -> Callable[..., None]:
    """The command of a study: the options all studies share, and one for each field of its options."""
    from gatelens.studies.catalogue import STUDIES
    from gatelens.studies.options import typed

    study = STUDIES[name]

    def command(**given: Any) -> None:
        with going_on(given["out"]):
            run_command(name, given)

    parameters = dict(COMMON)
    if name == SEARCH:
        parameters["out"] = (OutOrNone, None)
    for field, info in study.options.model_fields.items():
        kind = command_line_type(info.annotation)
        if kind is not None and field not in COMMON:
            default = info.get_default(call_default_factory=True)
            words = (info.description or "").rstrip(".") + "."
            words += "" if info.is_required() or default is None else f" Default: {typed(default)}."
            parameters[field] = (Annotated[kind | None, typer.Option(help=words)], None)
    command.__doc__ = ABOUT[name]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for n, (annotation, default) in parameters.items()
        ]
    )
    command.__annotations__ = {n: annotation for n, (annotation, _) in parameters.items()}
    return command


def run_command(name: str, given: dict[str, Any]) -> None:
    """Run a study as its command was called."""
    from gatelens.studies import presets
    from gatelens.studies.catalogue import STUDIES, starter

    study, out = STUDIES[name], given.pop("out")
    wanted, names, options = given.pop("preset"), given.pop("sections"), given.pop("option") or []
    preset = presets.preset(wanted, name) if wanted else presets.NO_PRESET
    sections = parse_sections(names, options, preset.settings.get("sections", {}))
    quiet = given.pop("quiet")
    where = {name: given.pop(name) for name in ("device", "dtype", "skip_bad", "workers", "ray")}
    asked = {n: option_value(v, study.options.model_fields.get(n)) for n, v in given.items() if n != "model"}
    arguments = {"data": "emoji-scenes", **preset.arguments(**asked, sections=sections)}
    run = starter(name)(
        given["model"],
        out=out,
        progress=not quiet,
        **where,
        **arguments,
    )
    left_out = run.manifest["info"].get("bad_rows_left_out")
    if left_out:
        listed = "" if out is None else f", listed in {out / 'manifest.json'}"
        typer.echo(f"bad rows skipped: {left_out['n']}{listed}")
    for line in study.summary(run):
        typer.echo(line)
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}")


@app.command()
def sections(
    study: Annotated[str, typer.Argument(help="A study, as in gatelens study --help.")] = "narrow-gate",
) -> None:
    """The sections of a study and their options, for --sections and --option."""
    load_libraries()
    from gatelens.studies.catalogue import STUDIES
    from gatelens.studies.options import check_known, typed

    check_known("study", study, STUDIES)
    for section in STUDIES[study].sections:
        typer.echo(f"{section.name}: {section.about}")
        fields = section.options.model_fields
        defaults = {
            n: "VALUE" if info.is_required() else typed(info.get_default(call_default_factory=True))
            for n, info in fields.items()
        }
        entry("options", ", ".join(f"{section.name}.{n}={default}" for n, default in defaults.items()))


def parse_sections(
    names: str | None, options: list[str], preset: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """``--sections`` and ``--option`` as what ``narrow_gate(sections=...)`` takes; they count before a preset's.

    Raises:
        InputError: an option not of the form section.name=value.
    """
    wanted = [n.strip() for n in (names or "all").split(",") if n.strip()]
    asked: dict[str, dict[str, Any]] = {name: dict(preset.get(name, {})) for name in wanted}
    if "all" in asked:
        asked |= {name: dict(given) for name, given in preset.items() if name != "all"}
    for option in options:
        place, equals, value = option.partition("=")
        section, dot, name = place.partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"--option {option!r}: write SECTION.NAME=VALUE, e.g. progressive.window=1")
        asked.setdefault(section.strip(), {})[name.strip()] = _json_or_word(value)
    return asked


def command_line_type(annotation: Any) -> Any:
    """The type of a command line option for a field; None where no text can give its value."""
    kinds = [k for k in _members(annotation) if k is not type(None)]
    if str in kinds or any(typing.get_origin(k) in (dict, list, tuple) for k in kinds):
        return str
    return next((k for k in (bool, float, int) if k in kinds), None)


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return [str]
    if origin in (typing.Union, types.UnionType):
        return [k for one in typing.get_args(annotation) for k in _members(one)]
    return [annotation]


def option_value(value: Any, field: Any) -> Any:
    """Text for a field that holds a list or a mapping, as JSON or with commas."""
    if not isinstance(value, str) or field is None:
        return value
    kinds = _members(field.annotation)
    if str in kinds:
        return value
    parsed = _json_or_word(value)
    if any(typing.get_origin(k) in (list, tuple) for k in kinds) and not isinstance(parsed, list):
        return [_json_or_word(word) for word in value.split(",")]
    return parsed


def _json_or_word(text: str) -> Any:
    try:
        return json.loads(text)
    except (
        ValueError,
        RecursionError,
    ):  # no JSON, a number of thousands of digits, or brackets without an end
        return text
