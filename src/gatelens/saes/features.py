"""Where features of an autoencoder are strongest: the pictures of a store, and the patch in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from gatelens.activation_store import ActivationStore
from gatelens.errors import DataError, InputError, shown
from gatelens.interventions.arguments import as_count
from gatelens.plots.overlay import HEAT, draw_outline, fill_boxes, opacity, show_picture
from gatelens.plots.style import NotebookFigure, styled

BLOCK = 1 << 13  # rows encoded at once
PANEL = 1.7  # inches of a picture
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureHits:
    """The strongest patches of some features.

    Attributes:
        table: a row a feature and picture, the strongest first: ``feature``, ``rank``, ``value`` (the feature's
            activation), ``store_row`` and the columns of the store's index.
        share: by feature, the share of the rows looked at in which it is active.
        maps: by feature and picture, all rows of the picture in the store and the feature's activation at each.
        pictures: by example id.

    Example:
        >>> eye, zeros = torch.eye(128), torch.zeros(128)
        >>> weights = {"W_enc": eye, "W_dec": eye, "b_enc": zeros, "b_dec": zeros}
        >>> sae = gl.SAE({"architecture": "standard", "hook_name": "blocks.3.hook_resid_post"}, weights)
        >>> store = gl.collect(model, [scene], out=folder, layers=[3], progress=False)
        >>> sae.features(store, [7], [scene], top=1, progress=False).table[["feature", "rank"]].to_numpy().tolist()
        [[7, 0]]
    """

    table: pd.DataFrame
    share: Mapping[int, float]
    maps: Mapping[tuple[int, str], pd.DataFrame] = field(repr=False)
    pictures: Mapping[str, Image.Image] = field(repr=False)

    def __repr__(self) -> str:
        shares = ", ".join(f"{feature}: {share:.2%}" for feature, share in self.share.items())
        return f"FeatureHits({len(self.table)} patches; share of rows where it is active, by feature {shares:.300})"

    def show(self, title: str = "", dark: bool = False) -> NotebookFigure:
        """A row a feature: its pictures, each in grey under the feature's activation, a line around the patch.

        Raises:
            DataError: the pictures are not known, or no patch has a place in one.
        """
        placed = self.table[self.table["x0"].notna()]
        if placed.empty:
            raise DataError(
                "no feature is active in a patch with a place in a picture, so there is nothing to draw"
            )
        missing = next((one for one in placed["example"] if one not in self.pictures), None)
        if missing is not None:
            raise DataError(
                f"the picture of example {missing!r} is not known: give data= to sae.features, the examples"
            )
        features = list(dict.fromkeys(placed["feature"]))
        wide = int(placed.groupby("feature").size().max())
        with styled(dark) as p:
            size = (0.9 + PANEL * wide, (PANEL + 0.28) * len(features) + (0.3 if title else 0))
            figure = NotebookFigure(figsize=size, layout="constrained")
            grid = figure.subplots(len(features), wide, squeeze=False)
            for axes in grid.flat:
                axes.set_axis_off()
            for line, feature in zip(grid, features, strict=True):
                hits = placed[placed["feature"] == feature]
                top = float(hits["value"].max())
                for axes, hit in zip(line, hits.itertuples(), strict=False):
                    self._draw(axes, hit, top)
                words = f"feature {feature}\n{self.share[feature]:.1%} of rows"
                line[0].text(-0.08, 0.5, words, rotation=90, ha="right", va="center", transform=line[0].transAxes,
                             fontsize=8, color=p.ink)  # fmt: skip
            if title:
                figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=p.ink)
        return figure

    def _draw(self, axes: Any, hit: Any, top: float) -> None:
        """One picture under the activations of its tokens; those of another grid than the patch's are left out."""
        over = self.maps[hit.feature, hit.picture]
        over = over[(over["tile"] > 0) == (hit.tile > 0)]
        boxes = ["x0", "y0", "x1", "y1"]
        show_picture(axes, self.pictures[hit.example], grey=True)
        alpha = opacity(over["value"].to_numpy(float), top)
        colors = np.column_stack([np.tile(np.array(HEAT) / 255, (len(over), 1)), alpha])
        fill_boxes(axes, over[boxes].to_numpy(float), colors)
        draw_outline(axes, np.array([[getattr(hit, name) for name in boxes]], dtype=float))
        label = "" if pd.isna(hit.label) else f"{hit.label}  "
        axes.set_title(f"{label}{hit.value:.2g}", fontsize=8)


def top_patches(
    encode: Encode,
    store: ActivationStore,
    point: tuple[str, int],
    features: Sequence[int],
    data: Any,
    top: int,
    where: str | None,
    progress: bool,
) -> FeatureHits:
    """The strongest patch of each feature in each picture, of the pictures where it is strongest."""
    top = as_count(top, "top", error=InputError)
    rows = _rows(store, where)
    index = store.index
    pictures = _pictures(data)
    names = index["image_id"].astype(object).where(index["image_id"].notna(), index["example"].astype(object))
    of, known = pd.factorize(names)
    best = np.zeros((len(known), len(features)), dtype=np.float32)  # of each picture
    at = np.full((len(known), len(features)), -1)
    active = np.zeros(len(features), dtype=np.int64)
    site, layer = point
    with (
        tqdm(total=len(rows), desc="features", unit="row", disable=not progress) as bar,
        torch.inference_mode(),
    ):
        for values, part in store.iterate(BLOCK, rows=rows, site=site, layer=layer, with_rows=True):
            found = encode(values.float())[:, list(features)].numpy()
            active += (found > 0).sum(axis=0)
            for column in range(len(features)):
                order = np.argsort(found[:, column], kind="stable")[np.count_nonzero(found[:, column] <= 0) :]
                picture = of[part[order]]
                higher = found[order, column] > best[picture, column]
                # in ascending order, so that of several rows of a picture the strongest is written last
                best[picture[higher], column] = found[order[higher], column]
                at[picture[higher], column] = part[order[higher]]
            bar.update(len(part))
    parts: list[pd.DataFrame] = []
    maps: dict[tuple[int, str], pd.DataFrame] = {}
    for column, feature in enumerate(features):
        ranked = np.argsort(-best[:, column], kind="stable")[:top]
        ranked = ranked[at[ranked, column] >= 0]
        hit = at[ranked, column]
        table = index.iloc[hit].reset_index(drop=True)
        table.insert(0, "feature", feature)
        table.insert(1, "rank", np.arange(len(hit)))
        table.insert(2, "value", best[ranked, column])
        table.insert(3, "store_row", hit)
        table["picture"] = [str(known[i]) for i in ranked]
        parts.append(table)
        for number, row in zip(ranked, hit, strict=True):
            same = (of == number) & (index["example"] == index["example"].iloc[row]).to_numpy()
            all_rows = np.flatnonzero(same & index["x0"].notna().to_numpy())
            values = encode(store.read(all_rows, site=site, layer=layer).float())[:, feature]
            maps[feature, str(known[number])] = index.iloc[all_rows].assign(value=values.numpy(force=True))
    table = pd.concat(parts, ignore_index=True)
    share = {feature: float(n / len(rows)) for feature, n in zip(features, active, strict=True)}
    return FeatureHits(table, share, maps, pictures)


def _rows(store: ActivationStore, where: str | None) -> np.ndarray:
    """The rows looked at."""
    if where is None:
        return np.arange(len(store))
    try:
        rows = store.index.query(where).index.to_numpy()
    except Exception as error:  # pandas raises many kinds
        raise InputError(f"where={shown(where)} cannot be read: {' '.join(str(error).split())}") from error
    if not len(rows):
        raise InputError(f"where={shown(where)} leaves no row of {store!r}")
    return rows


def _pictures(data: Any) -> dict[str, Image.Image]:
    """The pictures of examples by their ids."""
    if data is None:
        return {}
    if not isinstance(data, list | tuple) or not all(
        hasattr(one, "image") and hasattr(one, "id") for one in data
    ):
        raise DataError("data= of features is a list of examples, those the store was made of")
    return {one.id: one.image for one in data if one.image is not None}
