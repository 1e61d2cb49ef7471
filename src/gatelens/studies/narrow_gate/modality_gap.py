"""Section *modality gap*: how far image tokens stand from text tokens in the residual stream, by layer.

As the paper measures it (NG, section 3): of every picture with its caption one image token and one text token are
drawn; the median of |cos| over all pairs of an image and a text token, and the homogeneity by modality of the clusters
that Advanced Density Peaks finds among all tokens. The paper has 10,000 samples of Flickr30k: ``n`` says how many.

There is no evidence for the verdict in it. The gap says where the tokens lie, not how the text gets at the picture: a
model whose text reads the image tokens directly can keep the two modalities apart (``organism:open`` has the same
architecture and image codes as ``organism:gated``, and small cosines like it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatelens.data.base import kind
from gatelens.errors import DataError
from gatelens.measures.modality_gap import cosine_spread, homogeneity, modality_clusters
from gatelens.measures.neighbours import distinct
from gatelens.studies.common import chunks, draw
from gatelens.studies.narrow_gate.asking import as_asked
from gatelens.studies.narrow_gate.knockout_table import QUERIES
from gatelens.studies.narrow_gate.section import Context, Piece, Section

if TYPE_CHECKING:
    from gatelens.data import Example
    from gatelens.model import HookedVLM
    from gatelens.tokens import TokenMap

STAGE = "modality_gap"
HISTOGRAM_STAGE = "modality_gap_histogram"
CLUSTERS_STAGE = "modality_clusters"
PAIRS = ("image-text", "image-image", "text-text")
QUANTILES = (0.05, 0.25, 0.75, 0.95)
SHUFFLES = 20  # of the modality labels, for the homogeneity that clusters of these sizes have by chance
NEED = 17  # distinct points: the density estimate takes 16 neighbours


def samples(context: Context) -> list[Example]:
    """``n`` examples of the first task with captions, else of questions, else of classes; drawn on when the study
    itself wants fewer of them."""
    n = context.options("modality_gap")["n"]
    for task, drawn in context.examples("caption", "vqa", "class"):
        if len(drawn) >= n:
            return list(drawn[:n])
        more = {task: draw(context.data, task, n, context.seed)}
        return as_asked(context.model, more, context.settings.get("chat", ()))[task]
    return []


def texts(examples: Sequence[Example]) -> list[str]:
    """The prompts, with the first caption where there are captions: the text of a pair is then not the same few
    words in every sample."""
    return [f"{e.prompt} {e.answers[0]}" if kind(e.task) == "caption" else e.prompt for e in examples]


def draw_positions(tokens: TokenMap, start: int, seed: int) -> Bool[Tensor, "batch pos"]:
    """One image token and one text token after the gate of every example, drawn by its number.

    Raises:
        DataError: an example without an image token or without text after the gate.
    """
    out = torch.zeros(tokens.batch_size, tokens.n_pos, dtype=torch.bool)
    masks = [tokens.mask("image"), tokens.mask(QUERIES)]
    for b in range(tokens.batch_size):
        rng = np.random.default_rng([seed, 31, start + b])
        for name, mask in zip(("image token", "text after the gate"), masks, strict=True):
            at = mask[b].nonzero().flatten()
            if not len(at):
                raise DataError(f"modality gap: example {start + b} has no {name}; leave it out")
            out[b, at[int(rng.integers(len(at)))]] = True
    return out


def drawn_tokens(
    model: HookedVLM, examples: Sequence[Example], start: int, seed: int
) -> Float[Tensor, "modality example layer d_model"]:
    """The residual stream of the drawn image (0) and text (1) tokens: ``resid_pre`` of every layer and, last,
    ``resid_post`` of the last one; on the CPU, in the model's dtype. Nothing else is kept."""
    last = int(model.cfg.n_layers) - 1
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)] + [
        f"blocks.{last}.hook_resid_post"
    ]
    inputs = model.prepare(images=[e.image for e in examples], text=texts(examples))
    mask = draw_positions(inputs.tokens, start, seed)
    _, cache = model.run_with_cache(inputs, names_filter=names, positions=mask, device="cpu")
    kept = mask.nonzero()[:, 1].view(-1, 2)
    image = inputs.tokens.mask("image").gather(1, kept).long().argmax(-1)
    here = torch.arange(len(examples))
    both = torch.stack([cache[name] for name in names], dim=2)  # [example, kept, layer, d_model]
    return torch.stack([both[here, image], both[here, 1 - image]])


def measure(
    image: Float[Tensor, "example d_model"], text: Float[Tensor, "example d_model"], seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any] | None]:
    """One layer: rows of ``modality_gap`` and of its histogram (without ``layer``), and the row of
    ``modality_clusters``, None with fewer than 17 distinct points, of which no density can be taken."""
    spreads, histogram = [], []
    for pair, (a, b) in zip(PAIRS, ((image, text), (image, None), (text, None)), strict=True):
        if len(a) < 2:
            continue
        s = cosine_spread(a, b, QUANTILES)
        quantiles = {f"q{100 * q:02.0f}": value for q, value in s.quantiles.items()}
        row = {"pair": pair, "median": s.median, **quantiles, "mean": s.mean, "signed_mean": s.signed_mean}
        spreads.append({**row, "n": s.pairs})
        edges = torch.linspace(0, 1, len(s.histogram) + 1).tolist()
        shares = (s.histogram.double() / s.pairs).tolist()
        histogram += [
            {"pair": pair, "from": low, "to": high, "share": share}
            for low, high, share in zip(edges, edges[1:], shares, strict=False)
        ]
    points = torch.cat([image, text]).float()
    if len(distinct(points)[0]) < NEED:
        return spreads, histogram, None
    modality = torch.arange(2).repeat_interleave(len(image))
    found = modality_clusters(points, modality)
    generator = torch.Generator().manual_seed(seed)
    chance = [
        homogeneity(modality[torch.randperm(len(modality), generator=generator)], found.labels)
        for _ in range(SHUFFLES)
    ]
    clusters = {
        "homogeneity": found.homogeneity,
        "chance": float(np.mean(chance)),
        "clusters": found.n_clusters,
        "dimension": found.dimension,
        "halo": found.halo,
        "repeats": found.repeats,
        "n": len(points),
    }
    return spreads, histogram, clusters


def pieces(context: Context) -> list[Piece]:
    """One piece: clusters need the tokens of all samples at once, two vectors a sample and layer."""
    examples = samples(context)
    if len(examples) < 2:
        return []
    batches = list(chunks(examples, context.size))

    def compute() -> pd.DataFrame:
        parts = []
        for _, start, part in batches:
            parts.append(drawn_tokens(context.model, part, start, context.seed))
            context.bar.step("modality gap")
        tokens = torch.cat(parts, dim=1)
        del parts
        spreads, histogram, clusters = [], [], []
        for layer in range(tokens.shape[2]):
            image, text = tokens[:, :, layer].to(context.model.device)
            s, h, c = measure(image, text, context.seed)
            spreads += [{"layer": layer, **row} for row in s]
            histogram += [{"layer": layer, **row} for row in h]
            clusters += [{"layer": layer, **c}] if c else []
        # saved first: the piece counts as done once its own table is there
        context.run.save_table(HISTOGRAM_STAGE, pd.DataFrame(histogram))
        columns = ["layer", "homogeneity", "chance", "clusters", "dimension", "halo", "repeats", "n"]
        context.run.save_table(CLUSTERS_STAGE, pd.DataFrame(clusters, columns=columns))
        return pd.DataFrame(spreads)

    return [Piece(STAGE, "modality gap", compute, 2 * len(batches))]


def conclude(context: Context, tables: list[pd.DataFrame]) -> None:
    """The piece is the table."""


SECTION = Section(
    "modality_gap",
    "how far image tokens stand from text tokens, by layer",
    pieces,
    conclude,
    options={"n": 500},
)
