"""How the study asks: which prompts become a user's turn of a chat, and how often the random rows are redrawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gatelens.data import Example
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.model import HookedVLM

KINDS = ("class", "vqa", "caption")
# a class prompt is the beginning of a sentence, which the model is to go on with: it is never a turn
ASKED = ("vqa", "caption")
# The authors' evaluation code (with arXiv 2412.06646) asks Pixtral, Janus and Emu3 in turns, Chameleon and
# LLaVA-OneVision without. VILA-U, in turns there, comes by from_parts and has none.
IN_TURNS = frozenset({"pixtral", "janus", "emu3"})
REPEATS = 3  # of kinds that a mapping leaves out
MOST_REPEATS = 1000  # each is a knockout of every example

Repeats = int | Mapping[str, int]


def turned_kinds(model: HookedVLM, chat: bool | None) -> list[str]:
    """The kinds of task whose prompts are turns; ``chat`` None is what the paper did with this family."""
    return list(ASKED) if (model.family.name in IN_TURNS if chat is None else chat) else []


def as_asked(
    model: HookedVLM, drawn: Mapping[str, Sequence[Example]], turned: Sequence[str]
) -> dict[str, list[Example]]:
    """The examples with the prompts of the kinds in ``turned`` written as a user's turn.

    Raises:
        ModelError: the tokenizer's chat template leaves the prompt out.
    """
    return {
        task: [dataclasses.replace(e, prompt=model.as_turn(e.prompt)) for e in examples]
        if kind(task) in turned
        else list(examples)
        for task, examples in drawn.items()
    }


def check_repeats(repeats: Repeats) -> Repeats:
    """The setting as the manifest keeps it: a number for all tasks, or one for each kind.

    Raises:
        DataError: a number below 1, or a kind there is not.
    """
    if isinstance(repeats, int):
        _check_number("random_repeats", repeats)
        return repeats
    for name, n in repeats.items():
        if name not in KINDS:
            raise DataError(
                f"random_repeats has {name!r}, which is not a kind of task; use {', '.join(KINDS)}"
            )
        _check_number(f"random_repeats of {name!r}", n)
    return {name: repeats.get(name, REPEATS) for name in KINDS}


def _check_number(what: str, n: int) -> None:
    if not 1 <= n <= MOST_REPEATS:
        raise DataError(f"{what} is {n}; give 1 to {MOST_REPEATS:,}")


def repeats_of(repeats: Repeats, task: str) -> int:
    """How often the random rows of a task are drawn."""
    return repeats if isinstance(repeats, int) else repeats[kind(task)]
