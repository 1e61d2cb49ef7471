"""Where an intervention begins is said by its own class, or unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.engine.run_batch import RunBatch
from gatelens.interventions.ablation import Ablate
from gatelens.interventions.knockouts import Knockout
from gatelens.interventions.steering import Steer
from intervention_helpers import plain


def shipped() -> list[Any]:
    return [
        gi.knockout("text - gate", "image", layers=[1, 2]),
        gi.steer(torch.ones(32), "text - gate", layers=[1, 2]),
        gi.ablate("text - gate", layers=[1, 2]),
        gi.ablate("text - gate", layers=[1, 2], with_="projection", direction=torch.arange(32.0)),
        gi.ablate("text - gate", "pattern", layers=[1, 2], with_="uniform"),
        gi.ablate("text - gate", "pattern", layers=[1, 2], with_="random", heads=[0]),
        gi.edit(lambda rows, where: rows.roll(1, -1) + where.position[:, None], "text - gate", layers=[1, 2]),
        gi.edit(lambda rows, where: 2 * rows, "text - gate", "rot_k", layers=[1, 2]),
        gi.edit(lambda rows, where: rows.flip(1), "text - gate", "pattern", layers=[1, 2]),
        gi.drop("gate", 1),
    ]


@pytest.mark.parametrize("spec", shipped(), ids=repr)
def test_what_ships_begins_at_its_first_position_and_layer(tiny: Any, batch: Any, spec: Any) -> None:
    first = int(batch.tokens.mask("text - gate").any(0).nonzero()[0])
    assert spec.reach(batch.tokens, tiny.cfg) == gi.Reach(first, 1)


@pytest.mark.parametrize("number", range(len(shipped())))
def test_what_ships_is_exact_from_there_on(tiny: Any, batch: Any, number: int) -> None:
    """Two runs at once, restarted where they begin, are each the run of plain hooks."""
    runs = [[shipped()[number]], [gi.knockout("last", "image", layers=[2]), shipped()[number]]]
    many = RunBatch(tiny, batch, runs)
    assert many.plan.parts and not many.plan.full
    for i, logits in many.each():
        want = plain(tiny, batch, runs[i])
        torch.testing.assert_close(
            logits[batch.tokens.roles != 0], want[batch.tokens.roles != 0], atol=2e-5, rtol=1e-4
        )
        assert (logits - tiny(batch))[:, -1].abs().max() > 1e-4


def test_a_patch_begins_at_its_first_position_and_layer(tiny: Any, batch: Any) -> None:
    _, cache = tiny.run_with_cache(batch, "blocks.1.hook_resid_pre")
    reach = gi.patch(cache, "last", layers=1).reach(batch.tokens, tiny.cfg)
    assert reach == gi.Reach(batch.tokens.n_pos - 1, 1)


@pytest.mark.parametrize("base", [Knockout, Steer, Ablate, gi.Patch])
def test_a_subclass_has_an_unknown_reach_until_it_says_so(tiny: Any, batch: Any, base: Any) -> None:
    class Silent(base):
        pass

    class Knowing(base):
        def reach(self, tokens: Any, cfg: Any) -> gi.Reach:
            return gi.Reach(3, 1)

    class Inheriting(Knowing):
        def new_values(self, *args: Any) -> Tensor:
            raise NotImplementedError

    fields = {"queries": "text", "keys": "image"} if base is Knockout else {"at": "last"}
    fields |= {"direction": torch.ones(32)} if base is Steer else {}
    assert Silent(**fields).reach(batch.tokens, tiny.cfg) is None
    assert Knowing(**fields).reach(batch.tokens, tiny.cfg) == gi.Reach(3, 1)
    assert Inheriting(**fields).reach(batch.tokens, tiny.cfg) is None
