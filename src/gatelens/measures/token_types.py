"""Where generated tokens look: shares of their attention by type of token, layer by layer (WI, Fig. 1)."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import DataError
from gatelens.measures.attention import AttentionReader, LayerMeans, sum_by
from gatelens.tokens import Role, TokenMap

TOKEN_KINDS: dict[str, tuple[Role, ...]] = {
    "image": (Role.IMAGE,),
    "query": (Role.QUERY,),
    "system": (Role.SYSTEM,),
    "markers": (Role.BOI, Role.ROW_BREAK, Role.EOI),
    "generated": (Role.GENERATED,),
}
"""The kinds of key a row can look at; ``generated`` holds the row's own. WI's "query" is query and system together."""

_GENERATED = list(TOKEN_KINDS).index("generated")
_UNADDED = "token types: a batch was seen but not added; call add(generation.tokens) after it"


class TokenTypeShare:
    """Adds up, over batches, what part of generated tokens' attention goes to each kind of token.

    The rows of generated tokens count, up to the one before the end-of-sequence token; the row of the last prompt
    token, which writes the first, only with ``first=True``. A share is attention summed over the keys of a kind,
    averaged over heads and divided by its sum over all kinds; then averaged over the rows of a picture, then pictures.

    Example:
        >>> share = gl.measures.TokenTypeShare(model.cfg.n_layers, first=True)
        >>> generation = gl.engine.generate(model, inputs, see=share.see(inputs.tokens), max_new_tokens=2)
        >>> share.add(generation.tokens)
        >>> table = share.table()
        >>> round(float(table[table.layer == 0].share.sum()), 4)  # shares of a layer sum to 1
        1.0
    """

    def __init__(self, n_layers: int, first: bool = False) -> None:
        self.n_layers, self.first = n_layers, first
        self.n_rows = torch.zeros(n_layers, dtype=torch.int64)
        self._share = LayerMeans(n_layers, len(TOKEN_KINDS))
        self._even = LayerMeans(n_layers, len(TOKEN_KINDS))
        self._mass = LayerMeans(n_layers, 1)
        self._pictures: list[pd.DataFrame] = []
        self._added = 0
        self._rows: dict[tuple[int, int], Float[Tensor, "batch kind"]] = {}
        self._tokens: TokenMap | None = None

    @property
    def n_pictures(self) -> Int[Tensor, " layer"]:
        """How many pictures each layer has rows of."""
        return self._share.n

    def see(self, tokens: TokenMap) -> AttentionReader:
        """``see(layer, pattern, position)`` for one batch of prompts, to be ended by :meth:`add`."""
        if self._rows:
            raise DataError(_UNADDED)
        self._tokens = tokens
        kinds = kind_of(tokens)

        def see(layer: int, pattern: Float[Tensor, "batch head 1 key"], position: int) -> None:
            mean = pattern[:, :, -1].detach().double().mean(dim=1).cpu()
            self._rows[layer, position - tokens.prompt_length + 1] = by_kind(mean, kinds)

        return see

    def add(self, tokens: TokenMap) -> None:
        """Add the batch that was seen. ``tokens``: the generation's map, which knows where examples ended."""
        rows, n_rows = self._rows, self._check_same_batch(tokens)
        self._rows, self._tokens = {}, None
        start = tokens.prompt_length
        live = tokens.roles[:, start : start + n_rows] == Role.GENERATED  # the token a row writes is one
        even = _even_shares(tokens, n_rows)
        for layer in range(self.n_layers):
            numbers = [r for r in range(0 if self.first else 1, n_rows) if (layer, r) in rows]
            if not numbers:
                continue
            values = torch.stack([rows[layer, r] for r in numbers], dim=1)  # [batch, row, kind]
            total = values.sum(dim=-1, keepdim=True)
            counted = live[:, numbers] & (total[..., 0] > 0)
            n = counted.sum(dim=1)
            weight = (counted.double() / n.clamp_min(1)[:, None])[n > 0]
            for means, numbers_of_rows in (
                (self._share, values / total.clamp_min(1e-300)),
                (self._even, even[:, numbers]),
                (self._mass, total),
            ):
                means.add(layer, torch.einsum("br,brk->bk", weight, numbers_of_rows[n > 0]))
            self.n_rows[layer] += int(counted.sum())
            share = torch.einsum("br,brk->bk", weight, (values / total.clamp_min(1e-300))[n > 0])
            numbers_there = (self._added + (n > 0).nonzero().flatten()).repeat_interleave(len(TOKEN_KINDS))
            kinds = list(TOKEN_KINDS) * len(share)
            columns = {"layer": layer, "kind": kinds, "picture": numbers_there, "share": share.flatten()}
            self._pictures.append(pd.DataFrame(columns))
        self._added += tokens.batch_size

    def _check_same_batch(self, tokens: TokenMap) -> int:
        """How many rows were seen of the batch that wrote ``tokens``."""
        seen = self._tokens
        if seen is None or not self._rows:
            raise DataError(
                "token types: no attention was seen; pass see=share.see(inputs.tokens) to generate"
            )
        if tokens.batch_size != seen.batch_size or tokens.prompt_length != seen.prompt_length:
            raise DataError("token types: these tokens are of another batch; add what this batch generated")
        n_rows = 1 + max(row for _, row in self._rows)
        written = tokens.n_pos - seen.prompt_length
        if written < n_rows:
            seen_and_held = f"attention of {n_rows} written tokens was seen, but the map holds {written}"
            raise DataError(f"token types: {seen_and_held}; add generation.tokens")
        return n_rows

    def table(self) -> pd.DataFrame:
        """One row per layer and kind: ``layer, kind, share, se, even, mass, n, n_rows``.

        ``share`` sums to 1 over a layer, ``se`` is its standard error over ``n`` pictures; ``even`` what the kind would
        get under uniform attention; ``mass`` a row's whole attention (1 but for zeroing knockouts).

        Raises:
            DataError: no row of a generated token was seen in some layer, or a batch was not added.
        """
        if self._rows:
            raise DataError(_UNADDED)
        empty = (self.n_pictures == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"token types: layer(s) {empty} have no row of a generated token; generate at least two tokens"
            )
        layers = [
            pd.DataFrame(
                {
                    "layer": layer,
                    "kind": list(TOKEN_KINDS),
                    "share": self._share.mean(layer),
                    "se": self._share.standard_error(layer),
                    "even": self._even.mean(layer),
                    "mass": float(self._mass.mean(layer)),
                    "n": int(self.n_pictures[layer]),
                    "n_rows": int(self.n_rows[layer]),
                }
            )
            for layer in range(self.n_layers)
        ]
        return pd.concat(layers, ignore_index=True)

    def by_picture(self) -> pd.DataFrame:
        """What the shares of :meth:`table` average: ``layer, kind, picture, share``; pictures are numbered as added,
        and one without a row is left out."""
        empty = pd.DataFrame({"layer": [], "kind": [], "picture": [], "share": []})
        return pd.concat(self._pictures, ignore_index=True) if self._pictures else empty


def kind_of(tokens: TokenMap) -> Int[Tensor, "batch pos"]:
    """Number of every position's kind in :data:`TOKEN_KINDS`, −1 for padding."""
    numbers = torch.full((max(Role) + 1,), -1, dtype=torch.int64)
    for number, roles in enumerate(TOKEN_KINDS.values()):
        numbers[list(roles)] = number
    return numbers[tokens.roles.long()]


def by_kind(
    attention: Float[Tensor, "batch key"], kinds: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch kind"]:
    """Attention summed over the keys of each kind. Keys after the positions of ``kinds`` are generated ones."""
    more = max(0, attention.shape[1] - kinds.shape[1])
    kinds = torch.nn.functional.pad(kinds, (0, more), value=_GENERATED)[:, : attention.shape[1]]
    return sum_by(attention, kinds, len(TOKEN_KINDS))


def _even_shares(tokens: TokenMap, n_rows: int) -> Float[Tensor, "batch row kind"]:
    """What a row would give each kind under uniform attention over the positions it can see."""
    kinds = kind_of(tokens)[:, : tokens.prompt_length]
    prompt = by_kind(torch.ones_like(kinds, dtype=torch.float64), kinds)
    counts = prompt[:, None].repeat(1, n_rows, 1)
    counts[..., _GENERATED] += torch.arange(n_rows)
    return counts / counts.sum(dim=-1, keepdim=True)
