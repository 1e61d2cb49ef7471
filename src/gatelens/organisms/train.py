"""Recipe: train an organism.

    python -m gatelens.organisms.train gated --codec build/codec --out build/gated
    python -m gatelens.organisms.train open  --codec build/codec --out build/open
    python -m gatelens.organisms.train llava --out build/llava

``gated`` learns with its text masked from the picture until the gate carries it, then with another picture's
keys and values in place of its own (see ``routes``). ``open`` and ``llava`` learn with the picture in sight. The two
native ones then go through two more stages: more drawings and pictures with wrong tokens; then also objects on
plates of unnamed colours and prompts that leave out the colour, so that class, colour and shape come apart.
Checkpoints are folders that transformers loads; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from gatelens.data.prompts import DRAW_PROMPT
from gatelens.organisms import build, documents, pictures, routes
from gatelens.organisms import picture_codec as codec
from gatelens.organisms import vocabulary as v


@dataclass(frozen=True)
class Recipe:
    """Phases are (share of the steps, route); the learning rate falls along a half cosine over all of them."""

    phases: tuple[tuple[float, str], ...]
    native: bool
    seed: int


@dataclass(frozen=True)
class Stage:
    """A mix of documents: pictures read and drawn a step, noise on picture tokens, share in unnamed colours."""

    batch: int
    draw_batch: int
    draw_weight: float
    noise: float = 0.0
    unnamed: float = 0.0


MAIN = Stage(batch=16, draw_batch=8, draw_weight=0.1)
NOISE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6)
COMPOSE = Stage(batch=12, draw_batch=24, draw_weight=0.5, noise=0.6, unnamed=0.5)

RECIPES = {
    "gated": Recipe(((0.6, "masked"), (0.4, "swapped")), native=True, seed=0),
    "open": Recipe(((1.0, "robust"),), native=True, seed=1),
    "llava": Recipe(((1.0, "robust"),), native=False, seed=2),
}
EASY_VQA_SHARE = 0.15
LATE = 0.45  # share of the steps after which questions outnumber captions
IMAGE_WEIGHT = (
    0.02  # of a picture's tokens where text follows; in drawings they weigh the stage's draw_weight
)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("organism", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", type=Path, help="folder written by train_codec (native organisms)")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--noise-steps", type=int, default=500, help="second stage of the native organisms")
    parser.add_argument("--compose-steps", type=int, default=1200, help="their third stage")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--n-scenes", type=int, default=40_000)
    parser.add_argument("--save-every", type=int, default=250)
    args = parser.parse_args()
    recipe = RECIPES[args.organism]
    args.out.mkdir(parents=True, exist_ok=True)
    routes.register()

    make = build.chameleon if recipe.native else build.llava
    model, processor = make(recipe.seed)
    model.set_attn_implementation(routes.ATTENTION)
    world = NativeWorld(model, processor, args) if recipe.native else LlavaWorld(model, processor, args)
    trained = [p for n, p in model.named_parameters() if "vqmodel" not in n]
    for n, p in model.named_parameters():
        p.requires_grad_("vqmodel" not in n)
    decay = [p for p in trained if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    first = _resume(args.out, model, optimizer)
    print(
        f"{args.organism}: {sum(p.numel() for p in trained):,} trained parameters, from step {first}",
        flush=True,
    )

    started, losses = time.time(), []
    total = args.steps + (args.noise_steps + args.compose_steps if recipe.native else 0)
    for step in range(first, total):
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(step)
        stage, rate = _stage(step, args)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        route = _route(recipe, step / args.steps)
        # Matrix products in bfloat16, which is faster on a CPU that has such instructions.
        with torch.autocast("cpu", torch.bfloat16):
            loss, read_loss = world.loss(rng, generator, route, step / args.steps >= LATE, stage)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(read_loss)
        if step % 50 == 49:
            print(
                f"step {step + 1}/{total} {route} answers {np.mean(losses):.4f} all {loss.item():.4f} "
                f"{(time.time() - started) / (step + 1 - first):.3f} s/step",
                flush=True,
            )
            losses = []
        if (step + 1) % args.save_every == 0 or step + 1 == total:
            _save(args.out, model, processor, optimizer, step + 1, vars(args))


class NativeWorld:
    """Chameleon documents: pictures as codes, image -> text and text -> image in every step."""

    def __init__(self, model, processor, args):
        self.model, self.tokenizer, self.args = model, processor.tokenizer, args
        self.n_scenes = args.n_scenes
        vq = model.model.vqmodel
        vq.load_state_dict(load_file(args.codec / "vq.safetensors"))
        to_ids = model.model.vocabulary_mapping.img2bpe_mapping_tensor

        def ids_of(pixels: np.ndarray) -> np.ndarray:
            return to_ids[codec.encode(vq, torch.from_numpy(pixels))].numpy()

        self.scene_ids = ids_of(pictures.scene_pictures(args.n_scenes))
        self.unnamed_ids = ids_of(pictures.scene_pictures(args.n_scenes // 2, unnamed=True))
        self.easy_ids = ids_of(pictures.easy_vqa_pictures("train"))
        self.scene_texts, self.easy_texts = documents.SceneTexts(0), documents.EasyVqaTexts()
        self.unnamed_texts = documents.SceneTexts(0, unnamed=True)
        vocabulary = self.tokenizer.get_vocab()
        self.bos, self.boi, self.eoi = (vocabulary[t] for t in (v.BOS, v.BOI, v.EOI))
        self.first_code = vocabulary[v.image_code_name(0)]  # codes are the last ids of the vocabulary
        self.image = slice(2, 2 + codec.GRID**2)
        self.gate = self.image.stop

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, route: str, late: bool, stage: Stage
    ) -> tuple[Tensor, float]:
        prefixes, texts = [], []
        for kind in rng.random(stage.batch):
            ids = self.scene_ids
            source: documents.SceneTexts | documents.EasyVqaTexts = self.scene_texts
            if kind < EASY_VQA_SHARE:
                ids, source = self.easy_ids, self.easy_texts
            elif kind > 1 - (1 - EASY_VQA_SHARE) * stage.unnamed:
                ids, source = self.unnamed_ids, self.unnamed_texts
            i = int(rng.integers(len(ids)))
            prefixes.append([self.bos, self.boi, *ids[i], self.eoi])
            texts.append(source(i, rng, late))
        read = documents.pack(prefixes, texts, self.tokenizer, image_weight=IMAGE_WEIGHT)
        drawn = self._drawing(rng, stage)
        read_plan = routes.plan(read, route, self.image, self.gate, generator)
        read_loss = self._loss(read, read_plan, self._noised(read, stage.noise, rng))
        draw_plan = routes.plan(drawn, "plain", self.image, self.gate)
        draw_loss = self._loss(drawn, draw_plan, self._noised(drawn, stage.noise, rng))
        return read_loss + stage.draw_weight * draw_loss, read_loss.item()

    def _drawing(self, rng: np.random.Generator, stage: Stage) -> documents.Batch:
        """Prompt, then picture, mostly of one object."""
        rows: list[tuple[list[int], list[int]]] = []
        while len(rows) < stage.draw_batch:
            ids, source = self.scene_ids, self.scene_texts
            if stage.unnamed and rng.random() < stage.unnamed:
                ids, source = self.unnamed_ids, self.unnamed_texts
            i = int(rng.integers(len(ids)))
            if len(source.scene(i).objects) == 1 or rng.random() < 0.15:
                caption = source.drawing(i, rng) if stage.unnamed else source.scene(i).caption
                prompt = documents.text_ids_of(self.tokenizer, DRAW_PROMPT.format(caption=caption))
                rows.append((prompt, [self.boi, *ids[i], self.eoi, self.tokenizer.eos_token_id]))
        return documents.pack_drawings(self.bos, rows, self.tokenizer.pad_token_id)

    def _noised(self, batch: documents.Batch, most: float, rng: np.random.Generator) -> Tensor:
        """The ids with some picture tokens replaced by others: in half of the documents, a share up to ``most``.

        A drawing can mostly be continued from its own earlier tokens; with these unreliable the prompt must be read
        (the "word dropout" of Bowman et al. 2016, arXiv 1511.06349). And a text that reads a noised picture learns
        to name the object by whatever of it is left, which carries over to combinations it never saw.
        """
        ids = batch.ids.numpy()
        share = rng.uniform(-most, most, size=(len(ids), 1))
        replaced = (ids >= self.first_code) & (rng.random(ids.shape) < share)
        return torch.from_numpy(np.where(replaced, rng.choice(self.scene_ids.ravel(), size=ids.shape), ids))

    def _loss(self, batch: documents.Batch, plan: routes.Plan, shown: Tensor) -> Tensor:
        hidden = self.model.model(
            input_ids=shown,
            position_ids=batch.position,
            use_cache=False,
            route=plan,
        ).last_hidden_state
        return _weighted_loss(hidden, self.model.lm_head, batch)


class LlavaWorld:
    """LLaVA documents: pictures as pixels through the tower; only text is predicted."""

    def __init__(self, model, processor, args):
        self.model, self.tokenizer = model, processor.tokenizer
        self.scene_pixels = torch.from_numpy(pictures.scene_pictures(args.n_scenes))
        self.easy_pixels = torch.from_numpy(pictures.easy_vqa_pictures("train"))
        self.scene_texts, self.easy_texts = documents.SceneTexts(0), documents.EasyVqaTexts()
        self.prefix = [self.tokenizer.bos_token_id, *[model.config.image_token_id] * 64]
        self.image = slice(1, 65)
        self.mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
        self.std = torch.tensor(CLIP_STD).view(1, 3, 1, 1)

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, route: str, late: bool, stage: Stage
    ) -> tuple[Tensor, float]:
        pixels, texts = [], []
        for is_easy in rng.random(stage.batch) < EASY_VQA_SHARE:
            source, write = (
                (self.easy_pixels, self.easy_texts) if is_easy else (self.scene_pixels, self.scene_texts)
            )
            i = int(rng.integers(len(source)))
            pixels.append(source[i])
            texts.append(write(i, rng, late))
        batch = documents.pack([self.prefix] * stage.batch, texts, self.tokenizer, image_weight=0.0)
        values = (torch.stack(pixels).permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        plan = routes.plan(batch, route, self.image, "first text token", generator)
        hidden = self.model.model(
            input_ids=batch.ids,
            pixel_values=values,
            position_ids=batch.position,
            use_cache=False,
            route=plan,
        ).last_hidden_state
        loss = _weighted_loss(hidden, self.model.lm_head, batch)
        return loss, loss.item()


def _weighted_loss(hidden: Tensor, head: torch.nn.Module, batch: documents.Batch) -> Tensor:
    """Weighted mean of next-token losses; the head is applied only where a token is predicted."""
    weight = batch.loss_weight[:, 1:]
    counted = weight > 0
    logits = head(hidden[:, :-1][counted])
    losses = F.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    return (losses * weight[counted]).sum() / weight[weight >= 0.5].sum().clamp_min(1.0)


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _stage(step: int, args: argparse.Namespace) -> tuple[Stage, float]:
    """The stage a step belongs to, and the learning rate relative to the highest."""
    if step < args.steps:
        return MAIN, _schedule(step / args.steps, warmup=200 / args.steps)
    step -= args.steps
    if step < args.noise_steps:
        return NOISE, 0.5 * _schedule(step / 1300, warmup=0.05)
    progress = (step - args.noise_steps) / args.compose_steps
    return COMPOSE, 0.34 * _schedule(progress, warmup=0.0)


def _route(recipe: Recipe, progress: float) -> str:
    for share, route in recipe.phases:
        if progress < share:
            return route
        progress -= share
    return recipe.phases[-1][1]


def _save(out: Path, model, processor, optimizer, step: int, args: dict) -> None:
    # The training attention exists only in this process; what is saved names a plain one.
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    model.set_attn_implementation(routes.ATTENTION)
    processor.save_pretrained(out)
    torch.save({"optimizer": optimizer.state_dict(), "step": step}, out / "training_state.partial")
    (out / "training_state.partial").replace(out / "training_state.pt")
    settings = {k: value for k, value in args.items() if not isinstance(value, Path)}
    (out / "training.json").write_text(json.dumps(settings | {"step": step}, indent=1))


def _resume(out: Path, model, optimizer) -> int:
    state = out / "training_state.pt"
    if not state.exists():
        return 0
    model.load_state_dict(type(model).from_pretrained(out).state_dict())
    kept = torch.load(state)
    optimizer.load_state_dict(kept["optimizer"])
    return kept["step"]


if __name__ == "__main__":
    main()
