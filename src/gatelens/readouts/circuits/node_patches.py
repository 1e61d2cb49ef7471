"""A circuit of nodes: heads, attention blocks and MLPs outside it write what they write in the corrupt run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.errors import InputError
from gatelens.interventions.sites import head_count
from gatelens.model import HookedVLM
from gatelens.readouts.circuits.parts import Parts, Patched
from gatelens.readouts.gradients.contrast import Tap
from gatelens.readouts.map_axes import MapAxes
from gatelens.tokens import TokenMap


class NodePatches:
    """Runs in which dropped nodes take their activations from the corrupt run, at their positions and heads.

    What belongs to no node is computed as it comes: the embedding, and what maps leave out.

    Attributes:
        recorded: the activations of the corrupt run that are needed.
    """

    def __init__(self, model: HookedVLM, parts: Parts) -> None:
        self.model, self.parts = model, parts
        each = zip(parts.labels["site"], parts.labels["layer"], strict=True)
        self.taps: list[Tap] = [(str(site), int(layer)) for site, layer in each]
        self.recorded = list(dict.fromkeys(self.taps))
        both = {layer for site, layer in self.recorded if site == "z"}
        both &= {layer for site, layer in self.recorded if site == "attn_out"}
        if both:
            raise InputError(
                f"scores has heads and the whole attention of layer {min(both)}: give one of the two"
            )

    def kept_of(self, tap: Tap, rows: Tensor) -> Tensor:
        """What is kept of the corrupt run's rows."""
        return rows

    def owners(self, tokens: TokenMap, masks: Sequence[Mapping[str, Any]], where: str) -> dict[Tap, Tensor]:
        """Which node each activation belongs to, -1 for none: Int[example, pos, head] by tap, one head for all others.

        Args:
            tokens: of prompts of one length.
            masks: pixel masks of each prompt, that selectors name.
            where: what errors call the prompts.

        Raises:
            InputError: two nodes share an activation, or positions of a map are not those of the prompts.
        """
        for one in self.parts.maps:
            alike = tokens.roles.shape[1] == one.tokens.roles.shape[1]
            if one.cells.has_positions and not (alike and bool((tokens.roles == one.tokens.roles[:1]).all())):
                raise InputError(
                    f"scores has positions of a prompt with another layout than {where}: write 'role' for 'pos'"
                )
        found: dict[Tap, Int[Tensor, "example pos head"]] = {}
        shape = (len(tokens.roles), tokens.n_pos)
        for number, tap in enumerate(self.taps):
            n_heads = int(head_count("z", self.model.cfg) or 0) if tap[0] == "z" else 1
            owner = found.setdefault(tap, torch.full((*shape, n_heads), -1))
            here = torch.zeros_like(owner, dtype=torch.bool)
            label = self.parts.labels.iloc[number]
            cells: MapAxes = self.parts.maps[int(label["map"])].cells
            here[..., self._heads(label, cells, n_heads)] = self._places(tokens, masks, label, cells)[
                ..., None
            ]
            if bool((owner[here] >= 0).any()):
                other = self.parts.labels["node"].iloc[int(owner[here].max())]
                raise InputError(
                    f"scores: {label['node']!r} and {other!r} share activations of {where}: give groups that do not "
                    "overlap"
                )
            owner[here] = number
        return found

    @staticmethod
    def _heads(label: Any, cells: MapAxes, n_heads: int) -> list[int]:
        if label["site"] != "z":
            return [0]
        if label["kind"] == "head":
            return [int(label["head"])]
        chosen = cells.heads[0]
        return list(range(n_heads)) if chosen is None else list(chosen)

    @staticmethod
    def _places(
        tokens: TokenMap, masks: Sequence[Mapping[str, Any]], label: Any, cells: MapAxes
    ) -> Bool[Tensor, "example pos"]:
        rows = []
        for i, named in enumerate(masks):
            group = str(label["role"]) if "role" in cells.over else ""
            here = cells.selected(tokens.select([i]), group, named)
            if cells.has_positions:
                one = torch.zeros_like(here)
                one[int(label["position"])] = True
                here = here & one
            rows.append(here)
        return torch.stack(rows)

    def acting(
        self,
        corrupt: Mapping[Tap, Float[Tensor, "row pos ..."]],
        dropped: Bool[Tensor, "row part"],
        owners: Mapping[Tap, Int[Tensor, "row pos head"]],
    ) -> Patched:
        """What replaces activations of a pass, each row with its own dropped nodes."""
        none = torch.zeros(len(dropped), 1, dtype=torch.bool)
        padded = torch.cat([dropped, none], 1).to(
            self.model.device
        )  # what belongs to no node is the last, -1

        def replace(tap: Tap, flat: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."] | None:
            owner = owners[tap].to(padded.device) % padded.shape[1]
            off = padded.gather(1, owner.flatten(1)).view_as(owner).flatten(0, 1)  # [n, head]
            if not bool(off.any()):
                return None
            given = corrupt[tap].flatten(0, 1).to(flat)
            return torch.where(off[..., None] if flat.ndim == 3 else off, given, flat)

        return Patched(self.recorded, replace)
