"""64 knockout runs: gl.sweep beside the same 64 by plain TransformerLens hooks, and by plain hooks in gatelens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

import gatelens as gl

from .model import FIRST_CODE, SMALL, Size, make_hooked, make_transformers, n_parameters, twin_of
from .plain import make_plain, run_plain
from .timing import Times, in_turn, pair_ratios, ratio

KEYS = ("gate", "image", "random_image:10", "last_image")
HOWS: tuple[Literal["mask", "zero"], ...] = ("mask", "zero")
LIMIT = 25.0


def knockouts(n_layers: int, starts: int = 8, keys: tuple[str, ...] = KEYS) -> dict[str, Any]:
    """By name: from each of ``starts`` layers on, text cannot read the keys, by either meaning of knockout."""
    first = [n_layers * i // min(starts, n_layers) for i in range(min(starts, n_layers))]
    return {
        f"{key}, {how}, from layer {start}": gl.knockout("text", key, layers=range(start, n_layers), how=how)
        for key in keys
        for how in HOWS
        for start in first
    }


def words(size: Size) -> tuple[int, int]:
    """Two words whose logits are compared: image codes can't be, Chameleon never writes them."""
    return FIRST_CODE + size.n_codes, FIRST_CODE + size.n_codes + 1


class Bench:
    """One model three times over: under gatelens, plainly under TransformerLens, untouched."""

    def __init__(self, size: Size = SMALL, starts: int = 8, hf: Any = None) -> None:
        self.size = size
        self.hf = make_transformers(size) if hf is None else hf
        self.plain = make_plain(twin_of(self.hf, "eager"))
        self.model, self.inputs = make_hooked(twin_of(self.hf, "sdpa"), size)
        self.ids = self.inputs.tensors["input_ids"]
        self.runs = knockouts(size.n_layers, starts)
        self.metric = gl.metrics.logit_diff(*words(size))
        self.pairs = {k: ko.hooks(self.inputs.tokens, self.model.cfg) for k, ko in self.runs.items()}

    def engine(self, metric: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The metric of every run, by gl.sweep."""
        table = gl.sweep(self.model, self.inputs, {"run": self.runs}, metric or self.metric, progress=False)
        return dict(zip(table["run"], table["value"], strict=True))

    def by_hooks(self, run: Callable[[list[Any]], Tensor]) -> dict[str, float]:
        """The metric of every run, one whole forward pass each."""
        with torch.no_grad():
            return {name: float(self.metric(run(pairs))) for name, pairs in self.pairs.items()}

    def transformer_lens(self) -> dict[str, float]:
        return self.by_hooks(partial(run_plain, self.plain, self.ids))

    def gatelens_hooks(self) -> dict[str, float]:
        return self.by_hooks(partial(self.model.run_with_hooks, self.inputs))

    def agreement(self) -> dict[str, float]:
        """The largest difference of any logit of any position in any run, engine against TransformerLens.

        What stands before the picture's end is held against one clean run on both sides, what comes after it
        run by run: 64 whole tensors of logits would not fit beside each other.
        """
        text = self.size.n_pos - self.size.n_text
        with torch.no_grad():
            clean = self.model(self.inputs)[:, :text]
        kept: list[Tensor] = []
        worst = {"engine": 0.0, "prefix": 0.0, "effect": 0.0}

        def keep(logits: Tensor) -> Tensor:
            worst["prefix"] = max(worst["prefix"], float((logits[:, :text] - clean).abs().max()))
            kept.append(logits[:, text:].clone())
            return torch.full((len(logits),), float(len(kept) - 1), dtype=torch.float64)

        place = self.engine(keep)
        plain_clean = run_plain(self.plain, self.ids, [])[:, text:]
        for name, pairs in self.pairs.items():
            logits = run_plain(self.plain, self.ids, pairs)
            mine = kept[int(place[name])]
            worst["engine"] = max(worst["engine"], float((logits[:, text:] - mine).abs().max()))
            worst["prefix"] = max(worst["prefix"], float((logits[:, :text] - clean).abs().max()))
            worst["effect"] = max(worst["effect"], float((logits[:, text:] - plain_clean).abs().max()))
        return worst


def measure(size: Size = SMALL, repeats: int = 5, hf: Any = None) -> dict[str, Any]:
    """Times of the three, their ratios, and how far their numbers differ."""
    bench = Bench(size, hf=hf)
    values: dict[str, dict[str, float]] = {}

    def remember(name: str, work: Callable[[], dict[str, float]]) -> Callable[[], None]:
        def run() -> None:
            values[name] = work()

        return run

    bench.engine()  # one warm-up of each; a whole one of the slow sides would take a minute and change nothing
    first = next(iter(bench.pairs.values()))
    run_plain(bench.plain, bench.ids, first)
    bench.model.run_with_hooks(bench.inputs, first)
    times = in_turn(
        {
            "engine": remember("engine", bench.engine),
            "transformer_lens": remember("transformer_lens", bench.transformer_lens),
            "gatelens_hooks": remember("gatelens_hooks", bench.gatelens_hooks),
        },
        repeats,
        warm_up=0,
    )
    found = bench.agreement()
    difference = max(abs(values["engine"][k] - values["transformer_lens"][k]) for k in bench.runs)
    return {
        "model": model_facts(size, bench.hf),
        "runs": len(bench.runs),
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio": _ratio(times, "transformer_lens"),
        "ratio_gatelens_hooks": _ratio(times, "gatelens_hooks"),
        "limit": LIMIT,
        "passes": ratio(times["transformer_lens"], times["engine"]) >= LIMIT,
        "max_logit_difference": max(found["engine"], found["prefix"]),
        "max_metric_difference": difference,
        "largest_effect_on_a_logit": found["effect"],
        "plan": gl.explain(bench.model, bench.inputs, {"run": bench.runs}).summary,
    }


def _ratio(times: dict[str, Times], other: str) -> dict[str, float]:
    each = pair_ratios(times[other], times["engine"])
    return {"of_medians": ratio(times[other], times["engine"]), "least": min(each), "most": max(each)}


def model_facts(size: Size, hf: Any) -> dict[str, Any]:
    """The shape of the model in the table's words."""
    return {
        "class": type(hf).__name__,
        "parameters": n_parameters(hf),
        "layers": size.n_layers,
        "d_model": size.d_model,
        "positions": size.n_pos,
        "image_tokens": size.n_image,
        "dtype": str(hf.dtype).removeprefix("torch."),
    }
