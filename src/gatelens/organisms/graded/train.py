"""Recipe: fine-tune a shipped organism so that given positions carry the picture.

    python -m gatelens.organisms.graded.train gate-at-image-47 --out build/graded/gate-at-image-47

Only low-rank factors added to the decoder's matrices, and its norms, are trained. Every document is a scene of one
object with all questions of the kind; each is read under one cut (:mod:`gatelens.organisms.graded.cuts`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoProcessor, ChameleonForConditionalGeneration

from gatelens.data import scenes
from gatelens.drawing import codec
from gatelens.model.differences import Difference, checksum, read_difference, save_difference
from gatelens.organisms import folder
from gatelens.organisms import vocabulary as v
from gatelens.organisms.graded import cuts as cutting
from gatelens.organisms.graded.kinds import FACTS, KINDS, QUESTIONS, TEXT, Kind
from gatelens.shipped_organisms import DIFFERENCE_FILE
from gatelens.training.loop import half_cosine

BASE = "open"
SEED = 17
LOGGED = {"plain": "plain", "other": "another's", "own": "others another's", "cut": "cut, mask"}
EOS_WEIGHT, STRAY_WEIGHT, DISTRACTOR_WEIGHT = 0.05, 0.2, 1.0


class LowRank(nn.Module):
    """A matrix with a product of two narrow ones added."""

    def __init__(self, up: Float[Tensor, "out rank"], down: Float[Tensor, "rank in"]) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Scenes:
    """Training scenes of one object: their tokens and facts, kept in the temporary folder.

    In a part of them plates have colours that are never named, so that class and shape are not learned together with a
    colour.

    Attributes:
        ids: Int[scene, token].
        facts: by scene and fact, what is true of it.
    """

    def __init__(self, model: Any, n: int, base: str = BASE, unnamed: float = 0.4, seed: int = SEED) -> None:
        key = hashlib.sha256(f"{n} {unnamed} {seed} {checksum(folder(base))}".encode()).hexdigest()[:12]
        kept = Path(tempfile.gettempdir()) / f"gatelens-graded-{key}.npz"
        if not kept.exists():
            n_unnamed = int(n * unnamed)
            drawn = [scenes.scene("train", seed, i, 1) for i in range(n - n_unnamed)]
            drawn += [scenes.unnamed_scene(seed, i, 1) for i in range(n_unnamed)]
            pixels = torch.from_numpy(np.stack([scene.pixels for scene in drawn]))
            to_ids = model.model.vocabulary_mapping.img2bpe_mapping_tensor
            codes = [codec.encode(model.model.vqmodel, part) for part in pixels.split(500)]
            facts = [(o.name, o.color, o.shape, o.side) for scene in drawn for o in scene.objects]
            partial = kept.with_suffix(f".{os.getpid()}.npz")
            np.savez(partial, ids=to_ids[torch.cat(codes)].numpy(), facts=np.array(facts))
            partial.replace(kept)
        with np.load(kept) as held:
            self.ids = torch.from_numpy(held["ids"])
            self.facts = [dict(zip(FACTS, row, strict=True)) for row in held["facts"].tolist()]

    def answer(self, index: int, fact: str) -> int:
        """The number of the right answer; -1 where it has none."""
        value, names = self.facts[index][fact], QUESTIONS[fact][1]
        return names.index(value) if value in names else -1


class Documents:
    """Packed documents of one layout: a picture, then all questions of a kind, each as often as it is read.

    In half of them up to a share ``noise`` of the picture's tokens are others, so that no few tokens are relied on.
    """

    def __init__(
        self, kind: Kind, training: Scenes, tokenizer: Any, readings: int = 2, noise: float = 0.3
    ) -> None:
        self.kind, self.training, self.tokenizer, self.noise = kind, training, tokenizer, noise
        vocabulary = tokenizer.get_vocab()
        self.begin, self.end = [vocabulary[v.BOS], vocabulary[v.BOI]], vocabulary[v.EOI]
        self.answers = {
            fact: torch.tensor([vocabulary[name] for name in QUESTIONS[fact][1]]) for fact in kind.facts
        }
        self.prompts = {
            (fact, name): v.text_ids(tokenizer, QUESTIONS[fact][0].format(name))
            for fact in kind.facts
            for name in scenes.CLASSES
        }
        self.rows, at = [], TEXT
        for fact in kind.facts * readings:
            (n_words,) = {len(self.prompts[fact, name]) for name in scenes.CLASSES}
            self.rows.append(cutting.Rows(fact, at, at + n_words - 1, at + n_words + 1))
            at += n_words + 1
        self.position = torch.cat(
            [torch.arange(TEXT), *(torch.arange(r.end - r.first) + TEXT for r in self.rows)]
        )

    def batch(
        self, n: int, rng: np.random.Generator
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch question"]]:
        """Ids and numbers of the right answers, -1 where a question has none."""
        chosen = rng.choice(len(self.training.facts), size=n, replace=False)
        facts = [r.fact for r in self.rows]
        answers = torch.tensor([[self.training.answer(i, fact) for fact in facts] for i in chosen])
        rows = []
        for i, right in zip(chosen, answers.tolist(), strict=True):
            ids = [*self.begin, *self._picture(i, rng), self.end]
            for fact, number in zip(facts, right, strict=True):
                ids += [*self.prompts[fact, self.training.facts[i]["class"]], int(self.answers[fact][number])]
            rows.append(ids)
        return torch.tensor(rows), answers

    def _picture(self, index: int, rng: np.random.Generator) -> list[int]:
        own = self.training.ids[index].numpy()
        replaced = rng.random(own.shape) < rng.uniform(-self.noise, self.noise)
        return np.where(replaced, rng.choice(self.training.ids.numpy().ravel(), own.shape), own).tolist()


def loss(
    model: Any, documents: Documents, n: int, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a step, and its parts."""
    kind, rows = documents.kind, documents.rows
    ids, answers = documents.batch(n, rng)
    cuts = cutting.draw_cuts(kind, rows, n, rng)
    wanted = cutting.targets(kind, rows, cuts, answers)
    states = model.model(
        input_ids=ids, position_ids=documents.position.expand(n, -1), use_cache=False, cuts=cuts
    ).last_hidden_state
    at = [r.answering for r in rows]
    said: Float[Tensor, "batch question vocab"] = model.lm_head(states[:, at]).float().log_softmax(-1)
    ended = model.lm_head(states[:, [r.answering + 1 for r in rows]]).float()
    off = torch.stack(
        [
            F.kl_div(said[:, i, documents.answers[r.fact]], wanted[i], reduction="none").sum(-1)
            for i, r in enumerate(rows)
        ],
        dim=1,
    )
    eos = torch.full((n * len(rows),), documents.tokenizer.eos_token_id)
    asked = answers >= 0
    swapped = cuts.are("another's")
    asked &= answers.roll(1, 0).ge(0) | ~swapped
    off = off * asked
    stray, lacking = cutting.stray_attention(kind, rows, cuts)
    total = off.sum() / asked.sum() + EOS_WEIGHT * F.cross_entropy(ended.flatten(0, 1), eos)
    total = total + STRAY_WEIGHT * stray + DISTRACTOR_WEIGHT * lacking
    by_cut = {}
    for fact in kind.facts:
        which = [i for i, r in enumerate(rows) if r.fact == fact]
        read_under = {name: cuts.are(cut) for name, cut in LOGGED.items()}
        if kind.redundant:
            read_under |= {f"{p[0]} alone": cuts.alone == i for i, p in enumerate(kind.carriers[fact])}
        for name, where in read_under.items():
            by_cut[f"{fact} {name}"] = _mean(off.detach()[:, which], (asked & where)[:, which])
    return total, by_cut | {"stray": stray.item(), "lacking": lacking.item()}


def _mean(values: Tensor, where: Tensor) -> float:
    return values[where].mean().item()


def prepare(model: Any, rank: int, start: Difference | None = None) -> dict[str, nn.Parameter]:
    """Add factors to the decoder's matrices; returns what is trained, by name.

    Args:
        start: a difference to begin from, whose rank is kept; None begins from the model itself.
    """
    generator = torch.Generator().manual_seed(SEED)
    model.requires_grad_(False)
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, nn.Linear):
            n_out, n_in = module.weight.shape
            factors = torch.zeros(n_out, rank), torch.randn(rank, n_in, generator=generator) / n_in**0.5
            if start is not None:
                up, down = start.factors[f"{name}.weight"]
                factors = up.float(), down.float()
            parametrize.register_parametrization(module, "weight", LowRank(*factors))
        elif "norm" in type(module).__name__.lower():
            module.requires_grad_(True)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, value in start.added.items() if start is not None else ():
            trained[name].add_(value.float())
    return trained


def difference(model: Any, base: Any) -> Difference:
    """What was trained, in float16."""
    factors, added = {}, {}
    before = dict(base.named_parameters())
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            low = module.parametrizations.weight[0]
            factors[f"{name}.weight"] = (low.up.detach(), low.down.detach())
    for name, p in model.named_parameters():
        if p.requires_grad and "parametrizations" not in name:
            added[name] = p.detach() - before[name].detach()
    return Difference(factors, added)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--noise", type=float, default=0.3, help="most of a picture's tokens that are others")
    parser.add_argument("--readings", type=int, default=2, help="how often a document asks each question")
    parser.add_argument("--start", type=Path, help="folder of a trained difference to begin from")
    parser.add_argument("--n-scenes", type=int, default=12_000)
    parser.add_argument("--log-every", type=int, default=25)
    args = parser.parse_args()
    cutting.register()
    where = folder(BASE)
    model, base = (ChameleonForConditionalGeneration.from_pretrained(where) for _ in range(2))
    model.set_attn_implementation(cutting.ATTENTION)
    tokenizer = AutoProcessor.from_pretrained(where).tokenizer
    documents = Documents(
        KINDS[args.kind], Scenes(model, args.n_scenes), tokenizer, args.readings, args.noise
    )
    start, before = None, []
    if args.start is not None:
        start = read_difference(args.start / DIFFERENCE_FILE, where)
        earlier = json.loads((args.start / "training.json").read_text())
        before = [*earlier.pop("before", []), earlier]
    trained = prepare(model, args.rank, start)
    optimizer = torch.optim.AdamW(trained.values(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    print(f"{args.kind}: {sum(p.numel() for p in trained.values()):,} trained numbers", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    started, seen = time.time(), []
    for step in range(args.steps):
        rng = np.random.default_rng([SEED, step])
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.02 + 0.98 * half_cosine(step / args.steps))
        with torch.autocast("cpu", torch.bfloat16):
            total, parts = loss(model, documents, args.batch, rng)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        seen.append(parts)
        if (step + 1) % args.log_every == 0:
            mean = {k: float(np.nanmean([one[k] for one in seen])) for k in parts}
            rate = (time.time() - started) / (step + 1)
            print(step + 1, " ".join(f"{k} {x:.3f}" for k, x in mean.items()), f"{rate:.2f} s", flush=True)
            seen = []
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            save_difference(difference(model, base), where, args.out / DIFFERENCE_FILE)
            settings = {k: x for k, x in vars(args).items() if k not in ("out", "start")}
            settings |= {"base": BASE, "seed": SEED, "step": step + 1}
            settings |= {"before": before} if before else {}
            (args.out / "training.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
