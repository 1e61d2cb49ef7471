"""Attention knockout: chosen queries cannot read chosen keys.

Two meanings are in use and they differ, so both are named:

- ``how="mask"``: −inf before the softmax; the row renormalises over what is left (Geva et al. 2023,
  arXiv 2304.14767; Kaduri et al. 2025, arXiv 2411.17491).
- ``how="zero"``: 0 after the softmax; the rest of the row keeps its weights and sums to less than one
  (what the code of Serra et al. 2025, arXiv 2412.06646, does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.base import (
    Edit,
    Heads,
    HookFunction,
    Indices,
    Intervention,
    Layers,
    Reach,
    Span,
    as_indices,
    config_number,
    first_position,
    resolve_indices,
    select,
)
from gatelens.interventions.sight import in_sight, window_of
from gatelens.roles import Role
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

How = Literal["mask", "zero"]
_HOOK = {"mask": "hook_attn_scores", "zero": "hook_pattern"}
_FILL = {"mask": float("-inf"), "zero": 0.0}


@dataclass(frozen=True, eq=False, repr=False)
class Knockout(Intervention):
    """What :func:`knockout` returns."""

    queries: SelectorLike
    keys: SelectorLike
    heads: Indices = field(default=None, kw_only=True)
    how: How = field(default="mask", kw_only=True)

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        bound = _bind(self, tokens, cfg)
        return Reach(first_position(bound.queries), min(bound.layers))

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        return knockout_edits([self], tokens, cfg, span)


def knockout(
    queries: SelectorLike, keys: SelectorLike, layers: Layers = None, heads: Heads = None, how: How = "mask"
) -> Knockout:
    """Cut the attention from ``queries`` to ``keys``.

    Args:
        queries: selector of the rows that lose something (string, ``Bool[batch, pos]``, positions).
        keys: selector of the columns they lose. Only keys a query can read matter: those at or before it, and
            where tokens attend both ways (``TokenMap.two_way``) those of its own block.
        layers: which blocks; None is all of them.
        heads: which query heads; None is all of them.
        how: ``"mask"`` (−inf before the softmax, the row renormalises) or ``"zero"`` (0 after it, it does
            not).

    Raises:
        InterventionError: for a bad ``how``, ``layers`` or ``heads``. When it is run: for a layer or head
            the model lacks, for a selection without one (query, key) pair that attention reads, and for
            ``"mask"`` knockouts which together leave a row nothing to attend to.
    """
    if how not in _HOOK:
        raise InterventionError(
            f"how={how!r} is unknown; say how='mask' (renormalises) or how='zero' (does not)"
        )
    return Knockout(
        queries, keys, layers=as_indices(layers, "layers"), heads=as_indices(heads, "heads"), how=how
    )


@dataclass(frozen=True)
class _Bound:
    """A knockout with everything resolved."""

    spec: Knockout
    queries: Bool[Tensor, "batch pos"]
    keys: Bool[Tensor, "batch pos"]
    layers: frozenset[int]
    heads: tuple[int, ...] | None  # None: every head
    windows: dict[int, int | None]  # how far back each of the layers looks


def _bind(spec: Knockout, tokens: TokenMap, cfg: Any) -> _Bound:
    queries, keys = select(tokens, spec.queries, spec), select(tokens, spec.keys, spec)
    for mask, word, selector in ((queries, "queries", spec.queries), (keys, "keys", spec.keys)):
        if not mask.any():
            raise InterventionError(f"{spec!r}: {word}={selector!r} selects no position in any example")
    layers = resolve_indices(spec.layers, config_number(cfg, "n_layers"), "layers", spec)
    if not (in_sight(keys, tokens).bool() & queries).any():
        raise InterventionError(
            f"{spec!r}: every key stands after every query, and attention is causal: there is nothing to "
            "cut; are queries and keys swapped?"
        )
    windows = {layer: window_of(cfg, layer) for layer in layers}
    if not any((in_sight(keys, tokens, w).bool() & queries).any() for w in set(windows.values())):
        raise InterventionError(
            f"{spec!r}: every key stands further back than these layers look ({max(filter(None, windows.values()))} "
            "positions), there is nothing to cut; choose layers that see the whole prompt"
        )
    heads = None
    if spec.heads is not None:
        heads = resolve_indices(spec.heads, config_number(cfg, "n_heads"), "heads", spec)
    return _Bound(spec, queries, keys, frozenset(layers), heads, windows)


def plain_knockout(spec: Any) -> TypeGuard[Knockout]:
    """Whether an intervention is a knockout and no more; a kind derived from it with edits of its own is not."""
    return isinstance(spec, Knockout) and type(spec).edits is Knockout.edits


def bind_knockouts(specs: Sequence[Knockout], tokens: TokenMap, cfg: Any) -> list[_Bound]:
    """The knockouts with positions, layers and heads found and checked, also against each other.

    Raises:
        InterventionError: see :func:`knockout`.
    """
    bound = [_bind(spec, tokens, cfg) for spec in specs]
    masks = [b for b in bound if b.spec.how == "mask"]
    if masks:
        _check_no_empty_row(masks, tokens)
    return bound


def knockout_edits(specs: Sequence[Knockout], tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
    """One hook for each layer and ``how``, holding the union of all knockouts there.

    Raises:
        InterventionError: see :func:`knockout`.
    """
    bound = bind_knockouts(specs, tokens, cfg)
    edits: list[Edit] = []
    for how in ("mask", "zero"):
        mine = [b for b in bound if b.spec.how == how]
        if not mine:
            continue
        blocks = _Blocks(mine, span)
        for layer in sorted(frozenset[int]().union(*(b.layers for b in mine))):
            members = tuple(i for i, b in enumerate(mine) if layer in b.layers)
            name = f"blocks.{layer}.attn.{_HOOK[how]}"
            edits.append(Edit(name, _function(name, blocks, members, _FILL[how])))
    return edits


class _Blocks:
    """The cut (row, key) entries of a pass, built once and shared by all layers that cut the same."""

    def __init__(self, bound: list[_Bound], span: Span) -> None:
        self.bound, self.span = bound, span
        self._index: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._held: dict[tuple[int, ...], tuple[Any, tuple[int, int, Tensor] | None]] = {}

    def by_heads(self, members: tuple[int, ...]) -> list[tuple[tuple[int, ...] | None, tuple[int, ...]]]:
        """The members grouped by the heads they name."""
        groups: dict[tuple[int, ...] | None, list[int]] = {}
        for i in members:
            groups.setdefault(self.bound[i].heads, []).append(i)
        return [(heads, tuple(group)) for heads, group in groups.items()]

    def index(self, heads: tuple[int, ...], device: torch.device) -> Tensor:
        """The head numbers as a tensor, carried to the device once."""
        if (heads, device) not in self._index:
            self._index[heads, device] = torch.tensor(heads, device=device)
        return self._index[heads, device]

    def get(self, group: tuple[int, ...], device: torch.device) -> tuple[int, int, Tensor] | None:
        """(first row, end row, Bool[batch, 1, rows, keys]) of the group's union; None: no row is here."""
        offset, stop = self.span.offset, self.span.stop
        key = (offset, stop, device)
        held = self._held.get(group)
        if held is None or held[0] != key:
            held = (key, self._build(group, offset, stop, device))
            self._held[group] = held
        return held[1]

    def _build(
        self, group: tuple[int, ...], offset: int, stop: int, device: torch.device
    ) -> tuple[int, int, Tensor] | None:
        rows = torch.stack([self.bound[i].queries[:, offset:stop] for i in group])
        touched = rows.any(dim=0).any(dim=0).nonzero()[:, 0]
        if not len(touched):
            return None
        # Few rows lose anything (text, not image): only the stretch that holds them is built and written.
        low, high = int(touched[0]), int(touched[-1]) + 1
        keys = torch.stack([self.bound[i].keys[:, :stop] for i in group])
        rows, keys = rows[:, :, low:high].to(device), keys.to(device)
        union = rows[0, :, :, None] & keys[0, :, None, :]
        for r, k in zip(rows[1:], keys[1:], strict=True):
            union |= r[:, :, None] & k[:, None, :]
        return low, high, union[:, None]


def _function(name: str, blocks: _Blocks, members: tuple[int, ...], fill: float) -> HookFunction:
    groups = blocks.by_heads(members)
    batch, span = blocks.bound[0].queries.shape[0], blocks.span

    def cut(tensor: Tensor, hook: Any = None) -> Tensor | None:
        expected = (batch, span.stop - span.offset, span.stop)
        seen = (tensor.shape[0], tensor.shape[2], tensor.shape[3])
        if seen != expected:
            raise InterventionError(
                f"{name} gave (batch, query, key) = {seen} where the token map says {expected}; make "
                "hooks from the TokenMap of these inputs, and decode with model.generate(inputs, ...)"
            )
        edited: Tensor | None = None
        for heads, group in groups:
            block = blocks.get(group, tensor.device)
            if block is None:
                continue
            low, high, mask = block
            edited = tensor.clone() if edited is None else edited
            if heads is None:
                edited[:, :, low:high].masked_fill_(mask, fill)
            else:
                index = blocks.index(heads, tensor.device)
                edited[:, index, low:high] = edited[:, index, low:high].masked_fill(mask, fill)
        return edited

    return cut


def _check_no_empty_row(bound: list[_Bound], tokens: TokenMap) -> None:
    """Every row must keep a key it may read (no padding, in its sight), in every layer and head.

    A row is empty when the keys cut by those knockouts that name the row cover everything it sees. Rows
    named by the same knockouts share the answer, so this costs (knockouts × positions), not positions
    squared.
    """
    real = tokens.roles.cpu() != Role.PAD
    layers = sorted(frozenset[int]().union(*(b.layers for b in bound)))
    named = sorted({h for b in bound for h in b.heads or ()})
    windows = {layer: w for b in bound for layer, w in b.windows.items()}
    seen: set[tuple[tuple[int, ...], int | None]] = set()
    for layer in layers:
        for head in [None, *named]:  # None: a head nobody names
            active = tuple(
                i for i, b in enumerate(bound) if layer in b.layers and (b.heads is None or head in b.heads)
            )
            if not active or (active, windows[layer]) in seen:
                continue
            seen.add((active, windows[layer]))
            named_by = torch.stack([bound[i].queries & real for i in active])
            for pattern in named_by.flatten(1).unique(dim=1).T:
                if not pattern.any():
                    continue
                rows = (named_by == pattern[:, None, None]).all(dim=0)
                group = [i for i, names in zip(active, pattern.tolist(), strict=True) if names]
                left = real & ~torch.stack([bound[i].keys for i in group]).any(dim=0)
                empty = rows & (in_sight(left, tokens, windows[layer]) == 0)
                if empty.any():
                    example, row = (int(x) for x in empty.nonzero()[0])
                    where = f"layer {layer}" + ("" if head is None else f", head {head}")
                    who = " with ".join(repr(bound[i].spec) for i in group)
                    raise InterventionError(
                        f"{who} leaves a row nothing to attend to: {where}, example {example}, position "
                        f"{row} ({tokens.strings[example][row]!r}); use how='zero', or keep one key, e.g. "
                        f'keys="({_keys_text(bound[group[0]])}) - pos[{row}]"'
                    )


def _keys_text(bound: _Bound) -> str:
    """The keys as one would write them in the fixed call."""
    return bound.spec.keys if isinstance(bound.spec.keys, str) else "your keys"
