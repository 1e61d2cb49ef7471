"""TransformerLens' own functions on HookedVLM, with two pictures as clean and corrupt.

The references are plain transformers models with torch hooks; nothing of gatelens or TransformerLens is in them.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools import analysis
from transformers import LlavaForConditionalGeneration

from gatelens.model import HookedVLM
from model_helpers import close, no_hook_left
from tiny_models import (
    make_chameleon,
    make_chameleon_processor,
    make_llava,
    make_llava_processor,
    make_picture,
    randomize,
)

RIGHT, WRONG = 30, 31
TEXT = "<image> is it ?"


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, RIGHT] - logits[0, -1, WRONG]


class Pair:
    """A model with as many key heads as heads, its plain twin, and two prompts that differ in their picture."""

    def __init__(self, make: Any, processor: Any) -> None:
        self.plain = make(kv_heads=4)
        self.model = HookedVLM.from_module(copy.deepcopy(self.plain), processor())
        self.clean = self.model.prepare(make_picture(24, 16, 4), TEXT)
        self.corrupt = self.model.prepare(make_picture(24, 16, 9), TEXT)
        self.clean_logits, self.cache = self.model.run_with_cache(self.clean)
        _, self.corrupt_cache = self.model.run_with_cache(self.corrupt)
        decoder = self.plain.model
        self.decoder = getattr(decoder, "language_model", decoder)
        self.layers, self.n_pos = self.decoder.layers, self.clean.shape[1]

    def logits(self, inputs: Any) -> Tensor:
        return self.plain(**inputs.tensors).logits

    @contextmanager
    def hooked(self, *handles: Any) -> Iterator[None]:
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seen(self, inputs: Any, place: Callable[[Any], Any]) -> list[Tensor]:
        """What enters ``place(layer)`` in each layer."""
        found: list[Tensor] = []

        def look(module: Any, args: Any, kwargs: Any) -> None:
            found.append((args[0] if args else kwargs["hidden_states"]).detach())

        handles = [place(layer).register_forward_pre_hook(look, with_kwargs=True) for layer in self.layers]
        with self.hooked(*handles), torch.no_grad():
            self.logits(inputs)
        return found

    def patched(self, module: Any, new: Callable[[Tensor], Tensor], entering: bool = True) -> float:
        """The metric of the corrupt prompt with what enters or leaves a module replaced."""

        def enter(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (new(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new(kwargs["hidden_states"])}

        def leave(module: Any, args: Any, out: Any) -> Any:
            return (new(out[0]), *out[1:]) if isinstance(out, tuple) else new(out)

        handle = (
            module.register_forward_pre_hook(enter, with_kwargs=True)
            if entering
            else module.register_forward_hook(leave)
        )
        with self.hooked(handle), torch.no_grad():
            return float(metric(self.logits(self.corrupt)))


@pytest.fixture(scope="module", params=["chameleon", "llava"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "chameleon":
        return Pair(make_chameleon, make_chameleon_processor)
    return Pair(make_llava, make_llava_processor)


def table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


# ---------------------------------------------------------------- activation patching
def test_patching_the_stream_is_plain_torchs(pair: Pair) -> None:
    want = []
    for layer, entering in zip(pair.layers, pair.seen(pair.clean, lambda layer: layer), strict=True):
        row = []
        for p in range(pair.n_pos):
            put = torch.arange(pair.n_pos)[None, :, None] == p
            row.append(pair.patched(layer, lambda x, put=put, old=entering: torch.where(put, old, x)))
        want.append(row)
    got = patching.get_act_patch_resid_pre(pair.model, pair.corrupt, pair.cache, metric)
    assert close(got, table(want)) and got.std() > 0.01 and no_hook_left(pair.model)


def test_patching_heads_and_mlps_is_plain_torchs(pair: Pair) -> None:
    z = pair.seen(pair.clean, lambda layer: layer.self_attn.o_proj)
    heads, mlps = [], []
    for layer, clean_z in zip(pair.layers, z, strict=True):
        row = []
        for head in range(4):
            put = torch.arange(32) // 8 == head
            row.append(
                pair.patched(layer.self_attn.o_proj, lambda x, put=put, old=clean_z: torch.where(put, old, x))
            )
        heads.append(row)
    got = patching.get_act_patch_attn_head_out_all_pos(pair.model, pair.corrupt, pair.cache, metric)
    assert close(got, table(heads)) and got.std() > 0.01
    for number, layer in enumerate(pair.layers):
        clean_out = pair.cache["mlp_out", number]
        row = []
        for p in range(pair.n_pos):
            put = torch.arange(pair.n_pos)[None, :, None] == p
            row.append(
                pair.patched(
                    layer.mlp, lambda x, put=put, old=clean_out: torch.where(put, old, x), entering=False
                )
            )
        mlps.append(row)
    assert close(patching.get_act_patch_mlp_out(pair.model, pair.corrupt, pair.cache, metric), table(mlps))


@pytest.fixture(scope="module")
def small() -> Any:
    """Two layers of two heads over four image tokens: every sweep over positions in a second."""
    config = make_llava().config
    config.vision_config.patch_size = 8
    text = config.text_config
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim = 2, 2, 2, 16
    plain = randomize(LlavaForConditionalGeneration(config), 5)
    processor = make_llava_processor()
    processor.patch_size = 8
    model = HookedVLM.from_module(plain, processor)
    clean, corrupt = (model.prepare(make_picture(16, 16, s), TEXT) for s in (4, 9))
    return model, corrupt, model.run_with_cache(clean)[1], model.run_with_cache(corrupt)[1]


SWEEPS = [name for name in dir(patching) if name.startswith("get_act_patch_") and "direct" not in name]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_runs_with_pictures(small: Any, name: str) -> None:
    model, corrupt, clean_cache, corrupt_cache = small
    sweep = getattr(patching, name)
    moved = sweep(model, corrupt, clean_cache, metric)
    assert moved.isfinite().all() and moved.std() > 1e-4 and no_hook_left(model)
    if moved.numel() < 40:  # a patch from the corrupt run itself changes nothing
        same = sweep(model, corrupt, corrupt_cache, metric)
        assert close(same, torch.full_like(same, float(metric(model(corrupt)))))


# ---------------------------------------------------------------- path patching
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_path_patching_is_plain_torchs(pair: Pair, component: str) -> None:
    source, head = 0, 1
    projection = f"{component}_proj"
    z_clean, z_corrupt = (
        pair.seen(inputs, lambda layer: layer.self_attn.o_proj)[source]
        for inputs in (pair.clean, pair.corrupt)
    )
    mine = torch.arange(32) // 8 == head
    write = torch.where(mine, z_clean - z_corrupt, 0) @ pair.layers[source].self_attn.o_proj.weight.T
    want = torch.zeros(3, 4)
    for number in range(source + 1, 3):
        layer = pair.layers[number]
        stream = pair.seen(pair.corrupt, lambda layer: layer)[number]
        moved = getattr(layer.self_attn, projection)(layer.input_layernorm(stream + write)).detach()
        for reader in range(4):
            put = torch.arange(32) // 8 == reader
            want[number, reader] = pair.patched(
                getattr(layer.self_attn, projection),
                lambda x, put=put, new=moved: torch.where(put, new, x),
                False,
            )
    got = patching.get_act_patch_direct_path(
        pair.model,
        pair.corrupt,
        pair.cache,
        pair.corrupt_cache,
        metric,
        source,
        head,
        component,
        verbose=False,
    )
    assert close(got[1:], want[1:]) and got[1:].std() > 1e-4 and no_hook_left(pair.model)
    if component == "q" and pair.model.family.name == "llava":
        every = patching.get_act_patch_direct_path_all_sources(
            pair.model, pair.corrupt, pair.cache, pair.corrupt_cache, metric, component, verbose=False
        )
        assert close(every[source, head], got)


# ---------------------------------------------------------------- attribution patching
def test_attribution_patching_is_plain_torchs(pair: Pair) -> None:
    """Difference of activations times the gradient, image positions of the embedding included."""
    held: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int]) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            x = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
            held[key] = x
            return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

        return hook

    def gradients(key: tuple[str, int], module: Any) -> Tensor:
        handle = module.register_forward_pre_hook(keep(key), with_kwargs=True)
        with pair.hooked(handle):
            metric(pair.logits(pair.corrupt)).backward()
        pair.plain.zero_grad()
        gradient = held[key].grad
        assert gradient is not None
        return gradient

    got = analysis.attribution_patch(pair.model, pair.clean, pair.corrupt, metric).node_scores
    scores = {(n.kind, n.layer, n.head, n.position): score for n, score in got.items()}
    z = [pair.seen(inputs, lambda layer: layer.self_attn.o_proj) for inputs in (pair.clean, pair.corrupt)]
    for number, layer in enumerate(pair.layers):
        effect = (z[0][number] - z[1][number]) * gradients(("z", number), layer.self_attn.o_proj)
        want = effect[0].view(pair.n_pos, 4, 8).sum(-1)
        mine = torch.tensor(
            [[scores["attn_head_out", number, h, p] for h in range(4)] for p in range(pair.n_pos)]
        )
        assert close(mine, want)
    entering = [pair.seen(inputs, lambda layer: layer)[0] for inputs in (pair.clean, pair.corrupt)]
    want = ((entering[0] - entering[1]) * gradients(("resid", 0), pair.layers[0]))[0].sum(-1)
    mine = torch.tensor([scores["embed", None, None, p] for p in range(pair.n_pos)])
    image = pair.clean.tokens.mask("image")[0]
    assert close(mine, want) and mine[image].abs().sum() > 1e-3 and not mine[~image].any()


def test_edges_sum_to_nodes_and_circuits_recover(pair: Pair) -> None:
    nodes = analysis.attribution_patch(pair.model, pair.clean, pair.corrupt, metric).node_scores
    edges = analysis.EdgeAttributionConfig(granularity="edge")
    found = analysis.attribution_patch(pair.model, pair.clean, pair.corrupt, metric, edges)
    assert max(abs(found.node_scores[node] - score) for node, score in nodes.items()) < 1e-4
    everything = list(found.edge_scores)
    whole = analysis.faithfulness(pair.model, pair.clean, pair.corrupt, metric, everything)
    nothing = analysis.faithfulness(pair.model, pair.clean, pair.corrupt, metric, [])
    assert whole.recovered == pytest.approx(1, abs=1e-3) and nothing.recovered == pytest.approx(0, abs=1e-3)
    others = pair.model.prepare([make_picture(24, 16, s) for s in (5, 6)], [TEXT] * 2)
    config = analysis.FaithfulnessConfig("mean")
    mean = analysis.faithfulness(
        pair.model, pair.clean, pair.corrupt, metric, everything, config, mean_tokens=others
    )
    assert mean.recovered == pytest.approx(1, abs=1e-3)
    seen = pair.model.prepare([make_picture(24, 16, s) for s in (4, 6)], [TEXT] * 2)
    with pytest.raises(ValueError, match="must not contain either evaluated"):
        analysis.faithfulness(pair.model, pair.clean, pair.corrupt, metric, [], config, mean_tokens=seen)


def test_grouped_heads_are_refused_by_transformerlens(tiny: HookedVLM) -> None:
    clean, corrupt = (tiny.prepare(make_picture(24, 16, s), TEXT) for s in (4, 9))
    with pytest.raises(ValueError, match="Node granularity"):
        analysis.attribution_patch(tiny, clean, corrupt, metric, analysis.EdgeAttributionConfig("edge"))
    assert analysis.attribution_patch(tiny, clean, corrupt, metric).top_nodes(1)


# ---------------------------------------------------------------- lenses
def test_the_logit_lens_is_norm_and_unembedding(pair: Pair) -> None:
    found = analysis.logit_lens(pair.model, pair.clean, positions=None)
    entering = pair.seen(pair.clean, lambda layer: layer)
    allowed = pair.clean_logits > -1e30  # Chameleon never writes its image tokens
    for number, stream in enumerate(entering):
        with torch.no_grad():
            want = pair.plain.lm_head(pair.decoder.norm(stream))
        assert close(found.values[number][allowed], want[allowed])
    assert close(found.values[-1][allowed], pair.clean_logits[allowed])
    ranks = analysis.logit_lens(pair.model, pair.clean, targets=[RIGHT]).rank_trajectory()
    want_rank = (found.values[-1][0, -1] > found.values[-1][0, -1, RIGHT]).sum()
    assert ranks[-1, 0] == want_rank
    read = analysis.logit_readout(pair.model, pair.cache["resid_post", 2], top_k=3)
    assert close(read.values[0, -1], found.values[-1][0, -1].topk(3).values)


def test_the_jacobian_lens_fits_on_prompts_with_pictures(pair: Pair) -> None:
    prompts = [pair.model.prepare(make_picture(seed=s), "<image> is it ? a dog is") for s in range(2)]
    lens = analysis.JacobianLens.fit(
        pair.model, prompts, corpus="pictures", skip_first_positions=3, show_progress=False
    )
    read = lens.readout(pair.model, pair.clean, return_full_logits=True)
    allowed = pair.clean_logits[0] > -1e30
    assert close(read.model_logits[allowed], pair.clean_logits[0][allowed])
    # the lens of a layer is the mean of d(last stream)/d(its stream): by autograd, for the last layer but one
    assert lens.decompose(pair.model, pair.cache["resid_post", 1][0, -1], 1, k=3) is not None
    hooks = lens.steering_hooks(pair.model, RIGHT, [1], alpha=4.0)
    assert not close(pair.model.run_with_hooks(pair.clean, hooks), pair.clean_logits)


# ---------------------------------------------------------------- heads
def test_heads_that_look_back_by_one(pair: Pair) -> None:
    with torch.no_grad():
        patterns = pair.plain(**pair.clean.tensors, output_attentions=True).attentions
    want = torch.stack([p[0].diagonal(-1, -2, -1).sum(-1) / p[0].sum((-2, -1)) for p in patterns])
    assert close(detect_head(pair.model, pair.clean, "previous_token_head"), want)
    own = torch.tril(torch.rand(pair.n_pos, pair.n_pos))
    scores = detect_head(pair.model, pair.clean, own, error_measure="abs")
    by_hand = torch.stack([1 - (p[0] - own).abs().mean((-2, -1)) * pair.n_pos for p in patterns])
    assert (scores - by_hand).abs().max() < 1e-3
    for name in ("duplicate_token_head", "induction_head"):  # placeholders are not duplicates of each other
        with pytest.raises(AttributeError, match="a batch of prompts has no 'repeat'"):
            detect_head(pair.model, pair.clean, name)
        assert detect_head(pair.model, "what is it what is it", name).shape == (3, 4)


def test_head_affinity_is_that_of_a_plain_bridge() -> None:
    plain = make_llava(kv_heads=4)
    model = HookedVLM.from_module(copy.deepcopy(plain), make_llava_processor())
    bridge = build_bridge_from_module(plain, "LlavaForConditionalGeneration", hf_config=plain.config)
    got, want = (
        vars(analysis.attention_head_subspace_affinity(m.eval(), target_role="Q")) for m in (model, bridge)
    )
    tensors = [name for name, value in want.items() if isinstance(value, Tensor)]
    assert tensors and all(torch.equal(got[name], want[name]) for name in tensors)


# ---------------------------------------------------------------- interchange
def test_interchange_on_the_whole_space_is_a_patch(pair: Pair) -> None:
    name, n = "blocks.1.hook_resid_post", 3
    base = pair.model.prepare([make_picture(seed=s) for s in range(n)], [TEXT] * n)
    source = pair.model.prepare([make_picture(seed=s) for s in range(10, 10 + n)], [TEXT] * n)

    def answers(inputs: Any) -> Tensor:
        return pair.model(inputs)[:, -1, [RIGHT, WRONG]]

    last = torch.full((n,), base.shape[1] - 1)
    theirs = analysis.collect_activations(pair.model, name, source, answers, positions=last, batch_size=2)
    with torch.no_grad():
        plain = pair.seen(source, lambda layer: layer)[2][:, -1]
    assert close(theirs, plain)
    swap = analysis.SubspaceInterchange(torch.eye(32))
    got = analysis.intervened_logits(
        pair.model, name, swap, base, theirs, answers, positions=last, batch_size=2
    )

    def put(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], plain[:, None]], dim=1)

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        return (
            ((put(args[0]), *args[1:]), kwargs)
            if args
            else (args, {**kwargs, "hidden_states": put(kwargs["hidden_states"])})
        )

    with pair.hooked(pair.layers[2].register_forward_pre_hook(enter, with_kwargs=True)), torch.no_grad():
        want = pair.logits(base)[:, -1, [RIGHT, WRONG]]
    assert close(got, want) and not close(got, answers(base))
    one = analysis.run_with_intervention(
        pair.model, name, swap, base[:1], theirs[:1], answers, positions=last[:1]
    )
    assert close(one, want[:1])
    options = {"rank": 2, "epochs": 1, "batch_size": 3, "base_positions": last, "source_positions": last}
    learned = analysis.fit_das(pair.model, name, base, source, torch.tensor([0, 1, 0]), answers, **options)
    assert learned is not None and no_hook_left(pair.model)


def test_a_model_of_transformers_cannot_be_reinitialised_in_place(pair: Pair) -> None:
    with pytest.raises(ValueError, match="reinitialized cannot reset"):
        analysis.reinitialized(pair.model, seed=3)


def test_the_jacobian_lens_refuses_what_attends_both_ways() -> None:
    """It takes for granted that no position reads a later one."""
    sys.path.append(str(Path(__file__).parent / "families"))
    case = importlib.import_module("case").cases()["gemma3"]
    model = HookedVLM.from_module(case.model(), case.processor())
    with pytest.raises(ValueError, match="requires causal attention"):
        analysis.JacobianLens.fit(model, ["a prompt"], corpus="words", show_progress=False)
