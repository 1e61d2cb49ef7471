"""Differences: a model stored as a difference from the weights of another one.

A file of safetensors holds, for a weight, either two factors of low rank, ``NAME:up`` and ``NAME:down``, whose product
is added to it, or ``NAME:added``, which is added itself; and in its metadata the checksum of the weights that it
belongs to. What it gives is a plain transformers model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gatelens.errors import ModelError
from gatelens.hub_errors import one_line

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Difference:
    """What to add to a model's weights, by their names.

    Attributes:
        factors: (up, down), whose product ``up @ down`` is added to a matrix.
        added: added as it is.
    """

    factors: Mapping[str, tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]]
    added: Mapping[str, Tensor]

    def __iter__(self) -> Any:
        """(name, what is added), in float32."""
        for name, (up, down) in self.factors.items():
            yield name, up.float() @ down.float()
        for name, value in self.added.items():
            yield name, value.float()


def checksum(folder: Path) -> str:
    """SHA-256 of the weights in a folder."""
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_difference(difference: Difference, base: Path, file: Path) -> None:
    """Write it in float16, with the checksum of the weights in the folder ``base``."""
    tensors = {f"{name}:up": up for name, (up, _) in difference.factors.items()}
    tensors |= {f"{name}:down": down for name, (_, down) in difference.factors.items()}
    tensors |= {f"{name}:added": value for name, value in difference.added.items()}
    halves = {name: value.half().contiguous() for name, value in tensors.items()}
    save_file(halves, file, metadata={"base_sha256": checksum(base)})


def read_difference(file: Path, base: Path) -> Difference:
    """A difference to the weights in the folder ``base``.

    Raises:
        ModelError: it cannot be read, or belongs to other weights.
    """
    try:
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            wanted = (opened.metadata() or {}).get("base_sha256")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the difference '{file}': {one_line(error)}; get it again") from error
    if wanted != checksum(base):
        raise ModelError(
            f"the difference '{file}' belongs to other weights than those in '{base}' (their SHA-256 is not the one "
            "it names): use the base it was made from, or make it again"
        )
    wrong = sorted(key for key, value in tensors.items() if not value.isfinite().all())
    if wrong:
        raise ModelError(f"the difference '{file}' holds NaN or inf in {wrong[0]}: get it again")
    names = {key.rsplit(":", 1)[0] for key in tensors}
    pairs = {n: (tensors[f"{n}:up"], tensors[f"{n}:down"]) for n in names if f"{n}:up" in tensors}
    return Difference(pairs, {n: tensors[f"{n}:added"] for n in names if f"{n}:added" in tensors})


@torch.no_grad()
def add_difference(model: Any, difference: Difference) -> None:
    """Add it to a model's weights, in float32, in place.

    Raises:
        ModelError: the model has no such weight, or of another shape; nothing is added then.
    """
    parameters = dict(model.named_parameters())
    added = dict(difference)
    for name, value in added.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ModelError(
                f"the difference has {name} {list(value.shape)}, which this {type(model).__name__} does not: "
                "use the base it was made from"
            )
    for name, value in added.items():
        weight = parameters[name]
        weight.copy_(weight.float() + value.to(weight.device))
