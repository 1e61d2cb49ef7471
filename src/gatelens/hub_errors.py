"""Why a repository of the Hugging Face hub cannot be loaded, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_PAGES = {"model": "", "dataset": "datasets/"}


def hub_reason(
    error: BaseException,
    name: str,
    *,
    kind: Literal["model", "dataset"] = "model",
    revision: str | None = None,
    cache: str | Path | None = None,
    offline: bool = False,
) -> str | None:
    """The reason in one line, with the fix; None for an error that is not the hub's.

    Libraries wrap the hub's errors, so the causes of ``error`` are looked at too.

    Args:
        error: what transformers, datasets or huggingface_hub raised.
        name: the repository, as the user gave it.
        kind: what the repository holds.
        revision: the revision asked for.
        cache: the cache folder asked for, if not the hub's own.
        offline: whether the caller asked for local files only.
    """
    causes = list(_causes(error))

    def is_a(*types: type) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    # the library datasets is optional: its error is known by name, and its text tells gated from missing
    not_found = next((cause for cause in causes if type(cause).__name__ == "DatasetNotFoundError"), None)
    page = f"{constants.ENDPOINT}/{_PAGES[kind]}{name}"
    if is_a(GatedRepoError) or (not_found is not None and "gated" in str(not_found).lower()):
        if kind == "dataset":
            return f"{name} is gated: accept its terms on its hub page and run 'hf auth login'"
        return f"'{name}' is gated: accept its licence at {page}, then log in (hf auth login, or token=)"
    if is_a(RepositoryNotFoundError, HFValidationError) or not_found is not None:
        if kind == "dataset":
            return f"the hub has no data set {name}, or it is private: check the name, or run 'hf auth login'"
        return f"'{name}' is not a repository on {constants.ENDPOINT}, or private: check the name, or log in"
    if is_a(RevisionNotFoundError):
        return f"'{name}' has no revision '{revision}': see {page}/tree/main for what there is"
    if is_a(LocalEntryNotFoundError, OfflineModeIsEnabled) or isinstance(error, ConnectionError):
        if kind == "dataset":
            return f"the hub cannot be reached for {name} (offline?): connect"
        missing = f"'{name}' is not in the cache {cache or constants.HF_HUB_CACHE}, and"
        if constants.HF_HUB_OFFLINE or offline:
            return f"{missing} the hub is switched off: unset HF_HUB_OFFLINE once"
        return f"{missing} {constants.ENDPOINT} cannot be reached: check the network"
    if is_a(EntryNotFoundError) and kind == "model":
        return (
            f"'{name}' lacks a file of a transformers checkpoint ({one_line(error)}): choose its -hf version"
        )
    return None


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's class where it has none.

    A line that ends in a colon takes the next one along; what Python says of a slip in code says little without
    its class.
    """
    name = type(error).__name__
    first, *others = str(error).strip().splitlines() or [name]
    if first.endswith(":") and others:
        first = f"{first} {others[0].strip()}"
    if isinstance(error, (LookupError, TypeError, AttributeError)) and first != name:
        first = f"{name}: {first}"
    return first.rstrip(".")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
