"""Recipe: train the picture codec (VQ encoder, codebook, decoder) on scenes and easy-vqa pictures.

    python -m gatelens.organisms.train_codec --out build/codec

Straight-through estimator (van den Oord et al. 2017) with a codebook kept as running means of the vectors
assigned to each code; codes that nothing uses are moved onto random encoder outputs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

from gatelens.drawing import codec
from gatelens.organisms.pictures import training_pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--varied", action="store_true", help="scenes of varied-scenes, not of emoji-scenes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    pixels = torch.from_numpy(training_pictures(20_000, args.seed, args.varied))
    vq = ChameleonVQVAE(codec.vq_config()).train()
    decoder = codec.PictureDecoder()
    encoder_parameters = [*vq.encoder.parameters(), *vq.quant_conv.parameters()]
    optimizer = torch.optim.AdamW([*encoder_parameters, *decoder.parameters()], lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=args.steps, pct_start=0.05)
    codebook = RunningCodebook(vq, seed=args.seed)
    rng = np.random.default_rng(args.seed)

    started, warmup = time.time(), args.steps // 10
    for step in range(args.steps):
        batch = codec.to_model_range(pixels[rng.integers(len(pixels), size=args.batch)])
        batch = batch.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):  # faster where the CPU has such instructions
            z = vq.quant_conv(vq.encoder(batch))
        z = z.float()
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        if step == warmup:
            codebook.started = False  # the vectors it was fitted to so far meant little
        nearest = codebook.update(flat.detach())
        quantized = vq.quantize.embedding.weight.detach()[nearest].view(z.shape[0], *z.shape[2:], -1)
        quantized = quantized.permute(0, 3, 1, 2)
        straight_through = z + (quantized - z).detach()
        # The first steps train a plain autoencoder: a codebook is only worth fitting once z means something.
        with torch.autocast("cpu", torch.bfloat16):
            drawn = decoder(z if step < warmup else straight_through)
        reconstruction = F.l1_loss(drawn.float(), batch) + F.mse_loss(drawn.float(), batch)
        commitment = F.mse_loss(z, quantized)
        loss = reconstruction + 0.25 * commitment
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*encoder_parameters, *decoder.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"step {step} recon {reconstruction.item():.4f} commit {commitment.item():.4f} "
                f"codes in use {codebook.n_used()} {time.time() - started:.0f}s",
                flush=True,
            )
        if step % 500 == 499 or step == args.steps - 1:
            _save(args.out, vq, decoder, args, step)


class RunningCodebook:
    """Keeps each code at the exponentially weighted mean of the vectors assigned to it."""

    def __init__(self, vq: ChameleonVQVAE, seed: int, decay: float = 0.97):
        self.weight = vq.quantize.embedding.weight
        self.decay = decay
        self.count = torch.ones(len(self.weight))
        self.total = self.weight.detach().clone()
        self.generator = torch.Generator().manual_seed(seed)
        self.started = False

    @torch.no_grad()
    def update(self, vectors: torch.Tensor) -> torch.Tensor:
        """Assigns the vectors [n, d], moves the codes, returns the assignment [n]."""
        if not self.started:
            self._restart(torch.ones(len(self.weight), dtype=torch.bool), vectors)
            self.started = True
        nearest = torch.cdist(vectors, self.weight).argmin(1)
        hot = F.one_hot(nearest, len(self.weight)).float()
        self.count.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.T @ vectors, alpha=1 - self.decay)
        self.weight.copy_(self.total / self.count.clamp_min(1e-3)[:, None])
        self._restart(self.count < 0.01, vectors)
        return nearest

    def n_used(self) -> int:
        return int((self.count > 0.05).sum())

    def _restart(self, dead: torch.Tensor, vectors: torch.Tensor) -> None:
        n = int(dead.sum())
        if not n:
            return
        chosen = vectors[torch.randint(len(vectors), (n,), generator=self.generator)]
        self.weight.data[dead] = chosen
        self.total[dead] = chosen
        self.count[dead] = 1.0


def _save(out: Path, vq: ChameleonVQVAE, decoder: codec.PictureDecoder, args, step: int) -> None:
    save_file({k: v.contiguous() for k, v in vq.state_dict().items()}, out / "vq.safetensors")
    decoder.save(out)
    (out / "training.json").write_text(
        json.dumps({"steps": step + 1, "batch": args.batch, "seed": args.seed}, indent=1)
    )


if __name__ == "__main__":
    main()
