"""The sections of the study, in the order of the report, and how they are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gatelens.errors import DataError, did_you_mean
from gatelens.studies.narrow_gate import (
    attention,
    drawing,
    finder,
    knockouts,
    meaning,
    modality_gap,
    patching,
    progressive,
    questions,
    steering,
)
from gatelens.studies.narrow_gate.option_values import check_value
from gatelens.studies.narrow_gate.section import Section

SECTIONS: tuple[Section, ...] = (
    knockouts.SECTION,
    progressive.SECTION,
    questions.SECTION,
    attention.SECTION,
    modality_gap.SECTION,
    meaning.SECTION,
    patching.SECTION,
    finder.SECTION,
    steering.SECTION,
    drawing.SECTION,
)
BY_NAME = {section.name: section for section in SECTIONS}

Chosen = str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None


def chosen(sections: Chosen, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """The sections asked for, each with its options filled in.

    Args:
        sections: None or ``"all"``; names, in a list or with commas; or names with options,
            ``{"patching": {"n_pairs": 20}}``, where ``"all"`` may stand for the others.
        limit: caps the options that count examples.

    Raises:
        DataError: an unknown section or option, or a value that an option cannot have.
    """
    if sections is None:
        sections = "all"
    if isinstance(sections, str):
        sections = [name.strip() for name in sections.split(",") if name.strip()]
    asked: dict[str, Mapping[str, Any]] = (
        dict(sections) if isinstance(sections, Mapping) else {name: {} for name in sections}
    )
    if "all" in asked:
        del asked["all"]
        asked = {name: asked.pop(name, {}) for name in BY_NAME} | asked
    for name in asked:
        _check("section", name, BY_NAME)
    asked.setdefault(knockouts.SECTION.name, {})  # the verdict stands on it
    out = {}
    for name, section in BY_NAME.items():
        if name not in asked:
            continue
        options = dict(section.options)
        if not isinstance(asked[name], Mapping):
            raise DataError(f"section {name!r}: {asked[name]!r} names no option; give {{'OPTION': value}}")
        for option, value in asked[name].items():
            _check(f"option of section {name!r}", option, options)
            check_value(name, option, value)
            options[option] = value
        if limit is not None:
            options |= {o: min(value, limit) for o, value in options.items() if o.startswith("n")}
        out[name] = options
    return out


def _check(what: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) or f"; known: {', '.join(names) or 'none'}"
        raise DataError(f"no {what} {name!r}{hint}")
