"""What the organisms are trained on, and when: phases, stages and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gatelens.training.loop import half_cosine


@dataclass(frozen=True)
class Recipe:
    """Phases are (share of the steps, route); the learning rate falls along a half cosine over all of them.

    ``scenes`` is the data set whose scenes it is trained and measured on.
    """

    phases: tuple[tuple[float, str], ...]
    native: bool
    seed: int
    scenes: str = "emoji-scenes"

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

    ``cut`` is how many of the pictures read a step are read again with the gate cut, and blind;
    ``presence`` how many questions more a document of scenes asks of what is there.
    """

    batch: int
    draw_batch: int
    draw_weight: float
    noise: float = 0.0
    unnamed: float = 0.0
    cut: int = 0
    presence: int = 0


MAIN = Stage(batch=16, draw_batch=8, draw_weight=0.1)
NOISE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6)
COMPOSE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6, unnamed=0.5)
CUT = Stage(batch=8, draw_batch=12, draw_weight=0.5, noise=0.6, unnamed=0.5, cut=8, presence=4)
PRESENCE = Stage(batch=12, draw_batch=0, draw_weight=0.0, presence=6)

GATED: tuple[tuple[float, str], ...] = ((0.6, "masked"), (0.4, "swapped"))
RECIPES = {
    "gated": Recipe(GATED, native=True, seed=0),
    "varied": Recipe(GATED, native=True, seed=0, scenes="varied-scenes"),
    "open": Recipe(((1.0, "robust"),), native=True, seed=1),
    "llava": Recipe(((1.0, "robust"),), native=False, seed=2),
}


# steps, what they train on, and the learning rate relative to the highest after a share of them
Part = tuple[int, Stage, Callable[[float], float]]


def schedule(
    native: bool, steps: int, noise: int = 0, compose: int = 0, cut: int = 0, presence: int = 0
) -> list[Part]:
    """The stages of an organism, one after the other: steps of the main stage, then of those its kind has."""
    main: Part = (steps, MAIN, lambda done: _rate(done, warmup=200 / steps))
    if not native:
        return [main, (presence, PRESENCE, lambda done: 0.34 * _rate(done, warmup=0.03))]
    return [
        main,
        (noise, NOISE, lambda done: 0.5 * _rate(done * noise / 1300, warmup=0.05)),
        (compose, COMPOSE, lambda done: 0.34 * _rate(done, warmup=0.0)),
        (cut, CUT, lambda done: 0.34 * _rate(done, warmup=0.03)),
    ]


def stage_of(step: int, parts: Sequence[Part]) -> tuple[Stage, float]:
    """The stage a step belongs to, counted over all of them, and the learning rate relative to the highest."""
    left = step
    for n, stage, rate in parts:
        if left < n:
            return stage, rate(left / n)
        left -= n
    raise ValueError(f"step {step} is past the end of a schedule of {step - left} steps")


def _rate(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * half_cosine((progress - warmup) / (1 - warmup))
