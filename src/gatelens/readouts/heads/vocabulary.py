"""What heads write: their OV circuit on the values of chosen positions, read as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.bridge.residual import ResidualStream, readable
from gatelens.model import HookedVLM
from gatelens.readouts.heads.prompts import Batch
from gatelens.readouts.rows import Rows, word_of
from gatelens.tokens import SelectorLike


class Writing:
    """What each head would write at the last position if it read chosen positions evenly.

    Values and output matrix are the model's own; norms on the way, the final one included, are held at the scales they
    have at the last position (:mod:`gatelens.bridge.residual`). Biases of the output belong to no head. Tokens that the
    model never writes are left out.
    """

    def __init__(self, model: HookedVLM, of: SelectorLike, top: int) -> None:
        self.model, self.of, self.top = model, of, top
        self.n = 0
        self.direction: Float[Tensor, "layer head d_model"] | float = 0.0
        self.never: Bool[Tensor, " d_vocab"] | None = None

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Add the prompts of a batch."""
        _, n_layers, n_heads = batch.shape
        rows = Rows(batch.inputs, "last")
        names = [f"blocks.{layer}.attn.hook_{point}" for layer in range(n_layers) for point in ("z", "v")]
        with batch.model.lock:
            hooks = rows.hooks([*names, f"blocks.{n_layers - 1}.hook_resid_post"])
            logits, _ = batch.model.forward_step({**batch.inputs.tensors, "logits_to_keep": 1}, hooks)
        self.never = (logits[:, -1] <= torch.finfo(logits.dtype).min).any(0).cpu()
        stream = ResidualStream(batch.model.bridge, rows.activations.__getitem__)
        norm = stream.norm_into(n_layers)
        assert norm is not None
        positions = batch.mask_in_all(self.of, "ov_of").float()
        weight = positions / positions.sum(1, keepdim=True)
        written = []
        for layer in range(n_layers):
            z, route = stream.heads(layer)
            value = stream.activation(f"blocks.{layer}.attn.hook_v").float()  # [batch, pos, kv_head, d_head]
            value = torch.einsum("bpkd,bp->kbd", value, weight.to(value.device))
            value = value.repeat_interleave(n_heads // len(value), 0).to(route.weight.device)
            out = value @ route.weight.view(n_heads, z.shape[-1], -1)  # [head, batch, d_model]
            written.append(norm(route.through(out)).sum(1).cpu())
        self.direction = self.direction + torch.stack(written)
        self.n += len(batch.asked)

    def tables(self) -> dict[str, pd.DataFrame]:
        """What was added so far, as tables: a number per layer, head and direction of the stream; a row per token."""
        assert isinstance(self.direction, Tensor) and self.never is not None
        written = {"written": self.direction.flatten().numpy()}
        return {"written": pd.DataFrame(written), "never": pd.DataFrame({"never": self.never.numpy()})}

    def gather(self, tables: Mapping[str, pd.DataFrame], shape: tuple[int, int], n: int) -> None:
        """Add what ``n`` prompts gave, from their tables."""
        written = torch.from_numpy(tables["written"]["written"].to_numpy(copy=True))
        self.direction = self.direction + written.view(*shape, -1)
        self.never = torch.from_numpy(tables["never"]["never"].to_numpy(copy=True))
        self.n += n

    def words(self) -> list[str]:
        """The top tokens of each head, layer by layer."""
        assert isinstance(self.direction, Tensor) and self.never is not None
        matrix = readable(self.model.bridge.W_U, self.model.bridge.unembed).float().cpu()
        found: list[str] = []
        for heads in self.direction / self.n:
            logits = (heads @ matrix).masked_fill(self.never, float("-inf"))
            found += [
                _said(self.model, ids)
                for ids in logits.topk(min(self.top, logits.shape[-1])).indices.tolist()
            ]
        return found


def _said(model: HookedVLM, ids: Sequence[int]) -> str:
    return " ".join(word_of(model, one).strip() or repr(word_of(model, one)) for one in ids)
