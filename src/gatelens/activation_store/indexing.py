"""The index of the kept rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.data import Example
from gatelens.identity import content_fingerprint
from gatelens.inputs import VLMInputs
from gatelens.tokens import Role

ROLE_NAMES = {int(role): role.name.lower() for role in Role}


def index_of(
    inputs: VLMInputs, mask: Bool[Tensor, "batch pos"], part: Sequence[int], examples: Sequence[Example]
) -> pd.DataFrame:
    """A line a selected position, in the order of the rows; :attr:`ActivationStore.index` says what it is.

    Args:
        part: the numbers of the batch's examples in the data.
    """
    tokens = inputs.tokens
    example, position = mask.nonzero(as_tuple=True)
    padding = (tokens.roles == Role.PAD).sum(dim=1)
    of = [examples[i] for i in example.tolist()]
    image = tokens.image_index[mask]
    box = tokens.box[mask].float()
    names = [[content_fingerprint(one) for one in pictures] for pictures in inputs.images]
    pairs = zip(example.tolist(), image.tolist(), strict=True)
    table = {
        "example": [one.id for one in of],
        "number": torch.tensor([part[i] for i in example.tolist()], dtype=torch.int32),
        "label": [one.label for one in of],
        "position": (position - padding[example]).to(torch.int32),
        "role": [ROLE_NAMES[role] for role in tokens.roles[mask].tolist()],
        "token": [tokens.strings[e][p] for e, p in zip(example.tolist(), position.tolist(), strict=True)],
        "image": image.to(torch.int32),
        "image_id": [names[e][i] if names and 0 <= i < len(names[e]) else None for e, i in pairs],
        **{name: getattr(tokens, name)[mask].to(torch.int32) for name in ("tile", "row", "col")},
        **{name: box[:, i] for i, name in enumerate(("x0", "y0", "x1", "y1"))},
    }
    return pd.DataFrame({k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in table.items()})
