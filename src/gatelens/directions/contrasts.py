"""Positive and negative examples: what ``gl.direction`` contrasts, run by the model or kept in a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gatelens.activation_store import ActivationStore
from gatelens.data import Example, Pairs
from gatelens.errors import DataError, InterventionError, did_you_mean, shown
from gatelens.examples import labels_of
from gatelens.model import HookedVLM
from gatelens.sweeps import examples_of

Chooser = str | Callable[[Example], Any] | Sequence[Example]


def sides_of(
    data: Any, positive: Any, negative: Any, task: str | None, limit: int | None, seed: int
) -> tuple[tuple[list[Any], list[Any]], tuple[str, str]]:
    """Positive and negative examples, and what they are called."""
    if isinstance(data, Pairs):
        if positive is not None or negative is not None:
            raise DataError("pairs are positive (clean) and negative (corrupt) already: leave both out")
        return ([p.clean for p in data], [p.corrupt for p in data]), ("clean", "corrupt")
    lists = [isinstance(side, list | tuple) for side in (positive, negative)]
    if all(lists):
        if data is not None:
            raise DataError("positive and negative are lists of examples: leave data out")
        sides = tuple(examples_of(side, None, None, 0) for side in (positive, negative))
        return (sides[0], sides[1]), ("positive examples", "negative examples")
    if any(lists) or data is None or positive is None:
        raise DataError(
            "say which examples are positive and which negative: labels or functions with data, or two lists without"
        )
    examples = examples_of(data, task, limit, seed)
    plus = _chosen(examples, positive, "positive")
    minus = [not one for one in plus] if negative is None else _chosen(examples, negative, "negative")
    both = next((e.id for e, p, m in zip(examples, plus, minus, strict=True) if p and m), None)
    if both is not None:
        raise DataError(f"example {both!r} is both positive and negative: choose disjoint examples")
    parts = [[e for e, mine in zip(examples, side, strict=True) if mine] for side in (plus, minus)]
    for word, part in zip(("positive", "negative"), parts, strict=True):
        if not part:
            raise DataError(f"none of {len(examples)} examples is {word}; choose others, or raise limit")
    words = [repr(one) if isinstance(one, str) else "chosen" for one in (positive, negative)]
    return (parts[0], parts[1]), (words[0], "others" if negative is None else words[1])


def _chosen(examples: Sequence[Example], chooser: Any, word: str) -> list[bool]:
    if isinstance(chooser, str):
        known = sorted({label for e in examples for label in labels_of(e)})
        if chooser not in known:
            raise DataError(
                f"{word}={chooser!r} is not a label of these examples{did_you_mean(chooser, known)}"
            )
        return [chooser in labels_of(e) for e in examples]
    if not callable(chooser):
        raise DataError(
            f"{word}={shown(chooser)}: give a label, a function of an example or a list of examples"
        )
    return [bool(chooser(e)) for e in examples]


def paired(sides: tuple[list[Any], list[Any]], given: bool) -> tuple[list[Any], list[Any]]:
    """As many of each side, in order; lists that were given have to be of one length already."""
    n = min(map(len, sides))
    if given and len(sides[0]) != len(sides[1]):
        raise DataError(f"pca pairs examples, and the lists have {len(sides[0])} and {len(sides[1])}")
    return sides[0][:n], sides[1][:n]


def stored_sides(
    store: ActivationStore, model: HookedVLM, positive: Any, negative: Any, at: Any, given: Sequence[Any]
) -> tuple[tuple[list[Any], list[Any]], tuple[str, str]]:
    """Ids of the positive and the negative examples of a store, by label, and what they are called.

    ``given``: arguments that go with data alone, None where they are left out.

    Raises:
        DataError: a label that no example has, nothing but labels to choose by, or an argument of data.
        InterventionError: another model's store, or positions other than those it holds.
    """
    if any(one is not None for one in given):
        raise DataError(
            "task=, limit= and batch_size= go with data, and a store is read as it is: leave them out"
        )
    store.check_model(model)
    if at != store.at:
        raise InterventionError(
            f"at={shown(at)}, and the store holds at={store.at!r}: say that, or collect the other"
        )
    once = store.index.drop_duplicates("example").sort_values("number")  # as the data orders them
    labels = once.set_index("example")["label"].astype(object)
    labels = labels.where(labels.notna(), None)
    for word, one in (("positive", positive), ("negative", negative)):
        if not isinstance(one, str) and not (word == "negative" and one is None):
            raise DataError(f"{word}={shown(one)}: examples of a store are chosen by their label, give one")
        if one is not None and one not in set(labels):
            known = sorted(set(labels.dropna()))
            raise DataError(
                f"{word}={one!r} is not a label of the examples of {store.path}{did_you_mean(one, known)}"
            )
    if positive == negative:
        raise DataError(f"{positive!r} is both positive and negative: choose two labels")
    plus = labels.index[labels == positive].tolist()
    minus = labels.index[labels != positive if negative is None else labels == negative].tolist()
    if not minus:
        raise DataError(
            f"every example of {store.path} is {positive!r}: there is no other to contrast it with"
        )
    return (plus, minus), (repr(positive), "others" if negative is None else repr(negative))
