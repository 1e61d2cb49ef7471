"""Exact patching maps: what each place of a model carries of the difference between two prompts.

Activations of one run of a pair go into the other, cell by cell (activation patching; Vig et al. 2020,
arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Zhang and Nanda 2024, arXiv 2309.16042). Nothing is approximated:
each cell is a run, of which the engine computes what it changes.

Refused in one line, as InputError: pictures of different grids within a pair, or between pairs on an axis of positions;
a metric that gives no finite number per example; clean and corrupt runs it does not tell apart; axes, layers, heads or
sites that do not exist.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from gatelens.data import Pair
from gatelens.data.corruptions import mean_picture
from gatelens.data.pairing import pairs as pairs_of_data
from gatelens.errors import InputError, shown
from gatelens.examples import Labels
from gatelens.executors import executing
from gatelens.identity import as_setting, content_fingerprint, model_settings
from gatelens.interventions.arguments import Heads, Layers
from gatelens.model import HookedVLM
from gatelens.readouts.effect_map import EffectMap, labelled_axes
from gatelens.readouts.map_axes import MapAxes
from gatelens.readouts.map_metrics import MapMetric, PairMetric
from gatelens.readouts.map_runs import MapWork
from gatelens.runs import Run
from gatelens.tokens import SelectorLike, TokenMap
from gatelens.units import opened

Direction = Literal["denoising", "noising"]
AnyMap = TypeVar("AnyMap", bound=EffectMap)
# arguments of a map that are not settings of its run, or are among them under another name
NO_SETTINGS = ("model", "pairs", "differ", "n", "out", "progress", "workers", "ray")


def patch_map(
    model: HookedVLM,
    pairs: Any,
    metric: str | PairMetric = "logit_diff",
    over: Sequence[str] | str = ("layer", "pos"),
    *,
    site: str | Sequence[str] | None = None,
    direction: Direction = "denoising",
    at: SelectorLike | Mapping[str, SelectorLike] | None = None,
    layers: Layers = None,
    heads: Heads = None,
    neurons: int | Sequence[int | Sequence[int]] | None = None,
    window: int = 1,
    source_layer: int | Sequence[int] | None = None,
    source: HookedVLM | None = None,
    chat: bool = False,
    differ: str | None = None,
    n: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    workers: int | None = None,
    ray: str | None = None,
) -> EffectMap:
    """The effect of patching each place of a model, over pairs of prompts.

    An effect is the metric's (patched − corrupt) / (clean − corrupt) when denoising, and one minus that when noising: 0
    is no effect in either. Prompts of different length pair role by role; with ``chat`` each is a user's turn.

    Args:
        pairs: of :func:`gatelens.pairs`, your own (``gl.data.Pair``), or data for ``gl.pairs(data, differ, n, seed)``.
        metric: ``logit_diff`` of the two answers; ``logit``, ``prob``, ``log_prob``, ``top1`` of the clean one's;
            ``kl``, ``similarity`` to the clean run; one of ``gl.metrics``; a function of logits or ``(logits, pair)``.
        over: the axes, of ``layer``, ``pos``, ``role``, ``head``, ``neuron``, ``site``, ``source_layer``. Without an
            axis they are patched together: all ``layers``, all positions of ``at``, all ``heads``.
        site: one of :data:`gatelens.interventions.SITES`; with an axis ``site`` several. None is ``resid_pre``;
            ``z`` with an axis of heads; resid_pre, attn_out and mlp_out with one of sites.
        direction: ``denoising`` patches the clean run's activations into the corrupt run, ``noising`` the reverse.
        at: positions of the patched prompt, None is all; a dict of selectors names the groups of an axis ``role``.
            ``image.mask(object)`` is the pair's object, ``image.mask(changed)`` where its pictures differ.
        layers, heads, neurons: which; None is all. Of neurons also ranges, a cell each; there None is 32 ranges.
        window: how many of ``layers`` a cell patches, from its own on.
        source_layer, source: the layer and the model that activations come from; None is where they are patched.
        out, progress, workers, ray: as in :func:`gatelens.sweep`; the folder gets the map as ``patch_map.parquet``.

    Raises:
        InputError, OutputError: an argument that does not fit; ``out`` holds a map with other settings.

    Example:
        >>> gl.patch_map(model, pairs, over=("layer", "role"), layers=[0, 2], progress=False)
        EffectMap(pair 2 × layer 2 × role 5: share of the logit difference restored, most 1.00 at layer 0, role image)
    """
    asked = {**locals()}
    them, other = pairs_of(pairs, differ, n, seed), model if source is None else source
    check_call(model, other, direction)
    axes = MapAxes(model, other, over, site, layers, heads, at, window, source_layer, neurons)
    work = MapWork(model, other, MapMetric(metric, Labels(model)), axes, direction == "denoising", chat, them)
    settings = partial(map_settings, asked, work)
    with opened(out, "patch_map", settings) as run, executing(workers, ray) as executor:
        return kept(run, effect_map(work, work.run(run, progress, executor)))


def check_call(model: Any, source: Any, direction: Any) -> None:
    for word, one in (("model", model), ("source", source)):
        if not isinstance(one, HookedVLM):
            raise InputError(f"{word} is {shown(one)}: give a model, gl.HookedVLM.from_pretrained(name)")
    if direction not in get_args(Direction):
        raise InputError(f"direction={shown(direction)}: write 'denoising' or 'noising'")


def pairs_of(given: Any, differ: str | None = None, n: int | None = None, seed: int = 0) -> list[Pair]:
    """The pairs that are given, or those of data."""
    if isinstance(given, str | Path) or callable(getattr(given, "examples", None)):
        return list(pairs_of_data(given, differ, 100 if n is None else n, seed))
    for word, value in (("differ", differ), ("n", n)):
        if value is not None:
            raise InputError(f"{word}={shown(value)} goes with data, and pairs is {shown(given)}")
    several = [given] if isinstance(given, Pair) else list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(one, Pair) for one in several):
        raise InputError(f"pairs={shown(given)}: give pairs, e.g. gl.pairs('emoji-scenes', differ='class')")
    return several


def map_settings(asked: Mapping[str, Any], work: MapWork) -> dict[str, Any]:
    """What the folder of a map says was asked for: every argument, the pairs and the model by what they hold."""
    others = {name: as_setting(value) for name, value in asked.items() if name not in NO_SETTINGS}
    return {
        **model_settings(asked["model"]),
        "n": len(work.pairs),
        "pairs": content_fingerprint(list(work.pairs)),
        "pairs_at_once": work.at_once,
        **others,
    }


def kept(run: Run, found: AnyMap) -> AnyMap:
    """The map, written into the folder of its run if that has one."""
    if run.path is not None:
        run.save(run.study, found.table)
    return found


def effect_map(
    work: MapWork,
    numbers: Float[np.ndarray, "pair number"],
    further: Mapping[str, Float[np.ndarray, "pair cell"]] | None = None,
) -> EffectMap:
    """The map of what was measured; ``further`` holds other numbers of each pair and cell."""
    pairs, tokens = work.pairs, _common_words(work.tokens, work.words)
    axes = labelled_axes(pairs, work.map_axes.axes(tokens))
    shape = tuple(len(labels) for labels in axes.values())
    beside = (len(pairs), *[1] * (len(shape) - 1))
    clean, corrupt = (np.broadcast_to(numbers[:, i].reshape(beside), shape) for i in (0, 1))
    patched = numbers[:, 2:].reshape(shape)
    columns = {name: values.reshape(shape) for name, values in (further or {}).items()}
    base, other = (corrupt, clean) if work.denoising else (clean, corrupt)
    effects = torch.as_tensor((patched - base) / (other - base)).float()
    direction, verb = ("denoising", "restored") if work.denoising else ("noising", "destroyed")
    sites = work.map_axes.sites
    where = f" {sites[0]}" if len(sites) == 1 else ""
    found = EffectMap(
        effects,
        axes,
        f"share of the {work.metric.name} {verb}",
        tokens,
        (_picture(pairs, work.denoising),),
        {"patched": patched, "clean": clean, "corrupt": corrupt} | columns,
        f"{direction}{where}: share of the {work.metric.name} {verb}",
        bounds=work.metric.bounds,
        cells=work.map_axes,
    )
    return _without_empty(found)


def _without_empty(found: EffectMap) -> EffectMap:
    """The map without positions and groups that no pair has."""
    for axis, (name, labels) in enumerate(found.axes.items()):
        if name in ("position", "role"):
            others = [i for i in range(found.tensor.ndim) if i != axis]
            there = (~found.tensor.isnan()).numpy().any(axis=tuple(others))
            if not there.any():
                raise InputError(
                    "at= selects no position that both prompts of a pair have: give another selector"
                )
            kept = labels[name][there].tolist()
            found = found.sel(**{name: kept})
    return found


def _common_words(tokens: TokenMap, words: Sequence[set[str]]) -> TokenMap:
    """The words of the first prompt, with … where others have another."""
    row = tuple(own if len(seen) < 2 else "…" for own, seen in zip(tokens.strings[0], words, strict=True))
    return dataclasses.replace(tokens, strings=(row,))


def _picture(pairs: Sequence[Pair], denoising: bool) -> tuple[Image.Image, ...]:
    """What a map is drawn over: the picture of the one pair, or the mean of those of several."""
    pictures = [(pair.clean if denoising else pair.corrupt).image for pair in pairs]
    found = [picture for picture in pictures if picture is not None]
    if len({picture.size for picture in found}) == 1:
        return (mean_picture(found),)
    return tuple(found[:1])
