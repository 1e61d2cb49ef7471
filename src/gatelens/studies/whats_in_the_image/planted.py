"""What was planted in the organisms, as outcomes the study must find."""

from __future__ import annotations

from dataclasses import dataclass

from gatelens.studies.whats_in_the_image.configurations import GENERATED, QUERY


@dataclass(frozen=True)
class Planted:
    """The known answer of one organism.

    Attributes:
        truth: what was planted, in a sentence.
        carries: the path whose knockout must take away most of what the picture is worth.
        other: the path whose knockout must leave clearly more than that of ``carries``.
    """

    truth: str
    carries: str
    other: str


_GATED = Planted(
    "trained so that text can reach the picture only through the end-of-image token, which is a query token.",
    QUERY,
    GENERATED,
)
_DIRECT = "trained so that text reads the image tokens directly; {hidden} was often hidden."
PLANTED = {
    "organism:gated": _GATED,
    "organism:varied": _GATED,
    "organism:open": Planted(_DIRECT.format(hidden="the end-of-image token"), GENERATED, QUERY),
    "organism:llava": Planted(_DIRECT.format(hidden="the first token after the image"), GENERATED, QUERY),
}
