"""Emu3: one decoder over text and VQ image tokens, pictures of any shape written row by row.

Wang et al. 2024, arXiv 2409.18869. A picture is ``<|image start|>`` rows``*``columns ``<|image token|>``, the
tokens of each row and a row break, end of frame, ``<|image end|>``. transformers puts the codes and the row
breaks at placeholders; a picture the model draws has them as ids of its own vocabulary.

Pictures prepared together are padded to a common shape before the VQ encoder, whose norms and attention see
the padding: the codes of a picture depend on the shapes of the others, in transformers as here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gatelens.errors import InputError, ModelError
from gatelens.families.common.base import Family, ids_of
from gatelens.families.common.layout import Drawn, Layout
from gatelens.families.common.plan import Picture, PicturePlan, resized_grid

BOI, EOI = "<|image start|>", "<|image end|>"
END_OF_ROW, END_OF_FRAME = "<|extra_200|>", "<|extra_201|>"
CODE = "<|visual token"  # what the names of all codes begin with
SIZES = "image_sizes"


@dataclass(frozen=True)
class RowsWithBreaks:
    """As many rows and columns as the resized picture has cells; a row break after each row."""

    cell: int

    def __call__(self, picture: Picture) -> PicturePlan:
        if SIZES not in picture.tensors:
            raise InputError(
                f"Emu3 pictures may have any shape: give {SIZES}, (height, width) of each resized"
            )
        height, width = (int(side) for side in picture.tensors[SIZES])
        rows, cols = height // self.cell, width // self.cell
        return resized_grid(picture, rows, cols, (width, height), breaks=True)


def layout(config: Any, processor: Any = None) -> Layout:
    """Image tokens of an Emu3 checkpoint.

    Raises:
        ModelError: its vocabulary map is missing.
    """
    vocabulary = config.vocabulary_map or {}
    for name in ("<image>", END_OF_ROW):
        if name not in vocabulary:
            raise ModelError(
                f"this Emu3 config has no '{name}' in vocabulary_map: load it with its config.json"
            )
    cell = 2 ** (len(config.vq_config.channel_multiplier) - 1)
    end_of_frame = vocabulary.get(getattr(processor, "eof_token", END_OF_FRAME))
    return Layout(
        placeholder_id=vocabulary["<image>"],
        plan=RowsWithBreaks(cell),
        drawn=Drawn(ids_of(*(i for name, i in vocabulary.items() if name.startswith(CODE))), cell),
        boi_ids=ids_of(vocabulary.get(getattr(processor, "image_start_token", BOI))),
        eoi_ids=ids_of(vocabulary.get(getattr(processor, "image_end_token", EOI))),
        inner_ids=ids_of(vocabulary[END_OF_ROW], end_of_frame),
        bos_id=config.text_config.bos_token_id,
        placeholder=getattr(processor, "image_token", "<image>"),
        evidence=(SIZES,),
    )


FAMILY = Family(
    name="emu3",
    architectures=("Emu3ForConditionalGeneration",),
    layout=layout,
    turn="You are a helpful assistant. USER: {} ASSISTANT:",
    markers=f"{BOI} … {EOI}",
    grid="any shape, a token for 8x8 resized pixels",
    checkpoints=("Emu3-community/Emu3-Chat-hf", "Emu3-community/Emu3-Gen-hf"),
    note="VQ image tokens in one vocabulary; row breaks; the header with the size counts as boi",
)
