"""The same input gives the same numbers: logits, generated tokens, residual stream, attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatelens.engine.generation import eos_ids
from gatelens.inputs import VLMInputs
from gatelens.verification.bench import Bench, Check, NotApplicable, Outcome, counted, judged, real
from gatelens.verification.bounds import bound_of, nearest, worst
from gatelens.verification.plain import WAYS, Unavailable
from gatelens.verification.row import FAIL

NEW_TOKENS = 12


def dtypes(bench: Bench) -> Outcome:
    """The wrapped model holds the plain model's tensors in their dtypes and gives logits in the same."""
    plain = {p.dtype for p in bench.plain.hf.parameters()}
    extra = {p.dtype for p in bench.model.hf.parameters()} - plain
    wrong = [f"weights in {dtype}" for dtype in sorted(map(_short, extra))]
    got, want = bench.model(bench.one).dtype, bench.ways(bench.one)[0].dtype
    if got != want:
        wrong.append(f"logits in {_short(got)} and not {_short(want)}")
    return counted(wrong, len(plain) + 1, "dtypes", "unknown to plain transformers")


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def logits(inputs: str) -> Any:
    """A check of the logits of one of the bench's prompts."""

    def measure(bench: Bench) -> Outcome:
        asked: VLMInputs = getattr(bench, inputs)
        return bench.compare([bench.model(asked)], bench.ways(asked), real(asked))

    return measure


def generation(bench: Bench) -> Outcome:
    """Greedy tokens with the cache, token by token; where two tokens are even to rounding, either is right."""
    inputs = bench.batch
    want, steps = bench.plain.generate(inputs.tensors, NEW_TOKENS)
    got = bench.model.generate(
        inputs, max_new_tokens=NEW_TOKENS, stop_at_eos=False, return_type="ids"
    ).token_ids.to(want.device)
    bound, ends = bound_of(bench.ways(inputs), real(inputs)), eos_ids(bench.model)
    gap, compared, differs = 0.0, 0, ""
    for b, (mine, theirs) in enumerate(zip(got.tolist(), want.tolist(), strict=True)):
        for t, (a, c) in enumerate(zip(mine, theirs, strict=True)):
            if a in ends:  # transformers is kept from ending, to have all steps
                break
            compared += 1
            if a != c:
                row = steps[t][b].float()
                gap = max(gap, float(row[c] - row[a]))
                differs = f"; from token {t} of prompt {b} on another token"
                break
    if not compared:
        raise NotApplicable("the model ends every answer at once")
    return judged(gap, bound, reason=f"{compared} tokens of {len(want)} prompts compared{differs}")


def residual(bench: Bench) -> Outcome:
    """The stream entering each layer, and leaving the last, against torch hooks on transformers' layers."""
    inputs, where = bench.batch, real(bench.batch)
    names = [f"blocks.{i}.hook_resid_pre" for i in range(bench.n_layers)]
    names.append(f"blocks.{bench.n_layers - 1}.hook_resid_post")
    ways = [bench.plain.stream(inputs.tensors, way) for way in WAYS]
    named = bench.plain.named_hidden_states(inputs.tensors)
    _, cache = bench.model.run_with_cache(inputs, names)
    pairs = [
        (nearest(states, cache[name], where), bound_of(states, where))
        for name, *states in zip(names, *ways, strict=True)
    ]
    at, measured, bound = worst(pairs)
    said = f"nearest to the bound: {names[at]}; {named} of {bench.n_layers} are transformers' hidden_states"
    return judged(measured, bound, reason=said)


def patterns(bench: Bench) -> Outcome:
    """The attention of every layer against transformers' own weights, while the model computes it."""
    inputs, where = bench.batch, real(bench.batch)
    try:
        ways = [[p.transpose(1, 2) for p in bench.plain.patterns(inputs.tensors, way)] for way in WAYS]
    except Unavailable as why:
        raise NotApplicable(str(why)) from why
    found: dict[int, tuple[float, float]] = {}

    def compare(layer: int) -> Any:
        def hook(pattern: Tensor, hook: Any) -> None:
            both = [way[layer] for way in ways]
            found[layer] = nearest(both, pattern.transpose(1, 2), where), bound_of(both, where)

        return hook

    hooks = [(f"blocks.{i}.attn.hook_pattern", compare(i)) for i in range(bench.n_layers)]
    bench.model.run_with_hooks(inputs, fwd_hooks=hooks)
    if len(found) < bench.n_layers:
        return Outcome(FAIL, f"the pattern hook fired in {len(found)} of {bench.n_layers} layers")
    at, measured, bound = worst(found[i] for i in range(bench.n_layers))
    return judged(measured, bound, reason=f"nearest to the bound: layer {at}")


CHECKS = (
    Check("parity", "dtype", "dtypes of weights and logits", dtypes),
    Check("parity", "logits, one prompt", "logits of one prompt", logits("one")),
    Check("parity", "logits, padded batch", "logits of two prompts, one padded on the left", logits("batch")),
    Check("parity", "logits, two pictures", "logits of a prompt with two pictures", logits("two")),
    Check(
        "parity",
        "residual stream",
        "resid_pre of every layer, and the last resid_post, against torch hooks",
        residual,
    ),
    Check("parity", "attention patterns", "hook_pattern of every layer against output_attentions", patterns),
    Check("parity", "generation", "greedy tokens with the cache against transformers' generate", generation),
)
