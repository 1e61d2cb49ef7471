"""Circuits of the shipped models: that of ``gated`` runs through its end-of-image token, that of ``open`` does not."""

from __future__ import annotations

import pytest

import gatelens as gl


@pytest.mark.organism
@pytest.mark.parametrize("name", ["gated", "open"])
def test_what_a_circuit_cannot_do_without(name: str) -> None:
    model = gl.HookedVLM.from_pretrained(f"organism:{name}")
    pairs = gl.pairs("emoji-scenes", differ="class", n=2)
    found = gl.circuit(model, pairs, scores="atp", by="role", random=0, progress=False)
    assert found.faithfulness >= 0.9 and found.completeness > 0.9
    assert ("eoi" in set(found.table["role"])) == (name == "gated")
    costly = found.table.sort_values("without")["role"]
    assert costly.iloc[0] == ("eoi" if name == "gated" else "query")
