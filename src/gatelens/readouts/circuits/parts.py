"""What a circuit is made of, with a score each: the edges of a decoder, or the nodes that the cells of maps patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from gatelens.errors import InputError, shown
from gatelens.readouts.effect_map import EffectMap
from gatelens.readouts.gradients.contrast import Tap
from gatelens.readouts.gradients.edges import EdgeAxes, Graph
from gatelens.readouts.map_axes import MapAxes

NODE_SITES = ("z", "attn_out", "mlp_out")


class Patched(NamedTuple):
    """The activations a pass reads or replaces, and what is made of their rows (None leaves them)."""

    taps: Sequence[Tap]
    function: Callable[[Tap, Float[Tensor, "n ..."]], Float[Tensor, "n ..."] | None]


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts a circuit is chosen from.

    Attributes:
        kind: ``edge`` or ``node``.
        labels: a row a part, with its name in the column ``kind``.
        scores: by which they are tried, largest first.
        maps: the maps the scores are from.
    """

    kind: str
    labels: pd.DataFrame
    scores: Float[np.ndarray, " part"]
    maps: tuple[EffectMap, ...]

    @property
    def graph(self) -> Graph | None:
        """Of the decoder, where parts are edges."""
        return self.maps[0].cells.graph if self.kind == "edge" else None

    def __len__(self) -> int:
        return len(self.labels)


def parts_of(given: Any, model: Any) -> Parts:
    """The parts of an edge map, or of one or several node maps.

    Raises:
        InputError: no maps, maps of another model or kind, or cells that are not nodes.
    """
    maps = (
        (given,) if isinstance(given, EffectMap) else tuple(given) if isinstance(given, list | tuple) else ()
    )
    if not maps or not all(isinstance(one, EffectMap) for one in maps):
        raise InputError(
            f"scores={shown(given)}: write 'eap-ig' or another method of gl.attribution_map, or give its map, or a "
            "list of node maps"
        )
    if any(one.cells is None for one in maps):
        raise InputError("scores: this map does not say what its cells patch; give it as it was made")
    if any(isinstance(one.cells, EdgeAxes) for one in maps):
        return _edges(maps, model)
    return _nodes(maps, model)


def _mean(one: EffectMap) -> Float[np.ndarray, "..."]:
    return np.asarray(one.tensor.double().nanmean(0).numpy())


def _edges(maps: Sequence[EffectMap], model: Any) -> Parts:
    if len(maps) > 1:
        raise InputError(
            "scores: a map of edges cannot be combined with others; a circuit is of edges or of nodes"
        )
    axes, graph = maps[0].cells, maps[0].cells.graph
    there = graph.is_edge()
    if axes.model is not model:
        raise InputError(f"scores is a map of {axes.model!r}: give one of {model!r}")
    if tuple(maps[0].tensor.shape[1:]) != there.shape:
        raise InputError("scores holds a part of the edges: give the whole map, without sel()")
    senders, receivers = (there).nonzero()
    start, end = graph.senders.iloc[senders], graph.receivers.iloc[receivers]
    labels = pd.DataFrame(
        {
            "edge": [f"{a} → {b}" for a, b in zip(start["sender"], end["receiver"], strict=True)],
            "sender": start["sender"].to_numpy(),
            "sender_layer": start["layer"].to_numpy(),
            "sender_head": start["head"].to_numpy(),
            "receiver": end["receiver"].to_numpy(),
            "receiver_layer": end["layer"].to_numpy(),
            "receiver_head": end["head"].to_numpy(),
            "reads": end["kind"].to_numpy(),
        }
    ).astype(dict.fromkeys(("sender_layer", "sender_head", "receiver_layer", "receiver_head"), "Int64"))
    return Parts("edge", labels, _known(_mean(maps[0])[there]), tuple(maps))


def _nodes(maps: Sequence[EffectMap], model: Any) -> Parts:
    rows: list[dict[str, Any]] = []
    scores: list[float] = []
    for number, one in enumerate(maps):
        _check_nodes(one, model)
        mean = _mean(one)
        axes = {name: labels for name, labels in one.axes.items() if name != "pair"}
        for cell in np.ndindex(*mean.shape):
            if not np.isfinite(mean[cell]):
                continue  # no prompt has such a place
            at = {name: labels.iloc[i] for (name, labels), i in zip(axes.items(), cell, strict=True)}
            rows.append({"map": number, **_node(at, one.cells)})
            scores.append(float(mean[cell]))
    labels = pd.DataFrame(rows)
    for name in ("layer", "head", "position", "example"):
        labels[name] = labels[name].astype("Int64")
    return Parts("node", labels, _known(np.array(scores)), tuple(maps))


def _check_nodes(one: EffectMap, model: Any) -> None:
    cells: MapAxes = one.cells
    bad = [site for site in cells.sites if site not in NODE_SITES]
    if bad:
        raise InputError(
            f"scores is a map of {bad[0]!r}: a node is a head ('z'), an attention block ('attn_out') or an MLP "
            "('mlp_out'), whose patch leaves the rest of the stream alone"
        )
    if max(map(len, cells.windows)) > 1 or cells.source_layers != [None]:
        raise InputError(
            "scores patches several layers per cell, or from other layers: make the map with 'layer' in over, window=1 "
            "and no source_layer"
        )
    if max(layer for window in cells.windows for layer in window) >= int(model.cfg.n_layers):
        raise InputError(f"scores is a map of another model than {model!r}: give one of this model")


def _node(at: dict[str, pd.Series], cells: MapAxes) -> dict[str, Any]:
    """The labels of a cell as a node."""
    site = str(at["site"]["site"]) if "site" in at else cells.sites[0]
    layer = int(at["layer"]["layer"]) if "layer" in at else cells.windows[0][0]
    head = int(at["head"]["head"]) if "head" in at else None
    role = str(at["role"]["role"]) if "role" in at else None
    position = int(at["position"]["position"]) if "position" in at else None
    kind = "mlp" if site == "mlp_out" else "head" if head is not None else "attention"
    name = f"L{layer}H{head}" if head is not None else f"L{layer} {kind}"
    where = [str(one) for one in (role, position) if one is not None]
    return {
        "node": "@".join([name, *where]),
        "site": site,
        "kind": kind,
        "layer": layer,
        "head": head,
        "role": role,
        "position": position,
        "example": None if position is None else 0,
    }


def _known(scores: Float[np.ndarray, " part"]) -> Float[np.ndarray, " part"]:
    if not len(scores) or not bool(np.isfinite(scores).all()):
        raise InputError("scores are missing for some parts: make the map over all positions, at=None")
    return scores
