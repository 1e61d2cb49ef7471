"""The text reads the gate of another picture: it learns that the gate tells it nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gatelens.errors import DataError
from gatelens.inputs import VLMInputs
from gatelens.interventions import hook_name, patch
from gatelens.interventions.patching import Patch
from gatelens.model import HookedVLM


@dataclass(frozen=True)
class OthersGate:
    """Interventions of a batch: keys and values of the gate, in all layers, are those of the next example's.

    Masking the gate while training leaves what the text once learned to read there as it was; this makes reading it
    useless. ``fine_tune(model, examples, OthersGate())``.

    Example:
        >>> batch = model.prepare([scene.image, scene.image.rotate(90)], [scene.prompt] * 2)
        >>> [patch.site for patch in gl.training.OthersGate()(model, batch)]
        ['k', 'v']
    """

    at: str = "gate"

    def __call__(self, model: HookedVLM, inputs: VLMInputs) -> list[Patch]:
        """The patches of one batch.

        Raises:
            DataError: a batch of one example, which has no other.
        """
        n, layers = inputs.batch_size, range(int(model.cfg.n_layers))
        if n < 2:
            raise DataError(
                "OthersGate takes the gate from another example of the batch: batch_size must be 2 or more"
            )
        names = [hook_name(site, layer) for site in ("k", "v") for layer in layers]
        with torch.no_grad():
            others = inputs.select([(i + 1) % n for i in range(n)])
            cache = model.run_with_cache(others, names_filter=names, positions=self.at)[1]
        return [patch(cache, at=self.at, site=site, layers=layers) for site in ("k", "v")]
