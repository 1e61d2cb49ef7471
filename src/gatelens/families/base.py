"""Family: what gatelens must know of a kind of VLM, declared in one short file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

from .layout import Layout


@dataclass(frozen=True)
class Family:
    """A kind of VLM.

    ``architectures``: transformers class names it covers. ``adapter``: the TransformerLens architecture
    adapter to register for them, None where TransformerLens has its own. ``layout(config, processor)``:
    its image tokens (``processor`` may be None). ``processor_kwargs``: passed to every processor call.
    ``note``: one line for ``gatelens models``.
    """

    name: str
    architectures: tuple[str, ...]
    layout: Callable[[Any, Any], Layout]
    adapter: type[ArchitectureAdapter] | None = None
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def token_id(tokenizer: Any, token: str) -> int | None:
    """Id of a token the tokenizer holds as one piece, else None."""
    if tokenizer is None:
        return None
    found = tokenizer.convert_tokens_to_ids(token)
    return (
        None
        if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token)
        else int(found)
    )
