"""Where generated tokens look: shares of their attention by type of token, layer by layer (WI, Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.roles import Role

if TYPE_CHECKING:
    from gatelens.tokens import TokenMap

KINDS: dict[str, tuple[Role, ...]] = {
    "image": (Role.IMAGE,),
    "query": (Role.QUERY,),
    "system": (Role.SYSTEM,),
    "markers": (Role.BOI, Role.ROW_BREAK, Role.EOI),
    "generated": (Role.GENERATED,),
}
"""Every key a row can look at has one of these. WI's "query" is query and system together; ``generated`` holds
the earlier generated tokens and the row's own."""

Look = Callable[[int, Tensor, int], None]


class TokenTypeShare:
    """Adds up, over batches, what part of generated tokens' attention goes to each kind of token.

    A row counts from the generated token that reads (the row that writes the *next* token); the row of the last
    prompt token, which writes the first, counts only with ``first=True``. Rows after an example's end never
    count, and the row of the end-of-sequence token neither. A share is attention summed over the keys of a kind,
    averaged over heads and divided by its sum over all kinds; then averaged over the rows of a picture, then over
    pictures. Only ``[layer, row, example, kind]`` numbers of the current batch are held.

    >>> share = TokenTypeShare(n_layers)
    >>> for inputs in batches:
    ...     found = generate(model, inputs, see=share.see(inputs.tokens))
    ...     share.add(found.tokens)
    >>> share.table()
    """

    def __init__(self, n_layers: int, first: bool = False) -> None:
        self.n_layers, self.first = n_layers, first
        self.n_pictures = torch.zeros(n_layers, dtype=torch.int64)
        self.n_rows = torch.zeros(n_layers, dtype=torch.int64)
        self._sum = torch.zeros(n_layers, len(KINDS), dtype=torch.float64)
        self._square = torch.zeros(n_layers, len(KINDS), dtype=torch.float64)
        self._even = torch.zeros(n_layers, len(KINDS), dtype=torch.float64)
        self._mass = torch.zeros(n_layers, dtype=torch.float64)
        self._rows: dict[tuple[int, int], Float[Tensor, "batch kind"]] = {}
        self._tokens: TokenMap | None = None

    def see(self, tokens: TokenMap) -> Look:
        """``see(layer, pattern, position)`` for one batch of prompts, to be ended by :meth:`add`.

        Raises:
            DataError: the batch before was not added.
        """
        if self._rows:
            raise DataError(
                "token types: a batch was seen but not added; call add(generation.tokens) after it"
            )
        self._tokens = tokens
        kinds = kind_of(tokens)

        def see(layer: int, pattern: Float[Tensor, "batch head 1 key"], position: int) -> None:
            mean = pattern[:, :, -1].detach().double().mean(dim=1).cpu()
            self._rows[layer, position - tokens.prompt_length + 1] = by_kind(mean, kinds)

        return see

    def add(self, tokens: TokenMap) -> None:
        """Add the batch that was seen. ``tokens``: the generation's map, which knows where examples ended.

        Raises:
            DataError: nothing was seen, or the map is of another batch.
        """
        seen, rows = self._tokens, self._rows
        if seen is None or not rows:
            raise DataError(
                "token types: no attention was seen; pass see=share.see(inputs.tokens) to generate"
            )
        start = seen.prompt_length
        if tokens.batch_size != seen.batch_size or tokens.prompt_length != start:
            raise DataError("token types: these tokens are of another batch; add what this batch generated")
        most = max(row for _, row in rows)
        if tokens.n_pos <= start + most:
            raise DataError(
                f"token types: attention of {most + 1} written tokens was seen, but the map holds "
                f"{tokens.n_pos - start}; add generation.tokens"
            )
        self._rows, self._tokens = {}, None
        live = tokens.roles[:, start : start + most + 1] == Role.GENERATED  # the token a row writes is one
        even = self._even_shares(tokens, most + 1)
        for layer in range(self.n_layers):
            numbers = [r for r in range(0 if self.first else 1, most + 1) if (layer, r) in rows]
            if not numbers:
                continue
            values = torch.stack([rows[layer, r] for r in numbers], dim=1)  # [batch, row, kind]
            total = values.sum(dim=-1)
            counted = live[:, numbers] & (total > 0)
            share = values / total.clamp_min(1e-300)[..., None]
            n = counted.sum(dim=1)
            has = n > 0
            weight = counted.double() / n.clamp_min(1)[:, None]
            mine = torch.einsum("br,brk->bk", weight, share)[has]
            self._sum[layer] += mine.sum(dim=0)
            self._square[layer] += (mine**2).sum(dim=0)
            self._even[layer] += torch.einsum("br,brk->bk", weight, even[:, numbers])[has].sum(dim=0)
            self._mass[layer] += (weight * total).sum()
            self.n_pictures[layer] += int(has.sum())
            self.n_rows[layer] += int(counted.sum())

    @staticmethod
    def _even_shares(tokens: TokenMap, n_rows: int) -> Float[Tensor, "batch row kind"]:
        """What a row would give each kind if it looked at every position it can see alike."""
        kinds = kind_of(tokens)[:, : tokens.prompt_length]
        prompt = by_kind(torch.ones_like(kinds, dtype=torch.float64), kinds)
        counts = prompt[:, None].repeat(1, n_rows, 1)
        counts[..., list(KINDS).index("generated")] += torch.arange(n_rows)
        return counts / counts.sum(dim=-1, keepdim=True)

    def table(self) -> pd.DataFrame:
        """One row a layer and kind: ``layer, kind, share, se, even, mass, n, n_rows``.

        ``share`` sums to 1 over a layer; ``se`` is its standard error over pictures; ``even`` what the kind would
        get if all positions were looked at alike; ``mass`` a row's whole attention before it is divided up (1
        but for knockouts that set it to 0); ``n`` pictures, ``n_rows`` rows.

        Raises:
            DataError: no row of a generated token was seen in some layer, or a batch was not added.
        """
        if self._rows:
            raise DataError(
                "token types: a batch was seen but not added; call add(generation.tokens) after it"
            )
        empty = (self.n_pictures == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"token types: layer(s) {empty} have no row of a generated token; generate at least two tokens"
            )
        rows = []
        for layer in range(self.n_layers):
            n = int(self.n_pictures[layer])
            mean = self._sum[layer] / n
            se = ((self._square[layer] / n - mean**2).clamp_min(0) / n).sqrt()
            even, mass = self._even[layer] / n, float(self._mass[layer] / n)
            for k, kind in enumerate(KINDS):
                numbers = (float(mean[k]), float(se[k]), float(even[k]), mass)
                rows.append((layer, kind, *numbers, n, int(self.n_rows[layer])))
        return pd.DataFrame(rows, columns=["layer", "kind", "share", "se", "even", "mass", "n", "n_rows"])


def kind_of(tokens: TokenMap) -> Int[Tensor, "batch pos"]:
    """Number of every position's kind in :data:`KINDS`, −1 for padding."""
    numbers = torch.full((max(Role) + 1,), -1, dtype=torch.int64)
    for number, roles in enumerate(KINDS.values()):
        numbers[list(roles)] = number
    return numbers[tokens.roles.long()]


def by_kind(
    attention: Float[Tensor, "batch key"], kinds: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch kind"]:
    """Attention summed over the keys of each kind. Keys after the positions of ``kinds`` are generated ones."""
    more = attention.shape[1] - kinds.shape[1]
    if more > 0:
        kinds = torch.cat([kinds, kinds.new_full((len(kinds), more), list(KINDS).index("generated"))], dim=1)
    kinds = kinds[:, : attention.shape[1]]
    out = attention.new_zeros(len(attention), len(KINDS) + 1)
    out.scatter_add_(1, torch.where(kinds < 0, len(KINDS), kinds), attention)
    return out[:, :-1]
