"""Section *meaning*: at which tokens, and from which layer on, the class of the picture can be read.

For the gate, the first and last image token, the mean of the internal image tokens, the last prompt position and the
image-side positions that stand out in attention, by layer of the residual stream:

- *overlap*: the paper's χ^{l,gt}, the share of a prompt's k nearest neighbours (Euclidean) that have its class;
- *probe*: cross-validated accuracy of a linear map (:func:`gatelens.measures.linear_probe`);
- *overlap with the gate*: the share of nearest neighbours that the place has in common with the gate
  (Doimo et al., NeurIPS 2020): whether the two arrange the pictures alike.

There is no evidence for the verdict in it. A narrow gate must hold the class, but so may any token after the picture
in a model whose text reads the image tokens directly, and a class that neither neighbours nor a linear map find may
still be there. Where the class *can* be read is not where it *is* read: that takes a knockout or a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatelens.measures.attention import image_side_slots, slot_place
from gatelens.measures.overlap import neighbourhood_overlap, overlap_by_chance, representation_overlap
from gatelens.measures.probe import linear_probe
from gatelens.measures.stats import bootstrap_interval
from gatelens.studies.common import chunks, labels_of, prepare
from gatelens.studies.narrow_gate import attention
from gatelens.studies.narrow_gate.section import Context, Piece, Section

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

STAGE = "meaning"
GATE, INTERNAL = "gate", "internal image tokens, mean"
PLACES: Mapping[str, str] = {  # selectors
    GATE: "gate",
    "last image token": "last_image",
    INTERNAL: "image - last_image",
    "first image token": "first_image",
    "last prompt position": "last",
}
OVERLAP, PROBE, WITH_GATE = "overlap", "probe", "overlap with the gate"
TOLERANCE = 1e-4  # of the probe's gradient: predictions do not change below it


def places(
    tokens: TokenMap, further: Sequence[tuple[str, str, int]] = ()
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """The positions of each place in a batch; of ``further`` those ``(name, kind, index)``.

    Left out: a place that some example does not have, and one that is another in every example (the gate where the
    prompt ends with it, the last image token of one).
    """
    found = {name: tokens.mask(selector) for name, selector in PLACES.items()}
    slots = image_side_slots(tokens)
    for name, kind, index in further:
        number = next((s for s in slots.unique().tolist() if s >= 0 and slot_place(s) == (kind, index)), None)
        found[name] = slots == number if number is not None else torch.zeros_like(slots, dtype=torch.bool)
    out: dict[str, Tensor] = {}
    for name, mask in found.items():
        if bool(mask.any(-1).all()) and not any(torch.equal(mask, other) for other in out.values()):
            out[name] = mask
    return out


def standing_out(context: Context) -> list[tuple[str, str, int]]:
    """Image tokens and row breaks that stand out in attention, highest first, where that was measured. The start
    of the image comes before the picture and holds nothing of it."""
    if not context.run.done(attention.POSITIONS_STAGE):
        return []
    table = context.run.table(attention.POSITIONS_STAGE)
    table = table[table.stands_out & table.kind.isin(["image", "row_break"])]
    table = table.head(context.options("meaning")["extra"])
    return list(zip(table["name"], table["kind"], table["index"].map(int), strict=True))


def residual_stream(
    model: HookedVLM, examples: Sequence[Example], start: int, further: Sequence[tuple[str, str, int]] = ()
) -> dict[str, Float[Tensor, "example layer d_model"]]:
    """``resid_pre`` of every layer and, last, ``resid_post`` of the last one, at each place.

    The mean over the place's positions is taken inside the hook, so that one vector a place and layer is all that is
    kept.
    """
    inputs = prepare(model, examples, start)
    masks = places(inputs.tokens, further)
    last = int(model.cfg.n_layers) - 1
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)] + [
        f"blocks.{last}.hook_resid_post"
    ]
    kept: dict[str, list[Tensor]] = {name: [] for name in masks}

    def keep(value: Any, hook: Any) -> None:
        stream = value[0] if isinstance(value, tuple) else value
        for place, mask in masks.items():
            # row by row: a padding row may hold anything, so weights of 0 would not do
            rows = [stream[b, mask[b].to(stream.device)].float().mean(0) for b in range(len(examples))]
            kept[place].append(torch.stack(rows).to("cpu", stream.dtype))

    model.forward_step({**inputs.tensors, "logits_to_keep": 1}, [(name, keep) for name in names])
    return {place: torch.stack(layers, dim=1) for place, layers in kept.items()}


def neighbours_at_most(n: int, k: int) -> int:
    """The paper's k, or a tenth of the examples where there are fewer than 10 k: with more neighbours than a class has
    examples the overlap could not come near 1."""
    return max(1, min(k, n // 10, n - 1))


def untied(x: Float[Tensor, "example d_model"], seed: int) -> Float[Tensor, "example d_model"]:
    """The points moved apart by a part in 10⁷ of their size, in float64.

    A token before it has read anything is the same in every prompt; who is nearest is then drawn, not the first in
    the list.
    """
    x = x.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = x.square().mean().sqrt()
    return x + 1e-7 * (size if float(size) > 0 else 1.0) * noise


def measure(
    stream: Mapping[str, Float[Tensor, "example layer d_model"]],
    labels: Int[Tensor, " example"],
    k: int,
    folds: int,
    probed: Sequence[int],
    n_boot: int,
    seed: int,
) -> pd.DataFrame:
    """``place, layer, measure, mean, low, high, n, chance, most, k``.

    ``chance`` is the overlap of neighbours drawn at random, of the probe the share of the commonest class; ``most``
    the highest value there can be (a class of fewer than k + 1 examples cannot fill a neighbourhood). Classes with
    fewer examples than ``folds`` are left out of the probe, which is measured in the layers ``probed``.
    """
    rows = []
    k = neighbours_at_most(len(labels), k)
    chance = overlap_by_chance(labels)
    count = labels.bincount()
    most = float((count[labels] - 1).clamp(max=k).double().mean() / k)
    usable = count[labels] >= folds
    can_probe = int((count >= folds).sum()) >= 2
    names = list(stream)
    for layer in range(stream[names[0]].shape[1]):
        points = {name: untied(x[:, layer], seed + i) for i, (name, x) in enumerate(stream.items())}
        for name, x in points.items():
            values = {OVERLAP: (neighbourhood_overlap(x, labels, k), chance, most)}
            if name != GATE and GATE in points:
                common = representation_overlap(x, points[GATE], k)
                values[WITH_GATE] = (common, k / (len(labels) - 1), 1.0)
            for what, (share, *yardsticks) in values.items():
                numbers = share.double().numpy()
                low, high = bootstrap_interval(numbers, n_boot=n_boot, seed=seed)
                rows.append((name, layer, what, numbers.mean(), low, high, len(numbers), *yardsticks, k))
            if can_probe and layer in probed:
                # as they are: scaled to one size, the differences that part ties would be features
                x = stream[name][:, layer]
                p = linear_probe(x[usable], labels[usable], folds, seed=seed, tolerance=TOLERANCE)
                rows.append((name, layer, PROBE, p.accuracy, *p.interval, len(p.correct), p.majority, 1.0, 0))
    columns = ["place", "layer", "measure", "mean", "low", "high", "n", "chance", "most", "k"]
    return pd.DataFrame(rows, columns=columns)


def evenly(n_layers: int, most: int) -> list[int]:
    """At most ``most`` of the layers 0 … n_layers, both ends among them."""
    return sorted({round(x) for x in np.linspace(0, n_layers, min(most, n_layers + 1))}) if most else []


def pieces(context: Context) -> list[Piece]:
    """One piece: neighbours are sought among all examples, one vector a place, layer and example."""
    options = context.options("meaning")
    found = context.examples("class")
    examples = found[0][1][: options["n"]] if found else []
    names = [labels_of(e)[0] for e in examples]
    if len(set(names)) < 2 or len(set(names)) == len(names):
        return []
    batches = list(chunks(examples, context.size))

    def compute() -> pd.DataFrame:
        further = standing_out(context)
        parts = []
        for _, start, part in batches:
            parts.append(residual_stream(context.model, part, start, further))
            context.bar.step("meaning")
        common = [name for name in parts[0] if all(name in part for part in parts)]
        stream = {name: torch.cat([part[name] for part in parts]) for name in common}
        classes = sorted(set(names))
        labels = torch.tensor([classes.index(name) for name in names])
        probed = evenly(int(context.model.cfg.n_layers), options["layers"])
        return measure(stream, labels, options["k"], options["folds"], probed, context.n_boot, context.seed)

    return [Piece(STAGE, "meaning", compute, 4 * len(batches))]


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """The piece is the table."""


SECTION = Section(
    "meaning",
    "at which tokens and layers the class can be read",
    pieces,
    conclude,
    options={"n": 400, "k": 30, "folds": 5, "layers": 5, "extra": 2},
)
