"""Where an intervention begins is said by its own class, or unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi


def shipped() -> list[Any]:
    return [
        gi.knockout("text - gate", "image", layers=[1, 2]),
        gi.steer(torch.ones(32), "text - gate", layers=[1, 2]),
        gi.ablate("text - gate", layers=[1, 2]),
    ]


@pytest.mark.parametrize("spec", shipped(), ids=repr)
def test_what_ships_begins_at_its_first_position_and_layer(tiny: Any, batch: Any, spec: Any) -> None:
    first = int(batch.tokens.mask("text - gate").any(0).nonzero()[0])
    assert spec.reach(batch.tokens, tiny.cfg) == gi.Reach(first, 1)


def test_a_patch_begins_at_its_first_position_and_layer(tiny: Any, batch: Any) -> None:
    _, cache = tiny.run_with_cache(batch, "blocks.1.hook_resid_pre")
    reach = gi.patch(cache, "last", layers=1).reach(batch.tokens, tiny.cfg)
    assert reach == gi.Reach(batch.tokens.n_pos - 1, 1)


@pytest.mark.parametrize("base", [gi.Knockout, gi.Steer, gi.Ablate, gi.Patch])
def test_a_subclass_has_an_unknown_reach_until_it_says_so(tiny: Any, batch: Any, base: Any) -> None:
    class Silent(base):
        pass

    class Knowing(base):
        def reach(self, tokens: Any, cfg: Any) -> gi.Reach:
            return gi.Reach(3, 1)

    class Inheriting(Knowing):
        def new_values(self, *args: Any) -> Tensor:
            raise NotImplementedError

    fields = {"queries": "text", "keys": "image"} if base is gi.Knockout else {"at": "last"}
    fields |= {"direction": torch.ones(32)} if base is gi.Steer else {}
    assert Silent(**fields).reach(batch.tokens, tiny.cfg) is None
    assert Knowing(**fields).reach(batch.tokens, tiny.cfg) == gi.Reach(3, 1)
    assert Inheriting(**fields).reach(batch.tokens, tiny.cfg) is None
