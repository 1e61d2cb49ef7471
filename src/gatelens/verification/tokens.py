"""Which positions are the picture, and which pixels each shows: by changing pixels, in plain transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageChops, ImageOps
from torch import Tensor
from transformers import ProcessorMixin

from gatelens.verification.bench import SHORT, Bench, Check, NotApplicable, Outcome, counted
from gatelens.verification.row import FAIL, PASS

BOXES = 8  # tokens whose pixels are changed


def processor(bench: Bench) -> Outcome:
    """The tensors of a prompt are those of the processor as transformers calls it."""
    model = bench.model
    own = model.layout.process or model.family.process
    if own is not None or not isinstance(model.processor, ProcessorMixin):
        raise NotApplicable("gatelens puts this family's tensors together itself (Family.process)")
    text = SHORT
    if "<image>" not in model.layout.placeholder:
        text = text.replace("<image>", model.layout.written or model.layout.placeholder)
    want = dict(
        model.processor(
            images=[bench.pictures[0]], text=[text], return_tensors="pt", **model.family.processor_kwargs
        )
    )
    wrong = []
    for name, value in want.items():
        got = bench.one.tensors.get(name)
        if got is None or not isinstance(value, Tensor):
            continue
        same = got.shape == value.shape and torch.equal(got.cpu().to(value.dtype), value)
        # pixels are cast to the dtype of the weights
        if not same and got.shape == value.shape and value.is_floating_point():
            same = torch.equal(got.cpu(), value.to(got.dtype))
        wrong += [] if same else [name]
    missing = {"input_ids"} - set(want)
    return counted([*wrong, *missing], len(want), "tensors", "unlike the processor's own")


def moved(before: Tensor, after: Tensor) -> Bool[Tensor, " pos"]:
    """Where the decoder's input of two prompts differs."""
    return (before[0] != after[0]).any(-1).cpu()


def roles(bench: Bench) -> Outcome:
    """Another picture changes the decoder's input at the positions called image, and at no other."""
    inputs = bench.one
    other = bench.model.prepare(ImageOps.invert(bench.pictures[0]), SHORT)
    changed = moved(*(bench.plain.decoder_input(x.tensors) for x in (inputs, other)))
    image = inputs.tokens.mask("image")[0].cpu()
    if not changed.any():
        raise NotApplicable("the picture encoder makes the same of a picture and of its negative")
    outside, still = int((changed & ~image).sum()), int((image & ~changed).sum())
    said = f"{int(changed.sum())} positions changed, {int(image.sum())} are called image"
    if outside:
        first = int((changed & ~image).nonzero()[0])
        return Outcome(FAIL, f"{said}; {outside} changed that are not, such as {first}", float(outside), 0.0)
    # codes of a vocabulary may stay the same, features may not
    allowed = int(image.sum()) // 2 if bench.model.layout.drawn is not None else 0
    return Outcome(PASS if still <= allowed else FAIL, said, float(still), float(allowed))


def boxes(bench: Bench) -> Outcome:
    """The pixels under a token change that token more than any other, while attention in the picture's tower is silent.

    A VQ encoder mixes neighbours and gives codes, which may stay: there a quarter of the picture is changed, and its
    tokens must change more, in the mean, than the others.
    """
    codes = bench.model.layout.drawn is not None
    box, tokens = bench.one.tokens.box[0].cpu(), bench.one.tokens
    placed = [p for p in tokens.positions("image") if int(tokens.row[0, p]) >= 0]
    if not placed or bool(box[placed].isnan().any()):
        raise NotApplicable("this family says of no token which pixels it shows")
    chosen = torch.linspace(0, len(placed) - 1, min(BOXES, len(placed))).round().long().tolist()
    areas = _quarters(*bench.pictures[0].size) if codes else [box[placed[i]] for i in chosen]
    wrong, seen, elsewhere = [], 0, 0.0
    for area in (tuple(int(v) for v in torch.as_tensor(one).round()) for one in areas):
        change = _change(bench, area, codes)
        if change is None:
            continue
        change, under = change[placed], torch.tensor([_overlap(box[p], area) for p in placed])
        seen, elsewhere = seen + 1, elsewhere + float((change[~under] > 0).float().mean())
        right = change[under].mean() > change[~under].mean() if codes else under[change.argmax()]
        wrong += [] if right else ["pixels {0}–{2}, {1}–{3}".format(*area)]
    if not seen:
        raise NotApplicable("the picture encoder makes the same of a picture when pixels of it are changed")
    if codes and elsewhere > seen / 2:
        raise NotApplicable(
            "most codes change wherever the pixels do: this VQ encoder is not local, as untrained ones"
        )
    outcome = counted(wrong, seen, "stretches of pixels", "with more effect on another token")
    # resizing carries pixels over an edge here and there; a shifted grid is wrong nearly everywhere
    allowed = 0 if codes else seen // 4
    return replace(outcome, status=PASS if len(wrong) <= allowed else FAIL, bound=float(allowed))


def _change(bench: Bench, area: tuple[int, ...], codes: bool) -> Float[Tensor, " pos"] | None:
    """How far each position of the decoder's input moves when an area of the picture is changed; None if none does."""
    x0, y0, x1, y1 = area
    if x1 <= x0 or y1 <= y0:
        return None
    changed = bench.model.prepare(_changed(bench.pictures[0], (x0, y0, x1, y1), codes), SHORT)
    before, after = (
        bench.plain.decoder_input(inputs.tensors, silent_towers=True) for inputs in (bench.one, changed)
    )
    moved = (after - before)[0].float().norm(dim=-1).cpu()
    return moved if moved.any() else None


def _quarters(width: int, height: int) -> list[tuple[float, float, float, float]]:
    x, y = width / 2, height / 2
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]


def _changed(picture: Image.Image, box: tuple[int, int, int, int], codes: bool) -> Image.Image:
    """The picture with a box inverted; for codes turned by half a circle, which leaves the mean of all pixels."""
    changed, part = picture.copy(), picture.crop(box)
    changed.paste(part.rotate(180) if codes else ImageChops.invert(part), box)
    return changed


def _overlap(a: Any, b: Any) -> bool:
    return bool(min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1]))


def layout_of(bench: Bench) -> dict[str, Any]:
    """Who is where in a prompt, as ``gatelens tokens`` shows it."""
    shown = bench.one.tokens.show()
    return {"header": list(shown.header[1:]), "rows": [list(row[1:]) for row in shown.rows]}


CHECKS = (
    Check("tokens", "processor", "a prompt's tensors against the processor called by itself", processor),
    Check("tokens", "image positions", "positions that another picture changes in plain transformers", roles),
    Check("tokens", "pixel boxes", "tokens that changed pixels change in plain transformers", boxes),
)
