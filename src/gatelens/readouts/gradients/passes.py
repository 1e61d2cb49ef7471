"""Forward and backward passes: what a metric gains, to first order, by moving activations from the base to the source.

The gradient at a cell is that of the edit by which the engine patches it, so both mean the same cell in every family.
Parameters are left alone: a zero added to the rows of each tap is what the metric is differentiated by, and nothing
below the first tap is part of the graph. Blocks are recomputed in the backward pass (arXiv 1604.06174), except as many
of the last ones as :data:`KEPT_BYTES` holds. So memory holds these blocks' activations, or one block's where that is
more, the stream between blocks, and the rows of the named taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.bridge.blocks import recompute_blocks
from gatelens.errors import InterventionError
from gatelens.model import HookedVLM
from gatelens.readouts.gradients.contrast import (
    Contrast,
    Tap,
    ending_early,
    reads_last_row,
    record,
    row_hooks,
)

Metric: TypeAlias = Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, " batch"]]
Take: TypeAlias = Callable[
    [Tap, Float[Tensor, "step n ..."]], None
]  # takes the gradient of a tap, step by step
MOST_ROWS = 4096  # of several steps computed at once
KEPT_BYTES = 2**28  # of the insides of blocks, kept for the backward pass instead of recomputing them


class GradientPasses:
    """Passes over the base of a contrast.

    Attributes:
        delta: for each tap that was compared, source less base, Float[n, ...].
        streams: the base's residual stream entering a layer, of those that passes begin in.
        rows: see :meth:`differentiate`.
        base: the logits of the base's run, of the last position alone where the metric reads no other; None before one.
    """

    def __init__(self, model: HookedVLM, contrast: Contrast, metric: Metric) -> None:
        self.model, self.contrast, self.metric = model, contrast, metric
        self.keep = 1 if getattr(metric, "last_only", False) else 0
        self.delta: dict[Tap, Tensor] = {}
        self.streams: dict[int, Tensor] = {}
        self.rows: dict[Tap, Tensor] = {}
        self.base: Float[Tensor, "1 pos d_vocab"] | None = None

    def compare(
        self,
        taps: Sequence[Tap],
        streams: Sequence[int] = (0,),
        through: Callable[[Tap, Tensor], Tensor] | None = None,
    ) -> None:
        """Record what the source adds at taps.

        Args:
            streams: the layers that passes will begin in.
            through: what is made of the rows of either run before they are compared.
        """
        contrast = self.contrast
        here, self.streams, self.base = record(
            self.model, contrast.base, contrast.mask, taps, streams, self.keep
        )
        for tap in taps:
            both = contrast.source(tap), here.pop(tap)
            source, base = both if through is None else (through(tap, rows) for rows in both)
            self.delta[tap] = source.to(base) - base

    def differentiate_base(self, taps: Sequence[Tap], take: Take) -> None:
        """The gradient at taps of the base's run itself, which is compared with the source on its way.

        Raises:
            InterventionError: the metric has no gradient.
        """
        with self.model.lock, torch.inference_mode(False), torch.enable_grad():
            self._pass(taps, take, None, (0.0,), {}, None, ())

    @property
    def at_once(self) -> int:
        """How many steps go into one pass."""
        return max(1, MOST_ROWS // self.contrast.mask.numel())

    def differentiate(
        self,
        taps: Sequence[Tap],
        take: Take,
        along: Tap | None = None,
        shares: Sequence[float] = (0.0,),
        masks: Mapping[str, Tensor] | None = None,
        start: int = 0,
        watched: Sequence[Tap] = (),
    ) -> None:
        """One pass forth and back for each share of the way to the source, some of them at once.

        Args:
            taps: where the gradient is taken.
            take: called as soon as a tap's gradient is known, of some steps at once; in the order of ``shares``.
            along: the tap that is moved by that share of its difference.
            masks: rows by site where they are not the contrast's.
            start: the layer the passes begin in, no later than any tap.
            watched: taps whose rows :attr:`rows` then holds, Float[step, n, ...], while ``take`` is called.

        Raises:
            InterventionError: the metric has no gradient.
        """
        for first in range(0, len(shares), self.at_once):
            some = shares[first : first + self.at_once]
            with self.model.lock, torch.inference_mode(False), torch.enable_grad():
                self._pass(taps, take, along, some, masks or {}, start, watched)

    def _pass(
        self,
        taps: Sequence[Tap],
        take: Take,
        along: Tap | None,
        shares: Sequence[float],
        masks: Mapping[str, Tensor],
        start: int | None,
        watched: Sequence[Tap],
    ) -> None:
        """One pass forth and back; without ``start`` it is the base's run from its inputs on."""
        n, side = len(shares), self.contrast.base
        repeated = side.inputs if start is None else side.inputs.select([0] * n)
        added: dict[Tap, Tensor] = {}

        def function(tap: Tap, rows: Tensor) -> Tensor:
            if tap == along:
                rows = _moved(rows, self.delta[tap], shares)
            if tap in watched:
                self.rows[tap] = rows.detach().unflatten(0, (n, -1))
            if tap not in taps:
                return rows
            if start is None and tap not in self.delta:
                self.delta[tap] = self.contrast.source(tap).to(rows) - rows.detach()
            if tap not in added:
                added[tap] = _zero(tap, rows, n, take)
            return rows + added[tap]

        every = list(dict.fromkeys([*taps, *watched, *([along] if along is not None else [])]))
        own = {site: masks.get(site, self.contrast.mask).repeat(n, 1) for site, _ in every}
        before = side.interventions if start is None else ()
        compiled = row_hooks(self.model, repeated.tokens, own, every, function, before)
        stream = None if start is None else self.streams[start].repeat(n, 1, 1)
        early = reads_last_row(self.model, compiled.pairs, self.keep)
        with (
            ending_early(self.model, early),
            self.model.begun_at(start, stream, repeated) as tensors,
            recompute_blocks(self.model, but_last=self._kept_blocks(n) + early),
            self.model.hooks(compiled.pairs),
        ):
            logits, _ = self.model.forward_step({**tensors, "logits_to_keep": self.keep})
            compiled.check_fired()
            if start is None:
                self.base = logits.detach()
            value = self._values(logits, n)
            if not value.requires_grad:
                raise InterventionError(
                    f"the metric {getattr(self.metric, '__name__', 'given')!r} has no gradient: give one that "
                    "changes smoothly, such as gl.metrics.logit_diff"
                )
            torch.autograd.backward(value.sum(), inputs=list(added.values()))

    def _kept_blocks(self, n: int) -> int:
        """How many blocks' insides may be kept: each about 8 activations as wide as the stream and 4 as the MLP.

        A last block that computes one row holds nearly nothing, and is not counted.
        """
        cfg, weight = self.model.cfg, next(self.model.bridge.blocks.parameters())
        d_model, d_mlp = int(cfg.d_model), int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)
        rows = n * self.contrast.mask.numel()
        return KEPT_BYTES // (rows * (8 * d_model + 4 * d_mlp) * weight.element_size())

    def _values(
        self, logits: Float[Tensor, "steps_batch pos d_vocab"], n: int
    ) -> Float[Tensor, "step batch"]:
        """The metric of each step: it may know which example is which."""
        return torch.stack([self._value(part) for part in logits.chunk(n)])

    def _value(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, " batch"]:
        value = self.metric(logits)
        if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
            given = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InterventionError(
                f"the metric gave {given}, expected {(len(logits),)}: one number per example"
            )
        return value


def _moved(rows: Tensor, delta: Tensor, shares: Sequence[float]) -> Tensor:
    """The rows of each step, moved by its share of the difference."""
    share = torch.tensor(shares, dtype=delta.dtype, device=delta.device)
    moved = share.view(-1, *[1] * delta.ndim) * delta
    return rows + moved.flatten(0, 1)


def _zero(tap: Tap, rows: Tensor, n: int, take: Take) -> Tensor:
    """What is added to a tap's rows; its gradient is taken and let go as soon as it is known."""
    zero = torch.zeros_like(rows, requires_grad=True)

    def taken(zero: Tensor) -> None:
        assert zero.grad is not None
        grad, zero.grad = zero.grad, None
        take(tap, grad.unflatten(0, (n, -1)))

    zero.register_post_accumulate_grad_hook(taken)
    return zero
