"""The cells of a map: what each of them patches, and how its axes are labelled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from gatelens.errors import InputError, did_you_mean, shown
from gatelens.interventions import Patch, hook_name, patch
from gatelens.interventions.arguments import Heads, Layers, as_count, as_indices
from gatelens.interventions.base import resolve_indices, select
from gatelens.interventions.patching import PATCH_SITES
from gatelens.interventions.sites import check_site, has_heads, head_count
from gatelens.model import HookedVLM
from gatelens.readouts.labelled import position_labels
from gatelens.readouts.prompt_pairs import Place
from gatelens.tokens import Role, SelectorLike, TokenMap

AXES = ("layer", "pos", "role", "head", "neuron", "site", "source_layer")
ALSO = {"position": "pos"}
ROLES = tuple(role.name.lower() for role in Role if role not in (Role.PAD, Role.GENERATED))
CHUNKS = 32  # of the neurons of a layer, where none are named
MAP_SITES = ("resid_pre", "attn_out", "mlp_out")  # of an axis of sites


class Axis(NamedTuple):
    """One axis: its name, a row of labels for each index, and what each patches."""

    name: str
    labels: pd.DataFrame
    choices: Sequence[Any]


class Cell(NamedTuple):
    """One cell of a map: what is patched, and from where.

    Attributes:
        here, there: of each prompt, the positions that are patched, and those they are patched from.
        heads: or neurons; None is all.
        source_layer: None is the layer that is patched.
    """

    site: str
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    source_layer: int | None
    here: list[list[int]]
    there: list[list[int]]

    def patch(self, prompts: PatchedPrompts) -> Patch:
        """The intervention."""
        return patch(
            prompts.cache,
            at=_selector(self.here, prompts.tokens),
            source=_selector(self.there, prompts.cache.tokens),
            site=self.site,  # type: ignore[arg-type]  # checked by MapAxes
            layers=self.layers,
            heads=self.heads,
            other_model=prompts.other_model,
            source_layer=self.source_layer,
        )


@dataclass(frozen=True, eq=False)
class PatchedPrompts:
    """Some prompts of one length that are patched together.

    Attributes:
        cache: of the source's runs, as many.
        tokens: of the prompts.
        places: of each prompt, its positions, each with the one it is patched from.
        from_reference: of each prompt, from positions of the axes to its own.
        masks: of each prompt, pixel masks that selectors name.
        other_model: whether the cache is another model's.
    """

    cache: Any
    tokens: TokenMap
    places: Sequence[Sequence[Place]]
    from_reference: Sequence[Mapping[int, int]]
    masks: Sequence[Mapping[str, Any]]
    other_model: bool = False


class MapAxes:
    """What the cells of a map patch, checked against both models before anything is run.

    Args:
        model: the model whose runs are patched.
        source: the model the activations come from.
        over, site, layers, heads, at, window, source_layer, neurons: see :func:`gatelens.patch_map`.

    Raises:
        InputError, InterventionError: an axis, site, layer or head that is none, or that do not go together.
    """

    def __init__(
        self,
        model: HookedVLM,
        source: HookedVLM,
        over: Sequence[str],
        site: str | Sequence[str] | None,
        layers: Layers,
        heads: Heads,
        at: SelectorLike | Mapping[str, SelectorLike] | None,
        window: int,
        source_layer: int | Sequence[int] | None,
        neurons: Any = None,
    ) -> None:
        self.over = _axes(over)
        self.sites = _sites(site, self.over)
        self.layers = resolve_indices(as_indices(layers, "layers"), int(model.cfg.n_layers), "layers", self)
        self.windows = self._windows(window)
        self.source_layers = self._source_layers(source, source_layer, window)
        by_neuron = neurons is not None or "neuron" in self.over
        self.heads = self._neurons(model, neurons, heads) if by_neuron else self._heads(model, heads)
        if isinstance(at, Mapping) and "role" not in self.over:
            raise InputError("at= names groups of positions: put 'role' in over, or give one selector")
        self.groups = dict(at) if isinstance(at, Mapping) else None
        self.at: SelectorLike = "all" if at is None or isinstance(at, Mapping) else at
        self._check_points(model, [layer for window in self.windows for layer in window])
        self._check_points(source, self.read_layers)

    def __repr__(self) -> str:
        return f"patch_map(over={self.over}, site={self.sites[0] if len(self.sites) == 1 else self.sites!r})"

    def _windows(self, window: int) -> list[tuple[int, ...]]:
        """The layers of each cell."""
        width = as_count(window, "window")
        if "layer" not in self.over:
            if width > 1:
                raise InputError(f"window={width} goes with an axis of layers: put 'layer' in over")
            return [self.layers]
        parts = [self.layers[i : i + width] for i in range(len(self.layers) - width + 1)]
        if not parts:
            raise InputError(f"window={width} is wider than the {len(self.layers)} layers: give fewer")
        return parts

    def _source_layers(self, source: HookedVLM, given: Any, window: int) -> list[int | None]:
        """The layers of the source that are read; None is the layer that is written."""
        n_layers, axis = int(source.cfg.n_layers), "source_layer" in self.over
        if given is None and not axis:
            return [None]
        if window > 1:
            raise InputError("window= and source_layer= do not go together: leave one out")
        found = resolve_indices(as_indices(given, "layers"), n_layers, "layers", self)
        if len(found) > 1 and not axis:
            raise InputError(f"source_layer={shown(given)}: give one, or put 'source_layer' in over")
        return list(found)

    @property
    def read_layers(self) -> list[int]:
        """The layers of the source that are read, each once."""
        written = {layer for window in self.windows for layer in window}
        read = [written if one is None else {one} for one in self.source_layers]
        return sorted(set().union(*read))

    def _heads(self, model: HookedVLM, given: Heads) -> list[tuple[int, ...] | None]:
        if given is None and "head" not in self.over:
            return [None]
        with_heads = [site for site in self.sites if has_heads(site) and site != "neuron"]
        counts = {site: head_count(site, model.cfg) for site in with_heads}
        headless = [site for site in self.sites if site not in counts]
        if headless:
            raise InputError(
                f"site {headless[0]!r} has no heads: take z, q, k, v or pattern, or leave heads out of it"
            )
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{site} {n}" for site, n in counts.items())
            raise InputError(f"these sites have different numbers of heads ({said}): map them one by one")
        n_heads = next(iter(counts.values()))
        chosen = resolve_indices(as_indices(given, "heads"), n_heads, "heads", self)
        return [(head,) for head in chosen] if "head" in self.over else [chosen]

    def _neurons(self, model: HookedVLM, given: Any, heads: Heads) -> list[tuple[int, ...] | None]:
        """The hidden units of each cell."""
        if self.sites != ("neuron",) or heads is not None or "head" in self.over:
            raise InputError(
                "neurons go with site='neuron', which has no heads: leave other sites and heads out"
            )
        n = int(head_count("neuron", model.cfg) or 0)
        if given is None:
            size = -(-n // CHUNKS)
            given = [range(first, min(first + size, n)) for first in range(0, n, size)]
        several = given if isinstance(given, Sequence) else [given]
        groups = [resolve_indices(as_indices(one, "neurons"), n, "neurons", self) for one in several]
        uneven = [one for one in groups if one != tuple(range(one[0], one[-1] + 1))]
        if uneven:
            raise InputError(f"neurons={shown(given)}: a cell is one neuron, or a range without gaps")
        return list(groups) if "neuron" in self.over else [tuple(sorted({i for one in groups for i in one}))]

    def _check_points(self, model: HookedVLM, layers: Sequence[int]) -> None:
        """Raise InputError where a model lacks a layer or a site."""
        n_layers = int(model.cfg.n_layers)
        if max(layers) >= n_layers:
            raise InputError(
                f"layer {max(layers)} is not in {model!r}: give layers=range({n_layers}), or source_layer="
            )
        missing = [name for site in self.sites for name in self.names(site, layers) if not _has(model, name)]
        if missing:
            raise InputError(f"{model!r} has no {missing[0]!r}, so that site cannot be patched in it")

    @staticmethod
    def names(site: str, layers: Sequence[int]) -> list[str]:
        """The hook points of a site."""
        return [hook_name(site, layer) for layer in layers]

    @property
    def has_positions(self) -> bool:
        """Whether an axis is of positions, which all prompts must then share."""
        return "pos" in self.over

    @property
    def cached(self) -> list[str]:
        """The activations of the source that are needed."""
        return [name for site in self.sites for name in self.names(site, self.read_layers)]

    def axes(self, tokens: TokenMap) -> list[Axis]:
        """The axes, in the order that was asked for; positions are those of the prompt ``tokens``."""
        return [self._axis(name, tokens) for name in self.over]

    def _axis(self, name: str, tokens: TokenMap) -> Axis:
        if name == "layer":
            labels = pd.DataFrame({"layer": [window[0] for window in self.windows]})
            if any(len(window) > 1 for window in self.windows):
                labels["last_layer"] = [window[-1] for window in self.windows]
            return Axis(name, labels, self.windows)
        if name == "pos":
            places = (tokens.roles[0] != Role.PAD).nonzero()[:, 0].tolist()
            return Axis("position", position_labels(tokens, [0] * len(places), places), places)
        if name == "role":
            roles = list(self.groups or ROLES)
            return Axis(name, pd.DataFrame({"role": roles}), roles)
        if name == "neuron":
            groups = [units for units in self.heads if units is not None]
            labels = pd.DataFrame({"neuron": [units[0] for units in groups]})
            if any(len(units) > 1 for units in groups):
                labels["last_neuron"] = [units[-1] for units in groups]
            return Axis(name, labels, groups)
        if name == "head":
            heads = [heads[0] for heads in self.heads if heads is not None]
            return Axis(name, pd.DataFrame({"head": heads}), self.heads)
        values: Sequence[Any] = self.sites if name == "site" else self.source_layers
        return Axis(name, pd.DataFrame({name: list(values)}), values)

    def cells(self, axes: Sequence[Axis], prompts: PatchedPrompts) -> Iterator[Cell | None]:
        """The cells in some prompts, in order; None where none of them has such a place."""
        each = range(len(prompts.places))
        partners = [dict(places) for places in prompts.places]
        tokens = [prompts.tokens.select([i]) for i in each]
        groups = {
            name: [self.selected(tokens[i], name, prompts.masks[i]).tolist() for i in each]
            for name in _group_names(axes)
        }
        for choices in product(*(axis.choices for axis in axes)):
            chosen = dict(zip((axis.name for axis in axes), choices, strict=True))
            masks = groups[chosen.get("role", "")]
            here: list[list[int]] = []
            for i in each:
                places: Iterable[int] = partners[i]
                if "position" in chosen:
                    places = [prompts.from_reference[i].get(chosen["position"], -1)]
                here.append([p for p in places if p in partners[i] and masks[i][p]])
            if not any(here):
                yield None
                continue
            yield Cell(
                site=chosen.get("site", self.sites[0]),
                layers=chosen.get("layer", self.windows[0]),
                heads=chosen.get("head", chosen.get("neuron", self.heads[0])),
                source_layer=chosen.get("source_layer", self.source_layers[0]),
                here=here,
                there=[[partners[i][p] for p in here[i]] for i in each],
            )

    def selected(self, tokens: TokenMap, group: str, masks: Mapping[str, Any]) -> Bool[Tensor, " pos"]:
        """The positions of a group in a prompt, all that are asked for where groups have no names."""
        selectors = [self.at]
        if group:
            selectors.append(self.groups[group] if self.groups else group)
        owned = _Owner(masks)
        return torch.stack([select(tokens, one, owned)[0] for one in selectors]).all(dim=0)


def _group_names(axes: Sequence[Axis]) -> Sequence[str]:
    return next((axis.choices for axis in axes if axis.name == "role"), [""])


def _selector(positions: Sequence[list[int]], tokens: TokenMap) -> SelectorLike:
    """A selector of these positions of each prompt: a list where they are the same in all."""
    if all(one == positions[0] for one in positions):
        return positions[0]
    mask = torch.zeros(tokens.batch_size, tokens.n_pos, dtype=torch.bool)
    for row, one in zip(mask, positions, strict=True):
        row[one] = True
    return mask


class _Owner:
    """Whom errors of a selector name, with the masks it may use."""

    def __init__(self, masks: Mapping[str, Any]) -> None:
        self.masks = masks

    def __repr__(self) -> str:
        return "patch_map"


def _axes(over: Any) -> tuple[str, ...]:
    names = (over,) if isinstance(over, str) else tuple(over) if isinstance(over, Sequence) else ()
    found = tuple(ALSO.get(name, name) if isinstance(name, str) else name for name in names)
    for name in found:
        if name not in AXES:
            raise InputError(
                f"over={shown(over)}: {shown(name)} is not an axis; there are {', '.join(AXES)}"
                f"{did_you_mean(str(name), AXES)}"
            )
    if not found or len(set(found)) < len(found):
        raise InputError(f"over={shown(over)}: name axes, each once, of {', '.join(AXES)}")
    return found


def _sites(site: Any, over: Sequence[str]) -> tuple[str, ...]:
    if site is None:
        site = (
            MAP_SITES
            if "site" in over
            else "z"
            if "head" in over
            else "neuron"
            if "neuron" in over
            else "resid_pre"
        )
    sites = (site,) if isinstance(site, str) else tuple(site) if isinstance(site, Sequence) else (site,)
    for one in sites:
        check_site(one, PATCH_SITES)
    if not sites or ("site" not in over and len(sites) > 1) or len(set(sites)) < len(sites):
        raise InputError(f"site={shown(site)}: give one, or several, each once, with 'site' in over")
    return sites


def _has(model: HookedVLM, name: str) -> bool:
    return name in model.bridge.hook_dict
