"""How the sweep's cost grows when runs, tokens and layers double, and its operations beside the least possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gatelens as gl

from .model import SMALL, Size, make_ids, make_transformers, with_tokens
from .sweep import knockouts, words
from .timing import in_turn

STARTS = 8
RUNS = (16, 32, 64, 128)
IMAGE_TOKENS = (256, 512, 1024, 2048)
LAYERS = (8, 16, 32)  # eight at least, so that every size has the same runs


def measure(size: Size = SMALL, repeats: int = 5) -> dict[str, Any]:
    """By axis: a row for each value, and the exponents of time and of operations.

    Beside what is doubled, everything stays as in the sweep of 64 runs. A size other than the usual one (to
    try the script) doubles its own tokens and layers.
    """
    tokens = [max(1, size.n_image * n // SMALL.n_image) for n in IMAGE_TOKENS]
    layers = [max(1, size.n_layers * n // SMALL.n_layers) for n in LAYERS]
    cases: dict[str, dict[int, tuple[Size, dict[str, Any]]]] = {
        "runs": {n: (size, some_runs(size.n_layers, n)) for n in RUNS},
        "image tokens": {n: (with_tokens(size, n), knockouts(size.n_layers)) for n in tokens},
        "layers": {n: (replace(size, n_layers=n), knockouts(n)) for n in layers},
    }
    return {axis: grow(axis, found, repeats) for axis, found in cases.items()}


def some_runs(n_layers: int, n: int) -> dict[str, Any]:
    """``n`` different runs: knockouts of ten image tokens, drawn anew for each round of the start layers."""
    starts = [n_layers * i // STARTS for i in range(STARTS)]
    return {
        f"run {i}": gl.knockout(
            "text", f"random_image:10@{i // STARTS}", layers=range(starts[i % STARTS], n_layers)
        )
        for i in range(n)
    }


def grow(axis: str, cases: Mapping[int, tuple[Size, dict[str, Any]]], repeats: int) -> dict[str, Any]:
    """Times, operations and exponents along one axis."""
    models: dict[int, gl.HookedVLM] = {}  # by layers: nothing else changes the weights
    works: dict[str, Callable[[], Any]] = {}
    rows: list[dict[str, Any]] = []
    for value, (size, runs) in cases.items():
        if size.n_layers not in models:
            models[size.n_layers] = gl.HookedVLM.from_module(make_transformers(size))
        model = models[size.n_layers]
        inputs = model.inputs(make_ids(size))
        works[str(value)] = _sweep(model, inputs, runs, gl.metrics.logit_diff(*words(size)))
        done, due = counted_flops(works[str(value)]), least_flops(size, inputs, model.cfg, runs)
        rows.append({"value": value, "runs": len(runs), "flops": done, "least_flops": due})
    times = in_turn(works, repeats)
    for row in rows:
        row["seconds"] = times[str(row["value"])].median
        row["flops_over_least"] = row["flops"] / row["least_flops"]
    values = [row["value"] for row in rows]
    return {
        "axis": axis,
        "rows": rows,
        "repeats": repeats,
        "exponents": {
            name: exponent(values, [row[name] for row in rows])
            for name in ("seconds", "flops", "least_flops")
        },
    }


def _sweep(model: Any, inputs: Any, runs: Any, metric: Any) -> Callable[[], Any]:
    return lambda: gl.sweep(model, inputs, {"run": runs}, metric, progress=False)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x by least squares: 1 where y doubles with x."""
    a = [math.log(v) for v in x]
    b = [math.log(v) for v in y]
    centre_a, centre_b = sum(a) / len(a), sum(b) / len(b)
    spread = sum((i - centre_a) ** 2 for i in a)
    return sum((i - centre_a) * (j - centre_b) for i, j in zip(a, b, strict=True)) / spread


def _attention_flops(place: int) -> Callable[..., int]:
    """Operations of a fused kernel; one told ``is_causal`` (its argument ``place``) passes over the future."""

    def count(query: Tensor, key: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
        batch, heads, n_q, d_head = query.shape
        is_causal = kwargs.get("is_causal", args[place - 2] if len(args) > place - 2 else False)
        pairs = n_q * (n_q + 1) // 2 if is_causal else n_q * key.shape[2]
        return 4 * batch * heads * pairs * d_head

    count._get_raw = True  # type: ignore[attr-defined]  # the counter then hands over the arguments
    return count


_KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops(4),
    torch.ops.aten._scaled_dot_product_flash_attention: _attention_flops(4),
    torch.ops.aten._scaled_dot_product_efficient_attention: _attention_flops(6),
    torch.ops.aten._scaled_dot_product_cudnn_attention: _attention_flops(6),
}


def counted_flops(work: Callable[[], Any]) -> int:
    """Operations of all products of matrices, fused attention among them, as torch runs them."""
    with FlopCounterMode(display=False, custom_mapping=_KERNELS) as counter:
        work()
    return int(counter.get_total_flops())


def least_flops(size: Size, inputs: Any, cfg: Any, runs: Mapping[Any, Any]) -> int:
    """The clean run once, and of each run what its intervention can change and the last position reads: nothing less.

    A position in a layer is its projections, its MLP and the keys it can see; in the last layer all but the last
    position are their keys and values. Each run, and the clean one, needs one row of the head.
    """
    n, d = size.n_pos, size.d_model
    row, key = 2 * (4 * d * d + 3 * d * size.d_mlp), 2 * 2 * d * d
    head = 2 * d * size.d_vocab
    total = 0
    for begin, layer in [(0, 0), *((r.position, r.layer) for r in _reaches(inputs, cfg, runs))]:
        seen = (n * (n + 1) - begin * (begin + 1)) // 2
        total += (size.n_layers - layer - 1) * ((n - begin) * row + 4 * d * seen)
        total += (n - begin - 1) * key + row + 4 * d * n + head
    return total


def _reaches(inputs: Any, cfg: Any, runs: Mapping[Any, Any]) -> list[Any]:
    return [run.reach(inputs.tokens, cfg) for run in runs.values()]
