"""Exact patching maps: what each place of a model carries of the difference between two prompts.

Activations of one run of a pair go into the other, cell by cell (activation patching; Vig et al. 2020,
arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262; Zhang and Nanda 2024, arXiv 2309.16042). Nothing is approximated:
each cell is a run, of which the engine computes what it changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from tqdm.auto import tqdm

from gatelens.data import Pair
from gatelens.data.corruptions import mean_picture
from gatelens.engine import compile_for, last_logits
from gatelens.engine.plan import Specs
from gatelens.engine.run_batch import RunBatch
from gatelens.errors import InputError, shown
from gatelens.examples import Labels
from gatelens.interventions import Intervention
from gatelens.interventions.arguments import Heads, Layers
from gatelens.measures.logits import Metric
from gatelens.model import HookedVLM
from gatelens.readouts.effect_map import EffectMap, labelled_axes
from gatelens.readouts.map_axes import Axis, MapAxes
from gatelens.readouts.map_metrics import MapMetric, PairMetric, number_of
from gatelens.readouts.prompt_pairs import Place, Side, masks_of, same_places, sides
from gatelens.tokens import SelectorLike, TokenMap

Direction = Literal["denoising", "noising"]
# clean and corrupt metrics that are nearer than this share of the larger one have no difference to restore
SAME = 0.01


def patch_map(
    model: HookedVLM,
    pairs: Iterable[Pair] | Pair,
    metric: str | PairMetric = "logit_diff",
    over: Sequence[str] | str = ("layer", "pos"),
    *,
    site: str | Sequence[str] | None = None,
    direction: Direction = "denoising",
    at: SelectorLike | Mapping[str, SelectorLike] | None = None,
    layers: Layers = None,
    heads: Heads = None,
    window: int = 1,
    source_layer: int | Sequence[int] | None = None,
    source: HookedVLM | None = None,
    chat: bool = False,
    progress: bool = True,
) -> EffectMap:
    """The effect of patching each place of a model, over pairs of prompts.

    An effect is the metric's (patched − corrupt) / (clean − corrupt) when denoising, and one minus that when noising: 0
    is no effect in either. Prompts of different length pair role by role (``readouts/prompt_pairs.py``).

    Args:
        pairs: from :func:`gatelens.pairs`, or your own (``gl.data.Pair``).
        metric: ``logit_diff`` (the pair's two answers), ``logit``, ``prob``, ``log_prob`` or ``top1`` of the clean
            answer, ``kl`` (from the clean run's distribution, nats), ``similarity`` (Σ min(p, q) with it), or a
            function of logits Float[1, pos, d_vocab], or ``(logits, pair)``, to Float[1].
        over: the axes, of ``layer``, ``pos``, ``role``, ``head``, ``site``, ``source_layer``. What is no axis is
            patched together: all ``layers``, all positions of ``at``, all ``heads``.
        site: see :mod:`gatelens.interventions.sites`; with an axis ``site`` several. None is ``resid_pre``; ``z`` with
            an axis of heads; resid_pre, attn_out and mlp_out with one of sites.
        direction: ``denoising`` patches the clean run's activations into the corrupt run, ``noising`` the reverse.
        at: which positions of the prompt that is patched; None is all. A dict of selectors names the groups of an axis
            ``role``, else the roles. ``image.mask(object)`` is the object that the pair is about,
            ``image.mask(changed)`` where its two pictures differ.
        layers, heads: which, None is all.
        window: a cell patches so many layers of ``layers``, from its own on.
        source_layer: the layer the activations come from; None is the layer that is patched.
        source: another model they come from, of the same width.
        chat: make each prompt a user's turn.

    Raises:
        InputError: pictures of different grids, a metric that gives no finite number, or clean and corrupt runs it does
            not tell apart; axes, layers or sites that do not exist.

        >>> import gatelens as gl
        >>> model = gl.HookedVLM.from_pretrained("organism:gated")
        >>> cells = gl.patch_map(model, gl.pairs("emoji-scenes", n=4), over=("layer", "role"), progress=False)
        >>> cells
        EffectMap(pair 4 × layer 6 × role 5: share of the logit difference restored, most 1.00 at layer ...)
    """
    several, other = pairs_of(pairs), model if source is None else source
    check_call(model, other, direction)
    axes = MapAxes(model, other, over, site, layers, heads, at, window, source_layer)
    work = MapWork(model, other, MapMetric(metric, Labels(model)), axes, direction == "denoising", chat)
    with torch.no_grad():
        numbers = work.run(several, progress)
    return effect_map(several, work, numbers, direction)


def check_call(model: Any, source: Any, direction: Any) -> None:
    for word, one in (("model", model), ("source", source)):
        if not isinstance(one, HookedVLM):
            raise InputError(f"{word} is {shown(one)}: give a model, gl.HookedVLM.from_pretrained(name)")
    if direction not in get_args(Direction):
        raise InputError(f"direction={shown(direction)}: write 'denoising' or 'noising'")


def pairs_of(given: Any) -> list[Pair]:
    several = [given] if isinstance(given, Pair) else list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(one, Pair) for one in several):
        raise InputError(f"pairs={shown(given)}: give pairs, e.g. gl.pairs('emoji-scenes', differ='class')")
    return several


class PairRuns(NamedTuple):
    """What is run of a pair: the prompt that is patched, and a patch a cell, None where it has no such place."""

    base: Side
    metric: Metric
    cache: Any
    places: list[Place]
    patches: list[Any]
    where: str


class MapWork:
    """The runs of a map, pair by pair.

    Attributes:
        tokens, axes: of the first pair's prompt that is patched, which positions are labelled by.
    """

    def __init__(
        self,
        model: HookedVLM,
        source: HookedVLM,
        metric: MapMetric,
        map_axes: Any,
        denoising: bool,
        chat: bool,
    ) -> None:
        self.model, self.source, self.metric, self.map_axes = model, source, metric, map_axes
        self.denoising, self.chat = denoising, chat
        self.tokens: TokenMap | None = None
        self.axes: list[Axis] = []
        self.words: list[set[str]] = []

    def run(self, pairs: Sequence[Pair], progress: bool) -> Float[np.ndarray, "pair number"]:
        """A row a pair: the metric of its clean run, its corrupt run, and of every cell (NaN without one)."""
        ends = np.array([self._ends(pair, number) for number, pair in enumerate(pairs)])
        _check_apart(pairs, ends, self.metric.name)
        with tqdm(desc="patch map", unit="run", disable=not progress) as bar:
            cells = [self._cells(pair, number, bar, len(pairs)) for number, pair in enumerate(pairs)]
        return np.concatenate([ends, np.array(cells)], axis=1)

    def _sides(self, pair: Pair, number: int) -> tuple[Side, Side, Metric]:
        """The clean and the corrupt prompt of a pair, and its metric."""
        clean, corrupt = sides(self.model, pair, self.chat)
        logits = None
        if self.metric.needs_clean:
            logits = last_logits(self.model, clean.inputs, [None])[0][:, None]
        return clean, corrupt, self.metric.of(pair, number, logits)

    def _ends(self, pair: Pair, number: int) -> list[float]:
        clean, corrupt, metric = self._sides(pair, number)
        return [self.values(side, [None], metric, _called(pair, number))[0] for side in (clean, corrupt)]

    def _cells(self, pair: Pair, number: int, bar: Any, n_pairs: int) -> list[float]:
        runs = self.runs_of(pair, number)
        patches = [one for one in runs.patches if one is not None]
        if bar.total is None:
            bar.reset(total=n_pairs * len(patches))
        values = iter(self.values(runs.base, patches, runs.metric, runs.where, bar))
        return [float("nan") if one is None else next(values) for one in runs.patches]

    def runs_of(self, pair: Pair, number: int) -> PairRuns:
        """What is run of a pair."""
        where = _called(pair, number)
        clean, corrupt, metric = self._sides(pair, number)
        base, given = (corrupt, clean) if self.denoising else (clean, corrupt)
        if self.source is not self.model:
            given = sides(self.source, pair, self.chat)[0 if self.denoising else 1]
        places = same_places(base.tokens, given.tokens, where)
        from_reference = self._reference(base.tokens, where)
        cache = self._cache(given, [there for _, there in places])
        patches = self.map_axes.patches(
            self.axes,
            cache,
            base.tokens,
            places,
            from_reference,
            masks_of(pair),
            self.source is not self.model,
        )
        return PairRuns(base, metric, cache, places, list(patches), where)

    def _reference(self, tokens: TokenMap, where: str) -> dict[int, int]:
        """From positions of the axes, which are the first prompt's, to this prompt's."""
        if self.tokens is None:
            self.tokens, self.axes = tokens, self.map_axes.axes(tokens)
            self.words = [set() for _ in range(tokens.n_pos)]
        if not self.map_axes.has_positions:
            return {}
        hint = ", or write 'role' for 'pos' in over"
        places = dict(same_places(self.tokens, tokens, f"{where} and pair 0", hint))
        for reference, position in places.items():
            self.words[reference].add(tokens.strings[0][position])
        return places

    def _cache(self, side: Side, positions: Sequence[int]) -> Any:
        """The activations of a run that cells take theirs from, at these positions."""
        hooks = compile_for(self.source, list(side.interventions), side.tokens)
        _, cache = self.source.run_with_cache(
            side.inputs, self.map_axes.cached, fwd_hooks=hooks.pairs, positions=sorted(set(positions))
        )
        return cache

    def values(
        self, side: Side, patches: Sequence[Intervention | None], metric: Metric, where: str, bar: Any = None
    ) -> list[float]:
        """The metric of a prompt under each patch; None is none."""
        runs: list[Specs] = [[*side.interventions, *([] if one is None else [one])] for one in patches]
        found: dict[int, float] = {}
        last_only = getattr(metric, "last_only", False)
        with self.model.lock:
            batch = RunBatch(self.model, side.inputs, runs, every_position=not last_only)
            for i, logits in batch.each():
                found[i] = number_of(metric, logits, where)
                if bar is not None:
                    bar.update()
        return [found[i] for i in range(len(runs))]


def _called(pair: Pair, number: int) -> str:
    return f"pair {number} ({pair!r})"


def _check_apart(pairs: Sequence[Pair], ends: Float[np.ndarray, "pair 2"], name: str) -> None:
    """Raise InputError, naming the pairs, where the metric hardly tells clean and corrupt apart."""
    apart = np.abs(ends[:, 0] - ends[:, 1])
    alike = np.nonzero(~(apart > SAME * np.abs(ends).max(axis=1)))[0].tolist()
    if alike:
        i = alike[0]
        numbers = ", ".join(map(str, alike))
        raise InputError(
            f"the {name} of pair {i} ({pairs[i]!r}) is {ends[i, 0]:.4g} in the clean run and {ends[i, 1]:.4g} in the "
            f"corrupt one: there is nothing to restore; leave such pairs out, pairs.without({numbers})"
        )


def effect_map(
    pairs: Sequence[Pair],
    work: MapWork,
    numbers: Float[np.ndarray, "pair number"],
    direction: str,
    further: Mapping[str, Float[np.ndarray, "pair cell"]] | None = None,
) -> EffectMap:
    """The map of what was measured; ``further`` holds other numbers of each pair and cell."""
    assert work.tokens is not None
    tokens = _common_words(work.tokens, work.words)
    axes = labelled_axes(pairs, work.map_axes.axes(tokens))
    shape = tuple(len(labels) for labels in axes.values())
    beside = (len(pairs), *[1] * (len(shape) - 1))
    clean, corrupt = (np.broadcast_to(numbers[:, i].reshape(beside), shape) for i in (0, 1))
    patched = numbers[:, 2:].reshape(shape)
    columns = {name: values.reshape(shape) for name, values in (further or {}).items()}
    base, other = (corrupt, clean) if work.denoising else (clean, corrupt)
    effects = torch.as_tensor((patched - base) / (other - base)).float()
    verb = "restored" if work.denoising else "destroyed"
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
