"""The paper's own numbers, shown next to a run of the same model: not results of this package."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Table 1 of Serra et al., arXiv 2412.06646, versions 1 and 2"
COLUMNS = (
    "VQAv2 (VQA accuracy)",
    "Flickr30k (CIDEr)",
    "MS-COCO (CIDEr)",
    "ImageNet (overlap with the classes)",
)
NOTE = (
    "Numbers as printed there, knockouts by zeroing after the softmax. Later versions of the paper give other CIDEr "
    "values for the unmodified model, so compare with the version named. Its ImageNet column is the share of "
    "neighbours of the same class (k = 30), not class accuracy; its [EOI] row cuts the end-of-image token from every "
    "later position, its image → text row cuts the image tokens with their start marker."
)
ROWS = ("none", "[EOI]", "image → text", "random (10 image tokens)")


@dataclass(frozen=True)
class Reference:
    """A published table for one model: ``rows`` are ``(attention cut, one number a column)``."""

    model: str
    rows: tuple[tuple[str, tuple[float, float, float, float]], ...]
    source: str = SOURCE
    columns: tuple[str, ...] = COLUMNS
    note: str = NOTE


def _reference(model: str, *numbers: tuple[float, float, float, float]) -> Reference:
    return Reference(model, tuple(zip(ROWS, numbers, strict=True)))


TABLE_1 = {
    "facebook/chameleon-7b": _reference(
        "Chameleon-7B",
        (0.51, 0.23, 0.35, 0.46),
        (0.25, 0.04, 0.03, 0.01),
        (0.40, 0.13, 0.21, 0.47),
        (0.51, 0.21, 0.31, 0.46),
    ),
    "facebook/chameleon-30b": _reference(
        "Chameleon-34B",  # the paper's name for what the hub calls 30b
        (0.59, 0.38, 0.42, 0.43),
        (0.39, 0.02, 0.02, 0.04),
        (0.50, 0.25, 0.28, 0.42),
        (0.58, 0.34, 0.38, 0.42),
    ),
    "mistral-community/pixtral-12b": _reference(
        "Pixtral-12B",
        (0.79, 0.51, 0.60, 0.63),
        (0.77, 0.53, 0.58, 0.61),
        (0.37, 0.00, 0.01, 0.06),
        (0.77, 0.46, 0.55, 0.61),
    ),
}


def reference_for(model: str) -> Reference | None:
    """The paper's numbers for a model by its hub name, or for a local folder that ends in that name."""
    parts = model.replace("\\", "/").rstrip("/").split("/")
    return TABLE_1.get("/".join(parts[-2:]).lower())
