"""Answers of a prompt some of whose positions are another prompt's: activation patching of many sets of positions.

The positions before ``first`` are pinned: each has the residual stream of its own clean run or of the other prompt's,
in every layer. So only their keys and values matter, and a run takes the rows from ``first`` on, put after a mixture
of two caches. Those rows are recomputed, except where they are pinned too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from gatelens.engine.clean_run import CleanRun
from gatelens.engine.cuts import can_apply_cuts
from gatelens.engine.plan import hooks_stand
from gatelens.engine.run_batch import last_logits
from gatelens.errors import InterventionError
from gatelens.hooked_model import HookedModel, usable
from gatelens.inputs import VLMInputs
from gatelens.interventions.patching import patch
from gatelens.tokens import Role

ROWS_AT_ONCE = 128  # of one pair: each is closed to the others
MOST_ROWS = 8192  # of all pairs

Masks = Bool[Tensor, "run pair pos"]


class SplicedRuns:
    """Prompts that lend each other activations.

    Args:
        model: the model.
        inputs: prompts, each run once.
        first: the position from which on rows are computed.

    Attributes:
        clean: logits at the last position of each prompt, unmodified.
    """

    def __init__(self, model: HookedModel, inputs: VLMInputs, first: int) -> None:
        self.model, self.inputs, self.first = model, usable(model, inputs), first
        layers = [(layer, first) for layer in range(int(model.cfg.n_layers))]
        with torch.no_grad():
            self._run = CleanRun(model, self.inputs, layers, every_position=False)
        self.clean: Float[Tensor, "prompt d_vocab"] = self._run.logits[:, -1]

    @property
    def can_mix(self) -> bool:
        """Whether rows can be put after mixed caches; else every run is computed from its first patched position on."""
        model, tokens = self.model, self.inputs.tokens
        pictures = self.inputs.tensors["input_ids"][:, self.first :] == model.layout.placeholder_id
        return (
            can_apply_cuts(model)
            and not hooks_stand(model)
            and not bool((tokens.two_way >= 0).any())
            and not any(model.cfg.attention_windows)
            and not bool(pictures.any())
        )

    def logits(
        self, pairs: Int[Tensor, "pair 2"], own: Masks, other: Masks
    ) -> Float[Tensor, "run pair d_vocab"]:
        """Logits at the last position of each run.

        Args:
            pairs: row numbers of a prompt and of the one that lends.
            own: positions that keep the stream of their own clean run; before ``first`` all keep it but the ``other``.
            other: positions that have the lending prompt's.

        Raises:
            InterventionError: the prompts of a pair differ in the role of a position.
        """
        return torch.cat(list(self.each(pairs, own, other)))

    def each(
        self, pairs: Int[Tensor, "pair 2"], own: Masks, other: Masks
    ) -> Iterator[Float[Tensor, "run pair d_vocab"]]:
        """The same of some runs at a time, in order."""
        roles = self.inputs.tokens.roles.cpu()
        differ = (roles[pairs[:, 0]] != roles[pairs[:, 1]]).any(1).nonzero()
        if len(differ):
            raise InterventionError(
                f"pair {int(differ[0])}: the prompts differ in the role of a position; pair prompts of one layout"
            )
        if not self.can_mix:
            yield self._patched(pairs, own, other)
            return
        layers = [[_both(x, pairs, self.first) for x in layer] for layer in self._run.shared]
        for part in self._parts(len(own), len(pairs)):
            yield self._mixed(pairs, layers, own[part], other[part])

    def _parts(self, runs: int, pairs: int) -> Iterator[slice]:
        """Runs that are computed at once."""
        rows = min(ROWS_AT_ONCE, MOST_ROWS // pairs)
        size = max(1, rows // (self.inputs.tokens.n_pos - self.first))
        return (slice(i, i + size) for i in range(0, runs, size))

    @torch.no_grad()
    def _mixed(
        self, pairs: Int[Tensor, "pair 2"], layers: list[list[Tensor]], own: Masks, other: Masks
    ) -> Float[Tensor, "run pair d_vocab"]:
        """Runs follow each other in the rows of each pair, and a mask says which keys are read by which."""
        first, clean, device = self.first, self._run, self.model.device
        runs, n, (mine, theirs) = len(own), self.inputs.tokens.n_pos - first, pairs.T
        past = DynamicCache()
        for number, (keys, values) in enumerate(layers):
            past.update(keys, values, number)
        real = (clean.tensors["attention_mask"][mine] > 0).cpu()
        lent = other[..., :first].transpose(0, 1)
        before = torch.cat([~lent, lent], -1) & real[:, None, :first].repeat(1, 1, 2)
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        among = torch.kron(torch.eye(runs, dtype=torch.bool), causal).expand(len(pairs), -1, -1)
        mask = torch.cat([before.repeat_interleave(n, 1), among], -1)[:, None]
        tensors: dict[str, Any] = {
            "attention_mask": mask.to(device),
            "logits_to_keep": torch.arange(n - 1, runs * n, n, device=device),
            "input_ids": clean.tensors["input_ids"][mine, first:].repeat(1, runs),
        }
        positions = clean.tensors["position_ids"][..., mine, first:]
        tensors["position_ids"] = positions.repeat(*[1] * (positions.ndim - 1), runs)
        pinned = [m[..., first:].transpose(0, 1).flatten(1) for m in (own, other)]
        hooks = []
        if any(bool(m.any()) for m in pinned):
            for layer in range(len(clean.shared)):
                stream = clean.resid_pre(layer, first).repeat(1, runs, 1)
                hooks.append((f"blocks.{layer}.hook_resid_pre", _pin(stream, (mine, theirs), pinned)))
        with self.model.lock:
            logits, _ = self.model.forward_step(tensors, hooks, past=past)
        return logits.transpose(0, 1)

    @torch.no_grad()
    def _patched(
        self, pairs: Int[Tensor, "pair 2"], own: Masks, other: Masks
    ) -> Float[Tensor, "run pair d_vocab"]:
        names = [f"blocks.{layer}.hook_resid_pre" for layer in range(int(self.model.cfg.n_layers))]
        sides = [self.inputs.select(rows.tolist()) for rows in pairs.T]
        caches = [self.model.run_with_cache(side, names_filter=names)[1] for side in sides]
        before = torch.arange(own.shape[-1]) < self.first
        real = (sides[0].tokens.roles != Role.PAD).cpu()
        runs = []
        for mine, theirs in zip(own, other, strict=True):
            masks = ((mine | before) & ~theirs & real, theirs)
            runs.append([patch(c, m) for c, m in zip(caches, masks, strict=True) if bool(m.any())])
        return torch.stack(last_logits(self.model, sides[0], runs))


def _both(
    x: Float[Tensor, "prompt head pos d_head"], pairs: Int[Tensor, "pair 2"], first: int
) -> Float[Tensor, "pair head key d_head"]:
    """Keys or values of each pair before ``first``: the prompt's own, then the lending one's."""
    return torch.cat([x[pairs[:, 0], :, :first], x[pairs[:, 1], :, :first]], 2)


def _pin(
    stream: Float[Tensor, "prompt suffix d_model"],
    rows: tuple[Tensor, Tensor],
    pinned: list[Bool[Tensor, "row suffix"]],
) -> Any:
    """A hook that puts a clean stream of one prompt or of the other where it is pinned."""

    def pin(value: Tensor, hook: Any) -> Tensor:
        for row, mask in zip(rows, pinned, strict=True):
            value = torch.where(mask[..., None].to(value.device), stream[row], value)
        return value

    return pin
