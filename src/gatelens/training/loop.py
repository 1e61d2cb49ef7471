"""Fine-tuning while interventions hold."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.atomic_files import check_writable, write_atomic, written_whole
from gatelens.data.base import Example
from gatelens.engine.full_run import FullRun
from gatelens.errors import DataError, OutputError
from gatelens.interventions.compile import as_interventions
from gatelens.model import HookedVLM
from gatelens.model.checkpoints import put_weights, weights
from gatelens.runs.manifest import fingerprint
from gatelens.training.batches import IGNORED, TrainingBatch, training_batch

STATE = "training_state.pt"
LOG = "training_log.csv"


@dataclass(frozen=True)
class OptimizerSettings:
    """How long to train, and how; see :func:`fine_tune`."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise DataError(f"{name}={value!r}: give a whole number, {least} or more")


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
    save_every: float = 10.0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train the weights on the examples' answers while the interventions hold.

    The model given is changed in place and frozen again at the end. With the gate masked from the text, as in
    the example, the text has to learn another way to the picture (Serra et al., arXiv 2412.06646, later version).

    Args:
        model: a model with a processor.
        examples: what to learn, of any tasks with answers; redrawn for every step, by ``seed``.
        interventions: hold in every step, as for ``model.run``; or a function from a batch's inputs to them, as
            :class:`gatelens.training.OthersGate`, whose ``repr`` says what it does.
        parameters: regular expression; only parameters whose name it finds are trained; None: all.
        out: folder for a checkpoint every ``save_every`` seconds, from which a run cut short goes on; None: nowhere.
        steps, batch_size: how many steps, and examples of each.
        lr, warmup: AdamW's learning rate rises to ``lr`` over ``warmup`` steps, then falls along a half cosine.
        weight_decay, clip: of AdamW; the norm to which gradients are clipped.
        seed: draws the batches.
        save_every: seconds between checkpoints, more where writing one takes over a tenth of that; 0: after each step.
        progress: show a bar.

    Returns:
        ``step, loss, lr``: one row per step; the loss is the mean next-token cross-entropy in nats per token.

    Raises:
        DataError: no examples, or one without an answer.
        OutputError: ``out`` holds training with other settings.
        InterventionError: an intervention cannot act as written.

    Example:
        >>> student = gl.HookedVLM.from_pretrained("organism:gated")  # it is changed in place
        >>> examples = gl.data.load("emoji-scenes", "train").examples("class", limit=2)
        >>> cut = gl.knockout("text - gate", "gate")
        >>> gl.training.fine_tune(student, examples, cut, steps=1, batch_size=2, progress=False).step.tolist()
        [0]
    """
    if not examples:
        raise DataError("there is nothing to learn from: give at least one example")
    settings = OptimizerSettings(steps, batch_size, lr, warmup, weight_decay, clip, seed)
    training = Training(model, examples, interventions, _matching(model, parameters), settings)
    checkpoint = Checkpoint(out, {**training.description(), "parameters": parameters}, save_every)
    log = checkpoint.resume(model, training.optimizer)
    with training.gradients():
        _finish(training, checkpoint, model, log, steps, progress)
    return pd.DataFrame(log)


def _finish(
    training: Training,
    checkpoint: Checkpoint,
    model: HookedVLM,
    log: list[dict[str, float]],
    steps: int,
    progress: bool,
) -> None:
    """The steps that are not in the log yet."""
    bar = tqdm(range(len(log), steps), "fine-tuning", steps, initial=len(log), disable=not progress)
    for step in bar:
        log.append(training.step(step))
        bar.set_postfix(loss=f"{log[-1]['loss']:.3f}", refresh=False)
        if checkpoint.due() or step + 1 == steps:
            checkpoint.save(model, training.optimizer, log)


class Training:
    """The steps of one training: which batch, under which interventions, by which optimizer."""

    def __init__(
        self,
        model: HookedVLM,
        examples: Sequence[Example],
        interventions: Any,
        trained: Sequence[torch.nn.Parameter],
        settings: OptimizerSettings,
    ) -> None:
        self.model, self.examples, self.interventions = model, examples, interventions
        self.trained, self.settings = trained, settings
        self.optimizer = torch.optim.AdamW(
            trained, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.95)
        )

    def description(self) -> dict[str, Any]:
        """All that its result depends on, but the model."""
        examples = [(e.id, e.prompt, list(e.answers)) for e in self.examples]
        return {
            **asdict(self.settings),
            "interventions": repr(self.interventions),
            "examples": fingerprint(examples),
        }

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Gradients for the trained parameters, which are frozen again at the end."""
        try:
            with torch.inference_mode(False), torch.enable_grad():
                for p in self.trained:
                    p.requires_grad_(True)
                yield
        finally:
            for p in self.trained:
                p.requires_grad_(False)
                p.grad = None

    def step(self, step: int) -> dict[str, float]:
        """Take a step; its number, loss and learning rate. Its batch is the same in every run of the seed."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, settings.steps, settings.warmup)
        rng = np.random.default_rng([settings.seed, step])
        chosen = rng.integers(len(self.examples), size=settings.batch_size)
        with self.model.lock:  # no other thread sees weights that are half changed
            batch = training_batch(self.model, [self.examples[int(i)] for i in chosen])
            loss = loss_of(self.model, batch, self.interventions)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained, settings.clip)
            self.optimizer.step()
        return {"step": step, "loss": loss.item(), "lr": self.optimizer.param_groups[0]["lr"]}


def loss_of(model: HookedVLM, batch: TrainingBatch, interventions: Any = ()) -> Tensor:
    """Mean cross-entropy of the answers' tokens under the interventions, in nats per token."""
    if callable(interventions):
        interventions = interventions(model, batch.inputs)
    run = FullRun(model, as_interventions(interventions), batch.inputs.tokens)
    tail = batch.targets.shape[1]
    with run.acting() as pairs:
        logits, _ = model.forward_step({**batch.inputs.tensors, "logits_to_keep": tail}, pairs)
    run.check_fired()
    logits = logits[:, -tail:].float()
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def _matching(model: HookedVLM, pattern: str | None) -> list[torch.nn.Parameter]:
    named = [(name, p) for name, p in model.hf.named_parameters() if p.is_floating_point()]
    matching = [p for name, p in named if pattern is None or re.search(pattern, name)]
    if not matching:
        raise DataError(f"no parameter's name matches {pattern!r}; one of them is {named[0][0]!r}")
    return matching


def schedule(step: int, steps: int, warmup: int) -> float:
    """Learning rate relative to its highest: a straight rise, then a half cosine down to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return half_cosine((step - warmup) / max(1, steps - warmup))


def half_cosine(progress: float) -> float:
    """From 1 at no progress down to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


class Checkpoint:
    """The checkpoint of a training run in a folder, or nowhere."""

    def __init__(self, out: str | os.PathLike[str] | None, settings: dict[str, Any], every: float) -> None:
        self.folder = None if out is None else check_writable(out)
        self.settings = json.loads(json.dumps(settings))
        self.every = every  # seconds
        self._saved, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether a step has been taken long enough ago; what saving costs stays a tenth of the time."""
        wait = max(self.every, 9 * self._took) if self.every else 0.0
        return time.monotonic() - self._saved >= wait

    def resume(self, model: HookedVLM, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
        """Put the checkpoint's weights and optimiser state in place; the log so far."""
        if self.folder is None or not (self.folder / STATE).exists():
            return []
        file = self.folder / STATE
        try:
            state = torch.load(file, map_location=model.device)
            there = state["settings"]
        except Exception as error:  # torch raises many kinds
            raise OutputError(f"{str(file)!r} is damaged; delete it, and the training starts over") from error
        if there != self.settings:
            changed = [k for k, v in self.settings.items() if there.get(k) != v]
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
        started = time.monotonic()
        with written_whole(self.folder / STATE) as partial:
            torch.save({"settings": self.settings, "weights": weights(model), "optimizer": optimizer.state_dict(),
                        "log": log}, partial)  # fmt: skip
        write_atomic(self.folder / LOG, pd.DataFrame(log).to_csv(index=False).encode())
        self._saved = time.monotonic()
        self._took = self._saved - started
