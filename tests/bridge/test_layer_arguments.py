"""Arguments of decoder layers, cut to some positions or examples."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from gatelens.bridge.layer_arguments import known, of_first, of_rows

BATCH, POS = 4, 5


def arguments(batch: int) -> dict[str, Any]:
    """Each a tensor of different numbers, three streams of positions among them."""

    def numbered(*shape: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel()).view(shape)

    return {
        "attention_mask": numbered(batch, 1, POS, 9),
        "position_ids": numbered(3, batch, POS),
        "position_embeddings": (numbered(3, batch, POS, 2), numbered(batch, POS, 2)),
        "cache_position": numbered(POS),
        "past_key_values": DynamicCache(),
        "use_cache": True,
    }


def test_known_ones_are_cut_along_their_axes() -> None:
    given = arguments(BATCH)
    assert known(given)
    rows, first = of_rows(given, slice(1, 3)), of_first(given, 2, BATCH)
    streams, cosines = given["position_embeddings"]
    assert torch.equal(rows["attention_mask"], given["attention_mask"][:, :, 1:3])
    assert torch.equal(first["attention_mask"], given["attention_mask"][:2])
    assert torch.equal(rows["position_ids"], given["position_ids"][:, :, 1:3])
    assert torch.equal(first["position_ids"], given["position_ids"][:, :2])
    assert torch.equal(rows["position_embeddings"][0], streams[:, :, 1:3])
    assert torch.equal(first["position_embeddings"][0], streams[:, :2])
    assert torch.equal(first["position_embeddings"][1], cosines[:2])
    assert torch.equal(rows["cache_position"], given["cache_position"][1:3])
    assert first["cache_position"] is given["cache_position"]
    assert first["past_key_values"] is rows["past_key_values"] is given["past_key_values"]


def test_what_holds_for_all_examples_stays() -> None:
    given = arguments(1)
    first = of_first(given, 2, BATCH)
    assert all(first[name] is given[name] for name in ("attention_mask", "position_ids", "use_cache"))


def test_others_are_not_known() -> None:
    assert not known({"per_layer_input": torch.ones(1)})
    assert not known({"attention_mask": torch.ones(BATCH, POS)})
    assert not known({"attention_mask": {"full_attention": None}})
