"""Silent failures: edits that are lost, pictures that are not read, hooks that stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatelens.engine.plan import hooks_stand
from gatelens.interventions import edit
from gatelens.interventions.sites import INNER_SITES, SITES, hook_name
from gatelens.verification.bench import Bench, Check, NotApplicable, Outcome, counted, real, weight_sums
from gatelens.verification.bounds import bound_of, distance, nearest
from gatelens.verification.row import FAIL, PASS


def arriving(bench: Bench) -> Outcome:
    """At every site, in the first, the middle and the last layer, an edit changes the logits.

    Beside it stands an edit that changes nothing, with attention computed in one way, so that the two passes differ by
    the edit alone, to the last bit.
    """
    model, inputs = bench.model, bench.batch
    layers = sorted({0, bench.middle, bench.n_layers - 1})
    places = [(s, layer) for s in (*SITES, *INNER_SITES) for layer in layers if _has(bench, s, layer)]
    lost, before = [], model.attention
    model.attention = "stepwise"
    try:
        for site, layer in places:
            as_it_is, turned = (
                edit(new, at="text | gate", site=site, layers=[layer])  # type: ignore[arg-type]
                for new in (_same, _turned)
            )
            if torch.equal(model.run(inputs, as_it_is), model.run(inputs, turned)):
                lost.append(f"{site} of layer {layer}")
    finally:
        model.attention = before
    return counted(lost, len(places), "edits", "without effect on the logits")


def _same(rows: Tensor, where: Any) -> Tensor:
    return rows


def _turned(rows: Tensor, where: Any) -> Tensor:
    """The numbers of a row one place on, halved: a norm does not undo it, as it does a factor alone."""
    return 0.5 * rows.roll(1, -1)


def _has(bench: Bench, site: str, layer: int) -> bool:
    return hook_name(site, layer) in bench.model.hook_dict


def picture(bench: Bench) -> Outcome:
    """Another picture changes the logits, and by as much as in plain transformers."""
    a, b = bench.batch, bench.others
    ways, others = bench.ways(a), [bench.plain.logits(b.tensors, way) for way in ("eager", "sdpa")]
    where = real(a) & a.tokens.mask("text | gate")
    bound = max(bound_of(ways, where), bound_of(others, where))
    if distance(ways[0], others[0], where) <= bound:
        raise NotApplicable("plain transformers says the same of a picture and of its negative")
    mine = [bench.model(x) for x in (a, b)]
    moved = distance(mine[0], mine[1], where)
    off = max(nearest(ways, mine[0], where), nearest(others, mine[1], where))
    said = f"the negative of the picture moves the text's logits by {moved:.3g}"
    return Outcome(PASS if moved > bound and off <= bound else FAIL, said, off, bound, moved)


def left(bench: Bench) -> Outcome:
    """After all of this no hook is left on either model, and the logits are those of a pass before it."""
    inputs = bench.one
    before, wrong = bench.model(inputs), ["an error in a hook was lost"]
    try:
        bench.model.run_with_hooks(inputs, [("blocks.0.hook_resid_pre", _raise)])
    except ZeroDivisionError:
        wrong = []
    wrong += ["a hook stands in the decoder"] if hooks_stand(bench.model) else []
    wrong += ["the logits changed"] if not torch.equal(before, bench.model(inputs)) else []
    return counted(wrong, 3, "conditions", "broken")


def weights(bench: Bench) -> Outcome:
    """The tensors are what they were before all of this; of a model loaded here, before it was wrapped."""
    now = weight_sums(bench.plain.hf)
    wrong = [name for name, total in bench.sums.items() if total != now.get(name)]
    return counted(wrong, len(bench.sums), "tensors", "changed")


def _raise(tensor: Tensor, hook: object) -> Tensor:
    raise ZeroDivisionError


CHECKS = (
    Check(
        "traps", "edits arrive", "an activation turned and halved, at every site of three layers", arriving
    ),
    Check(
        "traps",
        "picture matters",
        "the picture's negative changes the logits, as in plain transformers",
        picture,
    ),
    Check("traps", "nothing is left", "hooks after use, also after an error in one", left),
    Check(
        "traps",
        "weights stay",
        "every weight after all of this, bit for bit",
        weights,
    ),
)
