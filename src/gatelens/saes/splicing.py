"""An autoencoder that replaces activations, as an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gatelens.interventions.sites import EditedPositions, SiteEdit


@dataclass(frozen=True, eq=False, repr=False)
class Splice(SiteEdit):
    """What ``SAE.splice`` returns."""

    verb = "splice"

    sae: Any = field(kw_only=True)
    off: tuple[int, ...] = field(default=(), kw_only=True)
    added: Mapping[int, float] = field(default_factory=dict, kw_only=True)
    keep_error: bool = field(default=True, kw_only=True)

    reach = SiteEdit.reach  # each position is edited by itself

    def new_values(
        self, old: Float[Tensor, "n ..."], layer: int, prepared: None, edited: EditedPositions
    ) -> Float[Tensor, "n ..."]:
        sae = self.sae if self.sae.weights["W_enc"].device == old.device else self.sae.to(old.device)
        _, plain, new = sae.changed(old, self._change)
        return old.to(new.dtype) + (new - plain) if self.keep_error else new

    def _change(self, features: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"] | None:
        if not self.off and not self.added:
            return None
        features[..., list(self.off)] = 0
        for number, by in self.added.items():
            features[..., number] += by
        return features
