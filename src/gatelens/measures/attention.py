"""Where text looks in the image: shares of attention, summed while the model runs so that no pattern is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.stats import summary
from gatelens.tokens import SelectorLike, TokenMap

GROUPS = ("gate", "last_image", "internal_image", "row_break", "boi")
"""What NG's figure adds up: the gate, the last image token, all other image tokens, and the markers."""

HookPair = tuple[str, Callable[..., None]]
AttentionReader = Callable[[int, Tensor, int], None]
"""``see(layer, pattern, position)``: given the attention of some query rows, the first of them at ``position``."""

_Z = 1.959963984540054  # of a 95 % interval


def attention_mass(
    pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch key"]:
    """Mean attention (over heads and the chosen query rows) on each key position."""
    weight = _row_weights(queries)
    first = int(
        queries.any(0).nonzero()[0]
    )  # text follows the image: the long prefix of rows need not be read
    return _weighted_rows(pattern[:, :, first:], weight, first)


def _row_weights(queries: Bool[Tensor, "batch query"]) -> Float[Tensor, "batch query"]:
    """What each query row counts in an example's mean."""
    missing = ~queries.any(-1)
    if bool(missing.any()):
        example = int(missing.nonzero()[0])
        raise DataError(f"attention: example {example} has no query row to average; choose other queries")
    return queries.to(torch.float32) / queries.sum(-1, keepdim=True)


def _weighted_rows(
    pattern: Float[Tensor, "batch head rows key"], weight: Float[Tensor, "batch query"], first: int
) -> Float[Tensor, "batch key"]:
    """Attention of the query rows from ``first`` on, summed by weight, mean over heads."""
    block = weight[:, first : first + pattern.shape[2]].to(pattern.device) / pattern.shape[1]
    return torch.einsum("bhqk,bq->bk", pattern.float(), block)


def attention_share(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    keys: Bool[Tensor, "batch key"],
) -> Float[Tensor, "batch key"]:
    """NG's f_j: mean attention of the ``queries`` rows on each of ``keys``, scaled to sum to 1 over ``keys``.

    ``f_j = (1/C) (1/|H|) Σ_h Σ_{i in queries} A_ij``; 0 outside ``keys``, and where a row looks at none of them.

    Args:
        pattern: attention after the softmax.
        queries: the rows that read.
        keys: the positions among which the attention is shared out.

    Raises:
        DataError: an example without a query row.

    Example:
        >>> pattern = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]])
        >>> last, image = torch.tensor([[False, False, True]]), torch.tensor([[True, True, False]])
        >>> gl.measures.attention_share(pattern, queries=last, keys=image)  # 0.2 and 0.3 of 0.5
        tensor([[0.4000, 0.6000, 0.0000]])
    """
    mass = attention_mass(pattern, queries) * keys.to(pattern.device)
    total = mass.sum(-1, keepdim=True)
    return torch.where(total > 0, mass / total.clamp_min(torch.finfo(torch.float32).tiny), mass)


def image_side_slots(tokens: TokenMap) -> Int[Tensor, "batch pos"]:
    """Slot of every image-side position, −1 elsewhere; :func:`slot_place` reads it back.

    0 ``boi``, 1 ``gate``, 2 + 2i the i-th image token, 3 + 2j the j-th row break, over all images of an example.
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


def image_side_groups(slots: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Number of every position's group in :data:`GROUPS`, −1 elsewhere; the last image token is each example's."""
    image = (slots >= 2) & (slots % 2 == 0)
    last = image & (slots == slots.where(image, -1).amax(dim=-1, keepdim=True))
    members = {
        "gate": slots == 1,
        "last_image": last,
        "internal_image": image & ~last,
        "row_break": (slots >= 2) & (slots % 2 == 1),
        "boi": slots == 0,
    }
    groups = torch.full_like(slots, -1)
    for number, name in enumerate(GROUPS):
        groups[members[name]] = number
    return groups


def sum_by(
    values: Float[Tensor, "batch pos"], numbers: Int[Tensor, "batch pos"], n: int
) -> Float[Tensor, "batch n"]:
    """Each row's values summed by their number from 0 to n − 1; positions numbered −1 are left out."""
    sums = values.new_zeros(len(values), n + 1)
    sums.scatter_add_(1, torch.where(numbers < 0, n, numbers), values)
    return sums[:, :-1]


class LayerMeans:
    """Running means over examples, by layer and column, with their standard errors (float64)."""

    def __init__(self, n_layers: int, n_columns: int) -> None:
        self.n = torch.zeros(n_layers, dtype=torch.int64)
        self.sum = torch.zeros(n_layers, n_columns, dtype=torch.float64)
        self.square = torch.zeros(n_layers, n_columns, dtype=torch.float64)

    def widen(self, n_columns: int) -> None:
        """Add columns up to ``n_columns``; they are 0 for the examples so far."""
        more = max(0, n_columns - self.sum.shape[1])
        self.sum, self.square = (torch.nn.functional.pad(x, (0, more)) for x in (self.sum, self.square))

    def add(self, layer: int, values: Float[Tensor, "example column"]) -> None:
        """Add examples to a layer."""
        self.n[layer] += len(values)
        self.sum[layer] += values.sum(dim=0)
        self.square[layer] += values.square().sum(dim=0)

    def mean(self, layer: int) -> Float[Tensor, " column"]:
        """Mean over the examples of a layer."""
        return self.sum[layer] / self.n[layer]

    def standard_error(self, layer: int) -> Float[Tensor, " column"]:
        """Standard error of :meth:`mean`."""
        variance = self.square[layer] / self.n[layer] - self.mean(layer).square()
        return (variance.clamp_min(0) / self.n[layer]).sqrt()


class AttentionShare:
    """Adds up :func:`attention_share` over batches, by layer and slot.

    Holds numbers ``[n_layers, n_slots]`` and five numbers per layer and example, never a pattern.

    Example:
        >>> share = gl.measures.AttentionShare(n_layers=model.cfg.n_layers)
        >>> with share.looking(inputs.tokens, queries="last") as see:
        ...     logits = gl.engine.look(model, inputs, "last", see)  # builds these rows alone
        >>> table = share.table()
        >>> round(float(table[table.layer == 0].share.sum()), 4)  # shares of a layer sum to 1
        1.0
    """

    def __init__(self, n_layers: int, layers: Sequence[int] | None = None) -> None:
        self.n_layers = n_layers
        self.layers = list(range(n_layers)) if layers is None else sorted(layers)
        self.n_examples = 0
        self._share = LayerMeans(n_layers, 2)
        self._mass = LayerMeans(n_layers, 1)
        self._held = torch.zeros(2, dtype=torch.int64)  # positions of each slot
        self._positions = torch.zeros(len(GROUPS), dtype=torch.int64)
        self._groups: list[list[Float[Tensor, "batch group"]]] = [[] for _ in range(n_layers)]

    def hooks(self, tokens: TokenMap, queries: SelectorLike = "text - gate") -> list[HookPair]:
        """Hook pairs for one batch of prompts; each adds to the sums and changes nothing."""
        slots, rows = self._begin(tokens, queries)

        def pair(layer: int) -> HookPair:
            def add(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
                self._add(layer, attention_mass(pattern.detach(), rows), slots)

            return f"blocks.{layer}.attn.hook_pattern", add

        return [pair(layer) for layer in self.layers]

    @contextmanager
    def looking(self, tokens: TokenMap, queries: SelectorLike = "text - gate") -> Iterator[AttentionReader]:
        """``see(layer, pattern, low)`` takes blocks of query rows from ``low`` on; added up when the ``with`` ends.

        Raises:
            DataError: an example without a chosen query row.
        """
        slots, rows = self._begin(tokens, queries)
        weight = _row_weights(rows)
        mass: dict[int, Float[Tensor, "batch key"]] = {}

        def see(layer: int, pattern: Float[Tensor, "batch head rows key"], low: int) -> None:
            if layer in self.layers:
                part = _weighted_rows(pattern, weight, low).cpu()
                mass[layer] = mass[layer] + part if layer in mass else part

        yield see
        for layer, total in mass.items():
            self._add(layer, total, slots)

    def _begin(self, tokens: TokenMap, queries: SelectorLike) -> tuple[Tensor, Tensor]:
        slots = image_side_slots(tokens)
        n_slots = max(int(slots.max()) + 1, len(self._held))
        self._share.widen(n_slots)
        held = torch.bincount(slots[slots >= 0], minlength=n_slots)
        held[: len(self._held)] += self._held
        self._held = held
        groups = image_side_groups(slots)
        self._positions += torch.bincount(groups[groups >= 0], minlength=len(GROUPS))
        self.n_examples += tokens.batch_size
        return slots, tokens.mask(queries)

    def _add(self, layer: int, mass: Float[Tensor, "batch key"], slots: Int[Tensor, "batch pos"]) -> None:
        mass = mass.cpu().double() * (slots >= 0)
        total = mass.sum(-1, keepdim=True)
        share = torch.where(total > 0, mass / total.clamp_min(1e-300), mass)
        # an example can have several gates (one per image): its slots are added up before they are squared
        self._share.add(layer, sum_by(share, slots, len(self._held)))
        self._mass.add(layer, total)
        self._groups[layer].append(sum_by(share, image_side_groups(slots), len(GROUPS)))

    def table(self) -> pd.DataFrame:
        """One row per layer and position: ``layer, kind, index, share, se, image_side_mass, n, held``.

        ``index`` counts image tokens and row breaks (−1 for boi and gate). ``share`` is the mean over all ``n``
        examples and sums to 1 over a layer (an example without the position counts 0), ``se`` its standard error;
        ``image_side_mass`` the part of text's whole attention that is divided up; ``held`` the positions there were.

        Raises:
            DataError: a layer whose hook never fired.
        """
        self._check_fired()
        places = [(*slot_place(slot), slot) for slot in self._held.nonzero().flatten().tolist()]
        places.sort(key=lambda place: place[:2])  # boi, gate, image, row_break
        rows = []
        for layer in self.layers:
            mean, error = self._share.mean(layer).tolist(), self._share.standard_error(layer).tolist()
            mass, n = float(self._mass.mean(layer)), int(self._share.n[layer])
            for kind, index, slot in places:
                rows.append((layer, kind, index, mean[slot], error[slot], mass, n, int(self._held[slot])))
        columns = ["layer", "kind", "index", "share", "se", "image_side_mass", "n", "held"]
        return pd.DataFrame(rows, columns=columns)

    def groups(self, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
        """NG's contributions, one row per layer and group: ``layer, group, share, low, high, positions, n``.

        The groups are :data:`GROUPS`; their shares sum to 1 over a layer. ``positions`` is a group's mean number of
        positions in an example, to which its share by chance is proportional; groups without any are left out.
        ``low, high``: interval over examples (95 %).

        Raises:
            DataError: a layer whose hook never fired.
        """
        keys, names = ["layer", "group", "positions"], ("share", "low", "high")
        every = self.groups_by_example()
        table = summary(every, keys, "share", unit=None, bounds=None, n_boot=n_boot, seed=seed, names=names)
        return table[["layer", "group", *names, "positions", "n"]]

    def groups_by_example(self) -> pd.DataFrame:
        """What :meth:`groups` averages: ``layer, group, positions, example, share``; examples are numbered as added.

        Raises:
            DataError: a layer whose hook never fired.
        """
        self._check_fired()
        parts = []
        for layer in self.layers:
            shares = torch.cat(self._groups[layer]).numpy()
            for number, group in enumerate(GROUPS):
                positions = int(self._positions[number]) / self.n_examples
                if positions:
                    columns = {"layer": layer, "group": group, "positions": positions}
                    each = {"example": range(len(shares)), "share": shares[:, number]}
                    parts.append(pd.DataFrame({**columns, **each}))
        return pd.concat(parts, ignore_index=True)

    def _check_fired(self) -> None:
        missed = [layer for layer in self.layers if self._share.n[layer] == 0]
        if missed:
            raise DataError(
                f"attention share: the hooks of layer(s) {missed} never fired; run the model with them"
            )


def standing_out(table: pd.DataFrame, least: float = 0.01, times: float = 2.0) -> pd.DataFrame:
    """The image-side positions whose share of cross-modal attention f_j^l exceeds ``least``, and which stand out.

    NG (section on cross-modal attention) shows every token that takes more than 1 % and names them by hand. Here a
    position of :meth:`AttentionShare.table` is listed if its share exceeds ``least`` in the mean over layers or in
    some layer. Of 66 positions each has 1.5 % if all are alike, so it *stands out* only if in its highest layer the
    lower end of its 95 % interval (share − 1.96 se) exceeds both ``least`` and ``times`` the even share.

    Returns:
        One row a listed position, the highest first: ``kind, index, mean`` (over layers), ``highest`` with ``low,
        high`` and its ``layer``, ``even`` (1 / positions of an example), ``stands_out, n``.
    """
    columns = ["kind", "index", "mean", "highest", "low", "high", "layer", "even", "stands_out", "n"]
    layer = table[table.layer == table.layer.iloc[0]]  # every layer has the same positions
    even = float(layer.n.iloc[0] / layer.held.sum())
    rows = []
    for (kind, index), part in table.groupby(["kind", "index"], sort=False):
        top = part.loc[part.share.idxmax()]
        mean = float(part.share.mean())
        if max(mean, top.share) <= least:
            continue
        low, high = max(0.0, top.share - _Z * top.se), min(1.0, top.share + _Z * top.se)
        above = low > max(least, times * even)
        rows.append((kind, index, mean, top.share, low, high, int(top.layer), even, above, int(top.n)))
    listed = pd.DataFrame(rows, columns=columns).astype({"stands_out": bool})
    return listed.sort_values("highest", ascending=False, kind="stable").reset_index(drop=True)
