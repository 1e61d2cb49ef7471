"""Objects named in a description, offline: words against a closed vocabulary, as CHAIR does.

Words are compared in lower case, singular or plural, possessive or not; a hyphen joins words as a space does; the
longest phrase wins ("hot dog" is not a dog), and a phrase that names something else takes its words out ("train
station" is not a train). ``synonyms.json`` holds our own table for the 80 classes of MS-COCO in the manner of CHAIR
(Rohrbach et al. 2018, arXiv 1809.02156), with its special cases: "baby" or "adult" in front of an animal names no
person, a bow tie is a tie, a toilet seat is not a chair. What is denied ("no dog") counts as named, as it does in
CHAIR.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise

import pandas as pd
from pydantic import TypeAdapter

from gatelens.errors import DataError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")


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
    irregular_plurals: dict[str, str]
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
    return TypeAdapter(_Table).validate_json(text)


@dataclass(frozen=True)
class _Words:
    """A text's words in lower case, where each stands, and whether only spaces or hyphens part it from the last."""

    words: list[str]
    spans: list[tuple[int, int]]
    joined: list[bool]

    @classmethod
    def of(cls, text: str) -> _Words:
        matches = list(_WORD.finditer(text))
        spans = [match.span() for match in matches]
        gaps = [text[before[1] : after[0]] for before, after in pairwise(spans)]
        joined = [False, *(re.fullmatch(r"[\s\-]+", gap) is not None for gap in gaps)]
        return cls([match.group().lower().replace("’", "'") for match in matches], spans, joined)


@dataclass(frozen=True)
class _Phrase:
    """A known phrase: where it begins and ends among a text's words, and its class, None for what is set aside."""

    first: int
    stop: int
    name: str | None


class Vocabulary:
    """The objects a description can name, and how.

    Args:
        names: the classes.
        synonyms: other words or phrases for some of them.
        aside: phrases that hold a class's word and name something else, beside those known for MS-COCO.

    Raises:
        DataError: a name without a word, synonyms of no class, or one phrase for two classes.

    Example:
        >>> words = gl.measures.Vocabulary(["fox", "bus"], {"bus": ["coach"]})
        >>> words.objects("foxes in a coach")
        ['fox', 'bus']
        >>> gl.measures.Vocabulary.coco().objects("Two men eat hot-dogs by a train station.")
        ['person', 'hot dog']
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
        self._colors: frozenset[str] = frozenset()  # words that count only where they are not colour
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
        text_words = _Words.of(text)
        phrases: list[_Phrase] = []
        for i in range(len(text_words.words)):
            inside_the_last = phrases and i < phrases[-1].stop
            phrase = None if inside_the_last else self._longest_at(text_words, i)
            if phrase is not None:
                phrases.append(phrase)
        starts = {phrase.first for phrase in phrases}
        return [
            Mention(phrase.name, text_words.spans[phrase.first][0], text_words.spans[phrase.stop - 1][1])
            for phrase in phrases
            if phrase.name is not None and not self._names_nothing(text_words, phrase, starts)
        ]

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

    def _longest_at(self, text: _Words, i: int) -> _Phrase | None:
        """The longest known phrase that begins at word ``i``."""
        stop = i + 1
        while stop < min(i + self._longest, len(text.words)) and text.joined[stop]:
            stop += 1
        for end in range(stop, i, -1):
            form = _form(text.words[i:end])
            if form in self._forms:
                return _Phrase(i, end, self._forms[form])
        return None

    def _names_nothing(self, text: _Words, phrase: _Phrase, starts: set[int]) -> bool:
        """Whether one word is a colour here, or comes directly before the object it describes ("baby")."""
        if phrase.stop - phrase.first > 1:
            return False
        word, after = text.words[phrase.first], phrase.stop
        if word in self._colors and _is_color(text, phrase.first):
            return True
        if word not in _table().qualifiers or after >= len(text.words) or not text.joined[after]:
            return False
        return after in starts or (text.words[after],) in self._qualified


def _form(words: Sequence[str]) -> tuple[str, ...]:
    """Words as a phrase is known by: only the last may be a possessive ("the dog's bowl" is no "dog bowl")."""
    return (*words[:-1], words[-1].removesuffix("'s"))


def _forms(phrase: str) -> list[tuple[str, ...]]:
    """A phrase as words, and with its last word in the plural."""
    words = _Words.of(phrase).words
    if not words:
        return []
    *start, last = _form(words)
    return [(*start, last), *((*start, plural) for plural in _plurals(last))]


def _plurals(word: str) -> list[str]:
    """Plurals a word may have; also unusual ones, which do no harm in a closed vocabulary."""
    for singular, plural in _table().irregular_plurals.items():
        if word == singular or (word.endswith(singular) and singular in ("man", "woman", "child", "knife")):
            return [word[: -len(singular)] + plural, word + "s"]
    if word.endswith("us"):
        return [word + "es", word + "ses", word[:-2] + "i"]
    if re.search(r"(?:[sxz]|[cs]h)$", word):
        return [word + "es"]
    if re.search(r"[^aeiou]y$", word):
        return [word[:-1] + "ies"]
    return [word + "s", word + "es"] if word.endswith("o") else [word + "s"]


def _is_color(text: _Words, i: int) -> bool:
    """Whether a word that is both fruit and colour is the colour here."""
    table = _table()
    if i == 0 or text.words[i - 1] not in table.determiners:
        return len(text.words) > 1  # alone it is an answer: the fruit
    following = text.words[i + 1 : i + 3]
    if not following or not text.joined[i + 1]:
        return False
    if following[0] in ("and", "or") and len(following) == 2:
        return following[1] in table.other_colors
    return following[0] not in table.after_a_noun


@dataclass(frozen=True)
class ObjectScore:
    """Numbers of objects that the reference, the candidate description, and both name."""

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
    """Score of two sets of objects; an object named twice counts once.

    Args:
        reference: the objects that should be named.
        candidate: the objects that are named.

    Example:
        >>> score = gl.measures.object_score(["dog", "cat"], ["dog", "bus", "dog"])
        >>> score.precision, score.recall
        (0.5, 0.5)
    """
    wanted, named = set(reference), set(candidate)
    return ObjectScore(len(wanted), len(named), len(wanted & named))


def score_table(scores: Iterable[ObjectScore]) -> pd.DataFrame:
    """One row per picture: ``n_reference, n_candidate, n_common, precision, recall, f1``; nan where undefined."""
    columns = ["n_reference", "n_candidate", "n_common", "precision", "recall", "f1"]
    return pd.DataFrame([[getattr(s, c) for c in columns] for s in scores], columns=columns)


def pooled_score(scores: Iterable[ObjectScore]) -> ObjectScore:
    """The score of all pictures' counts together, where every object weighs the same."""
    counts = [(s.n_reference, s.n_candidate, s.n_common) for s in scores]
    return ObjectScore(*map(sum, zip(*counts, strict=True))) if counts else ObjectScore(0, 0, 0)
