"""How a labelled tensor is drawn: which of its numbers are shown over the picture, in a grid or as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gatelens.errors import DataError
from gatelens.plots.numbers import signed
from gatelens.plots.value_maps import Bars, Grid, PicturePanels, value_figure
from gatelens.tokens import TokenMap

MOST_PANELS = 32
MOST_BARS = 24


@dataclass(frozen=True)
class Prompts:
    """The prompts values belong to, and which picture of each is drawn."""

    tokens: TokenMap
    images: Sequence[Sequence[Image.Image]]
    image: int

    def places(self, example: int) -> list[int]:
        """The image tokens with a place in the picture; of one that is cut up, those of its tiles."""
        tokens, pictures = self.tokens, self.images[example] if example < len(self.images) else ()
        if not pictures:
            return []
        if not 0 <= self.image < len(pictures):
            raise DataError(f"image={self.image}: the prompt has {len(pictures)} picture(s), from 0 on")
        placed = self._placed(example) & (tokens.image_index[example] == self.image)
        tiles = placed & (tokens.tile[example] > 0)
        return (tiles if bool(tiles.any()) else placed).nonzero().flatten().tolist()

    def _placed(self, example: int) -> Bool[Tensor, " pos"]:
        return ~self.tokens.box[example].isnan().any(-1) & (self.tokens.row[example] >= 0)

    def panels(
        self, example: int, values: Mapping[str, pd.Series], texts: Mapping[str, pd.Series] | None = None
    ) -> tuple[PicturePanels | None, list[int]]:
        """Values by position over the picture, where two at least have a place in it; and the positions left over.

        Those of other pictures are not part of either.
        """
        have = next(iter(values.values())).index
        places = [at for at in self.places(example) if at in have]
        if len(places) < 2:
            return None, have.tolist()
        boxes = self.tokens.box[example, places].float().numpy()
        panels = {name: one[places].to_numpy(dtype=float) for name, one in values.items()}
        words = {name: one[places].tolist() for name, one in (texts or {}).items()}
        placed = self._placed(example).nonzero().flatten().tolist()
        return PicturePanels(self.images[example][self.image], boxes, panels, words), [
            at for at in have.tolist() if at not in placed
        ]

    def words(self, example: int, positions: Sequence[int]) -> list[str]:
        """The tokens at positions, with their numbers."""
        words = [self.tokens.strings[example][int(at)].strip() for at in positions]
        short = [word if len(word) <= 14 else f"{word[:13]}…" for word in words]
        return [f"{word} {int(at)}" for word, at in zip(short, positions, strict=True)]


def draw(
    table: pd.DataFrame,
    axes: Mapping[str, pd.DataFrame],
    quantity: str,
    prompts: Prompts,
    title: str = "",
    signed: bool = False,
    dark: bool = False,
) -> Figure:
    """The picture of a labelled tensor.

    Args:
        table: one row per cell.
        axes: the labels of each dimension.
        quantity: what a value is.
        prompts: to which positions belong.
        signed: colours are symmetric about 0 also where all numbers are on one side of it.

    Raises:
        DataError: several prompts, or more than two dimensions, where a picture has room for one.
    """
    values = table["value"]
    signed = signed or bool((values < 0).any() and (values > 0).any())
    style = {"unit": quantity, "signed": signed, "dark": dark}
    if "kind" in table and "part" in table:
        return _attribution(table, prompts, title, style)
    if "target" in table:
        kinds = table["target"].unique()
        wanted = next((name for name in kinds if not str(name).startswith("top ")), kinds[0])
        table = table[table["target"] == wanted]
        axes = {name: labels for name, labels in axes.items() if "target" not in labels}
        of_layers = " of each layer" if table["layer"].nunique() > 1 else ""
        if str(wanted).startswith("top "):
            heading = f"{'most likely next token' if wanted == 'top 0' else wanted}{of_layers}"
        else:
            table = table.drop(columns="word")
            heading = f"'{wanted}' as next token{', by layer' if of_layers else ''}"
        others = f" (1 of {len(kinds)} targets; sel(target=...) chooses)" if len(kinds) > 1 else ""
        title = title or heading + others
    return _cells(table, axes, prompts, title, style)


# --- parts of a logit


def _attribution(
    table: pd.DataFrame,
    prompts: Prompts,
    title: str,
    style: dict[str, Any],
) -> Figure:
    rows = table[["example", "at"]].drop_duplicates()
    title = title or f"{style['unit']} {signed(table['value'].sum() / len(rows))}, the sum of these parts"
    several = "positions" if rows["example"].duplicated().any() else "examples"
    title += f" (mean of {len(rows)} {several})" if len(rows) > 1 else ""
    table = table.assign(value=table["value"] / len(rows))
    style = {**style, "signed": True, "title": title}
    if "neuron" in table and (table["kind"] == "neuron").any():
        return value_figure(bars=_largest(table.groupby("part", sort=False)["value"].sum()), **style)
    if (table["kind"] == "source").any():
        return _by_source(table, _one_example(table), prompts, style)
    return _by_layer(table, style)


def _by_layer(table: pd.DataFrame, style: dict[str, Any]) -> Figure:
    """A row per layer, a column a head or kind of part; what belongs to no layer as bars."""
    inside = table["layer"].notna()
    column = table["kind"].where(table["kind"] != "head", "")
    if "head" in table:
        column = column.where(table["head"].isna(), table["head"].map("{}".format, na_action="ignore"))
    of_layers = table[inside].assign(column=column[inside])
    order = list(dict.fromkeys(of_layers["column"]))
    if len(order) < 2:
        each = table.groupby("part", sort=False)["value"].sum()
        return value_figure(
            bars=Bars([str(name) for name in each.index], each.to_numpy(dtype=float)), **style
        )
    bars = None
    if not inside.all():
        outside = table[~inside].groupby("part", sort=False)["value"].sum()
        sums = {
            f"{kind}, all layers": of
            for kind, of in of_layers.groupby("kind", sort=False)["value"].sum().items()
        }
        bars = Bars([*outside.index, *sums], np.array([*outside, *sums.values()]))
    cells = of_layers.pivot_table(index="layer", columns="column", values="value", aggfunc="sum")[order]
    label = "head" if "head" in order or any(str(name).isdigit() for name in order) else ""
    grid = Grid(cells.to_numpy(dtype=float), [str(i) for i in cells.index], order, "layer", label)
    return value_figure(grid=grid, bars=bars, **style)


def _by_source(
    table: pd.DataFrame,
    example: int,
    prompts: Prompts,
    style: dict[str, Any],
) -> Figure:
    """What was read at each image token over the picture; what each role gave, and all else, as bars."""
    of_sources = table[(table["kind"] == "source") & (table["role"] != "pad")]
    at = of_sources.groupby("position")["value"].sum()
    panels, rest_of_prompt = prompts.panels(example, {"attention, by source": at})
    roles = of_sources.groupby("role", sort=False)["value"].sum()
    rest = table[table["kind"] != "source"].groupby("kind", sort=False)["value"].sum()
    names = [f"from {name}" for name in roles.index] + [str(name) for name in rest.index]
    bars = Bars(names, np.array([*roles, *rest]))
    words = at[rest_of_prompt]
    grid = Grid(
        words.to_numpy(dtype=float)[None], [""], prompts.words(example, rest_of_prompt), column_label="source"
    )
    return value_figure(panels=panels, bars=bars, grid=grid if len(words) else None, **style)


def _largest(values: pd.Series) -> Bars:
    """The largest values of either sign, and the sum of all others."""
    if len(values) <= MOST_BARS:
        return Bars([str(name) for name in values.index], values.to_numpy())
    order = values.abs().sort_values(ascending=False, kind="stable").index
    best, rest = values[order[: MOST_BARS - 1]], values[order[MOST_BARS - 1 :]]
    return Bars([*map(str, best.index), f"{len(rest)} others"], np.array([*best, rest.sum()]))


# --- any other tensor


def _cells(
    table: pd.DataFrame,
    axes: Mapping[str, pd.DataFrame],
    prompts: Prompts,
    title: str,
    style: dict[str, Any],
) -> Figure:
    opened = {name: labels for name, labels in axes.items() if len(labels) > 1}
    where = next((name for name, labels in opened.items() if "position" in labels), None)
    others = [name for name in opened if name != where]
    if len(opened) > 2 or (where is not None and len(others) > 1):
        raise DataError(f"show: {', '.join(opened)} are all open: sel(...) one label of {others[-1]}")
    style = {**style, "title": title}
    if where is None:
        names = [opened[name][_label(opened[name])].astype(str).tolist() for name in opened]
        values = table["value"].to_numpy(dtype=float)
        if len(opened) < 2:
            names = names or [[style["unit"]]]
            low, high = (
                table[end].to_numpy(dtype=float) if end in table else None for end in ("low", "high")
            )
            bars = Bars(names[0], values, low=low, high=high, label=next(iter(opened), ""))
            return value_figure(bars=bars, **style)
        shape = tuple(len(each) for each in names)
        grid = Grid(values.reshape(shape), *names, *map(str, opened))
        return value_figure(grid=grid, **style)
    return _over_positions(table, _one_example(table), others, prompts, style)


def _over_positions(
    table: pd.DataFrame,
    example: int,
    others: Sequence[str],
    prompts: Prompts,
    style: dict[str, Any],
) -> Figure:
    """Image tokens over the picture, a panel for each of the other axis; all else in a grid below."""
    other = others[0] if others else "_"
    table = table.assign(_="") if not others else table
    values = table.pivot(index=other, columns="position", values="value")
    words = table.pivot(index=other, columns="position", values="word") if "word" in table else None
    some = np.unique(np.linspace(0, len(values) - 1, min(MOST_PANELS, len(values))).round().astype(int))
    if len(some) < len(values):
        style = {**style, "title": f"{style['title']} ({len(some)} of {len(values)} {other}s)".strip()}
    titles = {f"{other} {values.index[i]}" if others else _panel_title(table, style["unit"]): i for i in some}
    texts = None if words is None else {name: words.iloc[i] for name, i in titles.items()}
    panels, left = prompts.panels(example, {name: values.iloc[i] for name, i in titles.items()}, texts)
    rest = values[left]
    grid = None
    if rest.shape[1]:
        text = None if words is None else words[rest.columns].to_numpy().tolist()
        rows = [str(name) for name in rest.index]
        columns = prompts.words(example, left)
        grid = Grid(rest.to_numpy(dtype=float), rows, columns, other.strip("_"), "position", text)
    return value_figure(panels=panels, grid=grid, **style)


def _panel_title(table: pd.DataFrame, unit: str) -> str:
    """Of a single panel: what a lens reads in which layer (the scale says what a colour is); else what a value is."""
    if not {"target", "rank", "layer"} <= set(table):
        return unit
    target, layer = table["target"].iloc[0], table["layer"].iloc[0]
    return f"layer {layer}: {'likeliest token' if target == 'top 0' else target}"


def _one_example(table: pd.DataFrame) -> int:
    examples = table["example"].unique()
    if len(examples) > 1:
        raise DataError(f"show: a picture is of one prompt, and here are {len(examples)}: sel(example=0)")
    return int(examples[0])


def _label(labels: pd.DataFrame) -> str:
    """The column that tells the labels of an axis apart: the first that does, else the first."""
    apart = [str(name) for name in labels if labels[name].nunique() == len(labels)]
    return apart[0] if apart else str(labels.columns[0])
