"""Between words and token ids, as TransformerLens names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from gatelens.errors import InputError, ModelError


class Words:
    """What HookedVLM can do with its tokenizer alone."""

    tokenizer: Any

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def _words(self) -> Any:
        if self.tokenizer is None:
            raise ModelError("this model has no tokenizer: pass processor= to from_module")
        return self.tokenizer

    def decode(self, ids: Int[Tensor, "batch pos"] | Sequence[Any]) -> list[str]:
        """Texts of token ids, special tokens left out: one a row (a flat list is one row)."""
        rows = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        rows = rows if rows and isinstance(rows[0], (list, tuple, Tensor)) else [rows]
        return self._words().batch_decode(rows, skip_special_tokens=True)

    def to_tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Int[Tensor, "batch pos"]:
        """Token ids of text alone, padded on the left; ``prepend_bos=False`` leaves special tokens out."""
        texts = [text] if isinstance(text, str) else list(text)
        out = self._words()(
            texts,
            padding=len(texts) > 1,
            padding_side="left",
            add_special_tokens=prepend_bos,
            return_tensors="pt",
        )
        return out["input_ids"].to(self.device)

    def to_single_token(self, word: str) -> int:
        """Id of a word that is one token. Raises InputError with its pieces otherwise."""
        ids = self._words()(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self._words().unk_token_id:
            raise InputError(f"'{word}' is not one token but {self._words().convert_ids_to_tokens(ids)}")
        return int(ids[0])
