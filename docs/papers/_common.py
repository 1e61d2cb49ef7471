"""Shared code of the scripts in this folder: options, figures of tables, and where a figure is saved."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import gatelens as gl
from gatelens.plots.curve import curves as draw
from gatelens.plots.style import SeriesStyle
from gatelens.plots.value_maps import Bars, Grid, value_figure

COLOURS = ("image", "gate", "third", "neutral", "ink")


def options(doc: str, model: str, n: int, data: str = "emoji-scenes") -> argparse.Namespace:
    """The options of a script: its docstring as help, and defaults that run in seconds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=model, help="an organism, a folder or a name of the hub")
    parser.add_argument("--data", default=data, help="a data set's name, or a folder")
    parser.add_argument("--n", type=int, default=n, help="number of examples (or pairs)")
    parser.add_argument("--out", type=Path, default=Path("papers"), help="folder for the figure")
    parser.add_argument("--device", help="cuda, mps, cpu")
    parser.add_argument("--dtype", help="bfloat16, float16, float32")
    in_notebook = Path(sys.argv[0]).stem.endswith("kernel_launcher")  # its arguments are Jupyter's
    args = parser.parse_args([] if in_notebook else None)
    args.load = {"device": args.device, "dtype": args.dtype}
    return args


def curves(table: pd.DataFrame, by: str, ylabel: str, title: str = "", x: str = "layer", **more: Any) -> Any:
    """A curve for each value of ``by``: means of the column ``value`` over examples, with 95 % intervals."""
    columns = [by, x, *(more[name] for name in ("rows", "columns") if name in more)]
    means = gl.measures.summary(table, columns, "value", "example", bounds=None)
    series = [SeriesStyle(key, color=color) for key, color in zip(means[by].unique(), COLOURS, strict=False)]
    return draw(means, series, by=by, x=x, title=title, ylabel=ylabel, ylim=more.pop("ylim", None), **more)


def bars(table: pd.DataFrame, by: str, unit: str, title: str = "") -> Any:
    """A bar for each value of ``by``: the mean of the column ``value`` over examples, with its 95 % interval."""
    m = gl.measures.summary(table, [by], "value", "example", bounds=None)
    of = Bars(list(m[by]), m["mean"].to_numpy(), low=m["low"].to_numpy(), high=m["high"].to_numpy(), label=by)
    return value_figure(unit=unit, signed=False, title=title, bars=of)


def heat(cells: pd.DataFrame, unit: str, title: str = "", signed: bool = False) -> Any:
    """The cells of a table as colours; its index and columns name them."""
    rows, columns = ([str(name) for name in axis] for axis in (cells.index, cells.columns))
    grid = Grid(cells.to_numpy(dtype=float), rows, columns, str(cells.index.name), str(cells.columns.name))
    return value_figure(unit=unit, signed=signed, title=title, grid=grid)


def save(figure: Any, args: argparse.Namespace, part: str = "") -> None:
    """Save a figure under the script's name in the folder of the picture."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{Path(sys.argv[0]).stem}{part}.png"
    figure.savefig(path, dpi=160)
    print(f"picture: {path}")
