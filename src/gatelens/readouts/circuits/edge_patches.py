"""A circuit of edges: each receiver reads what kept senders add now, and what the others add in the corrupt run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.bridge.residual import ROUNDING, readable, unhooked
from gatelens.errors import ModelError
from gatelens.model import HookedVLM
from gatelens.readouts.circuits.parts import Patched
from gatelens.readouts.gradients.contrast import Tap, taps_of
from gatelens.readouts.gradients.edges import PROJECTIONS, Graph, heads_and_way, sender_taps
from gatelens.tokens import TokenMap


class EdgePatches:
    """Runs in which dropped edges carry what the corrupt run sends.

    The stream holds what every sender adds in this run. A receiver reads the stream less, for each sender whose edge
    to it is dropped, what that sender adds beyond the corrupt run; all of it in one forward pass.

    Attributes:
        edges: numbers of sender and receiver of each part.
        recorded: the activations of the corrupt run that are needed.
    """

    def __init__(self, model: HookedVLM, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self.edges = np.argwhere(graph.is_edge())
        layers = range(int(model.cfg.n_layers))
        self.recorded = [*sender_taps(model), ("resid_post", layers[-1])]
        receivers = graph.receivers
        self.columns: dict[Tap, list[int]] = {
            (str(kind), int(layer)): rows.index.tolist()
            for (kind, layer), rows in receivers.groupby(["kind", "layer"])
        }
        self.heads = [_rows(graph, "head", layer) for layer in layers]
        self.mlps = [_rows(graph, "mlp", layer) for layer in layers]

    def kept_of(self, tap: Tap, rows: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """What is kept of the corrupt run's rows."""
        return heads_and_way(self.model, tap[1], rows)[0] if tap[0] == "z" else rows

    def owners(self, tokens: TokenMap, masks: Sequence[Mapping[str, Any]], where: str) -> dict[Tap, Tensor]:
        """Of edges nothing depends on the prompts: all of them are of all positions."""
        return {}

    def acting(
        self,
        corrupt: Mapping[Tap, Float[Tensor, "row pos ..."]],
        dropped: Bool[Tensor, "row part"],
        owners: Mapping[Tap, Tensor],
    ) -> Patched:
        """What reads and replaces activations of a pass, each row with its own dropped edges."""
        edges = torch.zeros(
            len(dropped), len(self.graph.senders), len(self.graph.receivers), dtype=torch.float32
        )
        edges[:, self.edges[:, 0], self.edges[:, 1]] = dropped.float()
        layers = range(int(self.model.cfg.n_layers))
        sites = ("resid_pre", *PROJECTIONS, "z", "resid_mid", "mlp_in", "mlp_out")
        taps = [*taps_of(sites, layers), ("resid_post", layers[-1])]
        return Patched(taps, EdgePass(self, corrupt, edges.to(self.model.device)))


def _rows(graph: Graph, kind: str, layer: int) -> list[int]:
    senders = graph.senders
    return senders.index[(senders["kind"] == kind) & (senders["layer"] == layer)].tolist()


class EdgePass:
    """One forward pass of several circuits side by side.

    Attributes:
        sent: what each sender adds beyond the corrupt run, Float[row, sender, pos, d_model]; senders fill it as they
            are computed.
    """

    def __init__(
        self,
        patches: EdgePatches,
        corrupt: Mapping[Tap, Float[Tensor, "row pos ..."]],
        dropped: Float[Tensor, "row sender receiver"],
    ) -> None:
        self.patches, self.corrupt, self.dropped = patches, corrupt, dropped
        self.blocks = list(patches.model.bridge.blocks)
        n_rows, n_senders, _ = dropped.shape
        self.n_pos = corrupt["resid_pre", 0].shape[1]
        width = corrupt["resid_pre", 0].shape[-1]
        self.sent = torch.zeros(n_rows, n_senders, self.n_pos, width, device=dropped.device)
        self.stream: Float[Tensor, "row pos d_model"] = torch.empty(0)

    def __call__(self, tap: Tap, flat: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."] | None:
        """The new rows of a tap; None leaves them."""
        (site, layer), rows = tap, flat.unflatten(0, (-1, self.n_pos))
        if site in ("resid_pre", "resid_mid"):
            self.stream = rows
            if tap == ("resid_pre", 0):
                self._send([0], (rows.float() - self.corrupt[tap].float())[:, None])
        elif site == "z":
            self._send_heads(layer, flat)
        elif site == "mlp_out":
            self._send(self.patches.mlps[layer], (rows.float() - self.corrupt[tap].float())[:, None])
        else:
            new = self._received(site, layer, rows)
            return None if new is None else new.to(flat.dtype).flatten(0, 1)
        return None

    def _send(self, senders: list[int], added: Float[Tensor, "row sender pos d_model"]) -> None:
        self.sent[:, senders] = added

    def _send_heads(self, layer: int, flat: Float[Tensor, "n head d_head"]) -> None:
        z, way = heads_and_way(self.patches.model, layer, flat)
        change = z.unflatten(0, (-1, self.n_pos)).float() - self.corrupt["z", layer].float()
        self._send(self.patches.heads[layer], torch.einsum("bnhk,hkd->bhnd", change, way.to(change)))

    def _received(self, site: str, layer: int, rows: Float[Tensor, "row pos ..."]) -> Tensor | None:
        """What the receivers of one kind in a layer read; None where no edge to them is dropped."""
        kind = {"mlp_in": "mlp", "resid_post": "logits"}.get(site, site)
        columns = self.patches.columns[kind, layer + (kind == "logits")]
        if not bool(self.dropped[:, :, columns].any()):
            return None
        if kind == "logits":
            self._check_sum(rows)
            return rows.float() - self._missing(columns)[:, 0]
        block = self.blocks[layer]
        if kind == "mlp":
            return rows.float() + self._change(getattr(block, "ln2", None), columns)[:, 0]
        weight = readable(getattr(block.attn, PROJECTIONS[kind]), block).float()
        change = self._change(getattr(block, "ln1", None), columns)
        return rows.float() + torch.einsum("brnd,rdk->bnrk", change, weight.to(change))

    def _check_sum(self, stream: Float[Tensor, "row pos d_model"]) -> None:
        """Raise ModelError where the senders are not all that is added to the stream."""
        change = stream.float() - self.corrupt["resid_post", len(self.blocks) - 1].float()
        far = float((change - self.sent.sum(1)).abs().max())
        if far > ROUNDING[stream.dtype == torch.float32] * (1 + float(stream.abs().max())):
            raise ModelError(
                f"{self.patches.model!r}: its heads and MLPs do not add up to the stream ({far:.2g} apart), so edges "
                "cannot be separated; take nodes, scores='ig'"
            )

    def _missing(self, receivers: list[int]) -> Float[Tensor, "row receiver pos d_model"]:
        """What the dropped edges to each receiver would have carried beyond the corrupt run."""
        dropped = self.dropped[:, :, receivers].transpose(1, 2)
        return (dropped @ self.sent.flatten(2)).unflatten(-1, self.sent.shape[2:])

    def _change(self, norm: Any, receivers: list[int]) -> Float[Tensor, "row receiver pos d_model"]:
        """What that changes of what they read, after the norm if there is one."""
        missing = self._missing(receivers)
        if norm is None:
            return -missing
        read = (self.stream.float()[:, None] - missing).to(self.stream.dtype)
        before, after = (unhooked(norm)(x).float() for x in (self.stream, read.flatten(0, 1)))
        return after.view_as(missing) - before[:, None]
