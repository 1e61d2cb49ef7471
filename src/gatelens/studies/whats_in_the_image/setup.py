"""What “What's in the image?” is run on: the pictures with their prompt, the objects to look for, the judge."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatelens.data import prompts
from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.measures.judge import Judge, LLMJudge
from gatelens.measures.objects import Vocabulary
from gatelens.studies.whats_in_the_image.truth import objects_in

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example

PRESETS: dict[str, dict[str, Any]] = {
    "data": {"prompt": None, "max_new_tokens": 60},
    "paper": {"prompt": "<image>" + prompts.PAPER_DESCRIBE_PROMPT, "max_new_tokens": 300},
}
TASKS = ("caption", "class", "vqa")  # whose pictures to describe, the first that the data has


def judge_of(judge: str | Judge, out: str | os.PathLike[str] | None) -> Judge | None:
    """The judge asked for; None is the offline one, whose vocabulary is not known yet."""
    if not isinstance(judge, str):
        return judge
    if judge == "offline":
        return None
    if judge != "llm":
        raise DataError(f"judge={judge!r} is unknown; choose 'offline' or 'llm', or pass a judge")
    if out is None:
        raise DataError("judge='llm' keeps its prompts and replies in the run: give out=")
    return LLMJudge.from_environment(Path(out).expanduser() / "judge.jsonl")


def pictures(data: Dataset, n: int, seed: int, prompt: str | None) -> list[Example]:
    """Up to ``n`` seeded pictures, each once, with the prompt that asks for a description."""
    task = next((t for wanted in TASKS for t in data.tasks if kind(t) == wanted), None)
    if task is None:
        raise DataError(
            f"data {data.name!r} has none of the tasks {', '.join(TASKS)} (it has: {', '.join(data.tasks)})"
        )
    captions = kind(task) == "caption"
    if prompt is None and not captions:
        prompt = "<image>" + prompts.CAPTION_PROMPT
    found: dict[Any, Example] = {}
    # several questions may be asked of one picture: draw more than are wanted
    for e in data.examples(task, limit=n if captions else 4 * n, seed=seed):
        if e.image is None:
            raise DataError(f"data {data.name!r}: {task} example {e.id!r} has no picture")
        key = e.id if captions else (e.image.size, hash(e.image.tobytes()))
        found.setdefault(key, e if prompt is None else dataclasses.replace(e, prompt=prompt))
    if not found:
        raise DataError(f"data {data.name!r} has no picture to describe")
    return list(found.values())[:n]


def vocabulary_of(data: Dataset, drawn: Sequence[Example]) -> Vocabulary:
    """The data's classes where its pictures say which objects they hold, else MS-COCO's."""
    known = [name for e in drawn for name in objects_in(e) or ()]
    if not known:
        return Vocabulary.coco()
    coco = set(Vocabulary.coco().names)
    names = list(dict.fromkeys([*known, *data.classes]))
    return Vocabulary.coco() if set(known) <= coco else Vocabulary(names)
