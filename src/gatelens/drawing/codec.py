"""The organisms' image tokenizer: Chameleon's own VQ encoder, and a small decoder from codes to pixels.

transformers' ``ChameleonVQVAE`` has an encoder and a codebook only; a native model also draws, so the
organisms carry a decoder beside it (``vq_decoder.safetensors`` in the model's folder).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

DECODER_FILE = "vq_decoder.safetensors"
GRID = 8  # 64 x 64 pixels become 8 x 8 codes
N_CODES = 1024


def vq_config() -> ChameleonVQVAEConfig:
    """Three halvings of 64 x 64 pixels, then two residual blocks on the 8 x 8 grid; no attention block.

    Without blocks at the higher resolutions the encoder is a learned patch embedding: a code depends mostly
    on its own 8 x 8 pixels, and encoding costs little on a CPU.
    """
    return ChameleonVQVAEConfig(
        embed_dim=32,
        num_embeddings=N_CODES,
        latent_channels=64,
        resolution=64,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=0,
        attn_type="none",
    )


class PictureDecoder(nn.Module):
    """Codebook vectors on the grid to pixels: residual blocks at 8 x 8 and 16 x 16, then sub-pixel shuffles."""

    def __init__(self, embed_dim: int = 32, width: int = 128):
        super().__init__()
        self.coarse = nn.Sequential(
            nn.Conv2d(embed_dim, width, 3, padding=1), *(_ResidualBlock(width) for _ in range(2))
        )
        self.to_fine = nn.Sequential(nn.Conv2d(width, 4 * width // 2, 3, padding=1), nn.PixelShuffle(2))
        self.fine = nn.Sequential(_ResidualBlock(width // 2), nn.SiLU())
        self.to_pixels = nn.Sequential(nn.Conv2d(width // 2, 3 * 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, z: Float[Tensor, "batch embed_dim row col"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels in the range of the image processor: about -1 to 1."""
        return self.to_pixels(self.fine(self.to_fine(self.coarse(z))))

    @classmethod
    def from_folder(cls, folder: str | Path) -> PictureDecoder:
        decoder = cls()
        decoder.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / DECODER_FILE).items()})
        return decoder.eval()

    def save(self, folder: str | Path) -> None:
        """Half precision: a picture has 256 levels, and the file is half as large."""
        save_file({k: v.half() for k, v in self.state_dict().items()}, Path(folder) / DECODER_FILE)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def to_model_range(pixels: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """What Chameleon's image processor does to a picture of the right size: x * 0.0078 - 1."""
    return pixels.permute(0, 3, 1, 2).float() * 0.0078 - 1.0


def to_pixels(values: Float[Tensor, "batch 3 height width"]) -> UInt8[Tensor, "batch height width 3"]:
    """The inverse of :func:`to_model_range`, clipped to what a picture can show."""
    return ((values + 1.0) / 0.0078).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@torch.inference_mode()
def encode(vq: ChameleonVQVAE, pixels: UInt8[Tensor, "n height width 3"]) -> Int[Tensor, "n code"]:
    """Codes of many pictures, row by row of the grid; in blocks, to bound memory."""
    out = []
    for block in pixels.split(256):
        z = vq.quant_conv(vq.encoder(to_model_range(block)))
        _, _, codes = vq.quantize(z)
        out.append(codes.view(len(block), -1))
    return torch.cat(out)


@torch.inference_mode()
def decode(
    vq: ChameleonVQVAE, decoder: PictureDecoder, codes: Int[Tensor, "n code"]
) -> UInt8[Tensor, "n height width 3"]:
    """The pictures that these codes represent."""
    table = vq.quantize.embedding
    z = table(codes.to(table.weight.device)).view(len(codes), GRID, GRID, -1).permute(0, 3, 1, 2)
    # a model may stand elsewhere than its picture decoder, and in another dtype
    return to_pixels(decoder(z.to(next(decoder.parameters()))))
