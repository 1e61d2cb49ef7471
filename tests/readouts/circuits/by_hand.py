"""Circuits of edges once more, on plain transformers: every receiver's input is added up by hand, sender by sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Sent = dict[str, Tensor]  # what each sender adds to the stream
Keeps = Callable[[str, str], bool]  # sender, receiver


class ByHand:
    """A decoder of transformers with heads, MLPs and norms under their usual names.

    Args:
        plain: the model.
        norms: of a layer, the norms before and after attention and MLP; None where there is none.
    """

    def __init__(self, plain: Any, norms: Callable[[Any], tuple[Any, Any, Any, Any]]) -> None:
        self.plain, self.norms = plain, norms
        decoder = next(m for m in plain.modules() if hasattr(m, "layers") and hasattr(m, "embed_tokens"))
        self.layers, self.last_norm = list(decoder.layers), decoder.norm

    def run(self, tensors: Mapping[str, Tensor], keeps: Keeps, corrupt: Sent | None) -> tuple[Tensor, Sent]:
        """Logits and what was sent; without ``corrupt`` it is a plain run."""
        self.sent, self.keeps, self.corrupt = Sent(), keeps, corrupt
        with torch.no_grad(), self.hooked():
            return self.plain(**tensors, use_cache=False).logits, self.sent

    def received(self, receiver: str) -> Tensor:
        corrupt = self.corrupt or self.sent
        return sum(self.sent[s] if self.keeps(s, receiver) else corrupt[s] for s in self.sent)  # type: ignore[return-value]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = [self.last_norm.register_forward_pre_hook(lambda m, args: (self.received("logits"),))]
        try:
            for i, layer in enumerate(self.layers):
                handles += self.layer_hooks(layer, i)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layer_hooks(self, layer: Any, i: int) -> list[Any]:
        before_heads, after_heads, before_mlp, after_mlp = self.norms(layer)
        attention = layer.self_attn
        size = attention.head_dim

        def enters(module: Any, args: Any, kwargs: Any) -> None:
            if i == 0:
                self.sent["embed"] = args[0] if args else kwargs["hidden_states"]

        def projected(site: str) -> Any:
            def hook(module: Any, args: Any, out: Tensor) -> Tensor:
                found = out.clone()
                for head in range(out.shape[-1] // size):
                    rows = slice(head * size, (head + 1) * size)
                    read = self.received(f"L{i}H{head} {site}")
                    read = read if before_heads is None else before_heads(read)
                    bias = 0 if module.bias is None else module.bias[rows]
                    found[..., rows] = read @ module.weight[rows].T + bias
                return found

            return hook

        def heads(module: Any, args: Any) -> None:
            (z,) = args
            whole = module(z)
            scale = (
                1 if after_heads is None else after_heads(whole) / whole
            )  # of the norm as it is in this run
            for head in range(z.shape[-1] // size):
                rows = slice(head * size, (head + 1) * size)
                self.sent[f"L{i}H{head}"] = scale * (z[..., rows] @ module.weight[:, rows].T)

        def mlp_reads(module: Any, args: Any) -> Any:
            read = self.received(f"L{i} mlp")
            return (read if before_mlp is None else before_mlp(read),)

        def mlp_sends(module: Any, args: Any, out: Tensor) -> None:
            self.sent[f"L{i} mlp"] = out

        inside = []  # the call of o_proj within its own hook must not count

        def once(module: Any, args: Any) -> None:
            if not inside:
                inside.append(True)
                heads(module, args)
                inside.clear()

        return [
            layer.register_forward_pre_hook(enters, with_kwargs=True),
            *(getattr(attention, f"{s}_proj").register_forward_hook(projected(s)) for s in "qkv"),
            attention.o_proj.register_forward_pre_hook(once),
            layer.mlp.register_forward_pre_hook(mlp_reads),
            (after_mlp or layer.mlp).register_forward_hook(mlp_sends),
        ]
