"""Decoder layers that are left out of a pass, joined by more examples, or recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gatelens.bridge.layer_arguments import of_first


@contextmanager
def skip_blocks(bridge: Any, start: int, in_tuples: bool) -> Iterator[None]:
    """Let the blocks before ``start`` hand on what they are given, as their family does, for a while."""
    with ExitStack() as stack:
        for block in list(bridge.blocks)[:start]:
            # an instance attribute comes before the class's forward; the block, its hooks and cache stay untouched
            block.__dict__["forward"] = _hand_on_tuple if in_tuples else _hand_on
            stack.callback(block.__dict__.pop, "forward")
        yield


@contextmanager
def joined_blocks(bridge: Any, joining: Mapping[int, Tensor], in_tuples: bool) -> Iterator[None]:
    """Let examples join a pass in the layers they begin in, after those that began earlier, for a while.

    The pass is given a batch of all of them; a layer computes those that have begun.

    Args:
        bridge: its arguments of a layer are those that :mod:`gatelens.bridge.layer_arguments` knows.
        joining: by layer, the residual stream of the examples that begin there, Float[example, pos, d_model].
        in_tuples: whether this family's layers give (hidden states,).
    """
    total, begun = sum(len(stream) for stream in joining.values()), 0
    with ExitStack() as stack:
        for layer, block in enumerate(bridge.blocks):
            stream = joining.get(layer)
            forward = _hand_on_tuple if in_tuples else _hand_on
            if stream is not None or begun:
                forward = partial(_joined, block.forward, stream, begun, total)
            if begun < total:
                block.__dict__["forward"] = forward
                stack.callback(block.__dict__.pop, "forward")
            begun += 0 if stream is None else len(stream)
        yield


@contextmanager
def recompute_blocks(bridge: Any, but_last: int) -> Iterator[None]:
    """Let each block keep only its input for the backward pass and recompute the rest there (arXiv 1604.06174).

    The last ``but_last`` blocks, which the backward pass reaches first, keep everything. Gradients must be taken before
    this ends, as hooks fire again in the backward pass. Skipped blocks stay skipped.
    """
    with ExitStack() as stack:
        blocks = list(bridge.blocks)
        for block in blocks[: max(0, len(blocks) - but_last)]:
            if "forward" not in block.__dict__:
                again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                block.__dict__["forward"] = again
                stack.callback(block.__dict__.pop, "forward")
        yield


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _hand_on_tuple(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (hidden_states,)


def _joined(
    forward: Callable[..., Any],
    stream: Tensor | None,
    begun: int,
    total: int,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if stream is not None:
        hidden_states = torch.cat([hidden_states[:begun], stream]) if begun else stream
    return forward(hidden_states, *args, **of_first(kwargs, len(hidden_states), total))
