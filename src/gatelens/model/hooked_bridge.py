"""Passes of a VLM under hooks, with a batch of prompts and pictures wherever TransformerLens takes tokens.

:class:`HookedBridge` is a ``TransformerBridge``, so the functions of TransformerLens take it. Whatever runs the model
goes through :meth:`HookedBridge.forward`, which knows the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities import Slice

from gatelens import hooked_model
from gatelens.bridge import towers
from gatelens.bridge.blocks import skip_blocks
from gatelens.bridge.gradients import let_gradients_flow
from gatelens.errors import InputError, InterventionError, shown
from gatelens.hooked_model import FwdHooks, HookName, NamesFilter, Way, hook_pairs
from gatelens.inputs import VLMInputs
from gatelens.model.activation_cache import ActivationCache, KeptRows, as_device, as_floating, caching_hooks
from gatelens.model.vlm_bridge import VLMBridge
from gatelens.tokens import Role, SelectorLike

RETURN_TYPES = ("logits", "loss", "both", None)


class StopAt(Exception):
    """Ends a pass at a layer with the residual stream that enters it."""

    def __init__(self, residual: Float[Tensor, "batch pos d_model"]) -> None:
        super().__init__("stopped")
        self.residual = residual


class HookedBridge(VLMBridge):
    """What a HookedTransformer was, for prompts with pictures; see :class:`gatelens.model.HookedVLM`."""

    _in_tuples: bool | None = None  # whether this family's layers give (hidden states,); known after a pass

    # --- passes

    def forward(
        self,
        inputs: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        tokens: Any = None,
        **tensors: Any,
    ) -> Any:
        """One pass; the hooks on the model act.

        Args:
            inputs: from ``prepare`` or ``inputs``; also text without a picture, or ids with their ``tensors``. With
                ``start_at_layer``, the residual stream entering that layer, Float[batch, pos, d_model].
            return_type: "logits", "loss", "both" (logits, loss) or None.
            loss_per_token: see :meth:`loss_fn`.
            start_at_layer: the layers before it, and the vision tower, are not computed.
            stop_at_layer: gives the residual stream entering this layer (n_layers: leaving the last one); nothing after
                it is computed. Negative counts from the end, here and in ``start_at_layer``.
            tokens: the inputs that the residual stream belongs to, where the pass starts at a layer: for padding,
                positions and loss. Without them every position is a token, and counted from 0.

        Returns:
            Float[batch, pos, d_vocab] logits, as transformers gives them; see ``return_type`` and ``stop_at_layer``.

        Raises:
            InputError: what is given is not a batch, or its pictures are missing.
        """
        if return_type not in RETURN_TYPES:
            raise InputError(f"return_type {return_type!r}: write 'logits', 'loss', 'both' or None")
        if return_type in ("loss", "both") and start_at_layer is not None and tokens is None:
            raise InputError("a loss needs the words: give tokens=inputs with start_at_layer")
        start = None if start_at_layer is None else self._layer(start_at_layer, "start_at_layer")
        stop = None if stop_at_layer is None else self._layer(stop_at_layer, "stop_at_layer", last=True)
        if start is None:
            batch, residual = self.batch(inputs, **tensors), None
        else:
            residual = inputs
            batch = self._belonging(residual, tokens, tensors)
        if start is not None and stop is not None and stop <= start:
            return residual
        try:
            with self.begun_at(start, residual, batch) as kept, self._until(stop):
                logits, _ = self.forward_step(kept)
        except StopAt as stopped:
            return stopped.residual
        if return_type in ("logits", None):
            return logits if return_type else None
        loss = self.loss_fn(logits, batch, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def _layer(self, layer: int, name: str, last: bool = False) -> int:
        n_layers = int(self.cfg.n_layers)
        if isinstance(layer, bool) or not hasattr(layer, "__index__"):
            raise InputError(f"{name}={shown(layer)}: give the number of a layer, 0..{n_layers - 1}")
        number = layer + n_layers if layer < 0 else layer
        if not 0 <= number < n_layers + last:
            raise InputError(f"{name}={layer}: the model has layers 0..{n_layers - 1}")
        return number

    def _belonging(self, residual: Any, tokens: Any, tensors: dict[str, Any]) -> VLMInputs:
        """The batch that a residual stream belongs to."""
        width = int(self.cfg.d_model)
        if not isinstance(residual, Tensor) or residual.ndim != 3 or residual.shape[-1] != width:
            raise InputError(
                f"start_at_layer needs the residual stream entering it, Float[batch, pos, {width}]"
            )
        if tokens is None and self.family.complete is not None:
            raise InputError(
                "this family counts positions in its own way: give tokens=inputs with start_at_layer"
            )
        ids = torch.zeros(residual.shape[:2], dtype=torch.long)
        batch = (
            self.batch(ids, attention_mask=torch.ones_like(ids))
            if tokens is None
            else self.batch(tokens, **tensors)
        )
        if batch.shape != residual.shape[:2]:
            raise InputError(
                f"tokens are {tuple(batch.shape)}, the residual stream {tuple(residual.shape[:2])}"
            )
        return batch

    @contextmanager
    def begun_at(
        self, start: int | None, residual: Tensor | None, batch: VLMInputs
    ) -> Iterator[dict[str, Any]]:
        """The tensors of a pass that begins at a layer with this residual stream; the layers before it are left out."""
        if start is None or residual is None:
            yield batch.tensors
            return
        tensors = dict(batch.tensors)
        if not self.family.adds_later:  # else later layers read the pictures too
            for name in batch.of_pictures:
                tensors.pop(name, None)
        skipped = nullcontext() if self._in_tuples is None else skip_blocks(self, start, self._in_tuples)
        begin = (f"blocks.{start}.hook_resid_pre", lambda tensor, hook: residual.to(tensor))
        with self.hook_points.hooked([begin], prepend=True), skipped:
            yield tensors

    @contextmanager
    def _until(self, stop: int | None) -> Iterator[None]:
        """Ends a pass before a layer, whose own hooks do not fire, or after the last one."""

        def end(tensor: Tensor, hook: Any) -> None:
            raise StopAt(tensor)

        if stop is None:
            yield
            return
        after = stop == int(self.cfg.n_layers)
        name = f"blocks.{stop - 1}.hook_resid_post" if after else f"blocks.{stop}.hook_resid_pre"
        with self.hook_points.hooked([(name, end)], prepend=not after):
            yield

    def forward_step(
        self, tensors: dict[str, Any], fwd_hooks: FwdHooks = (), past: Any = None, use_cache: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
        """One forward pass, on a prompt or (with ``past``) on the tokens after it: (logits, cache or None).

        Args:
            tensors: transformers' forward arguments. With ``past``, ``attention_mask`` covers past and new
                positions and ``position_ids`` the new ones. Missing ``position_ids`` follow from the mask.
            past: a key-value cache, extended in place: copy it to reuse it.

        Raises:
            InputError: ``position_ids`` are missing where the family's do not follow from the mask.
        """
        with self.hook_points.hooked(fwd_hooks):
            if self._in_tuples is not None:
                return hooked_model.forward_step(self, tensors, past, use_cache)
            watch = self.blocks[0].register_forward_hook(self._note_output)
            try:
                return hooked_model.forward_step(self, tensors, past, use_cache)
            finally:
                watch.remove()

    def _note_output(self, block: Any, args: Any, out: Any) -> None:
        self._in_tuples = isinstance(out, tuple)

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Any,
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Cross-entropy of the next token, where that is a word or a marker; image tokens and padding are not targets.

        Returns:
            The mean over targets; with ``per_token`` Float[batch, pos - 1], 0 where there is no target.
        """
        batch = self.batch(tokens, **({} if attention_mask is None else {"attention_mask": attention_mask}))
        roles = batch.tokens.roles
        target = (roles != Role.PAD) & (roles != Role.IMAGE) & (roles != Role.ROW_BREAK)
        labels = batch.ids.masked_fill(~target.to(batch.ids.device), -100)
        return self._causal_labels_loss(logits, labels, batch.tensors.get("attention_mask"), per_token)

    # --- hooks

    def hooks(
        self,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: FwdHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Any:
        """Hooks that live as long as the block, also when it raises; inside one, ``hook.name`` is the name given.

        Args:
            fwd_hooks: (name or predicate on names, fn(tensor, hook) -> tensor or None), as TransformerLens takes them.
            bwd_hooks: the same for gradients; they reach every activation although the parameters are frozen.
            reset_hooks_end: False leaves the hooks on the model until ``reset_hooks``.
            clear_contexts: forget what hooks stored in ``hook.ctx`` at the end.

        Raises:
            InterventionError: an unknown name, a point that never fires, or an edit that would change nothing.
        """
        bwd_hooks = hook_pairs(bwd_hooks, "bwd_hooks")
        return self._hooked(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts)

    @contextmanager
    def _hooked(self, fwd_hooks: FwdHooks, bwd_hooks: FwdHooks, reset: bool, clear: bool) -> Iterator[Any]:
        with self.lock, ExitStack() as flowing:
            for handle in let_gradients_flow(self.hf, self.unembed) if bwd_hooks else []:
                if reset:
                    flowing.callback(handle.remove)
                else:
                    self._gradient_handles.append(handle)
            with self.hook_points.hooked(fwd_hooks, bwd_hooks, keep=not reset):
                yield self
            if clear:
                self.clear_contexts()

    def add_hook(
        self, name: HookName, hook_fn: Callable[..., Any], dir: Way = "fwd", is_permanent: bool = False
    ) -> None:
        """A hook that stays until ``reset_hooks``, in every call of the model.

        A sweep computes each of its runs in full while one is set, and :meth:`generate` runs the grown prompt again
        for each token, as a hook may count positions from the first.

        Raises:
            InterventionError: an unknown name, a point that never fires, or (in a call) an edit that changes nothing.
        """
        if dir not in ("fwd", "bwd"):
            raise InterventionError(f"dir={shown(dir)}: write 'fwd' or 'bwd'")
        with self.lock:
            for point, function in hook_pairs([(name, hook_fn)], "add_hook"):
                self.hook_points.add(point, function, dir, is_permanent)
            if dir == "bwd":
                self._gradient_handles += let_gradients_flow(self.hf, self.unembed)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take off the hooks of ``add_hook``; permanent ones only with ``including_permanent``."""
        with self.lock:
            super().reset_hooks(clear_contexts, direction, including_permanent, level)
            if not any(point.bwd_hooks for point in self.hook_points()):
                for handle in self._gradient_handles:
                    handle.remove()
                self._gradient_handles.clear()

    def run_with_hooks(
        self,
        inputs: Any,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: FwdHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        remove_batch_dim: bool = False,
        **call: Any,
    ) -> Any:
        """A pass with TransformerLens hooks: (name or filter, fn(tensor, hook)), gone after the call.

        Args:
            inputs: see :meth:`forward`, as for ``call``: ``return_type``, ``start_at_layer``, ``stop_at_layer`` ….
            bwd_hooks: they fire when what the call gave is differentiated.
            reset_hooks_end, clear_contexts: see :meth:`hooks`.
            remove_batch_dim: hooks see the one example of the batch without its first axis.

        Raises:
            InterventionError: unknown names, or an edit of the vision tower that would change nothing.
        """
        fwd_hooks = hook_pairs(fwd_hooks)
        if remove_batch_dim:
            fwd_hooks = [(name, _unbatched(fn)) for name, fn in fwd_hooks]
        with (
            towers.must_fire(fwd_hooks, self.hook_points.of_towers) as noted,
            self.hooks(noted, bwd_hooks, reset_hooks_end, clear_contexts),
        ):
            return self.forward(inputs, **call)

    def run_with_cache(
        self,
        inputs: Any,
        names_filter: NamesFilter = None,
        fwd_hooks: FwdHooks = (),
        device: str | torch.device | None = None,
        positions: SelectorLike | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        incl_bwd: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **call: Any,
    ) -> tuple[Any, Any]:
        """(logits, ActivationCache); the cache has ``.tokens`` and ``.images``; it sees ``fwd_hooks``' edits.

        Args:
            inputs: see :meth:`forward`, as for ``call``: ``return_type``, ``start_at_layer``, ``stop_at_layer`` ….
            names_filter: a hook name, a list, or a predicate on names; None caches everything.
            device: where the cache goes.
            positions: only these rows of the decoder's activations are kept, [batch, kept, ...] (of scores and
                patterns their query rows), as many in every example; :func:`gatelens.patch` finds them again.
            dtype: what the cache is cast to.
            incl_bwd: also cache gradients, as ``NAME_grad``: of what the call gives, one number
                (``return_type="loss"``).
            pos_slice: TransformerLens' way to keep some positions, the same in every example.
            return_cache_object: False gives a plain dict.
            remove_batch_dim: drop the first axis of a batch of one.

        Raises:
            InterventionError: unknown names.
            InputError: the examples of a batch select different numbers of positions.
        """
        tensors = {name: call.pop(name) for name in list(call) if name not in _CALL}
        if call.get("start_at_layer") is None:
            inputs = batch = self.batch(inputs, **tensors)
        else:
            call["tokens"] = batch = self._belonging(inputs, call.get("tokens"), tensors)
        tokens = batch.tokens
        stored: dict[str, Tensor] = {}
        kept = None if positions is None else KeptRows.of(tokens, positions)
        names, cast = self.hook_points.names(names_filter), as_floating(dtype)
        caching = caching_hooks(names, stored, kept, as_device(device), cast, Slice.unwrap(pos_slice))
        bwd_hooks = [(name, _as_gradient(fn)) for name, fn in caching] if incl_bwd else []
        with self.hooks([*hook_pairs(fwd_hooks), *caching], bwd_hooks, reset_hooks_end, clear_contexts):
            out = self.forward(inputs, **call)
            if incl_bwd:
                _differentiate(out)
        cache = ActivationCache(stored, self, tokens, kept, images=batch.images)
        if remove_batch_dim:
            cache.remove_batch_dim(tokens.batch_size)
        return out, cache if return_cache_object else cache.cache_dict


_CALL = ("return_type", "loss_per_token", "start_at_layer", "stop_at_layer", "tokens")


def _unbatched(fn: Callable[..., Any]) -> Callable[..., Any]:
    def hook_fn(tensor: Tensor, hook: Any) -> Any:
        if len(tensor) != 1:
            return fn(tensor, hook=hook)
        new = fn(tensor[0], hook=hook)
        return None if new is None else new.unsqueeze(0)

    return hook_fn


def _as_gradient(caching: Callable[..., None]) -> Callable[..., None]:
    """The caching hook, for the gradient of its activation."""

    def hook_fn(gradient: Tensor, hook: Any) -> None:
        caching(gradient, hook=hook, suffix="_grad")

    return hook_fn


def _differentiate(out: Any) -> None:
    if not isinstance(out, Tensor) or out.numel() != 1 or not out.requires_grad:
        raise InputError(
            "incl_bwd differentiates one number: give return_type='loss', with gradients on and no stop_at_layer"
        )
    out.backward()
