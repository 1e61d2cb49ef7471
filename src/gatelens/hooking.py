"""Forward passes with TransformerLens hooks that live as long as the call."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformers import DynamicCache

from gatelens import loading
from gatelens.bridge import towers
from gatelens.errors import InputError, InterventionError
from gatelens.families import Family
from gatelens.inputs import VLMInputs, position_ids, prepared
from gatelens.kept import DECODER, Kept
from gatelens.tokens import SelectorLike

HookFn = Callable[..., Any]
HookName = str | Callable[[str], bool]
FwdHooks = Iterable[tuple[HookName, HookFn]]
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


class Hooking:
    """What HookedVLM can do with its hook points."""

    hf: Any
    bridge: Any
    family: Family
    _points: dict[str, HookPoint]
    _tower_points: dict[str, Any]
    _unread: dict[str, str]

    @contextmanager
    def hooks(self, fwd_hooks: FwdHooks) -> Iterator[None]:
        """Hooks that live as long as the block, also when it raises. Unknown names: InterventionError."""
        added: list[tuple[HookPoint, Any]] = []
        try:
            for name, fn in fwd_hooks:
                for spelled, point in self._resolve(name):
                    if (switch := self._switch(point, spelled)) is not None:
                        raise InterventionError(
                            f"hook '{spelled}' never fires: call model.bridge.set_{switch}(True) first"
                        )
                    why = self._unread.get(spelled)
                    added.append(
                        (point, point.add_hook(fn if why is None else towers.read_only(fn, spelled, why)))
                    )
            yield
        finally:
            for point, handle in added:
                handle.hook.remove()
                point.fwd_hooks[:] = [kept for kept in point.fwd_hooks if kept is not handle]

    def _resolve(self, name: HookName) -> list[tuple[str, HookPoint]]:
        if isinstance(name, str):
            if name not in self._points:
                near = difflib.get_close_matches(name, self._points, n=1)
                hint = f": did you mean '{near[0]}'?" if near else ""
                raise InterventionError(f"no hook '{name}' in this model{hint}")
            return [(name, self._points[name])]
        found = {id(point): (spelled, point) for spelled, point in self._points.items() if name(spelled)}
        return list(found.values())

    def _switch(self, point: HookPoint, name: str) -> str | None:
        """What must be switched on for a hook point to fire; None when it fires as it is."""
        return self.bridge._gated_hook_reason(point.name or name)

    def forward_step(
        self, tensors: dict[str, Any], fwd_hooks: FwdHooks = (), past: Any = None, use_cache: bool = False
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Any]:
        """One forward pass, on a prompt or (with ``past``) on the tokens after it: (logits, cache or None).

        ``tensors`` are transformers' forward arguments. With ``past``, ``attention_mask`` covers past and new
        positions, ``position_ids`` the new ones, and ``past`` itself is extended in place: copy it to reuse
        it. Missing ``position_ids`` follow from the mask, where a family's positions do; else InputError.
        """
        kwargs = {name: value for name, value in tensors.items() if value is not None}
        if "position_ids" not in kwargs and "attention_mask" in kwargs:
            n_new = kwargs["input_ids"].shape[1]
            kwargs["position_ids"] = position_ids(kwargs["attention_mask"])[:, -n_new:]
            if self.family.complete is not None:
                if past is not None and past.get_seq_length():
                    raise InputError(
                        "position_ids are missing, and this family counts positions in its own way: "
                        "go on from the prompt's with gatelens.inputs.next_position_ids"
                    )
                kwargs |= self.family.complete(self.hf, kwargs)
        use_cache = use_cache or past is not None
        if use_cache and past is None:
            past = DynamicCache()  # without sliding layers: hooks count rows and keys from the first position
        with self.hooks(fwd_hooks):
            out = self.hf(past_key_values=past, use_cache=use_cache, **kwargs)
        return out.logits, out.past_key_values if use_cache else None

    def __call__(self, inputs: VLMInputs) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits, as transformers gives them."""
        return self.forward_step(prepared(inputs).tensors)[0]

    def run_with_hooks(
        self, inputs: VLMInputs, fwd_hooks: FwdHooks = ()
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits with TransformerLens hooks: (name or filter, fn(tensor, hook)), gone after the call.

        Raises InterventionError for unknown names, and where an edit of the vision tower would change nothing.
        """
        tensors = prepared(inputs).tensors
        with towers.must_fire(fwd_hooks, self._tower_points) as hooks:
            return self.forward_step(tensors, hooks)[0]

    def run_with_cache(
        self,
        inputs: VLMInputs,
        names_filter: NamesFilter = None,
        fwd_hooks: FwdHooks = (),
        device: str | torch.device | None = None,
        positions: SelectorLike | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """(logits, ActivationCache); the cache has ``.tokens``, the TokenMap; it sees ``fwd_hooks``' edits.

        ``names_filter``: a hook name, a list, or a predicate on names; None caches everything. ``positions``:
        a selector; only these rows of the decoder's activations are kept, [batch, kept, ...] (of scores and
        patterns their query rows), as many in every example; :func:`gatelens.patch` finds them again.
        ``device`` and ``dtype`` are what is kept, moved and cast. Raises InterventionError for unknown names,
        InputError when the examples of a batch select different numbers of positions.
        """
        inputs = prepared(inputs)
        stored: dict[str, Tensor] = {}
        kept = None if positions is None else Kept.of(inputs.tokens, positions)
        named = None if dtype is None else loading.as_dtype(dtype)
        kind = named if isinstance(named, torch.dtype) else None  # "auto" keeps what is computed

        def keep(name: str) -> HookFn:
            def hook_fn(tensor: Any, hook: Any) -> None:
                value = tensor[0] if isinstance(tensor, tuple) else tensor
                if isinstance(value, Tensor):
                    value = value.detach()
                    if kept is not None and name.startswith(DECODER):
                        value = kept.rows(value, name)
                    stored[name] = value.to(device=device, dtype=kind if value.is_floating_point() else None)

            return hook_fn

        wanted = self._names(names_filter)
        logits, _ = self.forward_step(inputs.tensors, [*fwd_hooks, *((name, keep(name)) for name in wanted)])
        cache = ActivationCache(stored, self.bridge, has_batch_dim=True)
        cache.tokens = inputs.tokens
        cache.kept = kept
        return logits, cache

    def _names(self, names_filter: NamesFilter) -> list[str]:
        if isinstance(names_filter, str):
            return [names_filter]
        if names_filter is not None and not callable(names_filter):
            return list(names_filter)
        wanted = [name for name in self._points if names_filter is None or names_filter(name)]
        return [name for name in wanted if self._switch(self._points[name], name) is None]
