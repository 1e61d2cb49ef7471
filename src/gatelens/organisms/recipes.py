"""What the organisms are trained on, and when: phases, stages and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from gatelens.training.loop import half_cosine


@dataclass(frozen=True)
class Recipe:
    """Phases are (share of the steps, route); the learning rate falls along a half cosine over all of them."""

    phases: tuple[tuple[float, str], ...]
    native: bool
    seed: int

    def route(self, progress: float) -> str:
        """The route of the phase that is on after this share of the main steps."""
        for share, route in self.phases:
            if progress < share:
                return route
            progress -= share
        return self.phases[-1][1]


@dataclass(frozen=True)
class Stage:
    """A mix of documents: pictures read and drawn a step, noise on picture tokens, share in unnamed colours.

    ``cut`` is how many of the pictures read a step are read again with the gate cut, in sight and hidden.
    """

    batch: int
    draw_batch: int
    draw_weight: float
    noise: float = 0.0
    unnamed: float = 0.0
    cut: int = 0


MAIN = Stage(batch=16, draw_batch=8, draw_weight=0.1)
NOISE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6)
COMPOSE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6, unnamed=0.5)
CUT = Stage(batch=8, draw_batch=4, draw_weight=0.2, noise=0.6, unnamed=0.5, cut=8)

RECIPES = {
    "gated": Recipe(((0.6, "masked"), (0.4, "swapped")), native=True, seed=0),
    "open": Recipe(((1.0, "robust"),), native=True, seed=1),
    "llava": Recipe(((1.0, "robust"),), native=False, seed=2),
}


def stage_of(
    step: int, steps: int, noise_steps: int, compose_steps: int, cut_steps: int = 0
) -> tuple[Stage, float]:
    """The stage a step belongs to, and the learning rate relative to the highest.

    Args:
        step: counted over all stages.
        steps: of the main stage.
        noise_steps: of the second stage.
        compose_steps: of the third stage.
        cut_steps: of the fourth stage.
    """
    if step < steps:
        return MAIN, _rate(step / steps, warmup=200 / steps)
    step -= steps
    if step < noise_steps:
        return NOISE, 0.5 * _rate(step / 1300, warmup=0.05)
    step -= noise_steps
    if step < compose_steps or not cut_steps:
        return COMPOSE, 0.34 * _rate(step / compose_steps, warmup=0.0)
    return CUT, 0.34 * _rate((step - compose_steps) / cut_steps, warmup=0.03)


def _rate(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * half_cosine((progress - warmup) / (1 - warmup))
