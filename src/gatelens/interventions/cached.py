"""Activations of a site in the cache of another run."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from gatelens.errors import InterventionError
from gatelens.interventions.sites import hook_name

_BRIDGE_NAMES = {
    "resid_pre": "hook_in",
    "resid_mid": "ln2.hook_in",
    "resid_post": "hook_out",
    "attn_out": "attn.hook_out",
    "mlp_out": "mlp.hook_out",
    "q": "attn.q.hook_out",
    "k": "attn.k.hook_out",
    "v": "attn.v.hook_out",
    "z": "attn.o.hook_in",
}


def check_same_model(cache: Any, cfg: Any, owner: object, fix: str) -> None:
    """Refuse a cache of another model: its activations mean something else there, also where shapes are equal.

    Raises:
        InterventionError: it is of another one, and the message ends with ``fix``. Nothing is known without ``cfg``.
    """
    source = getattr(cache, "vlm", None)
    if cfg is not None and source is not None and source.cfg is not cfg:
        raise InterventionError(f"{owner!r}: the cache is of another model, {source!r}; {fix}")


def cached_values(
    cache: Any,
    site: str,
    layer: int,
    example: Int[Tensor, " n"],
    position: Int[Tensor, " n"],
    owner: object,
) -> Float[Tensor, "n ..."]:
    """The activations of a site at positions of the cache's own prompts, from a cache of all positions or of some.

    Raises:
        InterventionError: not in the cache; the message says the ``names_filter`` to run with.
    """
    name = hook_name(site, layer)
    # A filter by the bridge's own spelling of a hook point stores it under that spelling only.
    for key in (name, f"blocks.{layer}.{_BRIDGE_NAMES[site]}" if site in _BRIDGE_NAMES else name):
        if key in cache:
            values = cache[key].transpose(1, 2) if site == "pattern" else cache[key]
            example, position = example.to(values.device), position.to(values.device)
            if getattr(cache, "kept", None) is not None:
                position = cache.kept.find(example, position, owner)
            return values[example, position]
    run = f"run with run_with_cache(inputs, names_filter=lambda name: name == {name!r}), or without a names_filter"
    raise InterventionError(f"{owner!r}: the cache has no {name!r}; {getattr(cache, 'fix', run)}")
