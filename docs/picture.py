"""Draw the picture of the README: where two words look, and what cutting the paths of the picture costs two models.

python docs/picture.py docs/picture.png
"""

from __future__ import annotations

import sys

import numpy as np
from matplotlib.axes import Axes

import gatelens as gl
from gatelens.data import Example
from gatelens.measures.stats import wilson_interval
from gatelens.plots.bars import interval_bars
from gatelens.plots.overlay import draw_heat, parts_of, show_picture
from gatelens.plots.style import NotebookFigure, Palette, styled

N = 200
SCENE, WORDS = "test-caption-0-8", ("camera", "elephant")
MODELS = ("organism:gated", "organism:llava")
CUTS = {
    "nothing cut": [],
    "end-of-image → text cut": gl.knockout("text - gate", "gate", how="zero"),
    "image tokens → text cut": gl.knockout("text - gate", "image", how="zero"),
}


def draw_words(axes: list[Axes], model: gl.HookedVLM, scene: Example) -> None:
    """The picture, and for each word its attention over it: in the layer that looks there most, mean over heads."""
    inputs = model.prepare(scene.image, "<image>describe the image.")
    written = gl.words_table(model, model.generate(inputs, return_type="map", max_new_tokens=14))
    (part,) = parts_of(written.tokens, 0, 0)
    seen = written.attention.mean(1)[:, :, part.positions].float().numpy()  # layer, word, image token
    spelled = [word.strip() for word in written.words.word]
    show_picture(axes[0], scene.image)
    axes[0].set_title("“" + " ".join(spelled[:5]) + " …”", fontsize=9)
    for ax, word in zip(axes[1:], WORDS, strict=True):
        values = seen[:, spelled.index(word)]
        layer = int(values.sum(-1).argmax())
        show_picture(ax, scene.image, grey=True)
        draw_heat(ax, part.boxes, values[layer], float(values[layer].max()))
        ax.set_title(f"“{word}” looks (layer {layer})", fontsize=9)


def draw_cuts(axes: Axes, model: gl.HookedVLM, data: list[Example], p: Palette) -> None:
    """Accuracy on the class of the object under each cut, with Wilson intervals."""
    table = gl.sweep(model, data, {"cut": CUTS}, gl.metrics.answer())
    right = table.groupby("cut", sort=False).value.sum().round().astype(int)
    low, high = np.transpose([wilson_interval(k, len(data)) for k in right])
    places = np.arange(len(right))[::-1]
    interval_bars(
        axes,
        places,
        right / len(data),
        low,
        high,
        color=[p.neutral, p.gate, p.image],
        ink=p.ink,
        horizontal=True,
    )
    axes.set_yticks(places, list(CUTS))
    axes.set(xlim=(0, 1.02), xlabel=f"class of the object named correctly (n = {len(data)})")


def main(out: str) -> None:
    data = gl.data.load("emoji-scenes")
    scene = next(e for e in data.examples("caption", limit=20) if e.id == SCENE)
    asked = data.examples("class", limit=N)
    with styled(False) as p:
        figure = NotebookFigure(figsize=(9.6, 5.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        draw_words(list(above.subplots(1, 3)), gl.HookedVLM.from_pretrained("organism:llava"), scene)
        for name, ax in zip(MODELS, below.subplots(1, 2, sharey=True), strict=True):
            draw_cuts(ax, gl.HookedVLM.from_pretrained(name), asked, p)
            ax.set_title(name, fontsize=10)
        figure.savefig(out, dpi=160)


if __name__ == "__main__":
    main(sys.argv[1])
