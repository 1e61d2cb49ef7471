"""Where text looks in the image: shares of attention, summed up inside the hook so that no pattern is
kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

MARKER_SLOTS = ("boi", "row_break", "gate")
"""Slots 0, 1, 2 of :func:`image_side_slots`; the image tokens follow in order."""

HookPair = tuple[str, Callable[..., None]]
Look = Callable[[int, Tensor, int], None]


def attention_mass(
    pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch key"]:
    """Mean attention (over heads and the chosen query rows) on each key position.

    Raises:
        DataError: an example without a chosen query row.
    """
    rows = queries.to(pattern.device)
    _check_rows(rows)
    first = int(rows.any(0).nonzero()[0])  # text follows the image: the long prefix of rows need not be read
    weight = rows.to(torch.float32) / (rows.sum(-1, keepdim=True) * pattern.shape[1])
    return torch.einsum("bhqk,bq->bk", pattern[:, :, first:].float(), weight[:, first:])


def _check_rows(rows: Bool[Tensor, "batch query"]) -> None:
    if not bool(rows.any(-1).all()):
        example = int((~rows.any(-1)).nonzero()[0])
        raise DataError(f"attention: example {example} has no query row to average; choose other queries")


def attention_share(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
) -> Float[Tensor, "batch key"]:
    """NG's f_j: mean attention of the ``queries`` rows on each of ``keys``, scaled to sum to 1 over ``keys``.

    ``f_j = (1/C) (1/|H|) Σ_h Σ_{i in queries} A_ij``; 0 outside ``keys``.
    A row that puts no attention on any key stays 0.

    Raises:
        DataError: an example without a query row.
    """
    mass = attention_mass(pattern, queries) * keys.to(pattern.device)
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total.clamp_min(torch.finfo(torch.float32).tiny), mass)


def image_side_slots(tokens: TokenMap) -> Int[Tensor, "batch pos"]:
    """Slot of every image-side position, −1 elsewhere.

    0 ``boi``, 1 ``row_break``, 2 ``gate``, 3 + i the i-th image token (counted over all images of the
    example).
    """
    slots = torch.full((tokens.batch_size, tokens.n_pos), -1, dtype=torch.int64)
    image = tokens.mask("image").cpu()
    slots = torch.where(image, image.long().cumsum(-1) - 1 + len(MARKER_SLOTS), slots)
    for number, name in enumerate(MARKER_SLOTS):
        slots[tokens.mask(name).cpu()] = number
    return slots


class AttentionShare:
    """Adds up :func:`attention_share` over batches, by layer and slot; holds ``[n_layers, n_slots]``
    numbers only.

    >>> share = AttentionShare(n_layers)
    >>> for inputs in batches:
    ...     with share.looking(inputs.tokens, queries="text - gate") as see:
    ...         look(model, inputs, "text - gate", see)  # gatelens.engine.look builds those rows alone
    >>> share.table()
    """

    def __init__(self, n_layers: int, layers: Sequence[int] | None = None) -> None:
        self.n_layers = n_layers
        self.layers = list(range(n_layers)) if layers is None else list(layers)
        self.n_examples = 0
        self._sum = torch.zeros(n_layers, len(MARKER_SLOTS), dtype=torch.float64)
        self._square = torch.zeros(n_layers, 2, dtype=torch.float64)  # of gate, of all image tokens
        self._mass = torch.zeros(n_layers, dtype=torch.float64)
        self._seen = torch.zeros(n_layers, dtype=torch.int64)

    def hooks(self, tokens: TokenMap, queries: Any = "text - gate") -> list[HookPair]:
        """Hook pairs for one batch of prompts; each adds to the sums and changes nothing.

        Raises:
            DataError: an example without a chosen query row (when the hook runs).
        """
        slots, rows = self._begin(tokens, queries)

        def pair(layer: int) -> HookPair:
            def add(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
                self._add(layer, attention_mass(pattern.detach(), rows), slots)

            return f"blocks.{layer}.attn.hook_pattern", add

        return [pair(layer) for layer in self.layers]

    @contextmanager
    def looking(self, tokens: TokenMap, queries: Any = "text - gate") -> Iterator[Look]:
        """``see(layer, pattern, low)`` for one batch of prompts, given blocks of query rows from ``low`` on.

        Adds to the sums when the block ends.

        Raises:
            DataError: an example without a chosen query row.
        """
        slots, rows = self._begin(tokens, queries)
        _check_rows(rows)
        weight = rows.to(torch.float32) / rows.sum(-1, keepdim=True)
        mass = {layer: torch.zeros(rows.shape, dtype=torch.float32) for layer in self.layers}
        seen: set[int] = set()

        def see(layer: int, pattern: Float[Tensor, "batch head rows key"], low: int) -> None:
            if layer in mass:
                seen.add(layer)
                mine = weight[:, low : low + pattern.shape[2]].to(pattern.device) / pattern.shape[1]
                mass[layer] += torch.einsum("bhqk,bq->bk", pattern.float(), mine).cpu()

        yield see
        for layer in sorted(seen):
            self._add(layer, mass[layer], slots)

    def _begin(self, tokens: TokenMap, queries: Any) -> tuple[Tensor, Tensor]:
        slots = image_side_slots(tokens)
        width = int(slots.max()) + 1
        if width > self._sum.shape[1]:
            more = torch.zeros(self.n_layers, width - self._sum.shape[1], dtype=torch.float64)
            self._sum = torch.cat([self._sum, more], dim=1)
        self.n_examples += tokens.batch_size
        return slots, tokens.mask(queries)

    def _add(self, layer: int, mass: Float[Tensor, "batch key"], slots: Tensor) -> None:
        mass = mass.cpu().double()
        keys = slots >= 0
        mass = mass * keys
        total = mass.sum(-1, keepdim=True)
        share = torch.where(total > 0, mass / total.clamp_min(1e-300), mass)
        self._sum[layer].index_add_(0, slots[keys], share[keys])
        image = slots >= len(MARKER_SLOTS)
        for i, where in enumerate((slots == MARKER_SLOTS.index("gate"), image)):
            self._square[layer, i] += ((share * where).sum(-1) ** 2).sum()
        self._mass[layer] += total.sum()
        self._seen[layer] += len(mass)

    def table(self) -> pd.DataFrame:
        """One row a layer and slot: ``layer, kind, index, share, se, image_side_mass, n``.

        ``kind`` is boi, row_break, gate, image; ``index`` counts image tokens (−1 for markers); ``share``
        sums to
        1 over a layer; ``se`` is the standard error over examples of the gate's share and, on image rows,
        of all
        image tokens together; ``image_side_mass`` is the part of text's whole attention that the shares
        divide up.

        Raises:
            DataError: a layer whose hook never fired.
        """
        missed = [layer for layer in self.layers if self._seen[layer] == 0]
        if missed:
            raise DataError(
                f"attention share: the hooks of layer(s) {missed} never fired; run the model with them"
            )
        rows = []
        for layer in self.layers:
            n = int(self._seen[layer])
            mean = self._sum[layer] / n
            error = []
            for i, value in enumerate((mean[MARKER_SLOTS.index("gate")], mean[len(MARKER_SLOTS) :].sum())):
                variance = max(0.0, float(self._square[layer, i] / n - value**2))
                error.append((variance / n) ** 0.5)
            for slot, value in enumerate(mean.tolist()):
                marker = slot < len(MARKER_SLOTS)
                kind = MARKER_SLOTS[slot] if marker else "image"
                se = error[0] if kind == "gate" else error[1] if kind == "image" else float("nan")
                index = -1 if marker else slot - len(MARKER_SLOTS)
                rows.append((layer, kind, index, value, se, float(self._mass[layer] / n), n))
        columns = ["layer", "kind", "index", "share", "se", "image_side_mass", "n"]
        return pd.DataFrame(rows, columns=columns)
