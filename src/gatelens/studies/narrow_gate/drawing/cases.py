"""What section *drawing* asks for: a scene in words, after the picture of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gatelens.data import Example, prompts

ASKED = {"colour asked": "a {o.name} on a {o.color} {o.shape}", "colour open": "a {o.name} on a {o.shape}"}
MEANS_OF = 200  # pictures whose gates the steering direction is made of, at most
SHOWN = 3


@dataclass(frozen=True)
class Case:
    """What is asked for, the picture before it, and a third one whose colour the gate is given.

    Neither class nor colour nor shape of the picture is what is asked for; the target's colour is of neither.
    ``form``: one of ASKED; ``number``: of the scene that is asked for.
    """

    asked: Example
    picture: Example
    target: Example
    form: str
    number: int

    @property
    def text(self) -> str:
        """The prompt, without the picture."""
        return prompts.DRAW_PROMPT.format(caption=ASKED[self.form].format(o=thing(self.asked)))

    @property
    def shown(self) -> bool:
        """Whether its drawings are on the page: the first ones are, whatever they show."""
        return self.number < SHOWN


def thing(example: Example) -> Any:
    """The object of a scene that has one."""
    return example.meta["objects"][0]


def image_of(example: Example) -> Image.Image:
    """Its picture, which a study has made sure of."""
    assert example.image is not None
    return example.image


def make_cases(asked: Sequence[Example], pool: Sequence[Example]) -> list[Case]:
    """Cases in the order of ``asked``, one a form; what finds no partner in ``pool`` is left out."""
    cases: list[Case] = []
    for i, wanted in enumerate(asked):
        a = thing(wanted)
        turned = [*pool[i % max(len(pool), 1) :], *pool[: i % max(len(pool), 1)]]
        for picture in turned:
            p = thing(picture)
            if p.name == a.name or p.color == a.color or p.shape == a.shape:
                continue
            target = next((t for t in turned if thing(t).color not in (a.color, p.color)), None)
            if target is not None:
                cases += [Case(wanted, picture, target, form, len(cases) // len(ASKED)) for form in ASKED]
                break
    return cases


def unseen(pool: Sequence[Example], cases: Sequence[Case]) -> list[Example]:
    """The pictures that the colour directions of these cases are made of: those that none of them shows."""
    shown = {id(c.picture) for c in cases}
    return [e for e in pool if id(e) not in shown][:MEANS_OF]


def with_directions(pool: Sequence[Example], cases: Sequence[Case]) -> list[Case]:
    """The cases whose two colours both have a picture to take a mean of; few pictures lack some."""
    known = {thing(e).color for e in unseen(pool, cases)}
    return [c for c in cases if {thing(c.picture).color, thing(c.target).color} <= known]
