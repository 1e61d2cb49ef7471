"""What each part of a decoder adds to the residual stream, and how the logits read it: all of it linear, exactly.

A part is what lies between two points of the stream, so post-norms, residual multipliers and whatever else a
family does on the way are in it, and the parts always sum to the stream. Inside a part, heads and neurons reach
the stream through a linear layer and, in some families, a norm; a norm is linear once its scale is held at the
value it has (Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; the "frozen" norm of direct
logit attribution).

Every function is position-wise: the dimensions before the last are those of the activations it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.quantization import unreadable_weight_reason

from gatelens.bridge.weights import is_quantised
from gatelens.errors import ModelError

# what is no fault but rounding, as a share of what is added up; by whether it is float32
ROUNDING = {True: 1e-4, False: 0.05}
_PROBE = 256.0  # large beside the epsilon of any norm, and exact in every floating dtype


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as the linear map it is while its scale stays what it is for given rows; its bias apart.

    Attributes:
        weight, bias: of the norm, ``1 + w`` already made where a family does that.
        scale: what the rows are divided by.
        centred: whether the mean of a row is taken off first (layer norm).
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    scale: Float[Tensor, "*rows 1"]
    centred: bool

    @classmethod
    def at(cls, norm: Any, rows: Float[Tensor, "*rows d_model"]) -> FrozenNorm:
        """The norm at these rows. It is asked, not read: what it does to a few vectors tells its weight and kind.

        Raises:
            ModelError: it is neither an RMS norm nor a layer norm.
        """
        flat = rows.flatten(0, -2)
        width, dtype = rows.shape[-1], rows.dtype
        ones = torch.full((width,), _PROBE, dtype=dtype, device=rows.device)
        signs = ones * torch.where(torch.arange(width, device=rows.device) % 2 == 0, 1, -1)
        normed = (
            unhooked(norm)(torch.cat([flat, torch.stack([ones, -ones, signs])])[None])[0]
            .float()
            .to(rows.device)
        )
        *_, plus, minus, alternating = normed
        bias = (plus + minus) / 2
        centred = not bool(((plus - bias).abs() > 1e-3 * plus.abs().max()).any())
        weight = (alternating - bias) * signs.sign().float()
        x = flat.float()
        x = x - x.mean(-1, keepdim=True) if centred else x
        raw, out = x * weight, normed[:-3] - bias
        scale = raw.square().sum(-1, keepdim=True) / (raw * out).sum(-1, keepdim=True)
        # a row of zeros stays one, whatever it is divided by
        scale = torch.where(scale.isfinite() & (scale != 0), scale, torch.ones_like(scale))
        allowed = ROUNDING[dtype == torch.float32] * (1 + out.abs().amax(-1, keepdim=True))
        if bool(((raw / scale - out).abs() > allowed).any()):
            kind = type(getattr(norm, "original_component", norm)).__name__
            raise ModelError(
                f"{kind} is neither an RMS norm nor a layer norm: the stream cannot be read through it"
            )
        return cls(weight, bias, scale.view(*rows.shape[:-1], 1), centred)

    def __call__(self, part: Float[Tensor, "*parts d_model"]) -> Float[Tensor, "*parts d_model"]:
        """What the norm makes of a part of its input."""
        part = part.float()
        part = part - part.mean(-1, keepdim=True) if self.centred else part
        return part * self.weight / self.scale

    def pull_back(self, direction: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The direction before the norm that a direction after it is."""
        direction = direction * self.weight / self.scale
        return direction - direction.mean(-1, keepdim=True) if self.centred else direction


@dataclass(frozen=True)
class Route:
    """The way from heads or neurons to the stream: a linear layer, a norm in some families, a multiplier.

    Attributes:
        weight: of the linear layer.
        bias: all that is added on the way; None where nothing is.
        norm: the norm after it, held at the scale it has.
        multiplier: of the whole.
    """

    weight: Float[Tensor, "source d_model"]
    bias: Float[Tensor, "*rows d_model"] | None
    norm: FrozenNorm | None
    multiplier: float

    @classmethod
    def of(
        cls, block: Any, sources: Float[Tensor, "*rows source"], weight: Tensor, bias: Any, norm: Any
    ) -> Route:
        """The way of these sources through a block."""
        matrix = readable(weight, block).float().to(sources.device)
        multiplier = float(getattr(block, "residual_contribution_scale", 1.0))
        added = None if bias is None else bias.float().to(sources.device)
        frozen = None
        if norm is not None:
            out = sources.float() @ matrix
            frozen = FrozenNorm.at(norm, (out if added is None else out + added).to(weight.dtype))
            added = frozen.bias if added is None else frozen(added) + frozen.bias
        if added is not None and not bool(added.any()):
            added = None
        return cls(matrix, None if added is None else added * multiplier, frozen, multiplier)

    def pull_back(self, direction: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows source"]:
        """How much a unit of each source moves the stream along a direction."""
        direction = direction.to(self.weight.device)
        if self.norm is not None:
            direction = self.norm.pull_back(direction)
        return self.multiplier * (direction @ self.weight.T)

    def through(self, part: Float[Tensor, "*parts d_model"]) -> Float[Tensor, "*parts d_model"]:
        """A part of the linear layer's output, after the norm."""
        return self.multiplier * (part if self.norm is None else self.norm(part))


class ResidualStream:
    """The residual stream of a run, taken apart.

    Args:
        bridge: TransformerLens' view of the model.
        activation: an activation by TransformerLens' name, such as ``blocks.0.hook_resid_pre``; the rows of all
            are the same ones.
    """

    def __init__(self, bridge: Any, activation: Callable[[str], Tensor]) -> None:
        self.bridge = bridge
        self.activation = activation
        self.n_layers = int(bridge.cfg.n_layers)

    def at(self, layer: int) -> Float[Tensor, "*rows d_model"]:
        """The stream entering a layer; that of ``n_layers`` is what the final norm reads."""
        if layer == self.n_layers:
            return self.activation(f"blocks.{layer - 1}.hook_resid_post")
        return self.activation(f"blocks.{layer}.hook_resid_pre")

    def middle(self, layer: int) -> Float[Tensor, "*rows d_model"]:
        """The stream between attention and MLP."""
        if self._side_by_side(layer):
            return self.at(layer) + self.activation(f"blocks.{layer}.hook_attn_out")
        return self.activation(f"blocks.{layer}.hook_resid_mid")

    def attention(self, layer: int) -> Float[Tensor, "*rows d_model"]:
        """What the attention of a layer adds."""
        return self.middle(layer) - self.at(layer)

    def mlp(self, layer: int) -> Float[Tensor, "*rows d_model"]:
        """What the MLP of a layer adds."""
        return self.activation(f"blocks.{layer}.hook_resid_post") - self.middle(layer)

    def features(self, layer: int) -> Float[Tensor, "*rows d_model"] | None:
        """What is added between this layer and the next: picture features in some families; None without any."""
        if layer == self.n_layers - 1:
            return None
        added = self.at(layer + 1) - self.activation(f"blocks.{layer}.hook_resid_post")
        return added if bool(added.any()) else None

    def heads(self, layer: int) -> tuple[Float[Tensor, "*rows head d_head"], Route]:
        """What the heads of a layer read off the positions, and their way to the stream."""
        block = self.bridge.blocks[layer]
        z = self.activation(f"blocks.{layer}.attn.hook_z")
        weight = weight_of(block.attn, "W_O", layer)
        norm = getattr(block, "ln1_post", None)
        bias = getattr(block.attn, "b_O", None)
        return z, Route.of(block, z.flatten(-2), weight.flatten(0, 1), bias, norm)

    def neurons(self, layer: int) -> tuple[Float[Tensor, "*rows d_mlp"], Route]:
        """What the neurons of a layer's MLP are, and their way to the stream.

        Raises:
            ModelError: the MLP is a mixture of experts.
        """
        block = self.bridge.blocks[layer]
        weight = weight_of(block.mlp, "W_out", layer)
        norm, bias = getattr(block, "ln2_post", None), getattr(block.mlp, "b_out", None)
        post = self.activation(f"blocks.{layer}.mlp.hook_post")
        return post, Route.of(block, post, weight, bias, norm)

    def norm_into(self, layer: int, mlp_input: bool = False) -> FrozenNorm | None:
        """The norm through which a layer's attention or MLP reads the stream; None where it reads it as it is."""
        if layer == self.n_layers:
            return FrozenNorm.at(self.bridge.ln_final, self.at(layer))
        norm = getattr(self.bridge.blocks[layer], "ln2" if mlp_input else "ln1", None)
        return (
            None if norm is None else FrozenNorm.at(norm, self.middle(layer) if mlp_input else self.at(layer))
        )

    def _side_by_side(self, layer: int) -> bool:
        """Whether attention and MLP read the same stream."""
        return f"blocks.{layer}.hook_resid_mid" not in self.bridge.hook_dict


def unhooked(component: Any) -> Any:
    """The wrapped module, so that hooks of a run in another thread see nothing of this."""
    if getattr(component, "compatibility_mode", False):  # its weights stand in the bridge
        return component
    return getattr(component, "original_component", None) or component


def readable(weight: Tensor, owner: Any) -> Tensor:
    """The weight itself. Raises ModelError where it is quantised or not in memory."""
    reason = "it is quantised" if is_quantised(weight) else unreadable_weight_reason(weight)
    if reason is not None:
        raise ModelError(
            f"the weights of {type(owner).__name__} cannot be read ({reason}): load them in full"
        )
    return weight


def weight_of(component: Any, name: str, layer: int) -> Tensor:
    """A weight of a layer by TransformerLens' name. Raises ModelError where there is none, or it cannot be read."""
    try:
        weight = getattr(component, name)
    except AttributeError:
        weight = None
    except NotImplementedError as error:  # TransformerLens' word for what is quantised or elsewhere
        raise ModelError(
            f"{name} of layer {layer} cannot be read, as it is quantised or not in memory: load the weights in full; "
            "by='component' reads none"
        ) from error
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"layer {layer} has no {name} ({type(component).__name__}): its heads or neurons cannot be separated; "
            "by='component' can"
        )
    return readable(weight, component)


def output_logits(bridge: Any, rows: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
    """What the model makes of rows of its last stream: final norm, unembedding, scale and soft cap."""
    normed = unhooked(bridge.ln_final)(rows[None])
    return bridge.adapter.apply_output_logits_transform(unhooked(bridge.unembed)(normed))[0]


def token_directions(
    bridge: Any, norm: FrozenNorm, rows: Float[Tensor, "*rows d_model"], ids: Int[Tensor, "*rows"]
) -> tuple[Float[Tensor, "*rows d_model"], Float[Tensor, "*rows"]]:
    """Where the logits of tokens lie before the final norm, and the part of them that is bias.

    The logit of a token is its direction's product with the row plus the bias. What comes after the unembedding
    (a scale, a soft cap) is held as the factor it is for this logit.

    Args:
        norm: the final norm at these rows.
        ids: one token per row.
    """
    matrix = readable(bridge.W_U, bridge.unembed)
    unembedded = matrix.T[ids.to(matrix.device)].float().to(rows.device)
    bias = bridge.b_U.float()[ids.to(bridge.b_U.device)].to(rows.device)
    direction = norm.pull_back(unembedded)
    bias = bias + (unembedded * norm.bias).sum(-1)
    raw = (rows.float() * direction).sum(-1) + bias
    # the transform works on each logit by itself; its slope stands in where there is no ratio
    safe = torch.where(raw.abs() < 1e-6, torch.full_like(raw, 1e-3), raw)
    factor = bridge.adapter.apply_output_logits_transform(safe) / safe
    return direction * factor[..., None], bias * factor
