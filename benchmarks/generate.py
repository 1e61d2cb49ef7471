"""32 tokens under a knockout beside transformers' own cached generation with SDPA and no knockout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import gatelens as gl

from .model import SMALL, Size, make_hooked, make_transformers, twin_of
from .plain import make_plain, run_plain
from .sweep import HOWS, model_facts
from .timing import in_turn, pair_ratios, ratio

NEW_TOKENS = 32
CHECKED = 4  # new tokens held against plain TransformerLens, which runs the grown prompt again for each
LIMIT = 1.3


def measure(size: Size = SMALL, repeats: int = 7, hf: Any = None) -> dict[str, Any]:
    """Times of greedy decoding; the same tokens are asserted, not assumed."""
    hf = make_transformers(size) if hf is None else hf
    model, inputs = make_hooked(twin_of(hf, "sdpa"), size)
    ids, mask = inputs.tensors["input_ids"], inputs.tensors["attention_mask"]
    cuts = {how: gl.knockout("text", "image", layers=range(size.n_layers), how=how) for how in HOWS}
    other = twin_of(hf, "sdpa")
    other.generation_config.eos_token_id = None  # both sides write all tokens, whatever they are

    def by_transformers() -> Tensor:
        out = other.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        return out[:, ids.shape[1] :].cpu()

    def by_gatelens(cut: Any = None) -> Tensor:
        found = model.generate(inputs, cut, NEW_TOKENS, stop_at_eos=False, return_type="ids")
        return found.token_ids

    works: dict[str, Any] = {"transformers": by_transformers, "gatelens, no knockout": by_gatelens}
    works |= {f"gatelens, {how}": lambda cut=cut: by_gatelens(cut) for how, cut in cuts.items()}
    times = in_turn(works, repeats)
    base = times["transformers"]
    names = [name for name in works if name != "transformers"]
    ratios = {name: ratio(times[name], base) for name in names}
    return {
        "model": model_facts(size, hf),
        "new_tokens": NEW_TOKENS,
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratios": ratios,
        "pair_ratios": {name: pair_ratios(times[name], base) for name in names},
        "limit": LIMIT,
        "passes": all(ratios[f"gatelens, {how}"] <= LIMIT for how in HOWS),
        "same_tokens_as_transformers": bool((by_transformers() == by_gatelens()).all()),
        "same_tokens_as_transformer_lens": {
            how: _as_plain(hf, model, inputs, cut, by_gatelens(cut)) for how, cut in cuts.items()
        },
        "tokens_checked_there": CHECKED,
    }


def _as_plain(hf: Any, model: Any, inputs: Any, cut: Any, written: Tensor) -> bool:
    """Whether plain hooks on the grown prompt, run whole for every token, write the same first tokens."""
    bridge = make_plain(twin_of(hf, "eager"))
    ids = inputs.tensors["input_ids"]
    for n in range(CHECKED):
        tokens = inputs.tokens.extend(n) if n else inputs.tokens
        with torch.no_grad():
            logits = run_plain(bridge, ids, cut.hooks(tokens, model.cfg))
        chosen = logits[:, -1].argmax(dim=-1).cpu()
        if not bool((chosen == written[:, n]).all()):
            return False
        ids = torch.cat([ids, chosen[:, None].to(ids.device)], dim=1)
    return True
