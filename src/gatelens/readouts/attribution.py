"""Direct logit attribution: what every part of the decoder adds to a logit or to the difference of two.

The logits read the residual stream through the final norm and the unembedding. With the norm's scale held at the
value it has at a position, that is linear, and the stream is the sum of what embedding, attention and MLPs add to
it; so a logit is the exact sum of their parts (Elhage et al. 2021, *A Mathematical Framework for Transformer
Circuits*; Wang et al. 2023, arXiv 2211.00593). Post-norms on the way are held likewise, a scale or soft cap of the
logits as the factor it is for this logit. What is held fixed is no part's: this says what writes to the logit in
this run, not what would change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.bridge.residual import ROUNDING, ResidualStream, Route, token_directions
from gatelens.errors import InputError, ModelError
from gatelens.inputs import VLMInputs
from gatelens.model import HookedVLM
from gatelens.readouts.labelled import LabelledTensor, position_labels
from gatelens.readouts.rows import Rows, Target, token_ids
from gatelens.tokens import SelectorLike

By = Literal["component", "layer", "head", "mlp", "neuron", "position"]
COORDINATES = ("part", "kind", "layer", "head", "neuron", "position")


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(LabelledTensor):
    """Float[row, part]: what each part adds to the target's logit, or logit difference, at each row (a position).

    ``show()`` draws the mean of several rows; by position it draws one prompt: ``parts.sel(example=0).show()``.

    Columns of ``.table``, one row per row and part:

    =========================  ========================================================================================
    column                     what it is
    =========================  ========================================================================================
    ``example, at, at_token``  the row: its prompt, position and token
    ``part``                   the name, such as ``L5 mlp``, ``L1H0``, or ``L1H0 from 66`` (what it reads at 66)
    ``kind``                   ``embedding``, ``attention``, ``mlp``, ``layer``, ``head``, ``neuron``; ``source``, what
                               a head reads at one position; ``bias``; ``features``, those added between layers
    ``layer, head, neuron``    numbers, ``<NA>`` where the part has none
    ``position``               by position: the source position, of kind ``source`` only
    ``role, row, col, …``      by position: role and place of the source position; NaN for every other kind (embedding,
                               MLPs, biases). Left out where prompts in a batch have them at different positions
    ``value``                  what the part adds
    =========================  ========================================================================================

    Attributes:
        total: Float[row], the sum of all parts.
        logit_difference: Float[row], the model's own value; the logit where the target is one token.

    Example:
        >>> parts = gl.attribute(model, inputs, ("sunflower", "crown"), by="head")
        >>> parts.dims, parts.total.shape
        (('row', 'part'), torch.Size([1]))
        >>> parts.table.nlargest(2, "value")["part"].tolist()
        ['L5 mlp', 'L1H0']
    """

    total: Tensor = None  # type: ignore[assignment]
    logit_difference: Tensor = None  # type: ignore[assignment]

    @property
    def error(self) -> float:
        """The largest difference between the sum of parts and the model's own value."""
        return float((self.total - self.logit_difference).abs().max())

    def _summary(self) -> str:
        first = ", ".join(f"{value:.3f}" for value in self.logit_difference[:3].tolist())
        more = ", …" if len(self.logit_difference) > 3 else ""
        return f"{super()._summary()[:-1]} {first}{more}, error {self.error:.1e})"


@torch.no_grad()
def attribute(
    model: HookedVLM,
    inputs: VLMInputs,
    target: Target | tuple[Target, Target],
    by: By = "component",
    at: SelectorLike = "last",
) -> Attribution:
    """What every part adds to a logit, exactly: the parts sum to it.

    Args:
        inputs: the prompts.
        target: a token (id or word); one for each example (a list or tensor); or a pair (right, wrong), a tuple of
            two such: then it is the logit of the right one minus that of the wrong one.
        by: what a part is. ``component``: embedding (what enters block 0, picture features included), attention and
            MLP of every layer, features that a family adds between layers, and biases. ``layer``: attention and MLP
            together. ``head``, ``neuron``: those of attention or MLP apart. ``mlp``: the MLP of each layer, and
            attention as one. ``position``: what each head reads at each source position.
        at: the positions whose next-token logits are decomposed.

    Hooks on the model stay active: within ``with model.hooks(knockout.hooks(inputs.tokens, model.cfg)):`` it is
    the knocked-out run that is decomposed.

    Raises:
        InputError: the target is not a token of the model, or nothing is selected.
        ModelError: the parts do not sum to the logit, or a layer cannot be decomposed this way.

    Example:
        >>> parts = gl.attribute(model, inputs, ("sunflower", "crown"), by="position")
        >>> parts
        Attribution(row 1 × part 1687: logit difference 7.864, error ...)
        >>> parts.table.groupby("role")["value"].sum().idxmax()  # of what attention brings: the gate
        'eoi'
    """
    if by not in get_args(By):
        raise InputError(f"by={by!r}: write one of {', '.join(get_args(By))}")
    inputs = model.batch(inputs)
    pair = target if isinstance(target, tuple) and len(target) == 2 else (target,)
    with model.lock:
        rows = Rows(inputs, at)
        targets = [token_ids(model, one, inputs.batch_size)[rows.example] for one in pair]
        names = _names(model, by)
        logits, _ = model.forward_step(_last_logits(inputs, rows), rows.hooks(names))
    own = rows.of_logits(logits, inputs.tokens.n_pos).float()
    said = [own.gather(1, ids.to(own.device)[:, None])[:, 0] for ids in targets]
    stream = ResidualStream(model.bridge, rows.activations.__getitem__)
    directions, biases = zip(*(_towards(stream, ids) for ids in targets), strict=True)
    parts = Parts(stream, rows, _difference(directions))
    parts.collect(by)
    parts.add(_difference(biases), "final bias", "bias")
    return _result(parts, rows, inputs, _difference(said), len(targets) == 2, by)


def _difference(values: Sequence[Tensor]) -> Tensor:
    """The one of the right token, less that of the wrong one where there is one."""
    return values[0] - values[1] if len(values) == 2 else values[0]


def _towards(
    stream: ResidualStream, ids: Tensor
) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    last, norm = stream.at(stream.n_layers), stream.norm_into(stream.n_layers)
    assert norm is not None
    return token_directions(stream.bridge, norm, last, ids.to(last.device))


def _last_logits(inputs: VLMInputs, rows: Rows) -> dict[str, Any]:
    """The tensors of the batch; logits of the last position only, where no others are asked for."""
    n_pos = inputs.tokens.n_pos
    return {**inputs.tensors, "logits_to_keep": n_pos - int(rows.position.min())}


def _names(model: HookedVLM, by: str) -> list[str]:
    """The activations that are read."""
    n_layers, names = int(model.cfg.n_layers), []
    for layer in range(n_layers):
        names += [f"blocks.{layer}.hook_{point}" for point in ("resid_pre", "resid_post")]
        between = f"blocks.{layer}.hook_resid_mid"
        names.append(between if between in model.bridge.hook_dict else f"blocks.{layer}.hook_attn_out")
        if by in ("head", "position"):
            names.append(f"blocks.{layer}.attn.hook_z")
        if by == "position":
            names += [f"blocks.{layer}.attn.hook_{point}" for point in ("v", "pattern")]
        hidden = f"blocks.{layer}.mlp.hook_post"
        if (
            by == "neuron" and hidden in model.bridge.hook_dict
        ):  # experts have none, and are refused by their weights
            names.append(hidden)
    return names


class Parts:
    """Parts as they are found: Float[row] or Float[row, several], with their coordinates."""

    def __init__(self, stream: ResidualStream, rows: Rows, direction: Float[Tensor, "row d_model"]) -> None:
        self.stream, self.rows, self.direction = stream, rows, direction
        self.values: list[Tensor] = []
        self.labels: list[pd.DataFrame] = []
        self.size = 1.0  # the sum of what whole sublayers add, whatever their signs

    def along(self, part: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        value = (part.to(self.direction.device).float() * self.direction).sum(-1)
        self.size += float(value.abs().max())
        return value

    def add(self, value: Float[Tensor, " row"], part: str, kind: str, layer: int | None = None) -> None:
        if kind == "bias" and not bool(value.any()):
            return
        self.values.append(value[:, None].to(self.direction.device))
        self.labels.append(pd.DataFrame({"part": [part], "kind": [kind], "layer": [layer]}))

    def add_several(
        self, values: Float[Tensor, "row part"], kind: str, layer: int, **numbers: Tensor
    ) -> None:
        """Several of a layer; ``numbers`` says which head, neuron or position each is."""
        self.values.append(values.to(self.direction.device))
        columns = {name: number.tolist() for name, number in numbers.items()}
        letters = {"head": "H", "neuron": "N", "position": " from "}
        names = [
            f"L{layer}" + "".join(f"{letters[name]}{n}" for name, n in zip(columns, each, strict=True))
            for each in zip(*columns.values(), strict=True)
        ]
        self.labels.append(pd.DataFrame({"part": names, "kind": kind, "layer": layer, **columns}))

    def collect(self, by: str) -> None:
        """All parts of the stream."""
        attention: dict[str, Callable[[int], None]] = {"head": self.heads, "position": self.sources}
        of_attention = attention.get(by, self.attention)
        of_mlp = self.neurons if by == "neuron" else self.mlp
        self.add(self.along(self.stream.at(0)), "embed", "embedding")
        all_attention = torch.zeros_like(self.direction[:, 0])
        for layer in range(self.stream.n_layers):
            if by == "layer":
                both = self.stream.attention(layer) + self.stream.mlp(layer)
                self.add(self.along(both), f"L{layer}", "layer", layer)
            elif by == "mlp":
                all_attention = all_attention + self.along(self.stream.attention(layer))
                self.mlp(layer)
            else:
                of_attention(layer)
                of_mlp(layer)
            features = self.stream.features(layer)
            if features is not None:
                self.add(self.along(features), f"L{layer} features", "features", layer)
        if by == "mlp":
            self.add(all_attention, "attention", "attention")

    def attention(self, layer: int) -> None:
        self.add(self.along(self.stream.attention(layer)), f"L{layer} attn", "attention", layer)

    def mlp(self, layer: int) -> None:
        self.add(self.along(self.stream.mlp(layer)), f"L{layer} mlp", "mlp", layer)

    def bias(self, route: Route, layer: int, name: str) -> None:
        if route.bias is not None:
            self.add(self.along(route.bias.expand_as(self.direction)), f"L{layer} {name} bias", "bias", layer)

    def heads(self, layer: int) -> None:
        z, route = self.stream.heads(layer)
        back = route.pull_back(self.direction).view_as(z)
        self.along(self.stream.attention(layer))
        values = (z.float() * back).sum(-1)
        self.add_several(values, "head", layer, head=torch.arange(values.shape[1]))
        self.bias(route, layer, "attn")

    def sources(self, layer: int) -> None:
        """What each head takes from each position: its weight there times the value there."""
        z, route = self.stream.heads(layer)
        back = route.pull_back(self.direction).view_as(z)
        self.along(self.stream.attention(layer))
        value = self.stream.activation(f"blocks.{layer}.attn.hook_v").float()  # [batch, pos, kv_head, d_head]
        pattern = self.stream.activation(f"blocks.{layer}.attn.hook_pattern").float()  # [row, head, pos]
        shared = z.shape[1] // value.shape[2]  # query heads of a key-value head
        grouped = back.unflatten(1, (value.shape[2], shared))
        onto = torch.empty_like(pattern)
        for example in self.rows.example.unique().tolist():  # its rows share its values
            mine = (self.rows.example == example).to(value.device)
            onto[mine] = torch.einsum("pkd,rkgd->rkgp", value[example], grouped[mine]).flatten(1, 2)
        n_heads, n_pos = z.shape[1], pattern.shape[-1]
        self.add_several(
            (pattern * onto).flatten(1),
            "source",
            layer,
            head=torch.arange(n_heads).repeat_interleave(n_pos),
            position=torch.arange(n_pos).repeat(n_heads),
        )
        self.bias(route, layer, "attn")

    def neurons(self, layer: int) -> None:
        post, route = self.stream.neurons(layer)
        self.along(self.stream.mlp(layer))
        values = post.float() * route.pull_back(self.direction)
        self.add_several(values, "neuron", layer, neuron=torch.arange(values.shape[1]))
        self.bias(route, layer, "MLP")


def _result(
    parts: Parts, rows: Rows, inputs: VLMInputs, logit_difference: Tensor, is_pair: bool, by: str
) -> Attribution:
    values = torch.cat(parts.values, dim=1).cpu()
    labels = pd.concat(parts.labels, ignore_index=True)
    for name in ("layer", "head", "neuron", "position"):
        if name in labels:
            labels[name] = labels[name].astype("Int64")
    total, own = values.double().sum(1).float(), logit_difference.cpu()
    error = float((total - own).abs().max())
    if not error <= ROUNDING[parts.stream.at(0).dtype == torch.float32] * parts.size:
        raise ModelError(
            f"the parts by {by} sum to {total.tolist()} and the model says {own.tolist()}: in this model they "
            "reach the logits, or these tokens, differently"
        )
    if "position" in labels:
        labels = pd.concat([labels, _shared_places(inputs, rows, labels["position"])], axis=1)
    here = position_labels(inputs.tokens, rows.example, rows.position)
    row = here[["example", "position", "token"]].rename(columns={"position": "at", "token": "at_token"})
    return Attribution(
        values,
        {"row": row, "part": labels},
        "logit difference" if is_pair else "logit",
        inputs.tokens,
        inputs.images,
        total=total,
        logit_difference=own,
    )


def _shared_places(inputs: VLMInputs, rows: Rows, position: pd.Series) -> pd.DataFrame:
    """Role and grid place of source positions, where they are the same in every prompt that is read."""
    examples = rows.example.unique().tolist()
    every = range(inputs.tokens.n_pos)
    each = [position_labels(inputs.tokens, [example] * len(every), every) for example in examples]
    places = [one.drop(columns=["example", "position", "token"]) for one in each]
    if not all(one.equals(places[0]) for one in places[1:]):
        return pd.DataFrame(index=position.index)
    return places[0].reindex(position.fillna(-1).astype(int)).reset_index(drop=True)  # -1: of no position
