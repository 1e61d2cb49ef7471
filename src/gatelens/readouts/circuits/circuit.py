"""``gl.circuit``: a small set of nodes or edges that carries a share of a metric, found by exact runs.

:func:`circuit` says what faithfulness and completeness are.

The search: parts are ordered by the size of their score, largest first. Prefixes of 0, 1, 2, 5, 10, … parts are run;
below the first that reaches the share, a bisection finds a prefix that reaches it while the one with a part fewer does
not. Of that prefix parts are taken out, lowest score first, as long as the rest reaches the share, until none can go.
So the circuit reaches the share, and without any one of its parts it does not (column ``without``).

No shorter prefix is promised either, as faithfulness may rise and fall between the sizes that were run. Where parts
stand in for each other, only as many stay as the share needs, and completeness is low.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from tqdm.auto import tqdm

from gatelens.data import Pair
from gatelens.errors import InputError, shown
from gatelens.examples import Labels
from gatelens.interventions.arguments import as_count
from gatelens.interventions.sites import head_count
from gatelens.model import HookedVLM
from gatelens.readouts.circuits.edge_patches import EdgePatches
from gatelens.readouts.circuits.node_patches import NodePatches
from gatelens.readouts.circuits.parts import Parts, parts_of
from gatelens.readouts.circuits.result import Circuit
from gatelens.readouts.circuits.runs import CircuitRuns
from gatelens.readouts.circuits.search import (
    Faithfulness,
    curve_sizes,
    curves,
    minimal,
    smallest_prefix,
)
from gatelens.readouts.effect_map import EffectMap
from gatelens.readouts.gradients.attribution_map import OF_EDGES, Method, attribution_map
from gatelens.readouts.map_metrics import MapMetric, PairMetric
from gatelens.readouts.patch_maps import check_call, pairs_of


def circuit(
    model: HookedVLM,
    pairs: Iterable[Pair] | Pair,
    metric: str | PairMetric = "logit_diff",
    scores: Method | EffectMap | Sequence[EffectMap] = "eap-ig",
    share: float = 0.9,
    *,
    by: Literal["role", "pos"] | None = None,
    prune: bool = True,
    random: int = 10,
    steps: int = 32,
    seed: int = 0,
    chat: bool = False,
    progress: bool = True,
) -> Circuit:
    """A small circuit: the nodes or edges that carry a share of a metric while all others are as in the corrupt run.

    m(C) is the metric of the clean prompt, a mean over pairs, where everything outside the circuit C writes what it
    writes in the corrupt run (Conmy et al., arXiv 2304.14997). M is all parts, ∅ none. Faithfulness is
    (m(C) − m(∅)) / (m(M) − m(∅)): 1 is what the whole model does, 0 what the corrupt run does (Hanna et al., arXiv
    2403.17806). Completeness is 1 − faithfulness of M without C (after Wang et al., arXiv 2211.00593).

    Exact runs add parts by size of score until ``share`` is reached, then take out what is not needed. Not guaranteed:
    that no smaller circuit reaches it, or a faithfulness of at most 1. The embedding is clean in circuits of nodes.

    Args:
        pairs, metric, chat: as in :func:`gatelens.patch_map`; both prompts of a pair have the same positions.
        scores: ``eap-ig`` or ``eap`` for edges, from the embedding, heads and MLPs to queries, keys, values, MLPs and
            logits; ``atp``, ``atp*`` or ``ig`` for heads and MLPs; or an edge map, or one or several maps of ``z``,
            ``attn_out``, ``mlp_out`` (exact ones too), whose cells are the nodes.
        share: the faithfulness to reach, above 0 and at most 1.
        by: nodes at each ``role`` or position (``pos``) apart.
        prune: False keeps the prefix as it is.
        random: how many random sets of each size to compare with; 0 is none.
        steps: of ``eap-ig`` and ``ig``.
        seed: of the random sets.

    Raises:
        InputError: no pairs, prompts of different length or grids, an invalid share, scores of other things, or a
            metric that all parts together do not change.
        InterventionError: a metric that is not a scalar per example.
        ModelError: edges in a model whose parts do not add up to the stream.

    Example:
        >>> gl.circuit(model, pairs, scores="atp", random=0, progress=False)
        Circuit(... of 30 nodes: faithfulness ... (share 0.9), completeness ...; by atp, logit difference, 2 pairs)
    """
    check_call(model, model, "noising")
    several, share, random = pairs_of(pairs), _share(share), as_count(random, "random", least=0)
    measured = MapMetric(metric, Labels(model)).of_logits()
    parts = parts_of(_maps(model, several, metric, scores, by, steps, chat, progress), model)
    patches = NodePatches(model, parts) if parts.graph is None else EdgePatches(model, parts.graph)
    with tqdm(desc="circuit", unit="run", disable=not progress) as bar:
        runs = CircuitRuns(model, several, measured, patches, chat, bar)
        shares = Faithfulness(runs.values, len(parts), measured.name)
        kept, table = _search(shares, parts, share, prune, random, seed)
        without = shares.of([[other for other in kept if other != one] for one in kept])
    method = scores if isinstance(scores, str) else "given scores"
    group = int(head_count("q", model.cfg) or 1) // int(head_count("k", model.cfg) or 1)
    return Circuit.of(parts, kept, without, table, share, method, measured.name, len(several), group)


def _search(
    shares: Faithfulness, parts: Parts, share: float, prune: bool, random: int, seed: int
) -> tuple[list[int], Any]:
    """The circuit, and its curves."""
    order = np.argsort(-np.abs(parts.scores), kind="stable").tolist()
    sizes = curve_sizes(len(parts))
    n_first = smallest_prefix(shares, order, share, sizes)
    kept = order[:n_first]
    if prune:
        kept = minimal(shares, kept, share)
    sizes = sorted({*sizes, n_first, len(kept)})
    return kept, curves(shares, order, kept, sizes, random, seed)


def _maps(
    model: HookedVLM,
    pairs: Sequence[Pair],
    metric: Any,
    scores: Any,
    by: str | None,
    steps: int,
    chat: bool,
    progress: bool,
) -> Any:
    """The maps that are given, or those of a method: of edges, or of heads and of MLPs."""
    if by not in (None, "role", "pos"):
        raise InputError(f"by={shown(by)}: write 'role' or 'pos', or leave it out")
    if by is not None and (scores in OF_EDGES or not isinstance(scores, str)):
        raise InputError(
            f"by={by!r} goes with nodes by a method: take scores='ig', or put {by!r} in over of your maps"
        )
    if not isinstance(scores, str):
        return scores
    if scores not in get_args(Method):
        raise InputError(f"scores={scores!r}: write one of {', '.join(get_args(Method))}, or give maps")
    asked: dict[str, Any] = {
        "direction": "noising",
        "steps": steps,
        "check": 0,
        "chat": chat,
        "progress": progress,
    }
    if scores in OF_EDGES:
        return attribution_map(model, pairs, metric, scores, **asked)  # type: ignore[arg-type]
    places = [] if by is None else [by]
    return [
        attribution_map(model, pairs, metric, scores, ["layer", *heads, *places], site=site, **asked)  # type: ignore[arg-type]
        for site, heads in (("z", ["head"]), ("mlp_out", []))
    ]


def _share(given: Any) -> float:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 < given <= 1:
        raise InputError(f"share={shown(given)}: give a number above 0 and at most 1, such as 0.9")
    return float(given)
