"""Places in a decoder by name: ``L5H1``, ``L5 mlp``, ``L5 resid_pre`` send; ``L5H1.q``, ``L5 mlp``, ``logits`` take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gatelens.errors import InputError, shown
from gatelens.interventions.sites import head_count

EVERYWHERE = "all"
# in the order in which a block computes them
_ORDER = ("resid_pre", "q", "k", "v", "z", "mlp_in", "mlp_out")
_NAME = re.compile(r"L(\d+)(?:H(\d+)(?:\.([qkv]))?| (mlp|resid_pre))")
Kind = Literal["sender", "receiver"]
EXAMPLES = {
    "sender": "a head 'L3H2', an MLP 'L3 mlp', the stream 'L3 resid_pre'",
    "receiver": "a head's query, key or value 'L5H1.q', an MLP 'L5 mlp', or 'logits'",
}


@dataclass(frozen=True)
class Place:
    """Something that is computed in a layer, at some positions.

    Attributes:
        name: as it was written.
        layer, site, head: where it is; ``logits`` have the site ``logits`` and ``n_layers`` as their layer. The head
            of ``k`` and ``v`` is a key-value head.
        at: selector of the positions.
    """

    name: str
    layer: int
    site: Any  # a Site, or logits
    head: int | None
    at: str

    @property
    def order(self) -> tuple[int, int]:
        """Grows along the computation; queries, keys and values are computed side by side."""
        if self.site == "logits":
            return self.layer, 0
        return self.layer, 1 if self.site in ("q", "k", "v") else _ORDER.index(self.site)


def place_of(name: Any, kind: Kind, cfg: Any) -> Place:
    """A sender or receiver by its name, with ``@selector`` after it for some positions only.

    Raises:
        InputError: it cannot be read, or the model has no such layer or head.
    """
    if not isinstance(name, str):
        raise InputError(f"{kind} {shown(name)}: write {EXAMPLES[kind]}")
    what, _, at = name.partition("@")
    at = at.strip() or EVERYWHERE
    if kind == "receiver" and what.strip() == "logits":
        return Place(name, int(cfg.n_layers), "logits", None, at)
    found = _NAME.fullmatch(what.strip())
    if found is None:
        raise InputError(f"{kind} {shown(name)}: write {EXAMPLES[kind]}, with '@selector' for some positions")
    layer, head, part, whole = found.groups()
    is_receiver = kind == "receiver"
    if head is not None and (part is None) == is_receiver:
        raise InputError(
            f"receiver {name!r}: say what of the head is to receive, {what.strip()}.q, .k or .v"
            if is_receiver
            else f"sender {name!r}: a head sends its whole output, write L{layer}H{head}"
        )
    if whole == "resid_pre" and is_receiver:
        raise InputError(f"receiver {name!r}: the stream is read by all that follows; write {EXAMPLES[kind]}")
    site = part or ("z" if head is not None else whole)
    if site == "mlp":
        site = "mlp_in" if is_receiver else "mlp_out"
    if int(layer) >= int(cfg.n_layers):
        raise InputError(f"{kind} {name!r}: the model has layers 0 to {int(cfg.n_layers) - 1}")
    if head is not None and int(head) >= (n_heads := head_count(site, cfg) or 0):
        kinds = "key-value heads" if site in ("k", "v") else "heads"
        raise InputError(f"{kind} {name!r}: the model has {kinds} 0 to {n_heads - 1}")
    return Place(name, int(layer), site, None if head is None else int(head), at)


def receivers_of(given: Any, cfg: Any) -> list[Place]:
    """Receivers that receive together.

    Raises:
        InputError: none, one that cannot be read, or ``logits`` with others.
    """
    places = [place_of(name, "receiver", cfg) for name in _several(given)]
    if not places:
        raise InputError(f"receivers is empty: write {EXAMPLES['receiver']}")
    if len(places) > 1 and any(one.site == "logits" for one in places):
        raise InputError("receivers: the logits receive all that is left over; ask for them by themselves")
    return places


def senders_of(given: Any, receivers: Sequence[Place], cfg: Any) -> dict[str, list[Place]]:
    """Label of each sender to the places that send together.

    ``heads`` and ``mlps`` are all those that come before the last receiver.

    Raises:
        InputError: none, one that cannot be read, or one that no receiver comes after.
    """
    last = max(one.order for one in receivers)
    if isinstance(given, str) and (word := given.partition("@"))[0].strip() in ("heads", "mlps"):
        names = _all_of(word[0].strip(), int(cfg.n_layers), int(cfg.n_heads))
        where = "@" + word[2].strip() if word[2].strip() else ""
        every = {name: [place_of(name + where, "sender", cfg)] for name in names}
        found = {name: places for name, places in every.items() if places[0].order < last}
    elif isinstance(given, Mapping):
        found = {
            str(label): [place_of(name, "sender", cfg) for name in _several(names)]
            for label, names in given.items()
        }
    else:
        places = [place_of(name, "sender", cfg) for name in _several(given)]
        found = {one.name: [one] for one in places}
    if not found or not all(found.values()):
        raise InputError(f"no sender comes before a receiver: write 'heads', 'mlps', {EXAMPLES['sender']}")
    for places in found.values():
        for one in places:
            if one.order >= last:
                raise InputError(
                    f"sender {one.name!r} is computed after every receiver: no path leads to them"
                )
    return found


def _several(given: Any) -> list[Any]:
    return [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)


def _all_of(word: str, n_layers: int, n_heads: int) -> list[str]:
    if word == "mlps":
        return [f"L{layer} mlp" for layer in range(n_layers)]
    return [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]
