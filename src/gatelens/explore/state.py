"""What the page asks for: the settings of its controls, checked before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gatelens.errors import GatelensError, InputError

QUERIES = {"text": "text - gate", "gate": "gate", "image": "image", "answer": "last | generated"}
KEYS = {
    "image": "image",
    "gate": "gate",
    "region": "{region}",
    "outside": "image - {region}",
    "text": "text - gate",
}
MOST_LAYERS, MOST_HEADS = 1000, 1000
LONGEST_PROMPT = 4000  # characters
STRONGEST = 20.0  # times the steering direction


class ControlError(InputError):
    """An error that belongs to one control of the page.

    Attributes:
        control: the field of :class:`State`.
    """

    def __init__(self, control: str, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.control = control


def _ordered(layers: tuple[int, int]) -> tuple[int, int]:
    if layers[0] > layers[1]:
        raise ValueError("give the first layer, then the last")
    return layers


def _box(region: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = region
    if not (x0 < x1 and y0 < y1):
        raise ValueError("give a box of at least a pixel: left, top, right, bottom")
    return region


Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
LayerRange = Annotated[tuple[Layer, Layer], AfterValidator(_ordered)]
Pixel = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Cell = tuple[
    Literal["text", "gate", "image", "answer"], Literal["image", "gate", "region", "outside", "text"]
]
Identity = Annotated[str, Field(max_length=100)]


class State(BaseModel):
    """The controls of the page. Layers are given as the first and the last one.

    Attributes:
        picture, second: ids of :class:`gatelens.explore.shelf.Shelf`.
        prompt, chat: as ``model.prepare`` takes them.
        region: a box on the picture in its pixels (left, top, right, bottom).
        cut: the attention that is knocked out: queries → keys by name, in ``cut_layers`` and ``cut_heads``.
        patch: what is taken from the second picture, in ``patch_layers``: the residual stream at the gate or region.
        steer: how often the direction is added at ``steer_at``, entering ``steer_layer``; 0 is not at all.
        toward: where it points: to the second picture (``"second"``) or to a class (``"class:NAME"``).
        look_at: the prompt position whose attention and lens are shown; None is the last.
        look_layer, look_head: whose attention; no head is the mean of all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    picture: Identity
    second: Identity | None = None
    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)]
    chat: bool = False
    region: Annotated[tuple[Pixel, Pixel, Pixel, Pixel], AfterValidator(_box)] | None = None
    cut: Annotated[tuple[Cell, ...], Field(max_length=len(QUERIES) * len(KEYS))] = ()
    cut_layers: LayerRange = (0, 0)
    cut_heads: (
        Annotated[
            tuple[Annotated[int, Field(ge=0, lt=MOST_HEADS)], ...], Field(min_length=1, max_length=MOST_HEADS)
        ]
        | None
    ) = None
    how: Literal["mask", "zero"] = "mask"
    patch: Literal["off", "gate", "region"] = "off"
    patch_layers: LayerRange = (0, 0)
    steer: Annotated[float, Field(ge=-STRONGEST, le=STRONGEST, allow_inf_nan=False)] = 0.0
    toward: Annotated[str, Field(max_length=200)] = "second"
    steer_at: Annotated[str, Field(min_length=1, max_length=500)] = "gate"
    steer_layer: Layer = 0
    look_at: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    look_layer: Layer = 0
    look_head: Annotated[int, Field(ge=0, lt=MOST_HEADS)] | None = None

    def region_selector(self, size: tuple[int, int]) -> str:
        """The region in the language of selectors.

        Args:
            size: of the picture, width and height.

        Raises:
            ControlError: there is none, or it is outside the picture.
        """
        if self.region is None:
            raise ControlError("region", "no region is drawn: drag a box on the picture")
        if self.region[0] >= size[0] or self.region[1] >= size[1]:
            raise ControlError(
                "region",
                f"the region lies outside the picture of {size[0]} × {size[1]} pixels: drag a box on it",
            )
        return "image.box({:.10g},{:.10g},{:.10g},{:.10g})".format(*self.region)


def read_state(sent: Any) -> State:
    """The state that the page sent as JSON.

    Raises:
        ControlError: a field with a value that it cannot have, or an unknown one.
    """
    try:
        return State.model_validate_json(json.dumps(sent), strict=True)
    except (ValidationError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise ControlError("page", f"the page sent what is not a state: {error}") from error
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        control = str(first["loc"][0]) if first["loc"] else "page"
        name = control if control in State.model_fields else "page"
        raise ControlError(name, f"{control:.60}: {first['msg'].removeprefix('Value error, ')}") from error


@contextmanager
def belonging_to(control: str) -> Iterator[None]:
    """What goes wrong within the block is shown at this control of the page.

    Raises:
        ControlError: for any GatelensError.
    """
    try:
        yield
    except ControlError:
        raise
    except GatelensError as error:
        raise ControlError(control, str(error)) from error
