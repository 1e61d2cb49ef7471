"""Exact patching maps by gl.sweep beside TransformerLens' own functions, and beside plain hooks in gatelens.

Three maps from one picture and text into another: the stream entering each layer at each text position, each head at
all text positions, and the stream entering each layer at each block of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching

import gatelens as gl

from .growth import counted_flops, least_flops
from .model import SMALL, Size, make_hooked, make_ids, make_transformers, twin_of
from .plain import make_plain
from .sweep import model_facts, words
from .timing import Times, in_turn, pair_ratios, ratio

SAMPLE = 8  # cells that the slow sides compute; they do the same work for every cell
BLOCKS = 8  # along each side of the picture


@dataclass(frozen=True)
class Map:
    """A map: what is patched in each cell, and how TransformerLens is asked for it.

    Attributes:
        site: the site.
        cells: (layer, head or None, positions) of each.
        limits: at least so many times as fast as TransformerLens' function, and as plain hooks in gatelens.
        operations: at most so many times the least possible; None where nothing is promised.
    """

    name: str
    site: str
    cells: tuple[tuple[int, int | None, tuple[int, ...]], ...]
    limits: tuple[float, float]
    operations: float | None = None

    @property
    def sample(self) -> tuple[int, ...]:
        """Cells spread evenly over the map, by number."""
        n = min(SAMPLE, len(self.cells))
        return tuple(len(self.cells) * (2 * i + 1) // (2 * n) for i in range(n))


def maps(size: Size) -> list[Map]:
    """The three."""
    layers, n = range(size.n_layers), size.n_pos
    end = n - size.n_text - 1  # where the picture's end marker stands, which is patched with the text
    text = [(layer, None, (p,)) for layer in layers for p in range(end - 1, n)]
    heads = [(layer, head, tuple(range(end + 1, n))) for layer in layers for head in range(size.n_heads)]
    blocks = [(layer, None, block) for layer in layers for block in picture_blocks(size)]
    return [
        Map("text positions", "resid_pre", tuple(text), (80.0, 45.0)),
        Map("heads", "z", tuple(heads), (60.0, 33.0)),
        Map("blocks of the picture", "resid_pre", tuple(blocks), (6.0, 3.0), 1.1),
    ]


def picture_blocks(size: Size) -> list[tuple[int, ...]]:
    """Square blocks of image tokens, in reading order, as positions of the prompt."""
    side = int(size.n_image**0.5)
    blocks = min(BLOCKS, side)
    edges = [side * i // blocks for i in range(blocks + 1)]
    first = size.n_pos - size.n_text - 1 - size.n_image
    return [
        tuple(first + side * y + x for y in range(top, bottom) for x in range(left, right))
        for top, bottom in pairwise(edges)
        for left, right in pairwise(edges)
    ]


class MapBench:
    """One model three times over and two prompts: activations of ``other`` go into the run of ``inputs``."""

    def __init__(self, size: Size = SMALL, hf: Any = None) -> None:
        self.size = size
        self.hf = make_transformers(size) if hf is None else hf
        self.plain = make_plain(twin_of(self.hf, "eager"))
        self.model, self.inputs = make_hooked(twin_of(self.hf, "sdpa"), size)
        self.ids, self.other = self.inputs.tensors["input_ids"], make_ids(size, seed=1)
        self.metric = gl.metrics.logit_diff(*words(size))

        def wanted(name: str) -> bool:
            return name.startswith("blocks.") and name.endswith(("hook_resid_pre", "attn.hook_z"))

        with torch.no_grad():
            _, self.cache = self.model.run_with_cache(self.model.inputs(self.other), names_filter=wanted)
            _, self.plain_cache = self.plain.run_with_cache(self.other, names_filter=wanted)

    def patches(self, one: Map, numbers: Sequence[int] | None = None) -> dict[int, Any]:
        """The interventions of the map's cells, or of some, by the number of the cell."""
        chosen = range(len(one.cells)) if numbers is None else numbers
        out: dict[int, Any] = {}
        for i in chosen:
            layer, head, positions = one.cells[i]
            heads = None if head is None else [head]
            out[i] = gl.patch(self.cache, list(positions), one.site, layers=[layer], heads=heads)  # type: ignore[arg-type]
        return out

    def engine(self, one: Map) -> dict[int, float]:
        """The whole map by gl.sweep."""
        table = gl.sweep(self.model, self.inputs, {"cell": self.patches(one)}, self.metric, progress=False)
        return dict(zip(table["cell"], table["value"], strict=True))

    def gatelens_hooks(self, one: Map) -> dict[int, float]:
        """The sampled cells, one whole forward pass each."""
        out = {}
        with torch.no_grad():
            for i, patch in self.patches(one, one.sample).items():
                pairs = patch.hooks(self.inputs.tokens, self.model.cfg)
                out[i] = float(self.metric(self.model.run_with_hooks(self.inputs, fwd_hooks=pairs)))
        return out

    def transformer_lens(self, one: Map) -> dict[int, float]:
        """The sampled cells, by the function of TransformerLens that makes such a map."""

        def put(old: Tensor, index: Sequence[int], new: Tensor) -> Tensor:
            _, head, positions = one.cells[int(index[1])]
            at = list(positions)
            if head is None:
                old[:, at] = new[:, at]
            else:
                old[:, at, head] = new[:, at, head]
            return old

        make = (
            patching.get_act_patch_attn_head_out_all_pos
            if one.site == "z"
            else patching.get_act_patch_resid_pre
        )
        index = pd.DataFrame({"layer": [one.cells[i][0] for i in one.sample], "cell": list(one.sample)})
        with torch.no_grad():
            found = make(
                self.plain,
                self.ids,
                self.plain_cache,
                lambda logits: self.metric(logits)[0],
                patch_setter=put,
                index_axis_names=None,
                index_df=index,
            )
        return dict(zip(one.sample, found.tolist(), strict=True))


def measure(size: Size = SMALL, repeats: int = 5, hf: Any = None) -> list[dict[str, Any]]:
    """A row for each map: times of a whole map, their ratios, how far its numbers differ, operations.

    The slow sides compute a few cells; their times are those of a cell, times the number of cells.
    """
    bench = MapBench(size, hf)
    return [measure_map(bench, one, repeats) for one in maps(size)]


def measure_map(bench: MapBench, one: Map, repeats: int) -> dict[str, Any]:
    """One row of :func:`measure`."""
    values: dict[str, dict[int, float]] = {}

    def remember(name: str, work: Callable[[Map], dict[int, float]]) -> None:
        values[name] = work(one)

    works = {name: getattr(bench, name) for name in ("engine", "transformer_lens", "gatelens_hooks")}
    repeats = min(repeats, 3) if len(one.cells) > 300 else repeats  # a map of the picture takes a minute
    found = in_turn({k: partial(remember, k, f) for k, f in works.items()}, repeats, warm_up=0)
    times = {"engine": found["engine"]}
    for name in ("transformer_lens", "gatelens_hooks"):
        share = len(one.cells) / len(one.sample)
        times[name] = Times(tuple(share * s for s in found[name].seconds))
    flops, least = (
        counted_flops(partial(bench.engine, one)),
        least_flops(bench.size, bench.inputs, bench.model.cfg, bench.patches(one)),
    )
    ratios = {k: ratio(times[k], times["engine"]) for k in ("transformer_lens", "gatelens_hooks")}
    return {
        "map": one.name,
        "site": one.site,
        "model": model_facts(bench.size, bench.hf),
        "cells": len(one.cells),
        "cells_of_the_slow_sides": len(one.sample),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratios": ratios,
        "pair_ratios": {k: pair_ratios(times[k], times["engine"]) for k in ratios},
        "limits": dict(zip(ratios, one.limits, strict=True)),
        "passes": all(r >= limit for r, limit in zip(ratios.values(), one.limits, strict=True))
        and (one.operations is None or flops / least <= one.operations),
        "max_metric_difference": max(
            abs(values[k][i] - values["engine"][i]) for k in ratios for i in one.sample
        ),
        "largest_effect": max(values["engine"].values()) - min(values["engine"].values()),
        "flops": flops,
        "least_flops": least,
        "flops_over_least": flops / least,
        "operations_limit": one.operations,
    }
