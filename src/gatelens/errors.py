"""The errors gatelens raises: each message is one line that names the offender and the fix.

All of them are ``ValueError``s too, so code that does not know gatelens can still catch them.
The command line prints the message and ends with exit code 2.

>>> try:
...     gl.knockout("last", "image", how="masked")
... except gl.errors.GatelensError as error:
...     print(error)
how='masked' is unknown; say how='mask' (renormalises) or how='zero' (does not)
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

__all__ = [
    "DataError",
    "GatelensError",
    "InputError",
    "InterventionError",
    "ModelError",
    "OutputError",
    "SelectorError",
    "UnknownNameError",
    "WorkerError",
]


class GatelensError(ValueError):
    """Base of every error a user can cause and fix.

    Example:
        >>> try:
        ...     inputs.tokens.mask("image[3]")
        ... except gl.errors.GatelensError as error:
        ...     print(error)
        image[3] is not in the prompt: it has 1 image(s), counted from 0
    """


class SelectorError(GatelensError):
    """A token selector that cannot be read, or that names what the prompt does not have.

    Example:
        >>> inputs.tokens.mask("image[3]")
        Traceback (most recent call last):
            ...
        gatelens.errors.SelectorError: image[3] is not in the prompt: it has 1 image(s), counted from 0
    """


class InputError(GatelensError):
    """Images and text that do not fit together or cannot be read.

    Example:
        >>> model.prepare([scene.image] * 2, scene.prompt)
        Traceback (most recent call last):
            ...
        gatelens.errors.InputError: prompt 0 has 1 <image> and 2 picture(s): write <image> where each one goes
    """


class ModelError(GatelensError):
    """A model that cannot be found, loaded or wrapped.

    Example:
        >>> gl.HookedVLM.from_pretrained("organism:closed")
        Traceback (most recent call last):
            ...
        gatelens.errors.ModelError: no organism 'closed': this package ships gated, llava, open, ...
    """


class InterventionError(GatelensError):
    """An intervention that cannot act as written: wrong layer, empty selection, a row left with nothing.

    Example:
        >>> model.run(inputs, gl.ablate("image", layers=[9]))
        Traceback (most recent call last):
            ...
        gatelens.errors.InterventionError: ablate(...): layer 9 does not exist, the model has 6 layers (0 to 5)
    """


class UnknownNameError(ModelError, AttributeError):
    """A name that a model or a batch does not have, with the nearest one.

    Example:
        >>> model.to_tokns
        Traceback (most recent call last):
            ...
        gatelens.errors.UnknownNameError: HookedVLM has no attribute 'to_tokns'; did you mean 'to_tokens'?
    """


class DataError(GatelensError):
    """A data set, folder or table that lacks something, named with its row.

    Example:
        >>> gl.data.load("emoji-scenes").examples("colour")
        Traceback (most recent call last):
            ...
        gatelens.errors.DataError: emoji-scenes has no task 'colour'; it has class, vqa, caption, draw
    """


class OutputError(GatelensError):
    """A place that cannot be written, or that holds something else.

    Example:
        >>> gl.Run.load("no-such-folder")
        Traceback (most recent call last):
            ...
        gatelens.errors.OutputError: 'no-such-folder' holds no run (manifest.json is missing); give the folder of ...
    """


class WorkerError(GatelensError):
    """Work that workers cannot do: no cluster, other versions there, or units that failed again and again.

    Example:
        >>> issubclass(gl.errors.WorkerError, gl.errors.GatelensError)
        True
    """


def shown(value: object, width: int = 60) -> str:
    """A short one-line form of an argument for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def whole_number(value: object) -> int | None:
    """The int of what Python takes as an index, numpy's and torch's numbers too; None for all else, True and 2.0."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # which raises for what is none
    except (TypeError, ValueError):
        return None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the known word nearest to an unknown one, else an empty string.

    Args:
        cutoff: the minimum similarity of two words, 0..1, as difflib counts it.
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""
