"""The logit lens on the picture: what each image token would say at each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gatelens.errors import DataError
from gatelens.plots.overlay import Part
from gatelens.readouts.lens import LogitLens
from gatelens.views.packing import as_base64
from gatelens.views.page import View, render
from gatelens.views.prompts import MOST_OF_A_TOKEN, Prompt, prompt_of

MOST_CELLS = 600_000  # layers × positions × words on a page: 8 bytes each
ROOM = 60  # pixels of a token, so that most words fit
NARROWEST = 42  # on a small screen
WIDEST = 1140


@dataclass(frozen=True, eq=False, repr=False)
class LensView(View):
    """The lens of one prompt.

    Attributes:
        title: of the page.
        prompt: whose.
        lens: of this prompt alone.
        parts: the image tokens that the lens has, by picture and part.
        others: numbers of the lens' positions that are on no picture.

    Example:
        >>> view = gl.views.lens(gl.logit_lens(model, inputs, at="image", targets="sunflower"))
        >>> view.save(folder / "lens.html").name
        'lens.html'
    """

    title: str
    prompt: Prompt
    lens: LogitLens
    parts: tuple[Part, ...]
    others: tuple[int, ...]

    def __repr__(self) -> str:
        layers, positions, _ = self.lens.tensor.shape
        return f"LensView({self.title}; {layers} layers, {positions} positions)"

    def page(self) -> str:
        """The view as one HTML document."""
        kinds = self.lens.axes["word"]
        note = (
            "What the model would say at each image token if it stopped at that layer: the stream entering the layer "
            "through the final norm and the unembedding. The last layer is the model's own output."
        )
        return render(
            "lens.html.j2",
            ["overlay.js", "lens.js"],
            self.data(),
            title=self.title,
            note=note if self.prompt.given else f"{note} No picture was given.",
            layers=self._layers,
            targets=[str(name) for name in kinds[kinds["kind"] == "target"]["target"]],
            tops=int((kinds["kind"] == "top").sum()),
            others=[(i, self.prompt.word(int(self._positions[i]))) for i in self.others],
        )

    def figure(self, target: str = "top 0", dark: bool = False) -> Figure:
        """One word of each token, a panel a layer, as a still picture: ``figure().savefig("lens.png")``.

        Args:
            target: as in the lens: ``top 0`` is the likeliest token, or a target that was asked for.
            dark: draw on dark ground.

        Raises:
            DataError: the lens has no such target.
        """
        return self.lens.sel(target=target).show(dark=dark)

    @property
    def _layers(self) -> list[int]:
        return [int(layer) for layer in self.lens.axes["layer"]["layer"]]

    @property
    def _positions(self) -> np.ndarray:
        return self.lens.axes["position"]["position"].to_numpy(dtype=int)

    def data(self) -> dict[str, Any]:
        """What the script of the page reads: numbers by layer, position and word."""
        words, ids = np.unique(np.asarray(self.lens.columns["word"], dtype=str), return_inverse=True)
        number = {int(p): i for i, p in enumerate(self._positions)}
        columns = max((_columns(part) for part in self.parts), default=1)
        panels = [
            {
                **self.prompt.panel(part, min(WIDEST, max(ROOM * columns, 448))),
                "least": NARROWEST * _columns(part),
                "rows": [number[p] for p in part.positions],
            }
            for part in self.parts
        ]
        return {
            "panels": panels,
            "layers": self._layers,
            "n": list(self.lens.tensor.shape),
            "kinds": self.lens.axes["word"]["kind"].tolist(),
            "targets": self.lens.axes["word"]["target"].astype(str).tolist(),
            "words": [_shown(str(word)) for word in words],
            "ids": as_base64(ids.reshape(self.lens.tensor.shape).astype(np.int32)),
            "probability": as_base64(np.exp(self.lens.tensor.float().numpy()).astype(np.float32)),
            "rank": as_base64(np.asarray(self.lens.columns["rank"]).astype(np.int32)),
        }


def lens(lens: LogitLens, example: int = 0) -> LensView:
    """The logit lens on the picture: the likeliest token of each image token, layer by layer; a list for each.

    Args:
        lens: from ``gl.logit_lens(model, inputs, at="image")``. Targets that it has can be shown too, by probability
            and rank; other positions, such as ``last``, are below.
        example: which prompt of the batch.

    Raises:
        DataError: no logit lens, no image token of this prompt in it, or too many numbers for a page.

    Example:
        >>> view = gl.views.lens(gl.logit_lens(model, inputs, at="image", targets="sunflower"))
        >>> view
        LensView(Logit lens on the picture; 7 layers, 64 positions)
        >>> view.save(folder / "lens.html").name  # or view.figure().savefig("lens.png")
        'lens.html'
    """
    if not isinstance(lens, LogitLens):
        raise DataError(
            f"lens: a {type(lens).__name__} is none: give gl.logit_lens(model, inputs, at='image')"
        )
    prompt = prompt_of("lens", lens.tokens, example, lens.images if any(lens.images) else None)
    labels = lens.axes["position"]
    if example not in set(labels["example"]):
        raise DataError(f"lens: it has no position of prompt {example}: read at='image' of that prompt too")
    mine = lens.sel(example=example)
    if mine.tensor.numel() > MOST_CELLS:
        raise DataError(
            f"lens: {mine.tensor.numel():,} words do not fit on a page: give logit_lens fewer layers or a smaller top="
        )
    there = mine.axes["position"]["position"].tolist()
    parts = [kept for part in prompt.parts if (kept := part.only(there)).positions]
    if not parts:
        raise DataError("lens: no image token with a place in the picture: read at='image'")
    placed = {p for part in parts for p in part.positions}
    one = LogitLens(mine.tensor, mine.axes, mine.quantity, mine.tokens, mine.images, mine.columns)
    title = "Logit lens on the picture"
    title += f", prompt {example}" if prompt.tokens.batch_size > 1 else ""
    return LensView(
        title, prompt, one, tuple(parts), tuple(i for i, p in enumerate(there) if p not in placed)
    )


def _columns(part: Part) -> int:
    """About how many tokens are side by side on the part."""
    width = float(part.boxes[:, 2].max() - part.boxes[:, 0].min())
    return max(1, round(width / max(1e-6, float(np.median(part.boxes[:, 2] - part.boxes[:, 0])))))


def _shown(word: str) -> str:
    said = word.replace("\n", "⏎")
    return said if len(said) <= MOST_OF_A_TOKEN else f"{said[: MOST_OF_A_TOKEN - 1]}…"
