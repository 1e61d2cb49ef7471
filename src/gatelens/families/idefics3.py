"""Idefics3 and SmolVLM: a picture cut into tiles, each named in the prompt, the whole of it last.

Laurençon et al. 2024, arXiv 2408.12637; Marafioti et al. 2025, arXiv 2504.05299. A tile is opened by
``<fake_token_around_image>`` and ``<row_1_col_1>``, rows of tiles end in a newline, the whole picture follows
after ``<global-img>``, and the first marker once more closes the picture. Only that marker is a token of its
own in every vocabulary: in those of Idefics3-8B and SmolVLM 2.2B the names of tiles are ordinary text, of which
the layout therefore asks nothing. Where ``newline, marker`` is read between tiles, a row of tiles ends.

Both resizes of the image processor map the whole picture to the whole tile grid, so pixel boxes need no more
than the number of tiles. SmolVLM's processor of transformers wants torchvision (for video) and num2words, and
is not needed. TransformerLens has the adapter of Idefics3, which does for SmolVLM as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge.supported_architectures.idefics3 import Idefics3ArchitectureAdapter

from gatelens.errors import InputError
from gatelens.families.common.base import Family, ids_of, token_id
from gatelens.families.common.geometry import Geometry
from gatelens.families.common.layout import Layout
from gatelens.families.common.plan import Picture, PicturePlan, chain, tiles
from gatelens.families.common.processing import Pictures, prepare_batch

PLACEHOLDER, MARKER, OVERVIEW = "<image>", "<fake_token_around_image>", "<global-img>"
TILE = "<row_{}_col_{}>"


@dataclass(frozen=True)
class Tiles:
    """Tiles of ``side`` x ``side`` tokens, ``pixels`` x ``pixels`` processed pixels each."""

    side: int
    pixels: int
    placeholder_id: int
    marker_id: int

    @property
    def pixel_size(self) -> tuple[int, int]:
        """(width, height) of each tile in ``pixel_values``."""
        return self.pixels, self.pixels

    def __call__(self, picture: Picture) -> PicturePlan:
        """The tiles, and the whole picture after them.

        Raises:
            InputError: the placeholders make no such tiles.
        """
        rows, cols = self.shape(picture.ids)
        size = picture.size or (max(cols, 1) * self.pixels, max(rows, 1) * self.pixels)
        whole = Geometry(size)
        overview = tiles(whole, size, 1, 1, self.side, first=0)
        parts = tiles(whole, size, rows, cols, self.side) if rows else []
        return chain([*parts, *overview])

    def shape(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of tiles, (0, 0) for a picture in one piece.

        Raises:
            InputError: the placeholders make no such tiles.
        """
        stretches = [(token, list(same)) for token, same in groupby(ids, self.placeholder_id.__eq__)]
        lengths = {len(same) for token, same in stretches if token}
        if lengths != {self.side**2}:
            raise InputError(
                f"tiles of {', '.join(map(str, sorted(lengths)))} {PLACEHOLDER}: "
                f"this model makes {self.side**2} of each"
            )
        between = [same for token, same in stretches if not token]
        rows = sum(same[0] != self.marker_id for same in between)  # a newline comes first where a row ends
        if not between:
            return 0, 0
        if not rows or len(between) % rows:
            raise InputError(
                f"{len(between)} tiles and {rows} newlines before {MARKER}: end every row of tiles by one"
            )
        return rows, len(between) // rows


def written(rows: int, cols: int, n_tokens: int) -> str:
    """The text in a prompt for a picture of ``rows`` x ``cols`` tiles."""
    tokens = PLACEHOLDER * n_tokens
    lines = [
        "".join(MARKER + TILE.format(row + 1, col + 1) + tokens for col in range(cols)) + "\n"
        for row in range(rows)
    ]
    return "".join(lines) + ("\n" if lines else "") + MARKER + OVERVIEW + tokens + MARKER


def process(n_tokens: int, processor: Any, pictures: Pictures, texts: list[str]) -> dict[str, Tensor]:
    """Tensors of a left-padded batch; ``pixel_values`` are [prompt, tile, 3, height, width], filled up with 0."""
    if not any(pictures):
        return prepare_batch(processor, texts, (), PLACEHOLDER)
    images = [list(one) for one in pictures]
    made = dict(processor.image_processor(images=images, return_row_col_info=True, return_tensors="pt"))
    rows, cols = ([int(n) for one in made.pop(name) for n in one] for name in ("rows", "cols"))
    shown = [written(r, c, n_tokens) for r, c in zip(rows, cols, strict=True)]
    return prepare_batch(processor, texts, shown, PLACEHOLDER, **made)


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of an Idefics3 or SmolVLM checkpoint."""
    images, vision = getattr(processor, "image_processor", None), config.vision_config
    pixels = vision.image_size if images is None else images.max_image_size["longest_edge"]
    side = pixels // vision.patch_size // config.scale_factor
    # without a tokenizer: the marker comes right before the placeholder in the vocabularies of the checkpoints below
    marker = token_id(getattr(processor, "tokenizer", None), MARKER)
    marker = config.image_token_id - 1 if marker is None else marker
    return Layout(
        placeholder_id=config.image_token_id,
        plan=Tiles(side, pixels, config.image_token_id, marker),
        boi_ids=ids_of(marker),
        eoi_ids=ids_of(marker),
        bos_id=config.text_config.bos_token_id,
        placeholder=PLACEHOLDER,
        pixels="example",
        within=lambda between: between.count(marker) == 1,  # a picture that ends closes, the next one opens
        process=partial(process, side**2),
    )


MARKERS = f"{MARKER} <row_1_col_1> … {OVERVIEW} … {MARKER}"

FAMILIES = (
    Family(
        name="idefics3",
        architectures=("Idefics3ForConditionalGeneration",),
        layout=layout,
        turn="User: {}<end_of_utterance>\nAssistant:",
        markers=MARKERS,
        grid="tiles of 13x13 (of 364x364 pixels), up to 4x4 of them, and the whole",
        checkpoints=(
            "HuggingFaceM4/Idefics3-8B-Llama3",
            "HuggingFaceTB/SmolVLM-Instruct",
            "HuggingFaceTB/SmolVLM-256M-Instruct",
        ),
        note="the first SmolVLM is this class too, with tiles of 9x9 or 8x8",
    ),
    Family(
        name="smolvlm",
        architectures=("SmolVLMForConditionalGeneration",),
        layout=layout,
        adapter=Idefics3ArchitectureAdapter,
        turn="<|im_start|>User: {}<end_of_utterance>\nAssistant:",
        markers=MARKERS,
        grid="tiles of 9x9 (of 384x384 pixels) or 8x8 (of 512x512), and the whole",
        checkpoints=("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
        note="SmolVLM2; pictures, no video",
    ),
)
