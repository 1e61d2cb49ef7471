"""The activations of chosen positions of a run, and the words a readout asks about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InputError
from gatelens.inputs import VLMInputs
from gatelens.interventions.base import select
from gatelens.model import HookedVLM
from gatelens.tokens import SelectorLike

Target: TypeAlias = int | str | Sequence[int] | Sequence[str] | Int[Tensor, " batch"] | np.ndarray
"""A token, as a word or an id, or one for each example."""
EVERY_POSITION = ("attn.hook_v",)
BY_QUERY = ("attn.hook_pattern",)


class Rows:
    """Some positions of a batch; what a pass computes there is kept, the rest let go at once.

    Attributes:
        example, position: of each row.
        activations: by name, Float[row, ...]; values of attention are kept at every position, [batch, pos, ...].

    Raises:
        InputError: nothing is selected.
    """

    def __init__(self, inputs: VLMInputs, at: SelectorLike) -> None:
        mask: Bool[Tensor, "batch pos"] = select(inputs.tokens, at, f"at={at!r}")
        if not bool(mask.any()):
            raise InputError(f"at={at!r} selects no position: name one that the prompt has")
        self.example, self.position = mask.nonzero(as_tuple=True)
        self.activations: dict[str, Tensor] = {}

    def hooks(self, names: Iterable[str]) -> list[tuple[str, Callable[..., None]]]:
        """Hooks that keep these activations."""
        return [(name, self._keep(name)) for name in names]

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            example, position = self.example.to(tensor.device), self.position.to(tensor.device)
            if name.endswith(EVERY_POSITION):
                kept = tensor.detach().clone()
            elif name.endswith(BY_QUERY):
                kept = tensor.detach()[example, :, position]
            else:
                kept = tensor.detach()[example, position]
            self.activations[name] = kept

        return keep

    def of_logits(
        self, logits: Float[Tensor, "batch kept d_vocab"], n_pos: int
    ) -> Float[Tensor, "row d_vocab"]:
        """These rows of logits, of which the last positions are given."""
        position = self.position - n_pos + logits.shape[1]
        return logits[self.example.to(logits.device), position.to(logits.device)]


def token_ids(model: HookedVLM, target: Any, n_examples: int) -> Int[Tensor, " batch"]:
    """The token of each example: a word or an id for all, or one each.

    Raises:
        InputError: a word that is not one token, an id outside the vocabulary, or another number of them.
    """
    given = target.tolist() if hasattr(target, "tolist") else target  # tensors and arrays
    each = list(given) if isinstance(given, (list, tuple)) else [given] * n_examples
    if len(each) != n_examples or not all(type(one) in (int, str) for one in each):
        said = " ".join(repr(target).split())
        raise InputError(
            f"target {said}: give a token (word or id), or one for each of the {n_examples} examples; a pair (right, "
            "wrong) is a tuple of two"
        )
    ids = [model.to_single_token(one) if isinstance(one, str) else one for one in each]
    size = int(model.cfg.d_vocab)
    for one in ids:
        if not 0 <= one < size:
            raise InputError(f"target {one} is outside the vocabulary of {size} tokens")
    return torch.tensor(ids)


def word_of(model: HookedVLM, token: int) -> str:
    """A token as text, or its id where the model has no tokenizer."""
    return str(token) if model.tokenizer is None else str(model.tokenizer.decode([token]))
