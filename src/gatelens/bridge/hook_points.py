"""What every bridge component asks of its hook points."""

from __future__ import annotations

from typing import Any


def has_hooks(*points: Any) -> bool:
    """Whether a hook is on any of these points, added through TransformerLens or directly through torch."""
    return any(
        point.fwd_hooks
        or point.bwd_hooks
        or point._forward_hooks
        or point._forward_pre_hooks
        or point._backward_hooks
        for point in points
    )
