"""A last layer that computes of most positions only their keys and values.

When one row of logits is read, the other positions of the last layer matter only as what that row attends to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from gatelens.bridge.layer_arguments import known, of_rows


class KeysDone(Exception):
    """Leaves a layer once its keys and values are in the cache."""


@contextmanager
def last_row_alone(block: Any, before_last: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let a block compute and give its last position alone, for a while, on top of the keys and values of all others.

    Its attention is a :class:`~gatelens.bridge.attention.HookedAttention`, and nothing but the stream that enters the
    block may be hooked. ``before_last`` is called between the two parts of a pass. A pass with arguments that are not
    known here computes every position; one without a cache has one in this block alone.
    """
    layer = block.original_component
    whole, before = layer.forward, layer.__dict__.get("forward")

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        last = hidden_states.shape[1] - 1
        if last < 1 or args or not known(kwargs) or "past_key_values" not in kwargs:
            return whole(hidden_states, *args, **kwargs)
        if kwargs["past_key_values"] is None:
            kwargs = kwargs | {"past_key_values": DynamicCache()}
        block.attn.keys_alone = True
        try:
            whole(hidden_states[:, :last], **of_rows(kwargs, slice(0, last)))
        except KeysDone:
            pass
        finally:
            block.attn.keys_alone = False
        before_last()
        return whole(hidden_states[:, last:], **of_rows(kwargs, slice(last, last + 1)))

    layer.__dict__["forward"] = forward  # an instance attribute comes before the class's forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if before is not None:
            layer.__dict__["forward"] = before
