"""Every verb against torch hooks on plain transformers, one by one and all of them in one sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.engine import sweep
from gatelens.interventions import ablate, drop, edit, knockout, patch, steer
from gatelens.interventions.compile import compile_hooks
from gatelens.measures.logits import logit_diff
from gatelens.verification.bench import Bench, Check, NotApplicable, Outcome, judged, real
from gatelens.verification.bounds import bound_of, nearest
from gatelens.verification.plain import WAYS, Cut, Edit, Unavailable

IMAGE_SIDE = "boi | image | row_break"


@dataclass(frozen=True)
class Trial:
    """An intervention, and what does the same in plain transformers: edits by torch hooks, or cuts by layer.

    ``where`` are the positions that are compared.
    """

    spec: Any
    edits: Sequence[Edit] = ()
    cuts: dict[int, Cut] | None = None
    where: Bool[Tensor, "batch pos"] | None = None

    def plain(self, bench: Bench) -> list[Tensor]:
        """The plain logits under the edit, in every way that should give the same."""
        try:
            return [bench.plain.logits(bench.batch.tensors, way, self.edits, self.cuts) for way in WAYS]
        except Unavailable as why:
            raise NotApplicable(str(why)) from why


def knocked_out(how: Any, bench: Bench) -> Trial:
    """The text no longer reads the picture, in all layers."""
    tokens = bench.batch.tokens
    cut = Cut(_pairs(tokens.mask("text - gate"), tokens.mask(IMAGE_SIDE)), how)
    return Trial(knockout("text - gate", IMAGE_SIDE, how=how), cuts=dict.fromkeys(range(bench.n_layers), cut))


def dropped(bench: Bench) -> Trial:
    """The picture's tokens are gone from the middle layer on."""
    image = bench.batch.tokens.mask("image")
    cut = Cut(_pairs(real(bench.batch) & ~image, image), "mask")
    cuts = dict.fromkeys(range(bench.middle, bench.n_layers), cut)
    return Trial(drop("image", bench.middle), cuts=cuts, where=real(bench.batch) & ~image)


def patched(bench: Bench) -> Trial:
    """The last position's stream comes from the same prompts with other pictures."""
    layer, name = bench.middle, f"blocks.{bench.middle}.hook_resid_pre"
    theirs = bench.plain.stream(bench.others.tensors)[layer][:, -1]
    _, cache = bench.model.run_with_cache(bench.others, name)
    where = bench.batch.tokens.mask("last")
    new = partial(_replaced, where=where, by=theirs[:, None])
    return Trial(patch(cache, "last", "resid_pre", layers=[layer]), [Edit(layer, "resid_pre", new)])


def ablated(bench: Bench) -> Trial:
    """The picture's stream is zero after the middle layer."""
    where = bench.batch.tokens.mask("image")
    new = partial(_replaced, where=where, by=torch.zeros(()))
    return Trial(
        ablate("image", "resid_post", layers=[bench.middle]), [Edit(bench.middle, "resid_post", new)]
    )


def ablated_head(bench: Bench) -> Trial:
    """The last head adds nothing in any layer."""
    n = int(bench.model.cfg.n_heads)

    def without(z: Tensor) -> Tensor:
        kept = z.clone()
        kept.unflatten(-1, (n, -1))[..., n - 1, :] = 0
        return kept

    edits = [Edit(layer, "z", without) for layer in range(bench.n_layers)]
    return Trial(ablate("all", "z", heads=[n - 1]), edits)


def steered(bench: Bench) -> Trial:
    """A random direction, as long as the stream, is added to the text."""
    layer, where = bench.middle, bench.batch.tokens.mask("text")
    stream = bench.plain.stream(bench.batch.tensors)[layer]
    direction = torch.randn(stream.shape[-1], generator=torch.Generator().manual_seed(0))
    at = stream[where.to(stream.device)].float()
    direction = (direction * float(at.norm(dim=-1).mean()) / direction.norm()).to(stream)

    def add(x: Tensor) -> Tensor:
        return torch.where(where.to(x.device)[..., None], x + direction, x)

    return Trial(steer(direction, "text", "resid_pre", layers=[layer]), [Edit(layer, "resid_pre", add)])


def edited(bench: Bench) -> Trial:
    """The values of the picture are doubled in every layer."""
    where = bench.batch.tokens.mask("image")

    def double(v: Tensor) -> Tensor:
        return torch.where(where.to(v.device)[..., None], 2 * v, v)

    spec = edit(lambda rows, at: 2 * rows, at="image", site="v")
    return Trial(spec, [Edit(layer, "v", double) for layer in range(bench.n_layers)])


def _replaced(x: Tensor, where: Tensor, by: Tensor) -> Tensor:
    return torch.where(where.to(x.device)[..., None], by.to(x), x)


def _pairs(queries: Tensor, keys: Tensor) -> Bool[Tensor, "batch 1 query key"]:
    return (queries[:, :, None] & keys[:, None, :])[:, None]


TRIALS: dict[str, Callable[[Bench], Trial]] = {
    "knockout, mask": partial(knocked_out, "mask"),
    "knockout, zero": partial(knocked_out, "zero"),
    "drop": dropped,
    "patch": patched,
    "ablate": ablated,
    "ablate a head": ablated_head,
    "steer": steered,
    "edit": edited,
}
_WHAT = {
    "knockout, mask": "text → picture cut in all layers, by transformers' 4-D mask",
    "knockout, zero": "the same after the softmax, in transformers' attention weights",
    "drop": "the picture gone from the middle layer on, by transformers' 4-D mask",
    "patch": "the last position's resid_pre of another picture, against a torch hook",
    "ablate": "resid_post of the picture set to zero, against a torch hook",
    "ablate a head": "the last head's z set to zero in every layer, against a torch hook",
    "steer": "a direction added to resid_pre of the text, against a torch hook",
    "edit": "the picture's values doubled in every layer, against a torch hook",
}


def one(name: str) -> Callable[[Bench], Outcome]:
    """A check of one verb: by the engine and as plain hook functions of TransformerLens."""

    def measure(bench: Bench) -> Outcome:
        trial, inputs = TRIALS[name](bench), bench.batch
        pairs = compile_hooks([trial.spec], inputs.tokens, bench.model.cfg).pairs
        got = [bench.model.run(inputs, trial.spec), bench.model.run_with_hooks(inputs, pairs)]
        where = real(inputs) if trial.where is None else trial.where
        return bench.compare(got, trial.plain(bench), where, bench.ways(inputs)[0])

    return measure


def swept(bench: Bench) -> Outcome:
    """A sweep over all of them: the logit difference of the two likeliest tokens, each against its plain run."""
    inputs = bench.batch
    trials: dict[str, Trial] = {}
    for name, make in TRIALS.items():
        try:
            trials[name] = make(bench)
        except NotApplicable:
            continue
    clean = bench.ways(inputs)[0]
    top, second = (int(t) for t in clean[0, -1].float().topk(2).indices)
    grid = {"run": {name: trial.spec for name, trial in trials.items()}}
    table = sweep(bench.model, inputs, grid, logit_diff(top, second), progress=False)
    measured, bound, said = 0.0, 0.0, ""
    for name, trial in trials.items():
        try:
            ways = trial.plain(bench)
        except NotApplicable:
            continue
        got = torch.tensor(table[table.run == name].value.tolist())[:, None]
        rows = [way[:, -1:].float().cpu() for way in ways]
        gap = nearest([row[..., top] - row[..., second] for row in rows], got)
        limit = 2 * bound_of([way[:, -1:] for way in ways])  # of a difference of two logits
        if not said or gap * bound >= measured * limit:
            measured, bound, said = gap, limit, name
    return judged(measured, bound, reason=f"{len(trials)} runs; nearest to the bound: {said}")


CHECKS = (
    *(Check("interventions", name, _WHAT[name], one(name)) for name in TRIALS),
    Check("interventions", "sweep", "one sweep over all of these against their separate plain runs", swept),
)
