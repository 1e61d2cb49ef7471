"""Methods of the field as functions of a model and a task, for a benchmark to compare: each a few lines.

All give scores of positions, by layer where that can be said; the last two give a set and an interval too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.bench.cases import Method, Prediction, Task
from gatelens.engine import last_logits, look
from gatelens.interventions import knockout, patch
from gatelens.model import HookedVLM
from gatelens.readouts import logit_lens as read_by_lens
from gatelens.studies.gate_finder.carriers import find_carriers
from gatelens.studies.gate_finder.game import PositionGame
from gatelens.studies.gate_finder.verdict import LEAST_WORTH

STEPS = 8  # of integrated gradients
# of direct effects: of the strongest effect, what carries; nats that all candidates are worth at least; standard errors
# from 0; draws of the interval
CARRIES, WORTH, SURE, DRAWS = 0.25, 0.5, 3.5, 400


def attention_share(model: HookedVLM, task: Task) -> Float[Tensor, "layer pos"]:
    """The attention of the answering position, mean over heads and examples."""
    found = torch.zeros(int(model.cfg.n_layers), task.inputs.tokens.n_pos)

    def see(layer: int, pattern: Tensor, low: int) -> None:
        found[layer] += pattern.float().mean((0, 1))[-1].cpu()

    look(model, task.inputs, "last", see)
    return found


def rollout(model: HookedVLM, task: Task) -> Float[Tensor, " pos"]:
    """Attention rollout: the product over layers of ``(A + 1) / 2`` (Abnar and Zuidema, arXiv 2005.00928)."""
    layers = range(int(model.cfg.n_layers))
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    _, cache = model.run_with_cache(task.inputs, names_filter=names)
    rolled = torch.eye(task.inputs.tokens.n_pos)
    for name in names:
        pattern = cache[name].float().mean(1)
        rolled = (pattern + torch.eye(pattern.shape[-1])) / 2 @ rolled
    return rolled[:, -1].mean(0)


def gradient_x_input(model: HookedVLM, task: Task) -> Float[Tensor, "layer pos"]:
    """The gradient of the log-odds by the stream entering each layer, times that stream."""
    layers = list(range(int(model.cfg.n_layers)))
    streams, gradients = _streams(model, task.inputs, layers), _gradients(model, task, layers, None)
    return torch.stack([(g * s).sum(-1).abs().mean(0) for g, s in zip(gradients, streams, strict=True)])


def integrated_gradients(model: HookedVLM, task: Task) -> Float[Tensor, "layer pos"]:
    """Attribution patching with the gradient's mean on the way from the partner's input to the own.

    Sundararajan et al., arXiv 1703.01365; of activations, as in EAP-IG: Hanna et al., arXiv 2403.17806.
    """
    layers = list(range(int(model.cfg.n_layers)))
    own, other = (_streams(model, inputs, layers) for inputs in (task.inputs, task.partner_inputs))
    total = [torch.zeros_like(stream) for stream in own]
    for step in range(STEPS):
        start = other[0] + (step + 0.5) / STEPS * (own[0] - other[0])
        for sum_, gradient in zip(total, _gradients(model, task, layers, start), strict=True):
            sum_ += gradient / STEPS
    return _first_order(own, other, total)


def attribution_patching(model: HookedVLM, task: Task) -> Float[Tensor, "layer pos"]:
    """What the partner's residual stream would lose, to first order (Syed et al., arXiv 2310.10348)."""
    layers = list(range(int(model.cfg.n_layers)))
    own, other = (_streams(model, inputs, layers) for inputs in (task.inputs, task.partner_inputs))
    gradients = _gradients(model, task, layers, None)
    return _first_order(own, other, gradients)


def logit_lens(model: HookedVLM, task: Task) -> Float[Tensor, " pos"]:
    """By how much the stream says the right name rather than the partner's, read by the model's own head."""
    at = task.only(list(task.candidates))
    lens = read_by_lens(model, task.inputs, at, targets=[task.labels, task.labels[task.partners]], top=0)
    values = lens.table.groupby(["layer", "position", "target"])["value"].mean().unstack()
    gained = values.iloc[:, 0] - values.iloc[:, 1]
    scores = gained.groupby("position").max()
    return _scores(task, [float(scores[p]) for p in task.candidates])


def zero_knockouts(model: HookedVLM, task: Task) -> Float[Tensor, " pos"]:
    """The log-probability lost when nothing after the picture reads a position, after the softmax; one by one."""
    return _knockouts(model, task, "zero")


def mask_knockouts(model: HookedVLM, task: Task) -> Float[Tensor, " pos"]:
    """The same before the softmax, so that rows renormalise."""
    return _knockouts(model, task, "mask")


def resampling(model: HookedVLM, task: Task) -> Float[Tensor, " pos"]:
    """The log-odds moved to the partner's name when a position's stream is the partner's in all layers; one by one."""
    other = _cache(model, task.partner_inputs)
    runs: list[Any] = [None, *(patch(other, task.only(p)) for p in task.candidates)]
    odds = [_log_odds(task, logits) for logits in last_logits(model, task.inputs, runs)]
    return _scores(task, [float((odds[0] - one).mean()) for one in odds[1:]])


def direct_effects(model: HookedVLM, task: Task) -> Prediction:
    """A position's stream is the partner's in all layers, and all other candidates keep their own.

    So the log-odds move by what the answering position reads there, and not by what other candidates pass on. A
    position carries if it moves at least :data:`CARRIES` of what the strongest does, surely more than 0; the interval
    of the size is over examples drawn again. Nothing carries where the partner's streams at all candidates together do
    not move the answer.
    """
    own, other = _cache(model, task.inputs), _cache(model, task.partner_inputs)
    everywhere = task.only(list(task.candidates))
    runs: list[Any] = [None, patch(other, everywhere)]
    for place in task.candidates:
        at = task.only(place)
        runs.append([patch(other, at), patch(own, everywhere & ~at)])
    clean, *moved = (_log_odds(task, logits) for logits in last_logits(model, task.inputs, runs))
    every, *alone = (clean - one for one in moved)
    effects = torch.stack(alone).double()
    scores = _scores(task, effects.mean(1).tolist())
    worth = every.double()
    if float(worth.mean()) < max(WORTH, SURE * _standard_error(worth)):
        return Prediction(scores, [], (0, 0))
    sure = effects.mean(1) > SURE * effects.std(1) / effects.shape[1] ** 0.5
    draws = torch.rand(
        DRAWS, effects.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    weights = -draws.log()  # of the Bayesian bootstrap, before they are made to sum to 1
    drawn = effects @ weights.T / weights.sum(1)
    sizes = ((drawn >= CARRIES * drawn.amax(0)) & sure[:, None]).sum(0).double()
    chosen = sure & (effects.mean(1) >= CARRIES * effects.mean(1).max())
    low, high = (int(one) for one in sizes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)))
    places = [p for p, one in zip(task.candidates, chosen.tolist(), strict=True) if one]
    return Prediction(scores, places, (min(low, len(places)), max(high, len(places))))


def find_gate(model: HookedVLM, task: Task) -> Prediction:
    """The toolkit's search for a gate, :func:`gatelens.studies.find_gate`, asked what the answering position reads.

    Its game (:mod:`gatelens.studies.gate_finder.carriers`) with all candidates pinned to one of two pictures. Nothing
    carries where the right name's probability hardly depends on whose picture it is. Where it does and no position is
    found, any number of them may carry.
    """
    n, n_pos = len(task.labels), task.inputs.tokens.n_pos
    pairs = torch.stack([torch.arange(n), task.partners], 1)
    others = _other_partners(task)
    columns = torch.tensor(task.candidates)
    game = PositionGame(
        model, task.inputs, torch.cat([pairs, torch.stack([torch.arange(n), others], 1)]), task.labels,
        columns.expand(n, -1), torch.arange(len(columns)), n_pos - 1,
    )  # fmt: skip
    found = find_carriers((game.some(slice(n)), game.some(slice(n, None))), n, len(task.candidates))
    scores = _scores(task, found.strength.tolist())
    probability = game.clean.softmax(-1)
    right, other = (probability[rows, task.labels].mean() for rows in (torch.arange(n), task.partners))
    if float(right) - max(float(other), 1 / len(task.answers)) < LEAST_WORTH:
        return Prediction(scores, [], (0, 0))
    size = (found.low, found.high) if found.chosen else (1, len(task.candidates))
    return Prediction(scores, [task.candidates[p] for p in found.chosen], size)


def _other_partners(task: Task) -> Tensor:
    """A second partner of each example, with another answer too; the first where there is none but it."""
    rng = np.random.default_rng(0)
    chosen = []
    for label, first in zip(task.labels.tolist(), task.partners.tolist(), strict=True):
        others = [i for i in (task.labels != label).nonzero()[:, 0].tolist() if i != first]
        chosen.append(int(rng.choice(others)) if others else first)
    return torch.tensor(chosen)


METHODS: dict[str, Method] = {
    one.__name__: one
    for one in (
        attention_share, rollout, gradient_x_input, integrated_gradients, attribution_patching, logit_lens,
        zero_knockouts, mask_knockouts, resampling, direct_effects, find_gate,
    )
}  # fmt: skip
"""The methods of the field that :func:`score` has been run on, by name."""


# -- what they share


def _log_odds(task: Task, logits: Float[Tensor, "example d_vocab"]) -> Float[Tensor, " example"]:
    """Of the right name against the partner's."""
    logits = logits.float().cpu()
    own, other = (one[:, None] for one in (task.labels, task.labels[task.partners]))
    return (logits.gather(1, own) - logits.gather(1, other))[:, 0]


def _right(task: Task, logits: Float[Tensor, "example d_vocab"]) -> Float[Tensor, " example"]:
    """Log-probability of the right name."""
    return logits.float().cpu().log_softmax(-1).gather(1, task.labels[:, None])[:, 0]


def _scores(task: Task, values: Sequence[float]) -> Float[Tensor, " pos"]:
    scores = torch.zeros(task.inputs.tokens.n_pos)
    scores[list(task.candidates)] = torch.tensor(values)
    return scores


def _knockouts(model: HookedVLM, task: Task, how: Literal["zero", "mask"]) -> Float[Tensor, " pos"]:
    after = max(p for p in task.candidates if bool(task.inputs.tokens.mask("image")[0, p])) + 1
    readers = task.only(list(range(after, task.inputs.tokens.n_pos)))
    runs: list[Any] = [None]
    for place in task.candidates:
        key = task.only(place)
        runs.append(knockout(readers & ~key, key, how=how))
    clean, *cut = (_right(task, logits).mean() for logits in last_logits(model, task.inputs, runs))
    return _scores(task, [float(clean - one) for one in cut])


def _standard_error(values: Float[Tensor, " example"]) -> float:
    return float(values.std()) / len(values) ** 0.5


def _first_order(
    own: Sequence[Tensor], other: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Float[Tensor, "layer pos"]:
    """What moving from the other's stream to the own gains, mean over examples."""
    parts = zip(own, other, gradients, strict=True)
    return torch.stack([((a - b) * gradient).sum(-1).mean(0) for a, b, gradient in parts])


def _cache(model: HookedVLM, inputs: Any) -> Any:
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(int(model.cfg.n_layers))]
    return model.run_with_cache(inputs, names_filter=names)[1]


def _streams(
    model: HookedVLM, inputs: Any, layers: Sequence[int]
) -> list[Float[Tensor, "example pos d_model"]]:
    """The residual stream entering layers."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    cache = model.run_with_cache(inputs, names_filter=names)[1]
    return [cache[name].clone() for name in names]


def _gradients(
    model: HookedVLM, task: Task, layers: Sequence[int], stream: Tensor | None
) -> list[Float[Tensor, "example pos d_model"]]:
    """Of the right name's log-odds against the partner's, by the stream entering layers.

    Args:
        stream: enters the first of the layers; None is the model's own.
    """
    added: list[Tensor] = []

    def hook(given: Tensor | None) -> Callable[[Tensor, Any], Tensor]:
        def function(value: Tensor, hook: Any) -> Tensor:
            added.append(torch.zeros_like(value, requires_grad=True))
            return (given if given is not None else value) + added[-1]

        return function

    hooks = [
        (f"blocks.{layer}.hook_resid_pre", hook(stream if layer == layers[0] else None)) for layer in layers
    ]
    with torch.enable_grad():
        logits = model.run_with_hooks(task.inputs, fwd_hooks=hooks)
        value = (
            logits[torch.arange(len(task.labels)), -1, task.labels]
            - logits[torch.arange(len(task.labels)), -1, task.labels[task.partners]]
        ).sum()
        return list(torch.autograd.grad(value, added))
