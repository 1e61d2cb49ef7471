"""What a script of the gallery ends in, on its page and as its thumbnail.

A script ends in the thing it shows: a figure, axes, a table or a view. Tables and views are HTML, which sphinx-gallery
puts on the page by itself; here figures are added, and a picture of each for the index.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from tqdm.std import tqdm

from gatelens.plots.style import LIGHT, PAGE_DPI, png, styled
from gatelens.views.page import View

_STARTED = tqdm.__init__
SIZE = (960, 672)  # pixels of a thumbnail, twice what it is shown at
MARGIN = 24  # of white around what it shows
ROWS, COLUMNS = 7, 5  # of a table on a thumbnail
ORDER = [
    "lens_on_image_tokens",
    "head_map",
    "words_over_the_picture",
    "direct_logit_attribution",
    "heads_catalogue",
    "window_knockout",
    "zero_or_mask",
    "object_mask",
    "captions_under_a_knockout",
    "dropped_tokens",
    "resumable_sweep",
    "patching_map",
    "attribution_with_check",
    "path_patching",
    "circuit",
    "different_lengths",
    "two_models",
    "transformer_lens_tools",
    "head_ablation",
    "heads_alone",
    "steering_by_contrast",
    "probe_from_a_store",
    "sae_feature",
]


class Order:
    """The order of scripts in the index: looking, cutting, patching, changing, reading."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> tuple[int, str]:
        stem = Path(name).stem
        return (ORDER.index(stem) if stem in ORDER else len(ORDER)), stem


def reset(conf: dict[str, Any], name: str) -> None:
    """What every script starts with: no open figure, the house style, no progress bars."""
    plt.close("all")
    with styled(dark=False):
        house = mpl.rcParams.copy()
    mpl.rcParams.update(house)
    mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=[LIGHT.image, LIGHT.gate, LIGHT.third, LIGHT.neutral])
    mpl.rcParams["figure.constrained_layout.use"] = True
    tqdm.__init__ = _silent


def _silent(bar: tqdm, *args: Any, **options: Any) -> None:
    _STARTED(bar, *args, **{**options, "disable": True})


def scrape(block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """The figure a block ends in, or those its script has saved, as reStructuredText; thumbnails beside it."""
    value, script = variables["example_globals"].get("___"), Path(variables["src_file"])
    if value is None:  # the set-up, or a script that saves its pictures
        lines = []
        for made in sorted((script.parent / "papers").glob(f"{script.stem}*.png")):
            file = Path(next(variables["image_path_iterator"]))
            shutil.move(made, file)
            lines.append(
                f".. image:: /{file.relative_to(conf['src_dir']).as_posix()}\n   :alt: {script.stem}\n"
            )
        return "\n\n" + "\n".join(lines) + "\n"
    value = value.figure if isinstance(value, Axes) else value
    file = Path(next(variables["image_path_iterator"]))
    thumbnail(value, file)
    if not isinstance(value, Figure):
        return ""
    shown_file = file.with_name(f"{file.stem}_figure.png")
    shown_file.write_bytes(png(value))
    return image(shown_file, script.stem, conf, f"   :width: {round(value.get_figwidth() * PAGE_DPI)}px\n")


def image(file: Path, alt: str, conf: dict[str, Any], more: str = "") -> str:
    """A picture's lines of reStructuredText."""
    place = file.relative_to(conf["src_dir"]).as_posix()
    return f"\n\n.. image:: /{place}\n   :alt: {alt.replace('_', ' ')}\n   :class: figure\n{more}\n"


def thumbnail(value: Any, file: Path) -> None:
    """A picture of a value, written to a PNG file.

    Raises:
        TypeError: a value that is neither a figure, a table nor a view.
    """
    if isinstance(value, Figure):
        picture = Image.open(io.BytesIO(png(value)))
    elif isinstance(value, View):
        picture = photograph(value)
    elif isinstance(value, pd.DataFrame):
        picture = Image.open(io.BytesIO(png(drawn(value))))
    else:
        raise TypeError(
            f"{file.stem}: the script ends in {type(value).__name__}, not in a figure, table or view"
        )
    framed(picture.convert("RGB")).save(file)


def framed(picture: Image.Image) -> Image.Image:
    """The picture without its white margins, as large as the frame of all thumbnails takes it."""
    inside = ImageOps.invert(picture).getbbox()
    picture = picture.crop(inside) if inside else picture
    room = (SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN)
    scale = min(room[0] / picture.width, room[1] / picture.height, 2)
    size = (round(picture.width * scale), round(picture.height * scale))
    frame = Image.new("RGB", SIZE, "white")
    at = ((SIZE[0] - size[0]) // 2, (SIZE[1] - size[1]) // 2)
    frame.paste(picture.resize(size, Image.Resampling.LANCZOS), at)
    return frame


def drawn(table: pd.DataFrame) -> Figure:
    """The beginning of a table, drawn."""
    table = table if table.index.equals(pd.RangeIndex(len(table))) is True else table.reset_index()
    part = table.iloc[:ROWS, :COLUMNS]
    cells = [[shown(cell) for cell in row] for row in part.itertuples(index=False)]
    names = [shown(name) for name in part.columns]
    with styled(dark=False) as colors:
        figure = Figure(figsize=(6, 4.2), layout="none")
        axes = figure.add_axes((0.03, 0.03, 0.94, 0.94))
        axes.axis("off")
        widths = [max(map(len, column)) + 2 for column in zip(names, *cells, strict=True)]
        drawing = axes.table(
            cells, colLabels=names, loc="center", cellLoc="left", colWidths=[w / sum(widths) for w in widths]
        )
        drawing.auto_set_font_size(False)
        drawing.set_fontsize(min(15, 620 / sum(widths)))
        drawing.scale(1, 2)
        for (row, _), cell in drawing.get_celld().items():
            cell.visible_edges = "B"
            cell.set_edgecolor(colors.grid)
            cell.get_text().set_color(colors.soft if row == 0 else colors.ink)
    return figure


def shown(cell: Any) -> str:
    text = f"{cell:.2f}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= 22 else text[:21] + "…"


def photograph(view: View) -> Image.Image:
    """What a browser shows of a view.

    Raises:
        RuntimeError: there is no Chromium.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise RuntimeError("pictures of views need a browser: install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "view.html"), Path(folder, "shot.png")
        view.save(page)
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True, "timeout": 60}
        subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], **quiet)
        with Image.open(shot) as picture:
            return picture.convert("RGB")
