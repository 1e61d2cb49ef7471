"""The columns of a table of heads: from a batch of prompts to Float[example, layer, head] by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.data.corruptions import asked_object
from gatelens.engine import look
from gatelens.engine.grid import measure_points
from gatelens.interventions import ablate
from gatelens.interventions.base import Intervention
from gatelens.measures.heads import SINK, Received, norm_growth, sink_origins
from gatelens.measures.localisation import localise
from gatelens.readouts.attribution import attribute
from gatelens.readouts.heads.prompts import Batch
from gatelens.tokens import Role, SelectorLike

Columns: TypeAlias = dict[str, Float[Tensor, "example layer head"]]


@dataclass
class Settings:
    """What columns need to know.

    Attributes:
        ablate_at, means: where a head's output is replaced, and by what in each layer; zeros where None.
        subsets: for the regression: which heads are kept in each run.
        subset_values: what each of its runs gave, for every example so far.
        sinks: the positions found so far that draw attention.
        done: told how many runs of a batch were made.
    """

    ablate_at: SelectorLike = "all"
    means: Mapping[int, Float[Tensor, "head d_head"]] | None = None
    subsets: Bool[Tensor, "subset layer head"] | None = None
    subset_values: list[Float[Tensor, "subset example"]] = field(default_factory=list)
    sinks: list[dict[str, Any]] = field(default_factory=list)
    done: Callable[[int], object] = lambda n: None


def attention(batch: Batch, settings: Settings) -> Columns:
    """Where the query rows look: shares of their attention, and its entropy in nats."""
    rows = batch.attention.rows()
    names = {"image": "image", "gate": "gate", "text": "text - gate"}
    shares = {
        name: torch.einsum("blhk,bk->blh", rows, batch.mask(selector).float())
        for name, selector in names.items()
    }
    return {**shares, "entropy": batch.attention.entropy()}


def localisation(batch: Batch, settings: Settings) -> Columns:
    """The share of a head's attention on the picture that is in the mask of the object asked about."""
    rows = batch.attention.rows()
    found = {name: torch.full(batch.shape, torch.nan) for name in ("object", "object_chance")}
    for i, one in enumerate(batch.asked):
        name = asked_object(one.example)
        if name is None:
            continue
        tokens = batch.inputs.tokens
        on_image = rows[i][..., tokens.positions("image[0]", i)]
        for layer, heads in enumerate(on_image):  # painted by head: all layers at once would be large
            table = localise(heads, tokens, one.example.masks[name], i)
            found["object"][i, layer] = torch.tensor(table["in_mask"].tolist())
        found["object_chance"][i] = float(table["chance"].iloc[0])
    return found


def sinks(batch: Batch, settings: Settings) -> Columns:
    """How much every row's attention is drawn by sinks, and by those that stand out in the tower or the decoder."""
    real, image = batch.mask("all"), batch.mask("image")
    received = Received(real)
    look(batch.model, batch.inputs, "all", received)
    weights = received.weights()
    entering, inside = norm_growth(_norms(batch), image, real)
    tower, decoder = sink_origins(entering, inside)
    drawn = weights * (weights > SINK)
    tokens = batch.inputs.tokens
    for i, position in (drawn.amax((1, 2)) > 0).nonzero().tolist():
        settings.sinks.append(
            {
                "example": batch.numbers[i],
                "position": position,
                "token": tokens.strings[i][position],
                "role": Role(int(tokens.roles[i, position])).name.lower(),
                "heads": int((drawn[i, :, :, position] > 0).sum()),
                "weight": float(drawn[i, :, :, position].max()),
                "norm_entering": float(entering[i, position]),
                "norm_inside": float(inside[i, position]),
                "origin": "tower" if tower[i, position] else "decoder" if decoder[i, position] else "neither",
            }
        )
    of = {"sink": real, "sink_tower": tower, "sink_decoder": decoder}
    return {name: torch.einsum("blhk,bk->blh", drawn, mask.float()) for name, mask in of.items()}


def _norms(batch: Batch) -> Float[Tensor, "batch layer pos"]:
    """Of the stream entering each block."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(stream: Tensor, hook: Any) -> None:
            found[layer] = stream.detach().float().norm(dim=-1).cpu()

        return hook

    hooks = [(f"blocks.{layer}.hook_resid_pre", keep(layer)) for layer in range(batch.shape[1])]
    batch.model.forward_step({**batch.inputs.tensors, "logits_to_keep": 1}, hooks)
    return torch.stack([found[layer] for layer in sorted(found)], 1)


def attribution(batch: Batch, settings: Settings) -> Columns:
    """What each head writes towards the right token's logit."""
    parts = attribute(batch.model, batch.inputs, batch.target, by="head")
    return {"attribution": parts.sel(kind="head").tensor.view(batch.shape)}


def without(settings: Settings, layer: int, heads: list[int]) -> Intervention:
    """These heads of a layer with their output replaced."""
    with_: Any = "zero" if settings.means is None else settings.means[layer]
    return ablate(settings.ablate_at, "z", [layer], with_, heads=heads)


def knockout(batch: Batch, settings: Settings) -> Columns:
    """How much the value falls without each head."""
    _, n_layers, n_heads = batch.shape
    runs: list[list[Intervention]] = [
        [without(settings, layer, [head])] for layer in range(n_layers) for head in range(n_heads)
    ]
    values = _values(batch, [[], *runs], settings)
    return {"knockout": (values[0] - values[1:]).T.reshape(batch.shape)}


def regression(batch: Batch, settings: Settings) -> Columns:
    """Runs without random subsets of heads; what each is worth is fitted when all are there."""
    assert settings.subsets is not None
    runs = []
    for kept in settings.subsets:
        gone = [(layer, (~of).nonzero()[:, 0].tolist()) for layer, of in enumerate(kept)]
        runs.append([without(settings, layer, heads) for layer, heads in gone if heads])
    settings.subset_values.append(_values(batch, runs, settings))
    return {}


def _values(batch: Batch, runs: list[list[Intervention]], settings: Settings) -> Float[Tensor, "run example"]:
    """Of each run, by the engine's sweep: what comes before its heads act is computed once for all."""
    found = measure_points(batch.model, batch.inputs, runs, {"value": batch.metric}, settings.done)
    return torch.tensor(found["value"], dtype=torch.float64)
