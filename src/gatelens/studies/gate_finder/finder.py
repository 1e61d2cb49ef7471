"""Find the gate: which positions carry the picture to the answer, a few or many, wherever they stand.

:func:`find_gate` ranks every position of the picture and every position between it and the answer by four
measures, and looks for the smallest set whose reading, cut, takes 90 % of what the picture is worth.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gatelens.errors import DataError
from gatelens.studies.common import (
    Progress,
    data_fingerprint,
    draw,
    kinds_of_knockout,
    model_fingerprint,
    model_name,
    resolve_data,
    resolve_model,
)
from gatelens.studies.gate_finder.result import GateSearch
from gatelens.studies.gate_finder.search import STEPS, Search
from gatelens.studies.gate_finder.setup import Setup, why_not

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM


def find_gate(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    n: int = 96,
    how: str = "both",
    n_pairs: int = 48,
    prompt: str | None = None,
    block: int | None = None,
    refine: int = 16,
    narrow: int = 4,
    k: int | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Any,
) -> GateSearch:
    """Rank the positions that can carry the picture to the answer, and say whether a few of them do.

    Nothing relies on what a token is called: the picture is where the input differs between pictures under one
    prompt, and the candidates are its positions (image tokens, row breaks, whatever stands among them) and all
    between it and the answering last position (end markers, words). Each is measured by

    - *attention*: the mean attention it gets from the positions behind the picture that come after it, all
      heads, as a share of what all candidates get (NG's f_j, with rows of its own for each key), mean over
      layers;
    - *overlap*: χ of its residual stream entering a layer with the labels (``k`` nearest neighbours), at its
      best layer of at most eight. It says that the class can be read there, not that anything reads it;
    - *knockout*: nothing behind the picture and behind the position reads it, in any layer or head (positions
      of the picture still read each other): the drop of accuracy and of the right label's log-probability;
    - *patching*: its residual stream entering every layer comes from an example of another class: the share
      of predictions that become that example's, and the gain in Σ min(p, q) with it.

    The picture is searched from coarse to fine. It is cut into ``block`` positions in a row (by default the
    square root of their number), each block is knocked out and patched as a whole, and only the positions of
    blocks that matter are knocked out and patched one by one: blocks whose knockout lowers the log-probability,
    or whose patching raises the overlap, by a mean of at least 2 % of the largest possible with an interval
    above 0; the strongest ``refine`` of them if there are more. Positions of the other blocks have no number of
    their own for these two measures, and are cut last, block by block, when sets grow. So what a position does
    only together with positions of other blocks can be missed among single positions, not in the sets.

    The set: a position is added that, cut jointly with those before it, leaves the lowest log-probability
    (asked anew of all at each of the first ``narrow`` steps, then in the order last found). Should the
    candidates behind the picture together be enough while no small set was found, they are thinned out one by one
    (this finds positions that stand in for each other). The order is found on one half of the examples; shares
    (of the right label's probability, from what it is unmodified down to what it is with the whole picture cut
    off, at least chance), size and intervals come from the other half. Positions behind the picture whose patching
    moves nothing carry nothing of the picture: cutting them can only do damage, and they are left out of the sets
    and named.

    Args:
        model: the model, or its name.
        data: a data set with the task ``class``, or its name; all prompts must be alike.
        n: examples.
        how: ``"zero"``, ``"mask"`` or ``"both"``; the first decides, the other is evidence.
        n_pairs: pairs of examples for patching.
        prompt: asked instead of the data's own, with ``<image>`` in it; the class name must be what follows.
        block: positions of the picture in a block.
        refine: blocks taken apart at most.
        narrow: a set of at most so many positions is a narrow gate (and of at most an eighth of the picture's).
        k: neighbours of the overlap; None is 30 or, with few examples, one less than a class has on average.
        n_boot: bootstrap replicates.
        seed: draws examples, halves and pairs.
        batch_size: None fits the length of the prompts.
        options: for loading a model given by name (``device``, ``dtype``).

    Raises:
        DataError: no class task, prompts that differ, fewer than 20 examples or a single class.
    """
    hows = kinds_of_knockout(how)
    source = resolve_data(data)
    examples = _examples(source, n, seed, prompt)
    vlm = resolve_model(model, **options)
    setup = Setup(vlm, examples, seed, n_boot, batch_size)
    with Progress(STEPS + len(hows), progress) as bar:
        found = Search(setup, hows, bar).run(model_name(model), n_pairs, block, refine, narrow, k)
    found.settings |= {
        "data": source.name, "weights": model_fingerprint(vlm), "examples": data_fingerprint(examples),
        "n_boot": n_boot,
    }  # fmt: skip
    return found


def _examples(data: Dataset, n: int, seed: int, prompt: str | None) -> list[Example]:
    found = draw(data, "class", n, seed)
    if prompt is not None:
        found = [dataclasses.replace(e, prompt=prompt) for e in found]
    reason = why_not(found)
    if reason is not None:
        raise DataError(f"find_gate: data {data.name!r} {reason}; give one prompt with prompt=, or raise n")
    return found
