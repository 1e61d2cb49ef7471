"""Random lists of interventions, run by gatelens in every way it has and by the oracle on plain transformers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from case import Case, cases
from test_conformance import Built
from torch import Tensor

import gatelens as gl
from attack.oracle import HEAD_SITES, Change, Cut, Operation, Oracle, Seen, must_refuse
from gatelens.engine.run_batch import RunBatch, last_logits
from gatelens.errors import GatelensError
from gatelens.interventions.compile import compile_hooks
from gatelens.interventions.sites import SITES
from gatelens.tokens import Role

TOLERANCE = 2e-4  # of logits between -10 and 10, summed in another order
WAYS = ("run", "hooks", "together", "last")
ROLES = ("image", "query", "system", "eoi", "boi", "row_break", "text", "all")


@dataclass
class Subject:
    """A tiny model of one family, and plain transformers with its weights."""

    name: str
    built: Built
    oracle: Oracle
    clean: dict[int, tuple[Any, Tensor, Seen]] = field(default_factory=dict)

    def prompt(self, number: int) -> tuple[Any, Tensor, Seen]:
        """Inputs (one picture, two, or a padded batch), the oracle's clean logits, and what it saw."""
        if number not in self.clean:
            inputs = self.built.inputs(("one", "two", "batch")[number % 3], seed=number // 3)
            self.clean[number] = (inputs, *self.oracle.run(inputs.tensors))
        return self.clean[number]


@cache
def subject(name: str) -> Subject:
    built = Built(family_cases()[name])
    return Subject(name, built, Oracle(built.plain))


@cache
def family_cases() -> dict[str, Case]:
    return cases()


@dataclass(frozen=True)
class Move:
    """One intervention twice: as gatelens takes it, and for the oracle."""

    ours: Any
    theirs: Operation
    refused: str | None = None  # why it cannot act, where the oracle's own rules do not say


def role_mask(tokens: Any, name: str) -> Tensor:
    """A role's positions counted by hand."""
    roles = tokens.roles
    if name == "all":
        return roles != Role.PAD
    if name == "text":
        return (roles == Role.QUERY) | (roles == Role.GENERATED)
    return roles == Role[name.upper()]


def random_selector(rng: random.Random, tokens: Any) -> tuple[Any, Tensor]:
    """A selector and what it selects, now and then nothing."""
    for _ in range(4):
        selector, mask = any_selector(rng, tokens)
        if mask.any():
            break
    return selector, mask


def any_selector(rng: random.Random, tokens: Any, depth: int = 0) -> tuple[Any, Tensor]:
    """A selector (text, or a mask of the prompt) and what it selects, by hand."""
    real = tokens.roles != Role.PAD
    kind = rng.random()
    if depth < 2 and kind < 0.35:
        (a, x), (b, y) = (random_selector_text(rng, tokens, depth + 1) for _ in range(2))
        sign = rng.choice("|&-")
        mask = {"|": x | y, "&": x & y, "-": x & ~y}[sign]
        return f"({a}) {sign} ({b})", mask & real
    if depth == 0 and kind < 0.5:
        mask = torch.rand(real.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))) < 0.2
        mask[:, tokens.prompt_length :] = False
        return (mask & real)[:, : tokens.prompt_length], mask & real
    return random_selector_text(rng, tokens, depth)


def random_selector_text(rng: random.Random, tokens: Any, depth: int) -> tuple[str, Tensor]:
    real = tokens.roles != Role.PAD
    choice = rng.random()
    if choice < 0.6:
        name = rng.choice(ROLES)
        return name, role_mask(tokens, name)
    if choice < 0.7:
        last = torch.zeros_like(real)
        last[:, tokens.prompt_length - 1] = True
        return "last", last
    if choice < 0.8:
        name = rng.choice(ROLES)
        return f"~({name})", real & ~role_mask(tokens, name)
    mask = torch.zeros_like(real)
    if choice < 0.9:
        image = role_mask(tokens, "image")
        first = rng.random() < 0.5
        for b, row in enumerate(image):
            mask[b, row.nonzero()[0 if first else -1]] = True
        return ("first_image" if first else "last_image"), mask
    position = rng.randrange(int((~real).sum(1).max()), tokens.prompt_length)
    mask[:, position] = True
    return f"pos[{position}]", mask & real


def random_numbers(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(sorted(rng.sample(range(n), rng.randint(1, n))))


def random_knockout(rng: random.Random, tokens: Any, n_layers: int, n_heads: int) -> Move:
    (queries, q), (keys, k) = random_selector(rng, tokens), random_selector(rng, tokens)
    layers = random_numbers(rng, n_layers)
    heads = random_numbers(rng, n_heads) if rng.random() < 0.4 else None
    how = rng.choice(("mask", "zero"))
    missing = "selects nothing" if not q.any() or not k.any() else None
    return Move(
        gl.knockout(queries, keys, layers=layers, heads=heads, how=how),
        Cut(q, k, layers, heads, how),
        missing,
    )


def random_edit(rng: random.Random, who: Subject, tokens: Any, seen: Seen, near: Move | None = None) -> Move:
    """An ablation, a steering or a patch at a random site; ``near`` another edit, at its rows and layers."""
    site = rng.choice(SITES)
    if near is not None and isinstance(near.theirs, Change) and near.theirs.site in SITES:
        site = rng.choice(("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"))
        selector, at, layers = near.ours.at, near.theirs.at, near.theirs.layers
    else:
        selector, at = random_selector(rng, tokens)
        layers = random_numbers(rng, len(who.oracle.layers))
    shape = tuple(seen.sites[site, 0].shape[2:])
    heads = random_numbers(rng, shape[0]) if site in HEAD_SITES and rng.random() < 0.5 else None
    kind = rng.choice(("zero", "tensor", "mean", "steer", "patch", "projection", "edit"))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    vector = torch.randn(shape, generator=generator)
    where: dict[str, Any] = {"site": site, "layers": layers, "heads": heads}
    if kind == "edit":
        new = rng.choice((bent, turned))
        ours = gl.edit(lambda rows, where: new(rows), at=selector, **where)
        return Move(ours, Change(site, at, layers, heads, lambda old, _l, _x: new(old)))
    if kind == "projection":
        unit = vector / vector.norm(dim=-1, keepdim=True)
        out = lambda old, _l, _x: old - (old * unit).sum(-1, keepdim=True) * unit  # noqa: E731
        ours = gl.ablate(at=selector, with_="projection", direction=vector, **where)
        return Move(ours, Change(site, at, layers, heads, out))
    if kind == "patch":
        return random_patch(rng, who, tokens, selector, at, where)
    if kind == "steer":
        scale = rng.uniform(-2, 2)
        ours = gl.steer(vector, at=selector, scale=scale, **where)
        return Move(ours, Change(site, at, layers, heads, lambda old, _l, _x: old + scale * vector))
    if kind == "mean":
        over_text, over = random_selector(rng, tokens)
        over = over[:, : tokens.prompt_length]  # the mean is of prompt positions
        ours = gl.ablate(at=selector, with_="mean", over=over_text, **where)
        alone = int(over.sum()) == 1 and bool((over & at[:, : tokens.prompt_length]).any())
        refused = "a mean over nothing" if not over.any() else "a mean over itself" if alone else None
        new = lambda old, _l, x: x[:, : over.shape[1]][over].mean(0).expand_as(old)  # noqa: E731
        return Move(ours, Change(site, at, layers, heads, new), refused)
    value = vector if kind == "tensor" else torch.zeros(shape)
    ours = gl.ablate(at=selector, with_=vector if kind == "tensor" else "zero", **where)
    return Move(ours, Change(site, at, layers, heads, lambda old, _l, _x: value.expand_as(old)))


def bent(rows: Tensor) -> Tensor:
    return torch.tanh(rows) + 0.1


def turned(rows: Tensor) -> Tensor:
    return -rows


def sharper(rows: Tensor) -> Tensor:
    """A pattern that is more of what it is; still one, as no weight comes where there was none."""
    return rows.square() / rows.square().sum(-1, keepdim=True).clamp_min(1e-9)


def random_inside(rng: random.Random, who: Subject, tokens: Any, seen: Seen) -> Move:
    """An edit inside attention: rotated queries or keys, or rows of the pattern."""
    site = rng.choice(("rot_q", "rot_k", "pattern", "uniform"))
    selector, at = random_selector(rng, tokens)
    layers = random_numbers(rng, len(who.oracle.layers))
    name = "pattern" if site == "uniform" else site
    n_heads = seen.sites[name, 0].shape[2]
    heads = random_numbers(rng, n_heads) if rng.random() < 0.5 else None
    where: dict[str, Any] = {"at": selector, "site": name, "layers": layers, "heads": heads}
    if site == "uniform":
        ours = gl.ablate(with_="uniform", **where)
        even = lambda old, layer, _x: evenly(who.oracle, layer, at, old)  # noqa: E731
        return Move(ours, Change(name, at, layers, heads, even))
    new = sharper if site == "pattern" else rng.choice((bent, turned))
    ours = gl.edit(lambda rows, where: new(rows), **where)
    return Move(ours, Change(name, at, layers, heads, lambda old, _l, _x: new(old)))


def evenly(oracle: Oracle, layer: int, at: Tensor, old: Tensor) -> Tensor:
    """The same weight for each key that the rows of the pass may read."""
    open_ = oracle.seen.visible[layer]
    open_ = open_[at[:, : open_.shape[1]]].float()
    return (open_ / open_.sum(-1, keepdim=True))[:, None].expand(old.shape)


def random_patch(
    rng: random.Random, who: Subject, tokens: Any, selector: Any, at: Tensor, where: dict[str, Any]
) -> Move:
    """Activations of the same prompt with other pictures, so that positions pair one to one."""
    kind = {1: 0, 2: 2}.get(tokens.batch_size, 2) if not _two(tokens) else 1
    inputs, _, other = who.prompt(kind + 3 * rng.randint(1, 2))
    length = inputs.tokens.n_pos
    at = at & (torch.arange(tokens.n_pos) < tokens.prompt_length)  # generated ones are never patched
    names = [gl.interventions.hook_name(where["site"], layer) for layer in where["layers"]]
    _, held = who.built.model.run_with_cache(inputs, names)
    ours = gl.patch(held, at=selector, **where)
    assert torch.equal(inputs.tokens.roles, tokens.roles[:, :length])  # pictures of one size have one layout
    site = where["site"]
    new = lambda old, layer, _x: other.sites[site, layer][at[:, :length]]  # noqa: E731
    return Move(ours, Change(site, at, where["layers"], where["heads"], new))


def _two(tokens: Any) -> bool:
    return tokens.batch_size == 1 and len(tokens.image_sizes[0]) == 2


def random_list(rng: random.Random, who: Subject, number: int) -> list[Move]:
    inputs, _, seen = who.prompt(number)
    moves: list[Move] = []
    for _ in range(rng.randint(1, 4)):
        moves.append(random_move(rng, who, inputs.tokens, seen, moves[-1] if moves else None))
    return moves


def random_move(rng: random.Random, who: Subject, tokens: Any, seen: Seen, before: Move | None) -> Move:
    kind = rng.random()
    if kind < 0.45:
        return random_knockout(rng, tokens, len(who.oracle.layers), who.oracle.n_heads)
    if kind < 0.6:
        return random_inside(rng, who, tokens, seen)
    return random_edit(rng, who, tokens, seen, before if rng.random() < 0.5 else None)


@dataclass
class Outcome:
    """How many lists were run, refused on both sides, and what went wrong, each with how to see it again."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    worst: float = 0.0

    def add(self, other: Outcome) -> None:
        self.counts += other.counts
        self.wrong += other.wrong
        self.worst = max(self.worst, other.worst)


def attack(names: Sequence[str], n: int, seed: int, several: int = 4) -> Iterator[Outcome]:
    """``n`` random lists over the families, ``several`` at a time on one batch of prompts."""
    for start in range(0, n, several):
        rng = random.Random(f"{seed}-{start}")
        yield attack_once(subject(rng.choice(list(names))), rng, several, f"seed {seed}, from {start}")


def attack_once(who: Subject, rng: random.Random, several: int, label: str) -> Outcome:
    number = rng.randrange(3)
    inputs, _, seen = who.prompt(number)
    real = inputs.tokens.roles != Role.PAD
    outcome = Outcome()
    accepted: list[tuple[list[Any], Tensor]] = []
    for _ in range(several):
        moves = random_list(rng, who, number)
        ours, theirs = [m.ours for m in moves], [m.theirs for m in moves]
        refused = next((m.refused for m in moves if m.refused), None) or must_refuse(theirs, seen, real)
        where = f"{who.name} prompt {number} ({label}): {ours}"
        try:
            got = who.built.model.run(inputs, ours)
        except GatelensError as error:
            outcome.counts["refused"] += 1
            if refused is None:
                outcome.wrong.append(f"refused for no reason: {error} | {where}")
            continue
        if refused is not None:
            outcome.wrong.append(f"accepted, though {refused} | {where}")
            continue
        want, _ = who.oracle.run(inputs.tensors, theirs)
        outcome.counts["run"] += 1
        compare(outcome, got, want, real, f"run | {where}")
        accepted.append((ours, want))
    for way in WAYS[1:]:
        for (ours, want), got in zip(
            accepted, ways()[way](who, inputs, [a for a, _ in accepted]), strict=True
        ):
            rows = real if way != "last" else torch.zeros_like(real).index_fill(1, torch.tensor([-1]), True)
            compare(outcome, got, want, rows, f"{way} | {who.name} prompt {number} ({label}): {ours}")
    return outcome


def compare(outcome: Outcome, got: Tensor, want: Tensor, rows: Tensor, where: str) -> None:
    """Count a comparison, and keep it where the numbers differ."""
    if got.shape[1] == 1:
        want, rows = want[:, -1:], rows[:, -1:]
    got, want = got[rows].float(), want[rows].float()
    closed = want < -1e30  # tokens that a family never writes
    assert torch.equal(closed, got < -1e30)
    got, want = got[~closed], want[~closed]
    scale = max(1.0, float(want.abs().max()) / 10)
    off = float((got - want).abs().max())
    outcome.counts["compared"] += 1
    outcome.worst = max(outcome.worst, off / scale)
    if not off <= TOLERANCE * scale:
        outcome.wrong.append(f"off by {off:.2e} of {float(want.abs().max()):.1f} | {where}")


def by_hooks(who: Subject, inputs: Any, lists: Sequence[Any]) -> list[Tensor]:
    """Plain TransformerLens hooks, no engine."""
    model = who.built.model
    pairs = [compile_hooks(one, inputs.tokens, model.cfg).pairs for one in lists]
    return [model.run_with_hooks(inputs, hooks) for hooks in pairs]


def together(who: Subject, inputs: Any, lists: Sequence[Any]) -> list[Tensor]:
    """All lists in one sweep: prefix, restart and stacked runs."""
    got = {i: logits.clone() for i, logits in RunBatch(who.built.model, inputs, list(lists)).each()}
    return [got[i] for i in range(len(lists))]


def last(who: Subject, inputs: Any, lists: Sequence[Any]) -> list[Tensor]:
    """The same for the last position alone."""
    return [row[:, None] for row in last_logits(who.built.model, inputs, list(lists))]


def ways() -> dict[str, Callable[[Subject, Any, Sequence[Any]], list[Tensor]]]:
    return {"hooks": by_hooks, "together": together, "last": last}
