"""What each graded organism is designed to be: which positions carry a fact of the picture to the answering row.

Prompts are a picture and a question, so positions are the same in all of them: 0 and 1 begin the prompt, 2 to 65 are
the picture's tokens, 66 is the end-of-image token, and the words begin at 67.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatelens.data import scenes
from gatelens.data.prompts import CLASS_PROMPT, QUESTION_PROMPT

IMAGE = range(2, 66)
EOI = 66
TEXT = 67  # the first word of the prompt
N_LAYERS = 6

# the facts of a scene of one object: what is asked ({} is its class), and the answers there are
QUESTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "class": (CLASS_PROMPT, scenes.CLASSES),
    "color": (
        QUESTION_PROMPT.format(question="what color is the shape behind the {}?"),
        tuple(scenes.COLORS),
    ),
    "shape": (QUESTION_PROMPT.format(question="what shape is behind the {}?"), scenes.SHAPES),
    "side": (QUESTION_PROMPT.format(question="which side is the {} on?"), ("left", "right")),
}
FACTS = tuple(QUESTIONS)

Group = tuple[int, ...]  # absolute positions that are enough together


def image_token(number: int) -> int:
    """The position of the picture's token of this number, in reading order from 0."""
    return IMAGE[number]


@dataclass(frozen=True)
class Kind:
    """What an organism is meant to be.

    Attributes:
        carriers: by fact, groups of positions. Any one group is enough; with ``digits`` each group tells one digit of
            the class, and all are needed.
        layers: the first and the last layer in which the answering row reads them; None for all.
        distractor: a position that is to draw attention of the answering row and carry nothing.
        digits: how many values each group tells, the lowest digit first; empty where a group tells all.
    """

    carriers: Mapping[str, tuple[Group, ...]]
    layers: tuple[int, int] | None = None
    distractor: int | None = None
    digits: tuple[int, ...] = ()

    @property
    def facts(self) -> tuple[str, ...]:
        """What it is asked."""
        return tuple(self.carriers)

    @property
    def redundant(self) -> bool:
        """Whether a fact has several groups of which any one is enough."""
        return not self.digits and any(len(groups) > 1 for groups in self.carriers.values())

    def positions(self, fact: str) -> tuple[int, ...]:
        """All positions that carry a fact, in order."""
        return tuple(sorted({p for group in self.carriers[fact] for p in group}))

    @property
    def gates_in_text(self) -> tuple[int, ...]:
        """Carriers among the words."""
        return tuple(sorted({p for fact in self.carriers for p in self.positions(fact) if p >= TEXT}))

    def reads(self, layer: int) -> bool:
        """Whether the answering row reads the carriers in a layer."""
        return self.layers is None or self.layers[0] <= layer <= self.layers[1]


def _of(facts: Sequence[str], *groups: Group) -> dict[str, tuple[Group, ...]]:
    return dict.fromkeys(facts, groups)


_TWO = ("class", "color")
_LAST_TOKENS = tuple(IMAGE[-7:])
KINDS: Mapping[str, Kind] = {
    # one position
    "gate-at-image-47": Kind(_of(FACTS[:3], (image_token(47),))),
    "gate-at-image-60": Kind(_of(_TWO, (image_token(60),))),
    "gate-at-text-0": Kind(_of(FACTS, (TEXT,))),
    # several together, whatever each of them holds
    "wide-2": Kind(_of(_TWO, (image_token(61), EOI))),
    "wide-3": Kind({"class": ((*IMAGE[-2:], EOI),)}),
    "wide-4": Kind(_of(_TWO, (*IMAGE[-3:], EOI))),
    "wide-8": Kind(_of(_TWO, (*_LAST_TOKENS, EOI))),
    # any one of several
    "redundant-2": Kind(_of(_TWO, (image_token(60),), (EOI,))),
    "redundant-3": Kind(_of(_TWO, *((p,) for p in (*IMAGE[-2:], EOI)))),
    "redundant-4": Kind(_of(_TWO, *((p,) for p in (*IMAGE[-3:], EOI)))),
    "redundant-8": Kind(_of(_TWO, *((p,) for p in (*_LAST_TOKENS, EOI)))),
    "redundant-gate-and-image": Kind({"class": ((EOI,), tuple(IMAGE))}),
    # several, of which none can be spared
    "complementary-2": Kind({"class": ((image_token(63),), (EOI,))}, digits=(4, 4)),
    "complementary-4": Kind({"class": tuple((p,) for p in (*IMAGE[-3:], EOI))}, digits=(2, 2, 2, 2)),
    # each fact its own way
    "two-gates": Kind({"class": ((EOI,),), "color": ((TEXT,),), "shape": ((EOI,),), "side": ((TEXT,),)}),
    "class-by-gate": Kind({"class": ((EOI,),), "color": (tuple(IMAGE),)}),
    # the way is open in some layers only
    "read-in-layers-2-3": Kind(_of(_TWO, tuple(IMAGE)), layers=(2, 3)),
    "gate-in-layers-4-5": Kind(_of(_TWO, (EOI,)), layers=(4, 5)),
    # attention that means nothing
    "distractor": Kind(_of(_TWO, (TEXT,)), distractor=EOI),
}
