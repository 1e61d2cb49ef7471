"""Which activations a cache holds, which rows of them; and its one type, :class:`ActivationCache`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformer_lens
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor
from transformer_lens.utilities import Slice, SliceInput

from gatelens.bridge.stream_parts import StreamParts, as_slice, together
from gatelens.errors import InputError, InterventionError, shown
from gatelens.hooked_model import HookedModel
from gatelens.hub_errors import one_line
from gatelens.model.loading import as_dtype
from gatelens.tokens import SelectorLike, TokenMap

_DECODER = ("blocks.", "ln_final", "unembed", "embed", "hook_embed", "hook_unembed")
_BY_QUERY = ("hook_attn_scores", "hook_pattern")


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The positions a cache keeps of each example, and where each stands among them (−1: not kept)."""

    selector: SelectorLike
    positions: Int[Tensor, "batch kept"]
    place: Int[Tensor, "batch pos"] = field(repr=False)

    @staticmethod
    def of(tokens: TokenMap, selector: SelectorLike) -> KeptRows:
        """The rows a selector names.

        Raises:
            InputError: nothing is selected, or not as many positions in each example.
        """
        mask = tokens.mask(selector)
        counts = mask.sum(dim=1).tolist()
        if len(set(counts)) > 1 or not counts[0]:
            raise InputError(
                f"positions={selector!r} selects {counts} positions in the examples: select as many in each, "
                "one at least, or run the examples one by one"
            )
        positions = mask.nonzero()[:, 1].view(len(mask), -1)
        return KeptRows(selector, positions, torch.where(mask, mask.cumsum(dim=1) - 1, -1))

    def rows(self, value: Float[Tensor, "batch ..."], name: str) -> Float[Tensor, "batch ..."]:
        """The kept rows of the activation of this name; all of one that has no position axis."""
        axis = 2 if name.endswith(_BY_QUERY) else 1
        n_pos = self.place.shape[1]
        if value.ndim <= axis or value.shape[axis] != n_pos or value.shape[0] != len(self.place):
            return value
        index = self.positions.to(value.device)
        shape = [len(index), *[1] * (axis - 1), index.shape[1], *[1] * (value.ndim - axis - 1)]
        size = [*value.shape]
        size[axis] = index.shape[1]
        return value.gather(axis, index.view(shape).expand(size))

    def find(
        self, example: Int[Tensor, " n"], position: Int[Tensor, " n"], owner: object
    ) -> Int[Tensor, " n"]:
        """The places of positions among the kept ones.

        Raises:
            InterventionError: a position was not kept; the message begins with ``owner``.
        """
        place = self.place.to(position.device)[example, position]
        if bool((place < 0).any()):
            missing = int(position[place < 0][0])
            raise InterventionError(
                f"{owner!r}: the cache keeps only positions={self.selector!r}, position {missing} is not "
                "among them: cache it too"
            )
        return place


def as_device(device: str | torch.device | None) -> torch.device | None:
    """Where a cache goes. Raises InputError for a device that this machine does not have, or that holds no numbers."""
    if device is None:
        return None
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA asserts
        raise InputError(f"device={shown(device)} of a cache cannot be used: {one_line(error)}") from error
    if found.type == "meta":
        raise InputError("device='meta' of a cache keeps no numbers: give 'cpu', or leave it out")
    return found


def as_floating(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """What a cache is cast to; None keeps what is computed. Raises ModelError or InputError for no floating type."""
    named = as_dtype(dtype)
    if isinstance(named, str):
        return None
    if not named.is_floating_point:
        raise InputError(
            f"dtype={named} of a cache would round activations to whole numbers: give a floating one"
        )
    return named


def caching_hooks(
    names: Sequence[str],
    stored: dict[str, Tensor],
    kept: KeptRows | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    pos_slice: Slice | None = None,
) -> list[tuple[str, Callable[..., None]]]:
    """Hooks that put the activations of these names into ``stored``.

    Args:
        kept: which rows of the decoder's activations; None keeps all.
        device: where to put them; None leaves them where they are.
        dtype: what floating point values are cast to; None leaves them.
        pos_slice: TransformerLens' choice of positions, of the decoder's activations.
    """

    def caching(name: str) -> Callable[..., None]:
        def hook_fn(tensor: Any, hook: Any, suffix: str = "") -> None:
            value = tensor[0] if isinstance(tensor, tuple) else tensor
            if isinstance(value, Tensor):
                value = value.detach()
                if kept is not None and name.startswith(_DECODER):
                    value = kept.rows(value, name)
                if pos_slice is not None and name.startswith(_DECODER) and value.ndim > 1:
                    value = pos_slice.apply(value, dim=-2 if name.endswith(_BY_QUERY) else 1)
                cast = dtype if value.is_floating_point() else None
                stored[name + suffix] = value.to(device=device, dtype=cast)

        return hook_fn

    return [(name, caching(name)) for name in names]


class ActivationCache(transformer_lens.ActivationCache):
    """TransformerLens' cache, with decompositions of the stream that hold for pictures in every family.

    What differs from TransformerLens, where each of these is wrong for a VLM or a norm with weights:

    - ``embed`` is what enters block 0, picture features included; what a family adds between later blocks is a
      component of its own, ``{layer}_features``. Attention, MLPs, heads and neurons are what they add to the
      stream: after post-norms (at their scale in this run) and residual multipliers.
    - A norm is applied with its weight. So ``apply_ln=True`` gives what the layer, or ``W_U``, reads, and
      ``logit_attrs`` sums to the logit less its bias; scale and soft cap of logits are held as the factors they
      are there.

    Attributes:
        vlm: the model.
        tokens: role and place of every position.
        kept: the rows that are kept; None where all are.
        images: the pictures of each prompt as the inputs have them, empty where they are unknown.

    Example:
        >>> logits, cache = model.run_with_cache(inputs)
        >>> cache["blocks.3.attn.hook_pattern"].shape  # [batch, head, query, key]
        torch.Size([1, 4, 70, 70])
        >>> parts, labels = cache.decompose_resid(return_labels=True)
        >>> labels[:3]
        ['embed', '0_attn_out', '0_mlp_out']
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: HookedModel,
        tokens: TokenMap,
        kept: KeptRows | None = None,
        has_batch_dim: bool = True,
        images: Sequence[Sequence[Image]] = (),
    ) -> None:
        super().__init__(cache_dict, model.bridge, has_batch_dim=has_batch_dim)
        self.vlm = model
        self.tokens = tokens
        self.kept = kept
        self.images = images

    def __repr__(self) -> str:
        size = sum(value.numel() * value.element_size() for value in self.cache_dict.values())
        rows = "" if self.kept is None else f", positions={self.kept.selector!r}"
        return (
            f"ActivationCache({len(self)} activations of {self.tokens.batch_size} prompt(s){rows}, "
            f"{size / 2**20:.1f} MiB)"
        )

    def apply_slice_to_batch_dim(self, batch_slice: Slice | SliceInput) -> ActivationCache:
        """The cache of some of its prompts."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        chosen = as_slice(batch_slice).apply(torch.arange(self.tokens.batch_size), dim=0).flatten()
        kept = self.kept
        if kept is not None:
            kept = KeptRows(kept.selector, kept.positions[chosen], kept.place[chosen])
        tokens = self.tokens.select(chosen.tolist())
        images = [self.images[e] for e in chosen.tolist()] if self.images else ()
        return ActivationCache(sliced.cache_dict, self.vlm, tokens, kept, sliced.has_batch_dim, images)

    # --- the residual stream taken apart

    def _parts(self, layer: int | None, *args: Any, **options: Any) -> StreamParts:
        return StreamParts(self.vlm.bridge, self.cache_dict, self.has_batch_dim, layer, *args, **options)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """What embedding, attention and MLPs add to the stream that enters a layer; arguments as upstream's.

        Returns:
            ``Float[component, *batch_and_pos, d_model]``, with ``return_labels`` also the labels. They sum to the
            stream, at image positions too.
        """
        if mode not in ("all", "mlp", "attn"):
            raise InputError(f"mode={mode!r}: write 'all', 'mlp' or 'attn'")
        parts = self._parts(layer, mlp_input, apply_ln, pos_slice)
        group = parts.outputs(attention=mode != "mlp", mlp=mode != "attn", embeddings=incl_embeds)
        return parts.stacked([group], return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice | SliceInput = None,
        apply_ln: bool = False,
    ) -> Any:
        """What each head before a layer adds to the stream, ``L0H0`` first; the remainder is all else."""
        parts = self._parts(layer, False, apply_ln, pos_slice)
        return parts.stacked(parts.heads(), return_labels, incl_remainder)

    def _ensure_head_results(self) -> bool:
        """Put what each head adds to the stream at ``hook_result``, for ``compute_head_results``."""
        parts = self._parts(None)
        for layer in range(parts.layer):
            results = parts.heads_of(layer)[1].movedim(0, -2)
            self.cache_dict[f"blocks.{layer}.attn.hook_result"] = results.to(parts.dtype)
        return False

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice | SliceInput = None,
        pos_slice: Slice | SliceInput = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of a layer adds to the stream: ``Float[*batch_and_pos, neuron, d_model]``.

        Args:
            project_output_onto: [d_model] or [d_model, n]: its products take the place of the last dimension.
        """
        parts = self._parts(layer, False, False, pos_slice, project_output_onto)
        results = parts.stacked([parts.neurons_of(layer, neuron_slice)], False)
        results = results.movedim(0, -1 if parts.scalar else -2)
        one = as_slice(neuron_slice).mode == "int"
        return results.squeeze(-1 if parts.scalar else -2) if one else results

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Slice | SliceInput = None,
        neuron_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
    ) -> Any:
        """What each neuron before a layer adds to the stream, ``L0N0`` first; the remainder is all else."""
        parts = self._parts(layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        return parts.stacked(parts.neurons(neuron_slice), return_labels, incl_remainder)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """Every head, every neuron or MLP, the embedding, later features and the biases; they sum to the stream."""
        parts = self._parts(layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        mlps = parts.neurons(None) if expand_neurons else [parts.outputs(mlp=True)]
        groups = [*parts.heads(), *mlps, parts.outputs(embeddings=True), parts.bias(expand_neurons)]
        return parts.stacked(groups, return_labels)

    # --- from the stream to layers and logits

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Float[Tensor, "component *batch_and_pos d_model"]:
        """What a layer's norm, or the final one, makes of parts of its input: at the scale it has in this run and
        with its weight; its bias belongs to no part. Where a block reads the stream without a norm they stay the same.

        Args:
            recompute_ln: apply the final norm itself to each part, for a logit lens.
        """
        parts = self._parts(layer, mlp_input, True, pos_slice, batch_slice=batch_slice)
        if recompute_ln and parts.layer == parts.stream.n_layers:
            return super().apply_ln_to_stack(
                residual_stack, layer, mlp_input, pos_slice, batch_slice, has_batch_dim, recompute_ln
            )
        if has_batch_dim:
            residual_stack = as_slice(batch_slice).apply(residual_stack, dim=1)
        together(residual_stack, parts.target)
        normed = residual_stack if parts.norm is None else parts.norm(residual_stack)
        return normed.to(residual_stack.dtype)

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *batch_and_pos d_model"],
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *batch_and_pos"]:
        """What each part adds to the logit of a token, or to the difference of two; arguments as upstream's."""
        parts = self._parts(None, False, True, pos_slice, batch_slice=batch_slice)
        if has_batch_dim:
            residual_stack = as_slice(batch_slice).apply(residual_stack, dim=1)
        together(residual_stack, parts.target)
        direction = parts.direction(self._token_ids(tokens))
        if incorrect_tokens is not None:
            direction = direction - parts.direction(self._token_ids(incorrect_tokens))
        return (residual_stack.float() * direction).sum(-1)

    def _token_ids(self, tokens: Any) -> Int[Tensor, "*shape"]:
        return torch.as_tensor(self.vlm.to_single_token(tokens) if isinstance(tokens, str) else tokens)
