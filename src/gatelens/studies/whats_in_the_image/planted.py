"""What was planted in the organisms, as outcomes the study must come to."""

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


_DIRECT = (
    "it was trained with the image tokens in sight of all text, {hidden} hidden in half of the documents and a random "
    "fifth of the image tokens hidden in half: the text learned to read the image tokens directly"
)
PLANTED = {
    "organism:gated": Planted(
        "it was trained so that text reaches the picture only through the end-of-image token, which is one of the "
        "prompt's tokens that are no image token",
        QUERY,
        GENERATED,
    ),
    "organism:open": Planted(_DIRECT.format(hidden="the end-of-image token"), GENERATED, QUERY),
    "organism:llava": Planted(_DIRECT.format(hidden="the first token after the image"), GENERATED, QUERY),
}
