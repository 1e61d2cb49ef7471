"""How many image tokens of ``organism:gated`` bfloat16 codes otherwise than float32, and what that does to logits.

python -m benchmarks.image_codes --pictures 64
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import gatelens as gl


def last_logits(model: gl.HookedVLM, inputs: gl.VLMInputs) -> Tensor:
    """Of the last position; image tokens, which Chameleon masks out, left out."""
    logits = model(inputs)[0, -1].float()
    return logits[logits > torch.finfo(torch.bfloat16).min / 2]


def main() -> None:
    """Print the share of other codes, and the difference of logits with each dtype's codes and with float32's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    examples = gl.data.load("emoji-scenes").examples("class", limit=parser.parse_args().pictures)
    whole, half = (gl.HookedVLM.from_pretrained("organism:gated", dtype=d) for d in ("float32", "bfloat16"))
    differ, own, fixed, answers = [], [], [], [0, 0]
    for e in examples:
        with torch.no_grad():
            prompts = [model.prepare([e.image], [e.prompt]) for model in (whole, half)]
            codes, others = (
                model.hf.model.get_image_tokens(inputs.tensors["pixel_values"]).flatten().long()
                for model, inputs in zip((whole, half), prompts, strict=True)
            )
            differ.append((codes != others).float().mean())
            ids = prompts[0].tensors["input_ids"].clone()
            ids[ids == whole.layout.placeholder_id] = codes
            here = last_logits(whole, prompts[0])
            for i, (inputs, gaps) in enumerate(((prompts[1], own), (half.inputs(ids), fixed))):
                there = last_logits(half, inputs)
                gaps.append((here - there).abs().max())
                answers[i] += int(here.argmax() == there.argmax())
    shares = torch.stack(differ)
    print(
        f"image tokens coded otherwise: {shares.mean():.1%}, in {int((shares > 0).sum())} of {len(shares)} pictures"
    )
    for name, gaps, same in zip(
        ("each dtype's codes", "float32's codes"), (own, fixed), answers, strict=True
    ):
        gap = torch.stack(gaps)
        print(
            f"{name}: logits differ by {gap.median():.2f} (median), {gap.max():.2f} (most); "
            f"first token as in float32: {same} of {len(gap)}"
        )


if __name__ == "__main__":
    main()
