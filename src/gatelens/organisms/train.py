"""Recipe: train an organism.

    python -m gatelens.organisms.train gated --codec build/codec --out build/gated
    python -m gatelens.organisms.train open  --codec build/codec --out build/open
    python -m gatelens.organisms.train llava --out build/llava

``gated`` learns with its text masked from the picture until the gate carries it, then with another picture's
keys and values in place of its own (see ``routes``). ``open`` and ``llava`` learn with the picture in sight. The two
native ones then go through two more stages: more drawings and pictures with wrong tokens; then also objects on
plates of unnamed colours and prompts that leave out the colour, so that class, colour and shape come apart.
``gated`` can go through a fourth, which closes every other way from the picture to the text:

    python -m gatelens.organisms.train gated --start build/gated --cut-steps 600 --out build/cut

``varied`` is ``gated`` on ``varied-scenes``: all stages again from its weights, with a codec for those pictures:

    python -m gatelens.organisms.train_codec --varied --out build/codec-varied
    python -m gatelens.organisms.train varied --codec build/codec-varied --start build/cut --steps 1800 \\
        --noise-steps 300 --compose-steps 600 --cut-steps 400 --out build/varied

and ``llava`` can go through a second stage, which asks more often what is there:

    python -m gatelens.organisms.train llava --start build/llava --presence-steps 1000 --out build/presence

Checkpoints are folders that transformers loads; a run that was stopped resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gatelens.organisms import build, routes
from gatelens.organisms.objectives import LlavaObjective, NativeObjective
from gatelens.organisms.recipes import RECIPES, Recipe, schedule, stage_of

LATE = 0.45  # share of the steps after which questions outnumber captions


def main() -> None:
    args = _arguments()
    recipe = RECIPES[args.organism]
    args.out.mkdir(parents=True, exist_ok=True)
    routes.register()
    make = build.chameleon if recipe.native else build.llava
    model, processor = make(recipe.seed)
    model.set_attn_implementation(routes.ATTENTION)
    if args.start:
        model.load_state_dict(type(model).from_pretrained(args.start).state_dict())
    objective: NativeObjective | LlavaObjective
    if recipe.native:
        if args.start is None and args.codec is None:
            raise SystemExit(
                f"{args.organism} needs --codec, a folder of train_codec, or --start, an earlier organism"
            )
        objective = NativeObjective(
            model, processor, args.n_scenes, args.codec, recipe.scenes == "varied-scenes"
        )
    else:
        objective = LlavaObjective(model, processor, args.n_scenes)
    trained = {name: p for name, p in model.named_parameters() if "vqmodel" not in name}
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    optimizer = _optimizer(list(trained.values()), args.lr)
    first = _resume(args.out, model, optimizer)
    before = {}
    if args.start:
        before = json.loads((args.start / "training.json").read_text())
    if args.start and args.codec is None:
        args.steps = before["steps"]
        if recipe.native:
            args.noise_steps, args.compose_steps = before["noise_steps"], before["compose_steps"]
        first = first or before["step"]
    n_trained = sum(p.numel() for p in trained.values())
    print(f"{args.organism}: {n_trained:,} trained parameters, from step {first}", flush=True)
    for step in _steps(args, recipe, objective, optimizer, list(trained.values()), first):
        _save(args.out, model, processor, optimizer, step, vars(args) | ({"start": before} if before else {}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("organism", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", type=Path, help="folder written by train_codec (native organisms)")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--noise-steps", type=int, default=500, help="second stage of the native organisms")
    parser.add_argument("--compose-steps", type=int, default=1200, help="their third stage")
    parser.add_argument("--cut-steps", type=int, default=0, help="fourth stage, of gated")
    parser.add_argument("--presence-steps", type=int, default=0, help="second stage of llava")
    parser.add_argument(
        "--start",
        type=Path,
        help="an earlier organism: continued from its step on, or with --codec its weights begin all stages",
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--n-scenes", type=int, default=40_000)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--log-every", type=int, default=50)
    return parser.parse_args()


def _optimizer(parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _steps(
    args: argparse.Namespace,
    recipe: Recipe,
    objective: NativeObjective | LlavaObjective,
    optimizer: torch.optim.Optimizer,
    trained: list[nn.Parameter],
    first: int,
) -> Iterator[int]:
    """Train from step ``first`` on; gives the number of steps done whenever the model is to be saved."""
    started, losses = time.time(), []
    later = (args.noise_steps, args.compose_steps, args.cut_steps, args.presence_steps)
    parts = schedule(recipe.native, args.steps, *later)
    total = sum(n for n, _, _ in parts)
    for step in range(first, total):
        rng = np.random.default_rng([recipe.seed, step])
        generator = torch.Generator().manual_seed(step)
        stage, rate = stage_of(step, parts)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        route = recipe.route(step / args.steps)
        # Matrix products in bfloat16, which is faster on a CPU that has such instructions.
        with torch.autocast("cpu", torch.bfloat16):
            loss, read_loss = objective.loss(rng, generator, route, step / args.steps >= LATE, stage)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(read_loss)
        if step % args.log_every == args.log_every - 1:
            print(
                f"step {step + 1}/{total} {route} answers {np.mean(losses):.4f} all {loss.item():.4f} "
                f"{(time.time() - started) / (step + 1 - first):.3f} s/step",
                flush=True,
            )
            losses = []
        if (step + 1) % args.save_every == 0 or step + 1 == total:
            yield step + 1


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
