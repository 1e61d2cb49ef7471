"""Objects named in a description, offline: words against a closed vocabulary, as CHAIR does.

The rules: words are compared in lower case, singular or plural, possessive or not; a hyphen joins words as a
space does; the longest phrase wins ("hot dog" is no dog, "teddy bear" no bear), and a phrase that names
something else takes its words out ("train station" is no train). ``synonyms.json`` holds our own table for
the 80 classes of MS-COCO in the manner of CHAIR (Rohrbach et al. 2018, arXiv 1809.02156), with CHAIR's special
cases: "baby" or "adult" in front of an animal and "passenger" in front of a vehicle name no person, a bow tie
is a tie, a toilet seat is no chair. What is denied ("no dog") counts as named, as it does in CHAIR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from gatelens.errors import DataError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_POSSESSIVE = re.compile(r"'s$")
_JOINED = re.compile(r"[\s\-]+")
_IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "shelf": "shelves",
    "thief": "thieves",
    "tooth": "teeth",
    "wife": "wives",
    "wolf": "wolves",
    "woman": "women",
}


@dataclass(frozen=True)
class Mention:
    """One place where a text names an object: ``text[start:stop]`` says ``name``."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Table:
    """``synonyms.json``: synonyms by class, phrases that name something else, and two rules' words.

    A qualifier ("baby") in front of an object or of a ``qualified`` word names nothing. A word of ``colors``
    ("orange") is an object only after a determiner, with no noun and no second colour following.
    """

    classes: dict[str, list[str]]
    qualifiers: frozenset[str]
    qualified: tuple[str, ...]
    colors: frozenset[str]
    other_colors: frozenset[str]
    determiners: frozenset[str]
    after_a_noun: frozenset[str]
    aside: tuple[str, ...]


@lru_cache(maxsize=1)
def _table() -> _Table:
    text = resources.files("gatelens.measures").joinpath("synonyms.json").read_text(encoding="utf-8")
    found = json.loads(text)
    words = ("qualifiers", "colors", "other_colors", "determiners", "after_a_noun")
    return _Table(
        classes=found["classes"],
        qualified=tuple(found["qualified"]),
        aside=tuple(found["aside"]),
        **{name: frozenset(found[name]) for name in words},
    )


class Vocabulary:
    """The objects a description can name, and how.

    >>> Vocabulary.coco().objects("Two men eat hot-dogs by a train station.")
    ['person', 'hot dog']
    >>> Vocabulary(["fox", "bus"], {"bus": ["coach"]}).objects("foxes in a coach")
    ['fox', 'bus']

    Args:
        names: the classes.
        synonyms: other words or phrases for some of them.
        aside: phrases that hold a class's word and name something else, beside those known for MS-COCO.

    Raises:
        DataError: a name without a word, synonyms of no class, or one phrase for two classes.
    """

    def __init__(
        self,
        names: Iterable[str],
        synonyms: Mapping[str, Iterable[str]] | None = None,
        aside: Iterable[str] = (),
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        given = {name: list(more) for name, more in (synonyms or {}).items()}
        for name in given:
            if name not in self.names:
                raise DataError(f"vocabulary: synonyms of {name!r}, which is not one of its classes; add it")
        self._forms: dict[tuple[str, ...], str | None] = {}
        for name in self.names:
            for phrase in [name, *given.get(name, [])]:
                self._add(phrase, name)
        table = _table()
        others = [p for name, more in table.classes.items() for p in [name, *more] if " " in p]
        for phrase in [*aside, *table.aside, *others]:
            for form in _forms(phrase):
                self._forms.setdefault(form, None)
        self._longest = max(len(form) for form in self._forms)
        self._colors: frozenset[str] = frozenset()  # words that count only where they are no colour
        self._qualified = {form for phrase in table.qualified for form in _forms(phrase)}

    @staticmethod
    def coco() -> Vocabulary:
        """The 80 classes of MS-COCO with our synonyms."""
        table = _table()
        out = Vocabulary(table.classes, table.classes)
        out._colors = table.colors
        return out

    def mentions(self, text: str) -> list[Mention]:
        """Where the text names objects, from left to right."""
        words = [(m.start(), m.end(), _lower(m.group())) for m in _WORD.finditer(text)]
        found: list[tuple[int, int, str | None]] = []  # first word, number of words, class or None
        i = 0
        while i < len(words):
            n, name = self._longest_at(words, i, text)
            if n:
                found.append((i, n, name))
            i += max(n, 1)
        out = []
        for place, (i, n, name) in enumerate(found):
            after = found[place + 1] if place + 1 < len(found) else None
            if name is None or self._is_qualifier(words, i, n, text, after):
                continue
            if n == 1 and words[i][2] in self._colors and _is_color(words, i, text):
                continue
            out.append(Mention(name, words[i][0], words[i + n - 1][1]))
        return out

    def objects(self, text: str) -> list[str]:
        """The classes a text names, each once, in the order of their first mention."""
        return list(dict.fromkeys(m.name for m in self.mentions(text)))

    def _add(self, phrase: str, name: str) -> None:
        forms = _forms(phrase)
        if not forms:
            raise DataError(f"vocabulary: {phrase!r} of class {name!r} holds no word; give a name in letters")
        for form in forms:
            if self._forms.setdefault(form, name) != name:
                raise DataError(
                    f"vocabulary: {' '.join(form)!r} names both {self._forms[form]!r} and {name!r}; keep one"
                )

    def _longest_at(self, words: Sequence[tuple[int, int, str]], i: int, text: str) -> tuple[int, str | None]:
        """How many words the longest known phrase at word ``i`` has, and its class; 0 without one."""
        most = 1
        while most < self._longest and i + most < len(words) and _joined(words, i + most, text):
            most += 1
        for n in range(most, 0, -1):
            form = _form([word for _, _, word in words[i : i + n]])
            if form in self._forms:
                return n, self._forms[form]
        return 0, None

    def _is_qualifier(
        self,
        words: Sequence[tuple[int, int, str]],
        i: int,
        n: int,
        text: str,
        after: tuple[int, int, str | None] | None,
    ) -> bool:
        """Whether a word such as "baby" stands directly in front of the object it describes."""
        if n > 1 or words[i][2] not in _table().qualifiers:
            return False
        if i + 1 >= len(words) or not _joined(words, i + 1, text):
            return False
        return (after is not None and after[0] == i + 1) or (words[i + 1][2],) in self._qualified


def _lower(word: str) -> str:
    return word.lower().replace("’", "'")


def _form(words: Sequence[str]) -> tuple[str, ...]:
    """Words as a phrase is known by: only the last may be a possessive ("the dog's bowl" is no "dog bowl")."""
    return (*words[:-1], _POSSESSIVE.sub("", words[-1]))


def _joined(words: Sequence[tuple[int, int, str]], i: int, text: str) -> bool:
    """Whether nothing but spaces or hyphens stands between word ``i`` and the one before."""
    return _JOINED.fullmatch(text[words[i - 1][1] : words[i][0]]) is not None


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """A phrase as words, and with its last word in the plural."""
    words = [_lower(word) for word in _WORD.findall(phrase)]
    if not words:
        return []
    *start, last = _form(words)
    return [(*start, last), *((*start, plural) for plural in _plurals(last))]


def _plurals(word: str) -> list[str]:
    """Plurals a word may have; also ones nobody writes, which do no harm in a closed vocabulary."""
    for singular, plural in _IRREGULAR.items():
        if word == singular or (word.endswith(singular) and singular in ("man", "woman", "child", "knife")):
            return [word[: -len(singular)] + plural, word + "s"]
    if word.endswith("us"):
        return [word + "es", word + "ses", word[:-2] + "i"]
    if re.search(r"(?:[sxz]|[cs]h)$", word):
        return [word + "es"]
    if re.search(r"[^aeiou]y$", word):
        return [word[:-1] + "ies"]
    return [word + "s", word + "es"] if word.endswith("o") else [word + "s"]


def _is_color(words: Sequence[tuple[int, int, str]], i: int, text: str) -> bool:
    """Whether a word that is both fruit and colour is the colour here."""
    table = _table()
    if i == 0 or words[i - 1][2] not in table.determiners:
        return len(words) > 1  # alone it is an answer: the fruit
    following = [w[2] for w in words[i + 1 : i + 3]]
    if not following or not _joined(words, i + 1, text):
        return False
    if following[0] in ("and", "or") and following[1:2] != []:
        return following[1] in table.other_colors
    return following[0] not in table.after_a_noun


@dataclass(frozen=True)
class ObjectScore:
    """How a description names the objects of the reference.

    Attributes:
        n_reference, n_candidate: objects each names.
        n_common: objects of the reference found again, each matched to one of the candidate's at most.
    """

    n_reference: int
    n_candidate: int
    n_common: int

    @property
    def precision(self) -> float:
        """Share of the candidate's objects that the reference names; nan when it names none."""
        return self.n_common / self.n_candidate if self.n_candidate else float("nan")

    @property
    def recall(self) -> float:
        """Share of the reference's objects that the candidate names; nan when there are none."""
        return self.n_common / self.n_reference if self.n_reference else float("nan")

    @property
    def f1(self) -> float:
        """2 · common / (reference + candidate): 0 when one names nothing, nan when neither names anything."""
        total = self.n_reference + self.n_candidate
        return 2 * self.n_common / total if total else float("nan")


def object_score(reference: Iterable[str], candidate: Iterable[str]) -> ObjectScore:
    """Score of two sets of objects; an object named twice counts once."""
    wanted, named = set(reference), set(candidate)
    return ObjectScore(len(wanted), len(named), len(wanted & named))


def score_table(scores: Iterable[ObjectScore]) -> pd.DataFrame:
    """One row a picture: ``n_reference, n_candidate, n_common, precision, recall, f1``."""
    columns = ["n_reference", "n_candidate", "n_common", "precision", "recall", "f1"]
    return pd.DataFrame([[getattr(s, c) for c in columns] for s in scores], columns=columns)


def mean_scores(table: pd.DataFrame) -> dict[str, Any]:
    """A :func:`score_table` in one row.

    ``precision, recall, f1``: means over the pictures where each is defined (an empty description has no
    precision, but an F1 of 0). ``pooled_precision, pooled_recall, pooled_f1``: from the counts of all pictures
    together. ``n``: pictures with an F1.
    """
    whole = ObjectScore(*(int(table[c].sum()) for c in ("n_reference", "n_candidate", "n_common")))
    means = {
        c: float(table[c].mean()) if table[c].notna().any() else float("nan")
        for c in ("precision", "recall", "f1")
    }
    pooled = {f"pooled_{c}": getattr(whole, c) for c in ("precision", "recall", "f1")}
    return {**means, **pooled, "n": int(np.isfinite(table["f1"].astype(float)).sum())}
