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
from gatelens.measures.stats import bootstrap_interval
from gatelens.selectors import SelectorLike

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

KINDS = ("boi", "gate", "image", "row_break")
"""What an image-side position can be; see :func:`image_side_slots`."""

GROUPS = ("gate", "last_image", "internal_image", "row_break", "boi")
"""What NG's figure adds up: the gate, the last image token, all other image tokens, and the markers."""

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
    """Slot of every image-side position, −1 elsewhere; :func:`slot_place` reads it back.

    0 ``boi``, 1 ``gate`` (of all images of an example), 2 + 2i the i-th image token, 3 + 2j the j-th row break
    (both counted from 0 over all images of the example).
    """
    slots = torch.full((tokens.batch_size, tokens.n_pos), -1, dtype=torch.int64)
    for first, name in ((2, "image"), (3, "row_break")):
        mask = tokens.mask(name).cpu()
        slots = torch.where(mask, first + 2 * (mask.long().cumsum(-1) - 1), slots)
    for slot, name in ((0, "boi"), (1, "gate")):
        slots[tokens.mask(name).cpu()] = slot
    return slots


def slot_place(slot: int) -> tuple[str, int]:
    """``(kind, index)`` of a slot: the index counts image tokens or row breaks, −1 for boi and gate."""
    return (("boi", "gate")[slot], -1) if slot < 2 else (("image", "row_break")[slot % 2], slot // 2 - 1)


class AttentionShare:
    """Adds up :func:`attention_share` over batches, by layer and slot.

    Holds numbers ``[n_layers, n_slots]`` and five numbers a layer and example, never a pattern.

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
        self._sum = torch.zeros(n_layers, 2, dtype=torch.float64)
        self._square = torch.zeros(n_layers, 2, dtype=torch.float64)
        self._held = torch.zeros(2, dtype=torch.int64)
        self._positions = torch.zeros(len(GROUPS), dtype=torch.int64)
        self._groups: list[list[Tensor]] = [[] for _ in range(n_layers)]
        self._mass = torch.zeros(n_layers, dtype=torch.float64)
        self._seen = torch.zeros(n_layers, dtype=torch.int64)

    def hooks(self, tokens: TokenMap, queries: SelectorLike = "text - gate") -> list[HookPair]:
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
    def looking(self, tokens: TokenMap, queries: SelectorLike = "text - gate") -> Iterator[Look]:
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

    def _begin(self, tokens: TokenMap, queries: SelectorLike) -> tuple[Tensor, Tensor]:
        slots = image_side_slots(tokens)
        more = int(slots.max()) + 1 - self._sum.shape[1]
        if more > 0:
            wider = torch.nn.functional.pad
            self._sum, self._square = wider(self._sum, (0, more)), wider(self._square, (0, more))
            self._held = wider(self._held, (0, more))
        self.n_examples += tokens.batch_size
        count = torch.bincount(slots[slots >= 0], minlength=len(self._held))
        self._held += count
        image, last = count[2::2].sum(), (slots >= 2).logical_and(slots % 2 == 0).any(-1).sum()
        self._positions += torch.stack([count[1], last, image - last, count[3::2].sum(), count[0]])
        return slots, tokens.mask(queries)

    def _add(self, layer: int, mass: Float[Tensor, "batch key"], slots: Tensor) -> None:
        mass = mass.cpu().double()
        keys = slots >= 0
        mass = mass * keys
        total = mass.sum(-1, keepdim=True)
        share = torch.where(total > 0, mass / total.clamp_min(1e-300), mass)
        # an example can have several gates (one an image): its slots are added up before they are squared
        by_slot = torch.zeros(len(mass), self._sum.shape[1], dtype=torch.float64)
        by_slot.scatter_add_(1, slots.clamp_min(0), share)
        self._sum[layer] += by_slot.sum(0)
        self._square[layer] += by_slot.square().sum(0)
        self._groups[layer].append(_by_group(by_slot, slots))
        self._mass[layer] += total.sum()
        self._seen[layer] += len(mass)

    def table(self) -> pd.DataFrame:
        """One row a layer and position: ``layer, kind, index, share, se, image_side_mass, n, held``.

        ``kind`` is boi, gate, image, row_break; ``index`` counts image tokens and row breaks (−1 for the others);
        ``share`` is the mean over all ``n`` examples and sums to 1 over a layer (an example without the position,
        as its picture is smaller, counts 0); ``se`` is its standard error over examples; ``image_side_mass`` is
        the part of text's whole attention that the shares divide up; ``held`` counts the positions there were.

        Raises:
            DataError: a layer whose hook never fired.
        """
        self._check_fired()
        rows = []
        for layer in self.layers:
            n = int(self._seen[layer])
            mean = self._sum[layer] / n
            error = ((self._square[layer] / n - mean.square()).clamp_min(0) / n).sqrt()
            mass = float(self._mass[layer] / n)
            for slot in self._held.nonzero().flatten().tolist():
                kind, index = slot_place(slot)
                numbers = (float(mean[slot]), float(error[slot]), mass, n, int(self._held[slot]))
                rows.append((layer, kind, index, *numbers))
        columns = ["layer", "kind", "index", "share", "se", "image_side_mass", "n", "held"]
        found = pd.DataFrame(rows, columns=columns)
        order = pd.Categorical(found.kind, KINDS, ordered=True)
        found = found.assign(order=order).sort_values(["layer", "order", "index"], ignore_index=True)
        return found.drop(columns="order")

    def groups(self, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
        """NG's contributions, one row a layer and group: ``layer, group, share, low, high, positions, n``.

        The groups are :data:`GROUPS`; their shares sum to 1 over a layer. ``positions`` is how many positions of
        an example the group has on average, and its share by chance is in that proportion; groups without any
        are left out. ``low, high``: bootstrap interval over examples (95 %).

        Raises:
            DataError: a layer whose hook never fired.
        """
        self._check_fired()
        rows = []
        for layer in self.layers:
            values = torch.cat(self._groups[layer])
            for number, group in enumerate(GROUPS):
                if not int(self._positions[number]):
                    continue
                mine = values[:, number].numpy()
                low, high = bootstrap_interval(mine, n_boot=n_boot, seed=seed)
                positions = int(self._positions[number]) / self.n_examples
                rows.append((layer, group, float(mine.mean()), low, high, positions, len(mine)))
        return pd.DataFrame(rows, columns=["layer", "group", "share", "low", "high", "positions", "n"])

    def _check_fired(self) -> None:
        missed = [layer for layer in self.layers if self._seen[layer] == 0]
        if missed:
            raise DataError(
                f"attention share: the hooks of layer(s) {missed} never fired; run the model with them"
            )


def _by_group(
    by_slot: Float[Tensor, "batch slot"], slots: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch group"]:
    """Shares of :data:`GROUPS`; the last image token is each example's own."""
    image = torch.where((slots >= 2) & (slots % 2 == 0), slots, 0)
    last = image.max(-1).values
    at_last = by_slot.gather(1, last[:, None])[:, 0] * (last > 0)
    all_image = by_slot[:, 2::2].sum(-1)
    parts = [by_slot[:, 1], at_last, all_image - at_last, by_slot[:, 3::2].sum(-1), by_slot[:, 0]]
    return torch.stack(parts, dim=-1)
