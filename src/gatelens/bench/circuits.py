"""A decoder with routes written into random weights.

The residual stream has room for the kind of a token, what it shows, what it gathered, the answer, and noise. A route
is a head in which tokens of some kinds read tokens of others and write what they find somewhere else in the stream;
rows that look for nothing read the first position, which holds nothing. All other heads and every MLP are random: they
read everything and write into the noise, which no route reads. So the picture is all over the stream, and reaches the
answer by the routes alone; neurons written by :mod:`gatelens.bench.neurons` saturate or multiply what they bring. At
last the stream is turned by a random rotation, so that no coordinate means anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatelens.bench.pictures import MARKS, VALUES
from gatelens.bench.shells import D_HEAD, D_MODEL, N_HEADS, Shell

TOKEN_KINDS = (
    "first", "last a", "last b", "other", "source", *(f"gate {i}" for i in range(1, 9)),
    "vote", "bystander", "decoy", "anchor", "relay",
)  # fmt: skip
KIND_AT = {name: i for i, name in enumerate(TOKEN_KINDS)}
_START = len(TOKEN_KINDS)
SHOWN = slice(_START, _START + 2 * VALUES)  # votes of an image token: for a, for b
GATHERED = slice(SHOWN.stop, SHOWN.stop + 2 * VALUES)  # the same, of a gate
ANSWER = slice(GATHERED.stop, GATHERED.stop + 2 * VALUES)
HELD = slice(ANSWER.stop, ANSWER.stop + 2 * VALUES)  # the votes that a gate gathered, each made 0 or 1
HEARD = slice(
    HELD.stop, HELD.stop + VALUES
)  # what the last position read, before neurons make the answer of it
ANCHORED = HEARD.stop  # what the answer has of an anchor
POINTS = ANCHORED + 1  # 1 or -1: which of two gates the last position reads
NOISE = slice(POINTS + 1, D_MODEL)
KIND_SIZE, SHOWN_SIZE, NOISE_SIZE, WRITTEN = 4.0, 2.0, 1.5, 0.5
# of a route's scores: large enough that what it does not look for gets nothing; small enough, where queries and keys
# have no norms of their own, that it reads streams of different length in about equal parts
_GAIN, _GAIN_NORMED = 0.8, 8.0
_CHOICE = 0.6  # of what a head looks for, what it looks for by POINTS
TIES = 0.1  # between the constants of the first and the last name, beside a log-odds of 6


@dataclass(frozen=True, eq=False)
class Route:
    """One head of one layer: ``readers`` read ``keys`` in equal parts, and write ``value`` of what they find.

    Attributes:
        value: Float[d_model, read] of the stream that is read and Float[d_model, read] where it is written.
        chosen: by kind of key, the sign of :data:`POINTS` in the reader at which it is read and the other kind is not.
    """

    layer: int
    head: int
    readers: frozenset[str]
    keys: frozenset[str]
    value: tuple[Float[Tensor, "d_model read"], Float[Tensor, "d_model read"]]
    chosen: Mapping[str, int] = field(default_factory=dict)


def moved(source: Sequence[int], target: Sequence[int], size: float = WRITTEN) -> tuple[Tensor, Tensor]:
    """The value of a route that copies coordinates, scaled."""
    read, written = torch.zeros(D_MODEL, len(source)), torch.zeros(D_MODEL, len(source))
    read[list(source), range(len(source))] = 1
    written[list(target), range(len(target))] = size
    return read, written


def token_table(mark_kinds: Mapping[int, str], generator: torch.Generator) -> Float[Tensor, "row d_model"]:
    """What image tokens are: rows of votes for ``a`` and for ``b``, and of marks; a mark of no kind is a source."""
    table = torch.zeros(2 * VALUES + MARKS, D_MODEL)
    noise = torch.randn(NOISE.stop - NOISE.start, len(table), generator=generator)
    table[:, NOISE] = (
        NOISE_SIZE * torch.linalg.qr(noise)[0].T
    )  # at right angles, so that all sums are of one length
    table[range(2 * VALUES), range(SHOWN.start, SHOWN.stop)] = SHOWN_SIZE
    for mark in range(MARKS):
        table[2 * VALUES + mark, KIND_AT[mark_kinds.get(mark, "source")]] = KIND_SIZE
    return table


@torch.no_grad()
def write_decoder(
    shell: Shell,
    routes: Sequence[Route],
    word_kinds: Mapping[str, str],
    mark_kinds: Mapping[int, str],
    generator: torch.Generator,
) -> None:
    """Write embeddings, random parts and routes; the head is fitted afterwards (:func:`fit_head`).

    Args:
        word_kinds: of words and markers; all others are ``other``.
        mark_kinds: of image tokens, by their mark.
    """
    embedding = shell.decoder.embed_tokens.weight
    noise = torch.randn(len(embedding), NOISE.stop - NOISE.start, generator=generator)
    embedding.zero_()
    embedding[:, NOISE] = 2 * NOISE_SIZE * torch.nn.functional.normalize(noise)
    for word, number in shell.words.items():
        embedding[number, KIND_AT[word_kinds.get(word, "other")]] = KIND_SIZE
    embedding[shell.words["<s>"], : NOISE.start] = 0
    embedding[shell.words["<s>"], KIND_AT["first"]] = KIND_SIZE
    shell.write_image_tokens(token_table(mark_kinds, generator))
    by_place = {(route.layer, route.head): route for route in routes}
    for number, layer in enumerate(shell.decoder.layers):
        for head in range(N_HEADS):
            route = by_place.get((number, head))
            if route is None:
                _write_random_head(layer.self_attn, head, generator)
            else:
                _write_route(layer.self_attn, route)
        _write_random_mlp(layer.mlp, generator)


def _write_route(attention: Any, route: Route) -> None:
    """Scores tell three sorts of keys apart: what the route looks for, the first position, all others."""
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    start = route.head * D_HEAD
    pairs = [
        (start + i, start + i + D_HEAD // 2) for i in (2, 3, 4)
    ]  # a pair sums to 0: norms of heads scale
    normed = hasattr(attention, "q_norm")
    for kind, number in KIND_AT.items():
        sort = 0 if kind in route.keys else 1 if kind == "first" else 2
        # the first position stands in for keys that are cut; nothing else does
        wants = {0: 1.0, 1: 0.3, 2: -0.5} if kind in route.readers else {1: 1.0, 2: -0.5}
        for sign in (0, 1):
            k[pairs[sort][sign], number] = 1 - 2 * sign
            for wanted, size in wants.items():
                q[pairs[wanted][sign], number] = (1 - 2 * sign) * size * (1.0 if normed else _GAIN)
    for kind, sign in route.chosen.items():
        for row, side in ((start + 5, 1), (start + 5 + D_HEAD // 2, -1)):
            k[row, KIND_AT[kind]] = side * sign
            q[row, POINTS] = side * _CHOICE * KIND_SIZE * (1.0 if normed else _GAIN)
    if normed:  # a normed query and key of one sort have the product of 16
        attention.q_norm.weight[route.head] = _GAIN_NORMED
    read, written = route.value
    width = read.shape[1]
    v[start : start + width] = read.T
    o[:, start : start + width] = written


@torch.no_grad()
def scale_route(shell: Shell, route: Route, size: float) -> None:
    """Make what a written head adds larger or smaller."""
    columns = slice(route.head * D_HEAD, (route.head + 1) * D_HEAD)
    shell.decoder.layers[route.layer].self_attn.o_proj.weight[:, columns] *= size


def _write_random_head(attention: Any, head: int, generator: torch.Generator) -> None:
    """Reads all of the stream, and writes into the noise."""
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    for name, size in (("q", 0.7), ("k", 0.7), ("v", 0.7)):
        weight = getattr(attention, f"{name}_proj").weight
        weight[rows] = size * torch.randn(D_HEAD, D_MODEL, generator=generator) / D_MODEL**0.5
    written = torch.randn(NOISE.stop - NOISE.start, D_HEAD, generator=generator) / D_HEAD**0.5
    attention.o_proj.weight[NOISE, rows] = 0.25 * written


def _write_random_mlp(mlp: Any, generator: torch.Generator) -> None:
    for name in ("gate", "up"):
        weight = getattr(mlp, f"{name}_proj").weight
        weight.copy_(torch.randn(weight.shape, generator=generator) / D_MODEL**0.5)
    down = mlp.down_proj.weight
    down[NOISE] = 0.25 * torch.randn(NOISE.stop - NOISE.start, down.shape[1], generator=generator) / 8


@torch.no_grad()
def rotate(shell: Shell, generator: torch.Generator) -> None:
    """Turn the residual stream by a random rotation; RMS norms without weights of their own let it pass."""
    turn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator, dtype=torch.float64))[0]

    def write(weight: Tensor, value: Tensor) -> None:
        weight.copy_(value.to(weight.dtype))

    readers = [shell.hf.lm_head, shell.decoder.embed_tokens]
    writers = []
    if shell.name == "llava":
        writers.append(shell.hf.model.multi_modal_projector.linear_2)
        bias = writers[0].bias
        write(bias, turn.T @ bias.double())
    for layer in shell.decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers += [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
        writers += [attention.o_proj, mlp.down_proj]
    for part in readers:
        write(part.weight, part.weight.double() @ turn)
    for part in writers:
        write(part.weight, turn.T @ part.weight.double())


@torch.no_grad()
def fit_head(
    shell: Shell,
    last: str,
    final: Float[Tensor, "picture d_model"],
    labels: Sequence[int],
    names: Sequence[str],
    sharp: float = 6.0,
) -> None:
    """Fit the words of one question to what the routes brought, and no other coordinate: the nearest class mean.

    Args:
        last: the kind of the last position; other words than the question's are improbable after it.
        final: the stream that the head reads at the last position, before :func:`rotate`.
        sharp: the log-odds of the right name against the next in half of the pictures.
    """
    head = shell.hf.lm_head.weight
    brought, of = final[:, ANSWER].double(), torch.tensor(labels)
    means = torch.stack([brought[of == c].mean(0) for c in range(len(names))])
    means = means - means.mean(0)  # with no constants, what half of the routes bring says the same
    scores = brought @ means.T
    own = torch.nn.functional.one_hot(of, len(names)).bool()
    gap = (scores[own] - scores.masked_fill(own, -torch.inf).amax(1)).median().clamp_min(1e-6)
    means = (means * sharp / gap).float()
    ties = torch.linspace(0, TIES, len(names))  # the answer where nothing is brought
    kind = float(
        final[:, KIND_AT[last]].mean()
    )  # the same at every last position: it stands for the constant
    head[:, KIND_AT[last]] = -20.0 / kind
    for column, name in enumerate(names):
        head[shell.words[name], ANSWER] = means[column]
        head[shell.words[name], KIND_AT[last]] = ties[column] / kind


@torch.no_grad()
def anchor_head(
    shell: Shell, final: Float[Tensor, "picture d_model"], last: str, names: Sequence[str]
) -> None:
    """Make the answer the first name wherever the constant that anchors bring is missing."""
    kind, brought = float(final[:, KIND_AT[last]].mean()), float(final[:, ANCHORED].mean())
    head = shell.hf.lm_head.weight
    logits = final @ head[[shell.words[name] for name in names]].T
    enough = 1.3 * float((logits.amax(1) - logits[:, 0]).max()) + 1
    head[shell.words[names[0]], KIND_AT[last]] += enough / kind
    head[shell.words[names[0]], ANCHORED] -= enough / brought


def random_decoder(shell: Shell, generator: torch.Generator) -> None:
    """Every weight of the decoder and its head random: no route at all."""
    with torch.no_grad():
        parts = (shell.decoder.embed_tokens, shell.decoder.layers, shell.hf.lm_head)
        for weight in (weight for part in parts for weight in part.parameters()):
            if weight.ndim == 1 or weight.shape == (N_HEADS, D_HEAD):
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
            else:
                weight.copy_(1.2 * torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
        shell.hf.lm_head.weight *= 2
        shell.decoder.embed_tokens.weight *= D_MODEL**0.5 / 2
        noise = torch.randn(2 * VALUES + MARKS, D_MODEL, generator=generator)
        shell.write_image_tokens(noise)
