"""Family: what gatelens must know of a kind of VLM, declared in one short file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

from gatelens.families.common.layout import Layout

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A kind of VLM.

    Attributes:
        name: in ``gatelens models`` and in messages.
        architectures: transformers class names it covers.
        layout: ``layout(config, processor)`` gives its image tokens; ``processor`` may be None.
        adapter: the TransformerLens architecture adapter to register, None where TransformerLens has its own.
        process: ``process(processor, pictures, texts)`` gives the tensors of a left-padded batch, where the
            processor itself cannot be called.
        processor_kwargs: for every call of the processor where it can be called.
        complete: ``complete(hf, tensors)`` gives what forward needs besides ids, mask and pixels (position ids of
            three streams, token types), for callers who pass tensors only.
        when: ``when(config)`` says which configs it covers, where one class covers several kinds (a LLaVA with
            another tower).
        adjust: ``adjust(bridge)``, last changes after wrapping.
        adds_later: whether pictures are added to the residual stream of later layers too.
        turn: a prompt as one user turn, where the tokenizer has no chat template; ``{}`` is the prompt.
        markers: these four are text for ``gatelens models``.
        grid: see ``markers``.
        checkpoints: see ``markers``.
        note: see ``markers``.

    Example:
        >>> model.family.name, model.family.architectures
        ('chameleon', ('ChameleonForConditionalGeneration',))
    """

    name: str
    architectures: tuple[str, ...]
    layout: Callable[[Any, Any], Layout]
    adapter: type[ArchitectureAdapter] | None = None
    process: Callable[[Any, list[list[Any]], list[str]], Tensors] | None = None
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    complete: Callable[[Any, Tensors], Tensors] | None = None
    when: Callable[[Any], bool] | None = None
    adjust: Callable[[Any], None] | None = None
    adds_later: bool = False
    turn: str = "{}"
    markers: str = ""
    grid: str = ""
    checkpoints: tuple[str, ...] = ()
    note: str = ""


def token_id(tokenizer: Any, token: str) -> int | None:
    """Id of a token the tokenizer holds as one piece, else None."""
    if tokenizer is None:
        return None
    number = tokenizer.convert_tokens_to_ids(token)
    unknown = number is None or (number == tokenizer.unk_token_id and token != tokenizer.unk_token)
    return None if unknown else int(number)


def ids_of(*ids: int | None) -> frozenset[int]:
    """The ids that are there, as a layout takes them."""
    return frozenset(int(i) for i in ids if i is not None)
