"""Stacks of parts of the residual stream, as TransformerLens' cache gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities import Slice, SliceInput

from gatelens.bridge.residual import ROUNDING, FrozenNorm, ResidualStream, Route, token_directions
from gatelens.errors import InputError

# labels, and Float[component, *rows, d_model or projections]
Group: TypeAlias = tuple[list[str], Tensor]


def as_slice(chosen: Slice | SliceInput) -> Slice:
    return chosen if isinstance(chosen, Slice) else Slice(chosen)


class StreamParts:
    """The parts of the stream that enters a layer, at some positions of a cache, read through its norm or not.

    Args:
        bridge: TransformerLens' view of the model.
        activations: by TransformerLens' names.
        has_batch_dim: whether they begin with a batch dimension.
        layer: which reads; None, -1 and ``n_layers`` mean the final norm.
        mlp_input: take the stream that enters its MLP.
        apply_ln: read through the norm there.
        position, batch: slices of these dimensions.
        project: Float[d_model] or Float[d_model, n]; its products take the place of d_model.

    Raises:
        InputError: there is no such layer, or an activation is missing.
    """

    def __init__(
        self,
        bridge: Any,
        activations: Mapping[str, Tensor],
        has_batch_dim: bool,
        layer: int | None,
        mlp_input: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        project: Float[Tensor, "d_model *n"] | None = None,
        batch_slice: Slice | SliceInput = None,
    ) -> None:
        self.bridge, self.activations, self.has_batch_dim = bridge, activations, has_batch_dim
        self.position, self.batch = as_slice(pos_slice), as_slice(batch_slice)
        self.stream = ResidualStream(bridge, self._activation)
        self.layer = self.stream.n_layers if layer is None or layer == -1 else layer
        self.mlp_input = mlp_input
        if type(self.layer) is not int or not 0 <= self.layer <= self.stream.n_layers - mlp_input:
            raise InputError(f"layer={layer!r}: the model has {self.stream.n_layers} layers")
        if project is not None and (project.ndim not in (1, 2) or len(project) != int(bridge.cfg.d_model)):
            raise InputError(
                f"project_output_onto is {tuple(project.shape)}: give [{bridge.cfg.d_model}] or "
                f"[{bridge.cfg.d_model}, n]"
            )
        self.norm: FrozenNorm | None = self.stream.norm_into(self.layer, mlp_input) if apply_ln else None
        self.scalar = project is not None and project.ndim == 1
        self.project = None if project is None else project.float().reshape(project.shape[0], -1)

    def _activation(self, name: str) -> Tensor:
        if name not in self.activations:
            raise InputError(
                f"the cache has no '{name}', which this needs: cache it too, or run without names_filter"
            )
        value = self.position.apply(self.activations[name], dim=-3 if name.endswith("hook_z") else -2)
        return self.batch.apply(value, dim=0) if self.has_batch_dim else value

    @property
    def dtype(self) -> torch.dtype:
        return self.stream.at(0).dtype

    @property
    def target(self) -> Float[Tensor, "*rows d_model"]:
        """The stream that is read: what the parts sum to."""
        return self.stream.middle(self.layer) if self.mlp_input else self.stream.at(self.layer)

    def read(self, parts: Float[Tensor, "*parts d_model"]) -> Tensor:
        parts = parts.float() if self.norm is None else self.norm(parts)
        return parts if self.project is None else parts @ self.project.to(parts.device)

    def outputs(self, attention: bool = False, mlp: bool = False, embeddings: bool = False) -> Group:
        """Whole sublayers before the layer; the embedding and what is added between blocks."""
        parts = [("embed", self.stream.at(0))] if embeddings else []
        for layer in range(self.layer):
            if attention:
                parts.append((f"{layer}_attn_out", self.stream.attention(layer)))
            if mlp:
                parts.append((f"{layer}_mlp_out", self.stream.mlp(layer)))
            features = self.stream.features(layer) if embeddings else None
            if features is not None:
                parts.append((f"{layer}_features", features))
        if attention and self.mlp_input:
            parts.append((f"{self.layer}_attn_out", self.stream.attention(self.layer)))
        if not parts:
            return [], self.read(self.target)[None][:0]
        return [label for label, _ in parts], self.read(torch.stack([part for _, part in parts]))

    def heads(self) -> list[Group]:
        return [self.heads_of(layer) for layer in range(self.layer + self.mlp_input)]

    def heads_of(self, layer: int) -> Group:
        z, route = self.stream.heads(layer)
        weight = route.weight.unflatten(0, z.shape[-2:])
        results = torch.einsum("...hd,hdm->h...m", z.float(), weight)
        self._check(layer, "attention", route, results.sum(0), self.stream.attention(layer))
        return [f"L{layer}H{head}" for head in range(len(results))], self.read(route.through(results))

    def neurons(self, chosen: Slice | SliceInput) -> list[Group]:
        # one neuron of a layer is a part like any other: its axis stays
        one = as_slice(chosen)
        kept = Slice([one.slice]) if one.mode == "int" else one
        return [self.neurons_of(layer, kept) for layer in range(self.layer)]

    def neurons_of(self, layer: int, chosen: Slice | SliceInput) -> Group:
        if layer == self.stream.n_layers:
            raise InputError(f"layer={layer}: the model has {self.stream.n_layers} layers")
        post, route = self.stream.neurons(layer)
        post = post.float()
        self._check(layer, "MLP", route, post @ route.weight, self.stream.mlp(layer))
        numbers = as_slice(chosen).apply(torch.arange(post.shape[-1]), dim=0).flatten()
        labels = [f"L{layer}N{n}" for n in numbers.tolist()]
        if self.project is None:
            results = torch.einsum("...n,nm->n...m", post[..., numbers], route.weight[numbers])
            return labels, self.read(route.through(results))
        # the directions are carried back to the neurons: nothing of [row, neuron, d_model] is made
        onto = self.project.T.to(post.device)
        onto = onto.view(-1, *[1] * (post.ndim - 1), onto.shape[-1]).expand(-1, *post.shape[:-1], -1)
        back = route.pull_back(onto if self.norm is None else self.norm.pull_back(onto))
        return labels, (post * back)[..., numbers].movedim(-1, 0).movedim(1, -1)

    def bias(self, of_mlps: bool) -> Group:
        """All that is added on the way of heads, and of neurons."""
        total = torch.zeros_like(self.target, dtype=torch.float32)
        for layer in range(self.layer + self.mlp_input):
            routes = [self.stream.heads(layer)[1]]
            if of_mlps and layer < self.layer:
                routes.append(self.stream.neurons(layer)[1])
            for route in routes:
                total = total if route.bias is None else total + route.bias
        return ["bias"], self.read(total)[None]

    def _check(self, layer: int, name: str, route: Route, whole: Tensor, added: Tensor) -> None:
        """Raise where the parts of a sublayer are not what it adds: it was edited in the run that was cached."""
        whole = route.through(whole) if route.bias is None else route.through(whole) + route.bias
        size = 1 + max(float(self.stream.middle(layer).abs().max()), float(whole.abs().max()))
        if float((whole - added.float()).abs().max()) > ROUNDING[added.dtype == torch.float32] * size:
            raise InputError(
                f"the parts of the {name} of layer {layer} are not what it adds to the stream: it was edited in "
                "the run that was cached; use decompose_resid, whose parts are whole sublayers"
            )

    def stacked(self, groups: Sequence[Group], return_labels: bool, remainder: bool = False) -> Any:
        """Float[component, *rows, d_model or projections] in the stream's dtype, and the labels if wanted."""
        labels = [label for names, _ in groups for label in names]
        whole = self.read(self.target)[None]
        stack = torch.cat([whole[:0], *(stack for _, stack in groups)])
        if remainder:
            labels, stack = [*labels, "remainder"], torch.cat([stack, whole - stack.sum(0, keepdim=True)])
        stack = (stack.squeeze(-1) if self.scalar else stack).to(self.dtype)
        return (stack, labels) if return_labels else stack

    def direction(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*rows d_model"]:
        """What a part of the last stream is multiplied with for the logits of tokens.

        One token for all rows, one per example, one per position, or one each.
        """
        rows = self.target
        shape = rows.shape[:-1]
        if ids.is_floating_point() or not 0 <= int(ids.min()) <= int(ids.max()) < int(
            self.bridge.cfg.d_vocab
        ):
            raise InputError(f"tokens: give ids of the vocabulary, 0 … {int(self.bridge.cfg.d_vocab) - 1}")
        if ids.ndim == 1 and len(shape) == 2 and ids.shape[0] == shape[0]:
            ids = ids[:, None]
        try:
            ids = ids.expand(shape)
        except RuntimeError:
            raise InputError(
                f"tokens of shape {tuple(ids.shape)} do not fit rows of shape {tuple(shape)}"
            ) from None
        assert self.norm is not None
        return token_directions(self.bridge, self.norm, rows, ids)[0]


def together(stack: Float[Tensor, "component *rows d_model"], rows: Float[Tensor, "*rows d_model"]) -> None:
    """Raise InputError where a stack is not of these rows, which would multiply what does not belong together."""
    if stack.shape[1:] != rows.shape:
        raise InputError(
            f"a stack of rows {tuple(stack.shape[1:])} for a cache with rows {tuple(rows.shape)}: give the "
            "pos_slice and batch_slice the stack was made with"
        )
