"""Find the gate: which positions carry the picture to the answer, a few or many, wherever they stand.

:func:`find_gate` ranks every position of the picture and every position between it and the answer by four
measures, and looks for the smallest set whose reading, cut, takes 90 % of what the picture is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.errors import DataError
from gatelens.studies.common import (
    draw,
    kinds_of_knockout,
    labels_of,
    model_name,
    resolve_data,
    resolve_model,
)
from gatelens.studies.gate_finder import verdict as gate_verdict
from gatelens.studies.gate_finder.places import Place
from gatelens.studies.gate_finder.search import Search

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM

STUDY = "find-gate"


@dataclass
class GateSearch:
    """What :func:`find_gate` found. Prints as a table; shows itself with its figure in a notebook.

    Attributes:
        model, prompt: what was searched.
        places: every candidate, in prompt order.
        measures: one row a place and measure: ``place, measure, mean, low, high, n, layer``. Measures are
            ``attention``, ``overlap``, ``flipped``, ``target overlap``, and for each kind of knockout
            ``zero accuracy`` (drop, paired), ``zero log_prob`` (drop in nats), and so for ``mask``; ``layer``
            is the best layer where a measure has one. Places of blocks not taken apart have no knockout and
            patching rows.
        blocks: the same columns for blocks of the picture; ``place`` is the first, ``last`` the last place.
        curves: one row a knockout and size of set: ``how, size, share, low, high, added``.
        layers: predictions flipped when the found set (else the best place) is patched in one layer alone.
        settings: numbers the search went by, ``chance``, ``k`` of the overlap and its ``overlap_by_chance`` among
            them.
        verdict: ``verdict, headline, sentence, evidence, disagree``, and by kind of knockout ``sets``.
    """

    model: str
    prompt: str
    places: tuple[Place, ...]
    measures: pd.DataFrame
    blocks: pd.DataFrame
    curves: pd.DataFrame
    layers: pd.DataFrame
    settings: dict[str, Any]
    verdict: dict[str, Any]

    @property
    def gate(self) -> tuple[Place, ...]:
        """The places of the narrow gate; empty when there is none."""
        found = self.verdict["places"] if self.verdict["verdict"] == gate_verdict.NARROW else []
        return tuple(self.places[p] for p in found)

    def ranking(self, measure: str | None = None) -> pd.DataFrame:
        """Places by a measure, the highest first: ``rank, name, role, index, position, mean, low, high, n, layer``.

        ``measure``: None is the drop in log-probability under the first kind of knockout.
        """
        measure = measure or f"{self.settings['how'][0]} log_prob"
        part = self.measures[self.measures.measure == measure]
        if part.empty:
            raise DataError(
                f"no measure {measure!r}; there are {', '.join(dict.fromkeys(self.measures.measure))}"
            )
        part = part.sort_values("mean", ascending=False, kind="stable").reset_index(drop=True)
        known = [self.places[p] for p in part.place]
        facts = {
            "rank": range(1, len(part) + 1),
            "name": [p.name for p in known],
            "role": [p.role for p in known],
            "index": [p.index for p in known],
            "position": [p.position for p in known],
        }
        return pd.concat([pd.DataFrame(facts), part[["place", "mean", "low", "high", "n", "layer"]]], axis=1)

    def __str__(self) -> str:
        from gatelens.views.gate import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from gatelens.views.gate import as_html

        return as_html(self)

    def figure(self, dark: bool = False) -> Any:
        """The four measures over the prompt's tokens, and how many tokens carry the effect."""
        from gatelens.views.gate import gate_figure

        return gate_figure(self, dark)

    def save(self, folder: Any) -> None:
        """Write tables, verdict and figure as a run: Parquet, JSON, PNG, ``gate.html``.

        Raises:
            OutputError: the folder cannot be written or holds something else.
        """
        from gatelens.runs import Run
        from gatelens.views.gate import as_html
        from gatelens.views.style import png

        run = Run.open(folder, study=STUDY, settings={"model": self.model, **self.settings})
        run.save_table("places", pd.DataFrame([vars(p) for p in self.places]))
        for name in ("measures", "blocks", "curves", "layers"):
            run.save_table(name, getattr(self, name))
        run.save_json("verdict", self.verdict)
        run.save_file("figures/gate", ".png", png(self.figure()))
        page = f"<!doctype html><meta charset='utf-8'><title>find-gate: {self.model}</title>{as_html(self)}"
        run.save_file("gate", ".html", page.encode())


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
    vlm = resolve_model(model, **options)
    examples = _examples(resolve_data(data), n, seed, prompt)
    search = Search(vlm, examples, kinds_of_knockout(how), seed, n_boot, batch_size, progress)
    with search.bar:
        return GateSearch(**search.run(model_name(model), n_pairs, block, refine, narrow, k))


def _examples(data: Dataset, n: int, seed: int, prompt: str | None) -> list[Example]:
    import dataclasses

    found = draw(data, "class", n, seed)
    if prompt is not None:
        found = [dataclasses.replace(e, prompt=prompt) for e in found]
    prompts = sorted({e.prompt for e in found})
    if len(prompts) > 1:
        raise DataError(
            f"find_gate: data {data.name!r} asks {len(prompts)} prompts ({prompts[0]!r}, {prompts[1]!r}, …); give "
            "one with prompt="
        )
    if len(found) < 20:
        raise DataError(
            f"find_gate: data {data.name!r} gives {len(found)} examples of the task class, 20 are needed; raise n"
        )
    if len({labels_of(e)[0] for e in found}) < 2:
        raise DataError("find_gate: all examples are of one class; draw examples of two classes at least")
    return found
