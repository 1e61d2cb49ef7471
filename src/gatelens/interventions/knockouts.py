"""Attention knockout: chosen queries cannot read chosen keys.

Two meanings are in use and they differ, so both are named:

- ``how="mask"``: −inf before the softmax; the row renormalises over what is left (Geva et al. 2023,
  arXiv 2304.14767; Kaduri et al. 2025, arXiv 2411.17491).
- ``how="zero"``: 0 after the softmax; the rest of the row keeps its weights and sums to less than one
  (what the code of Serra et al. 2025, arXiv 2412.06646, does).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.bridge.masked_attention import BlockedEntries
from gatelens.errors import InterventionError
from gatelens.interventions.arguments import Heads, Indices, Layers, as_indices, check_choice
from gatelens.interventions.base import (
    Intervention,
    Reach,
    check_selected,
    config_number,
    first_position,
    resolve_indices,
    select,
)
from gatelens.interventions.hooks import Edit, HookFunction, Span, check_pass
from gatelens.interventions.visibility import visible_keys, window_of
from gatelens.tokens import Role, SelectorLike, TokenMap

KnockoutMethod = Literal["mask", "zero"]
_HOOK = {"mask": "hook_attn_scores", "zero": "hook_pattern"}
_FILL = {"mask": float("-inf"), "zero": 0.0}


@dataclass(frozen=True, eq=False, repr=False)
class Knockout(Intervention):
    """What :func:`knockout` returns."""

    queries: SelectorLike
    keys: SelectorLike
    heads: Indices = field(default=None, kw_only=True)
    how: KnockoutMethod = field(default="mask", kw_only=True)

    def selected(self, tokens: TokenMap) -> tuple[Bool[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """The queries and the keys."""
        queries, keys = select(tokens, self.queries, self), select(tokens, self.keys, self)
        check_selected(tokens, queries, "queries", self.queries, self)
        check_selected(tokens, keys, "keys", self.keys, self)
        return queries, keys

    def reach(self, tokens: TokenMap, cfg: Any) -> Reach | None:
        resolved = _resolve(self, tokens, cfg)
        losing = resolved.queries & visible_keys(resolved.keys, tokens).bool()
        return Reach(first_position(losing), min(resolved.layers))

    def edits(self, tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
        return knockout_edits([self], tokens, cfg, span)


def knockout(
    queries: SelectorLike,
    keys: SelectorLike,
    layers: Layers = None,
    heads: Heads = None,
    how: KnockoutMethod = "mask",
    masks: Mapping[str, Any] | None = None,
) -> Knockout:
    """Cut the attention from ``queries`` to ``keys``.

    Args:
        queries: selector of the rows that lose attention (string, ``Bool[batch, pos]``, positions).
        keys: selector of the columns they lose. Only keys a query can read matter: those at or before it, and
            where tokens attend both ways (``TokenMap.two_way``) those of its own block.
        layers: which blocks; None is all of them.
        heads: which query heads; None is all of them.
        how: ``"mask"`` (−inf before the softmax, the row renormalises) or ``"zero"`` (0 after it, it does
            not).
        masks: pixel masks by the names that the selectors use in ``image.mask(name)``, as ``tokens.mask`` takes them.

    Raises:
        InterventionError: for a bad ``how``, ``layers`` or ``heads``. When it is run: for a layer or head
            the model lacks, for a selection without any (query, key) pair that attention reads, and for
            ``"mask"`` knockouts which together leave a row nothing to attend to.

    Example:
        >>> cut = gl.knockout("text - gate", "gate")
        >>> logits = model.run(inputs), model.run(inputs, cut)
        >>> [model.tokenizer.decode(one[0, -1].argmax()) for one in logits]
        ['sunflower', 'penguin']
    """
    check_choice(how, {"mask": "renormalises", "zero": "does not"}, "how")
    return Knockout(
        queries,
        keys,
        layers=as_indices(layers, "layers"),
        heads=as_indices(heads, "heads"),
        masks=masks,
        how=how,
    )


@dataclass(frozen=True)
class ResolvedKnockout:
    """A knockout with its selectors, layers and heads read for one token map and model."""

    spec: Knockout
    queries: Bool[Tensor, "batch pos"]
    keys: Bool[Tensor, "batch pos"]
    layers: frozenset[int]
    heads: tuple[int, ...] | None  # None: every head
    windows: dict[int, int | None]  # how far back each of the layers looks


def _resolve(spec: Knockout, tokens: TokenMap, cfg: Any) -> ResolvedKnockout:
    queries, keys = spec.selected(tokens)
    layers = spec.layer_numbers(cfg)
    if not (visible_keys(keys, tokens).bool() & queries).any():
        raise InterventionError(
            f"{spec!r}: every key comes after every query, and attention is causal: there is nothing to "
            "cut; are queries and keys swapped?"
        )
    windows = {layer: window_of(cfg, layer) for layer in layers}
    if not any((visible_keys(keys, tokens, w).bool() & queries).any() for w in set(windows.values())):
        raise InterventionError(
            f"{spec!r}: every key is further back than these layers look ({max(filter(None, windows.values()))} "
            "positions), there is nothing to cut; choose layers that see the whole prompt"
        )
    heads = None
    if spec.heads is not None:
        heads = resolve_indices(spec.heads, config_number(cfg, "n_heads"), "heads", spec)
    return ResolvedKnockout(spec, queries, keys, frozenset(layers), heads, windows)


def plain_knockout(spec: Any) -> TypeGuard[Knockout]:
    """Whether an intervention is a knockout and no more; a kind derived from it with edits of its own is not."""
    return isinstance(spec, Knockout) and type(spec).edits is Knockout.edits


def split_knockouts(specs: Iterable[Intervention]) -> tuple[list[Knockout], list[Intervention]]:
    """The plain knockouts, which act together, and all other interventions, each in the order of the list."""
    specs = list(specs)
    knockouts: list[Knockout] = [spec for spec in specs if plain_knockout(spec)]
    return knockouts, [spec for spec in specs if not plain_knockout(spec)]


def resolve_knockouts(specs: Sequence[Knockout], tokens: TokenMap, cfg: Any) -> list[ResolvedKnockout]:
    """The knockouts of one run, checked one by one and against each other.

    Raises:
        InterventionError: see :func:`knockout`.
    """
    resolved = [_resolve(spec, tokens, cfg) for spec in specs]
    masks = [knockout for knockout in resolved if knockout.spec.how == "mask"]
    if masks:
        _check_no_empty_row(masks, tokens)
    return resolved


def knockout_edits(specs: Sequence[Knockout], tokens: TokenMap, cfg: Any, span: Span) -> list[Edit]:
    """One hook for each layer and ``how``, holding the union of all knockouts there.

    Raises:
        InterventionError: see :func:`knockout`.
    """
    resolved = resolve_knockouts(specs, tokens, cfg)
    entries = KnockoutEntries([resolved], span)
    methods: tuple[KnockoutMethod, ...] = ("mask", "zero")
    return [
        Edit(f"blocks.{layer}.attn.{_HOOK[how]}", _block(how, layer, entries, tokens.batch_size), first=True)
        for how in methods
        for layer in sorted({n for one in resolved if one.spec.how == how for n in one.layers})
    ]


def _block(how: KnockoutMethod, layer: int, knockouts: KnockoutEntries, batch: int) -> HookFunction:
    span, name = knockouts.span, f"blocks.{layer}.attn.{_HOOK[how]}"

    def block(tensor: Tensor, hook: Any = None) -> Tensor | None:
        shape = (tensor.shape[0], tensor.shape[2], tensor.shape[3])
        check_pass(name, "batch, query, key", shape, (batch, span.stop - span.offset, span.stop))
        blocked = knockouts.blocked(how, layer, tensor.shape[1], tensor.device)
        if blocked is None:
            return None
        # a copy, which fill makes itself where gradients flow: the tensor may lie in a cache
        cut = blocked.fill(tensor if tensor.requires_grad else tensor.clone(), _FILL[how])
        if how == "mask":
            _check_rows_left(cut[:, :, blocked.start : blocked.stop], blocked.entries, name)
        return cut

    return block


def _check_rows_left(
    scores: Float[Tensor, "batch head row key"], entries: Bool[Tensor, "batch head row key"], name: str
) -> None:
    """Knockouts compiled together were checked before the run; those of other ``.hooks()`` are seen only here."""
    lowest = torch.finfo(scores.dtype).min / 2  # what no row may read has the lowest number, or near it
    empty = (scores.amax(dim=-1) <= lowest) & entries.any(dim=-1)
    if not empty.is_meta and empty.any():  # weights that are loaded later hold no numbers to look at
        example, head, _ = (int(x) for x in empty.nonzero()[0])
        raise InterventionError(
            f"the hooks of several knockouts together leave a row nothing to attend to: {name}, example {example}, "
            f"head {head}; use how='zero', or make them together for the position: gl.hooks([one, other], tokens, "
            "model.cfg)"
        )


class KnockoutEntries:
    """The attention entries that the knockouts of several runs block, run after run in the batch.

    They are built once a pass, and shared by all layers in which the same knockouts act.
    """

    def __init__(self, runs: Sequence[Sequence[ResolvedKnockout]], span: Span) -> None:
        self.runs, self.span = runs, span
        self._pass: tuple[int, int] | None = None
        self._built: dict[tuple[Any, ...], BlockedEntries | None] = {}

    def blocked(
        self, how: KnockoutMethod, layer: int, n_heads: int, device: torch.device
    ) -> BlockedEntries | None:
        """What the knockouts of one ``how`` block in a layer during the current pass; None for nothing."""
        current = (self.span.offset, self.span.stop)
        if self._pass != current:
            self._pass = current
            self._built.clear()
        acting = tuple(
            tuple(i for i, one in enumerate(run) if layer in one.layers and one.spec.how == how)
            for run in self.runs
        )
        key = (acting, how, n_heads, device)
        if key not in self._built:
            chosen = [[run[i] for i in numbers] for run, numbers in zip(self.runs, acting, strict=True)]
            self._built[key] = blocked_entries(chosen, self.span, n_heads, device)
        return self._built[key]


def blocked_entries(
    runs: Sequence[Sequence[ResolvedKnockout]], span: Span, n_heads: int, device: torch.device
) -> BlockedEntries | None:
    """The union of the (query, key) entries each run's knockouts block, run after run in the batch.

    Only the stretch of rows that holds every query is built: few rows lose anything (text, not image). None when
    no query is in the rows ``span.offset … span.stop - 1``.
    """
    knockouts = [knockout for run in runs for knockout in run]
    if not knockouts:
        return None
    rows = slice(span.offset, span.stop)
    touched = torch.stack([one.queries[:, rows].any(dim=0) for one in knockouts]).any(dim=0).nonzero()
    if not len(touched):
        return None
    start, stop = int(touched[0]), int(touched[-1]) + 1
    batch = len(knockouts[0].queries)
    heads = 1 if all(one.heads is None for one in knockouts) else n_heads
    shape = (len(runs), batch, heads, stop - start, span.stop)
    entries = torch.zeros(shape, dtype=torch.bool, device=device)
    for of_run, run in zip(entries, runs, strict=True):
        for one in run:
            queries = one.queries[:, span.offset + start : span.offset + stop].to(device)
            pairs = queries[:, None, :, None] & one.keys[:, None, None, : span.stop].to(device)
            if one.heads is None:
                of_run |= pairs
            else:
                of_run[:, list(one.heads)] |= pairs
    return BlockedEntries(start, stop, entries.flatten(0, 1))


def _check_no_empty_row(knockouts: list[ResolvedKnockout], tokens: TokenMap) -> None:
    """Every row must keep a key it may read (no padding, visible to it), in every layer and head."""
    layers = sorted(frozenset[int]().union(*(k.layers for k in knockouts)))
    named_heads = sorted({h for k in knockouts for h in k.heads or ()})
    windows = {layer: w for k in knockouts for layer, w in k.windows.items()}
    checked: set[tuple[tuple[int, ...], int | None]] = set()
    for layer in layers:
        for head in [None, *named_heads]:  # None: a head that no knockout names
            acting = tuple(
                i
                for i, k in enumerate(knockouts)
                if layer in k.layers and (k.heads is None or head in k.heads)
            )
            if not acting or (acting, windows[layer]) in checked:
                continue
            checked.add((acting, windows[layer]))
            where = f"layer {layer}" + ("" if head is None else f", head {head}")
            _check_rows([knockouts[i] for i in acting], tokens, windows[layer], where)


def _check_rows(acting: list[ResolvedKnockout], tokens: TokenMap, window: int | None, where: str) -> None:
    """:func:`_check_no_empty_row` for the knockouts that act in one layer and head.

    A row is empty when the keys cut by those knockouts that name the row cover everything it sees. Rows
    named by the same knockouts share the answer, so this costs (knockouts × positions), not positions
    squared.
    """
    real = tokens.roles.cpu() != Role.PAD
    named_by = torch.stack([k.queries & real for k in acting])
    # tuples in a set: torch.unique over columns takes fifty times as long
    for pattern in sorted(set(zip(*named_by.flatten(1).tolist(), strict=True))):
        if not any(pattern):
            continue
        rows = (named_by == torch.tensor(pattern)[:, None, None]).all(dim=0)
        group = [k for k, names in zip(acting, pattern, strict=True) if names]
        left = real & ~torch.stack([k.keys for k in group]).any(dim=0)
        empty = rows & (visible_keys(left, tokens, window) == 0)
        if empty.any():
            example, row = (int(x) for x in empty.nonzero()[0])
            who = " with ".join(repr(k.spec) for k in group)
            raise InterventionError(
                f"{who} leaves a row nothing to attend to: {where}, example {example}, position "
                f"{row} ({tokens.strings[example][row]!r}); use how='zero', or keep one key, e.g. "
                f'keys="({_keys_text(group[0])}) - pos[{row}]"'
            )


def _keys_text(knockout: ResolvedKnockout) -> str:
    """The keys as one would write them in the fixed call."""
    return knockout.spec.keys if isinstance(knockout.spec.keys, str) else "your keys"
