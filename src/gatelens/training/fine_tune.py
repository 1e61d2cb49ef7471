"""Fine-tuning while interventions hold."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.checkpoints import put_weights, weights
from gatelens.engine.full_run import FullRun
from gatelens.errors import DataError, OutputError
from gatelens.interventions.compile import as_interventions
from gatelens.runs import check_writable, fingerprint, write_atomic
from gatelens.training.documents import IGNORED, Documents, documents

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM

STATE = "training_state.pt"
LOG = "training_log.csv"


def fine_tune(
    model: HookedVLM,
    examples: Sequence[Example],
    interventions: Any = (),
    *,
    parameters: str | None = None,
    out: str | os.PathLike[str] | None = None,
    steps: int = 1000,
    batch_size: int = 32,
    lr: float = 3e-4,
    warmup: int = 50,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    save_every: int = 200,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the weights on the examples' answers while the interventions hold.

    The model given is changed in place and frozen again at the end. With the gate masked from the text,
    ``fine_tune(model, examples, gl.knockout(queries="text - gate", keys="gate"))``, the text has to learn another
    way to the picture (Serra et al., arXiv 2412.06646, the later version's fine-tuning).

    Args:
        model: a model with a processor.
        examples: what to learn, of any tasks with answers; drawn anew for every step, by ``seed``.
        interventions: hold in every step, as for ``model.run``; or a function from a batch's inputs to them, as
            :class:`gatelens.training.OthersGate`, whose ``repr`` says what it does.
        parameters: regular expression; only parameters whose name it finds are trained. None is all that the
            answers depend on.
        out: folder for a checkpoint of training every ``save_every`` steps, so that a run cut short goes on there;
            None keeps nothing.
        steps, batch_size, lr, warmup, weight_decay, clip: AdamW; the learning rate rises over ``warmup`` steps and
            falls along a half cosine; gradients are clipped to norm ``clip``.
        seed: draws the batches.
        save_every: steps between checkpoints.

    Returns:
        ``step, loss, lr``: one row a step; the loss is the mean next-token cross-entropy in nats a token.

    Raises:
        DataError: no examples, or one without an answer.
        OutputError: ``out`` holds training with other settings.
        InterventionError: an intervention cannot act as written.
    """
    if not examples:
        raise DataError("there is nothing to learn from: give at least one example")
    if steps < 1 or batch_size < 1:
        raise DataError(f"steps={steps}, batch_size={batch_size}: give at least 1 of each")
    trained = _trained(model, parameters)
    settings = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "warmup": warmup, "weight_decay": weight_decay,
        "clip": clip, "seed": seed, "parameters": parameters, "interventions": repr(interventions),
        "examples": fingerprint([(e.id, e.prompt, list(e.answers)) for e in examples]),
    }  # fmt: skip
    kept = Kept(out, settings)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95))
    log = kept.resume(model, optimizer)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for p in trained:
                p.requires_grad_(True)
            bar = tqdm(
                range(len(log), steps),
                initial=len(log),
                total=steps,
                desc="fine-tuning",
                disable=not progress,
            )
            for step in bar:
                for group in optimizer.param_groups:
                    group["lr"] = lr * schedule(step, steps, warmup)
                chosen = np.random.default_rng([seed, step]).integers(len(examples), size=batch_size)
                loss = loss_of(model, documents(model, [examples[int(i)] for i in chosen]), interventions)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, clip)
                optimizer.step()
                log.append({"step": step, "loss": loss.item(), "lr": optimizer.param_groups[0]["lr"]})
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                if (step + 1) % save_every == 0 or step + 1 == steps:
                    kept.save(model, optimizer, log)
    finally:
        for p in trained:
            p.requires_grad_(False)
            p.grad = None
    return pd.DataFrame(log)


def loss_of(model: HookedVLM, batch: Documents, interventions: Any = ()) -> Tensor:
    """Mean cross-entropy of the answers' tokens under the interventions, in nats a token."""
    if callable(interventions):
        interventions = interventions(model, batch.inputs)
    run = FullRun(model, as_interventions(interventions), batch.inputs.tokens)
    tail = batch.targets.shape[1]
    with run.acting() as pairs:
        logits, _ = model.forward_step({**batch.inputs.tensors, "logits_to_keep": tail}, pairs)
    run.check_fired()
    logits = logits[:, -tail:].float()
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def _trained(model: HookedVLM, pattern: str | None) -> list[torch.nn.Parameter]:
    named = [(name, p) for name, p in model.hf.named_parameters() if p.is_floating_point()]
    found = [p for name, p in named if pattern is None or re.search(pattern, name)]
    if not found:
        raise DataError(f"no parameter's name matches {pattern!r}; one of them is {named[0][0]!r}")
    return found


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate relative to its highest: a straight rise, then a half cosine down to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Kept:
    """The checkpoint of a training run in a folder, or nowhere."""

    def __init__(self, out: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.folder = None if out is None else check_writable(out)
        self.settings = json.loads(json.dumps(settings))

    def resume(self, model: HookedVLM, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
        """Put the checkpoint's weights and optimiser state in place; the log so far."""
        if self.folder is None or not (self.folder / STATE).exists():
            return []
        state = torch.load(self.folder / STATE, map_location=model.device)
        if state["settings"] != self.settings:
            changed = [k for k, v in self.settings.items() if state["settings"].get(k) != v]
            raise OutputError(
                f"{str(self.folder)!r} holds training with other settings ({', '.join(changed)}); "
                "choose another folder or delete it"
            )
        put_weights(model, state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        return list(state["log"])

    def save(self, model: HookedVLM, optimizer: torch.optim.Optimizer, log: list[dict[str, float]]) -> None:
        """Store all that is needed to go on; readers see the old state or the new one, whole."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{STATE}.part"
        torch.save({"settings": self.settings, "weights": weights(model), "optimizer": optimizer.state_dict(),
                    "log": log}, partial)  # fmt: skip
        partial.replace(self.folder / STATE)
        write_atomic(self.folder / LOG, pd.DataFrame(log).to_csv(index=False).encode())
