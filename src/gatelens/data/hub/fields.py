"""Reading the answers of a row, whatever form a copy of the data gives them; a reason where there are none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gatelens.data.tables import plain


def texts(value: Any, keys: Sequence[str]) -> list[Any]:
    """The texts in a column: one text, a list, a list of records, records as columns, or one of these as JSON."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except RecursionError:
            raise ValueError("JSON nested too deeply") from None
        except ValueError:
            value = [value]
    if isinstance(value, Mapping):
        value = next((value[k] for k in keys if k in value), None)
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        value = [value]
    given = [
        next((one[k] for k in keys if k in one), None) if isinstance(one, Mapping) else one for one in value
    ]
    for number, one in enumerate(given, start=1):
        if isinstance(one, (Mapping, list, bytes)):
            raise ValueError(f"entry {number} of {len(given)} is not text")
        if isinstance(one, str):
            plain(one)
    return given


def question_answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The annotators' answers to a question; an empty one counts as not given."""
    question = row.get("question") or ""
    if not isinstance(question, str):
        raise ValueError("the question is not text")
    if not plain(question).strip():
        raise ValueError("no question")
    given = texts(row["answers"], ("answer", "raw"))
    answers = tuple(str(a) for a in given if a is not None and str(a).strip())
    if not answers:
        raise ValueError("no answers")
    return answers


def yes_or_no(row: Mapping[str, Any]) -> tuple[str, ...]:
    """MME's answer to a question of a subset."""
    if not isinstance(row["category"], str):
        raise ValueError("the category is not text")
    answers = question_answers(row)
    odd = next((a for a in answers if a.strip().strip(".").lower() not in ("yes", "no")), None)
    if odd is not None:
        raise ValueError(f"the answer {odd!r} is neither yes nor no")
    return answers


def captions(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The reference captions; none may be empty, as CIDEr would count an empty one as a reference."""
    references = texts(row["captions"], ("raw", "caption", "text"))
    if not references:
        raise ValueError("no caption")
    empty = next((i for i, c in enumerate(references) if c is None or not str(c).strip()), None)
    if empty is not None:
        raise ValueError(f"caption {empty + 1} of {len(references)} is empty")
    return tuple(str(c).strip() for c in references)


def class_names(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A class and its synonyms: ImageNet writes ``tench, Tinca tinca``."""
    if row["label"] is None or row["label"] == -1:  # -1 marks the unlabelled test split
        raise ValueError("no label")
    if not isinstance(row["label"], str):
        raise ValueError("the label is not text")
    names = synonyms(plain(row["label"]))
    if not names:
        raise ValueError("no label")
    return names


def synonyms(label: str) -> tuple[str, ...]:
    """The names in a label, in order."""
    return tuple(dict.fromkeys(part.strip() for part in label.split(",") if part.strip()))
