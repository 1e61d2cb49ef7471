"""What the engine shares and skips changes nothing: the numbers of plain hooked runs, whatever is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gatelens as gl
import gatelens.interventions as gi
from gatelens.engine import explain, generate, generate_many, last_logits, run, sweep
from gatelens.engine.run_batch import RunBatch, specs_of
from gatelens.errors import InterventionError
from gatelens.interventions.ablation import Ablate
from gatelens.interventions.compile import compile_hooks
from gatelens.interventions.knockouts import Knockout
from intervention_helpers import plain

LAYERS = st.sets(st.integers(0, 2), min_size=1).map(sorted) | st.none()
HEADS = st.none() | st.sets(st.integers(0, 3), min_size=1).map(sorted)
KV_HEADS = st.none() | st.just([1])
QUERIES = ("text - gate", "text", "last", "query", "image", "all - system", "last | generated", "gate")
KEYS = (
    "gate",
    "image",
    "last_image",
    "random_image:3",
    "system",
    "image & pos[4:9]",
    "boi | first_image | image",
)
PLACES = ("gate", "last", "text", "image[0]", "last_image", "all", "system", "text & ~last")
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def interventions(draw: Any, d_model: int = 32) -> Any:
    kind = draw(st.sampled_from(["knockout", "knockout", "steer", "ablate", "mean"]))
    layers = draw(LAYERS)
    if kind == "knockout":
        how = draw(st.sampled_from(["mask", "zero"]))
        keys = draw(st.sampled_from(KEYS))
        return gi.knockout(draw(st.sampled_from(QUERIES)), keys, layers, draw(HEADS), how)
    at = draw(st.sampled_from(PLACES))
    site = draw(st.sampled_from(gi.SITES))
    heads = draw(HEADS if site in "qz" else KV_HEADS) if site in "qkvz" else None
    if kind == "steer":
        direction = torch.randn(8 if site in "qkvz" else d_model, generator=torch.Generator().manual_seed(3))
        return gi.steer(direction, at, site, layers, scale=draw(st.sampled_from([0.5, 4.0])))
    if kind == "mean":
        return gi.ablate(at, site, layers, with_="mean", heads=heads, over="image | text")
    return gi.ablate(at, site, layers, heads=heads)


RUNS = st.lists(st.lists(interventions(), max_size=2), min_size=1, max_size=5)


def sound(model: Any, inputs: Any, specs: list[Any]) -> bool:
    """Whether the run can be made at all (a draw may leave a row empty, or select nothing)."""
    try:
        compile_hooks(specs, inputs.tokens, model.cfg)
    except InterventionError:
        return False
    return True


@quick
@given(runs=RUNS)
def test_logits_are_those_of_plain_hooks(tiny: Any, batch: Any, real: Tensor, runs: list[Any]) -> None:
    runs = [specs for specs in runs if sound(tiny, batch, specs)]
    if not runs:
        return
    seen = {}
    for i, logits in RunBatch(tiny, batch, runs).each():
        seen[i] = logits.clone()
    for i, specs in enumerate(runs):
        want = plain(tiny, batch, specs)
        assert (seen[i] - want)[real].abs().max() <= 1e-4, specs
    for got, i in zip(last_logits(tiny, batch, runs), range(len(runs)), strict=True):
        assert (got - seen[i][:, -1]).abs().max() <= 1e-4


@quick
@given(specs=st.lists(interventions(), min_size=1, max_size=3))
def test_one_run_is_that_of_plain_hooks(tiny: Any, batch: Any, real: Tensor, specs: list[Any]) -> None:
    if sound(tiny, batch, specs):
        assert (run(tiny, batch, specs) - plain(tiny, batch, specs))[real].abs().max() <= 1e-4


def grown(model: Any, inputs: Any, specs: list[Any], n: int) -> Tensor:
    """Greedy decoding with no cache: the whole prompt again at every step, by plain hooks."""
    new: list[Tensor] = []
    for _ in range(n):
        ids, mask = inputs.tensors["input_ids"], inputs.tensors["attention_mask"]
        if new:
            ids = torch.cat([ids, torch.stack(new, 1)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), len(new))], 1)
        tokens = inputs.tokens.extend(n)
        tokens = gl.TokenMap(
            *(
                x[:, : ids.shape[1]]
                for x in (tokens.roles, tokens.image_index, tokens.row, tokens.col, tokens.box)
            ),
            tokens.image_sizes,
            tuple(s[: ids.shape[1]] for s in tokens.strings),
            tokens.prompt_length,
        )
        tensors = {
            k: v
            for k, v in inputs.tensors.items()
            if k not in ("input_ids", "attention_mask", "position_ids")
        }
        pairs = []
        for spec in specs:  # one that names generated rows alone has nothing to do yet
            try:
                pairs += compile_hooks([spec], tokens, model.cfg).pairs
            except InterventionError:
                continue
        logits, _ = model.forward_step({**tensors, "input_ids": ids, "attention_mask": mask}, pairs)
        new.append(logits[:, -1].argmax(-1))
    return torch.stack(new, 1)


@settings(quick, max_examples=10)
@given(runs=st.lists(st.lists(interventions(), max_size=1), min_size=2, max_size=4))
def test_texts_are_those_of_full_recomputation(tiny: Any, batch: Any, runs: list[Any]) -> None:
    runs = [specs for specs in runs if sound(tiny, batch, specs)]
    if not runs:
        return
    found = generate_many(tiny, batch, runs, max_new_tokens=3, stop_at_eos=False)
    for got, specs in zip(found, runs, strict=True):
        alone = generate(tiny, batch, specs, max_new_tokens=3, stop_at_eos=False)
        assert torch.equal(got.token_ids, alone.token_ids)
        if not (got.token_ids == tiny.layout.placeholder_id).any():  # a full run would look for its picture
            assert torch.equal(got.token_ids, grown(tiny, batch, specs, 3))


class Dictated:
    """Writes the same given words after every prompt, whatever the logits are, and keeps these."""

    finished = False

    def __init__(self, words: Tensor) -> None:
        self.words, self.seen = words, list[Tensor]()

    def __call__(self, logits: Tensor) -> Tensor:
        self.seen.append(logits.clone())
        return self.words[len(self.seen) - 1].expand(len(logits))


def test_stacked_runs_that_begin_in_a_later_layer(tiny: Any, batch: Any, real: Tensor) -> None:
    """Three runs on three prompts in one part: every run and prompt gets back what is its own, at every step."""
    layers = ([2], [1, 2], [2])  # each joins where it begins
    keys = ("image", "last_image", "system")
    runs = [[gi.knockout("text - gate", key, where)] for key, where in zip(keys, layers, strict=True)]
    many = RunBatch(tiny, batch, runs, max_new_tokens=3)
    (part,) = many.plan.parts
    assert (part.runs, part.layers) == ((1, 0, 2), (1, 2, 2))
    for i, logits in RunBatch(tiny, batch, runs).each():
        assert (logits - plain(tiny, batch, runs[i]))[real].abs().max() <= 1e-4

    words = torch.tensor(tiny.tokenizer("what a dog", add_special_tokens=False)["input_ids"])
    chooser = Dictated(words)
    many.decode(lambda: chooser)
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    for n, stacked in enumerate(chooser.seen):
        said = words[:n].expand(len(ids), -1)
        tensors = {**batch.tensors, "input_ids": torch.cat([ids, said], 1)}
        tensors["attention_mask"] = torch.cat([mask, torch.ones_like(said)], 1)
        del tensors["position_ids"]
        tokens = batch.tokens.extend(n)
        got = stacked.view(len(runs), len(ids), -1)
        for place, i in enumerate(part.runs):
            pairs = compile_hooks(runs[i], tokens, tiny.cfg).pairs
            want, _ = tiny.forward_step(tensors, pairs)
            assert (got[place] - want[:, -1]).abs().max() <= 1e-4, (n, i)


def test_patches_start_where_they_act(tiny: Any, batch: Any, real: Tensor) -> None:
    other = batch.select([2, 0, 1])
    _, cache = tiny.run_with_cache(other, lambda name: name.startswith("blocks."))
    runs = [[gi.patch(cache, "last", site, layers=[layer])] for site in gi.SITES for layer in range(3)]
    many = RunBatch(tiny, batch, runs)
    assert not many.plan.full and {part.position for part in many.plan.parts} == {batch.tokens.n_pos - 1}
    for i, logits in many.each():
        assert (logits - plain(tiny, batch, runs[i]))[real].abs().max() <= 1e-4


class Everywhere(gi.Intervention):
    """Says nothing about where it begins."""

    def edits(self, tokens: Any, cfg: Any, span: Any) -> list[gi.Edit]:
        return [gi.Edit("blocks.1.hook_resid_pre", lambda tensor, hook=None: tensor * 1.5)]


class Roaming(Ablate):
    """Built on an ablation, but looks further than it."""


def test_what_cannot_be_bounded_runs_whole(tiny: Any, batch: Any, real: Tensor) -> None:
    roaming = Roaming("last", "resid_pre")
    runs = specs_of([None, Everywhere(), roaming, gi.ablate("last")])
    many = RunBatch(tiny, batch, runs)
    assert many.plan.full == (1, 2) and many.plan.clean == (0,) and len(many.plan.parts) == 1
    for i, logits in many.each():
        assert (logits - plain(tiny, batch, runs[i]))[real].abs().max() <= 1e-4
    assert "Everywhere does not say where it begins" in str(explain(tiny, batch, runs))


def test_memory_running_out_halves_the_batch_and_changes_nothing(
    tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        [gi.knockout("text - gate", keys)]
        for keys in ("image", "gate", "last_image", "system", "random_image:3")
    ]
    want = last_logits(tiny, batch, runs)
    whole, sizes = RunBatch._logits, []

    def tight(self: Any, part: Any, some: tuple[int, ...]) -> Tensor:
        sizes.append(len(some))
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, part, some)

    monkeypatch.setattr(RunBatch, "_logits", tight)
    with pytest.warns(UserWarning, match="out of memory with 5 at once: continuing with 3"):
        got = last_logits(tiny, batch, runs)
    assert sizes == [5, 3, 2, 2, 1]
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_an_error_in_a_hook_leaves_nothing_behind(tiny: Any, batch: Any) -> None:
    class Boom(Ablate):
        def reach(self, tokens: Any, cfg: Any) -> gi.Reach:
            return gi.Reach(tokens.n_pos - 1, 1)

        def new_values(self, *args: Any) -> Tensor:
            raise RuntimeError("boom")

    clean = tiny(batch)
    with pytest.raises(RuntimeError, match="boom"):
        last_logits(
            tiny, batch, [gi.knockout("text - gate", "image"), Boom("last", "resid_pre", layers=(1,))]
        )
    for block in tiny.bridge.blocks:
        assert "forward" not in vars(block) and block.attn.cuts is None
    assert torch.equal(tiny(batch), clean)


def test_a_sweep_reuses_what_no_run_changes(tiny: Any, batch: Any) -> None:
    grid = {"start": [gi.knockout("text - gate", "image", layers=range(s, 3)) for s in range(3)]}
    said = explain(tiny, batch, grid)
    n_pos, text = (
        batch.tokens.n_pos,
        batch.tokens.n_pos - min(p for b in range(3) for p in batch.tokens.positions("text - gate", b)),
    )
    assert said.plan.cells == n_pos * 3 + text * (3 + 2 + 1)
    assert said.plan.plain_cells == 3 * n_pos * 3
    assert "clean run, once" in str(said) and "<table>" in said._repr_html_()
    both = sweep(tiny, batch, grid, {"a": gl.metrics.logit(3), "b": gl.metrics.prob(4)}, progress=False)
    one = sweep(tiny, batch, grid, lambda logits: logits[:, -1, 3], progress=False)
    assert list(both.columns) == ["start", "example", "a", "b"]
    assert abs(both.a - one.value).max() <= 1e-5


class Doubling(Knockout):
    """A kind of its own: what it edits is not what a knockout edits."""

    def edits(self, tokens: Any, cfg: Any, span: Any) -> list[gi.Edit]:
        return [gi.Edit("blocks.1.hook_resid_pre", lambda tensor, hook=None: tensor * 2)]


def test_a_kind_derived_from_a_knockout_keeps_its_edits(tiny: Any, batch: Any, real: Tensor) -> None:
    spec = Doubling("text - gate", "image")
    want = tiny.run_with_hooks(batch, [("blocks.1.hook_resid_pre", lambda tensor, hook: tensor * 2)])
    assert (run(tiny, batch, spec) - want)[real].abs().max() <= 1e-5
    many = RunBatch(tiny, batch, [[spec], []])
    seen = {i: logits.clone() for i, logits in many.each()}
    assert many.plan.full == (0,) and (seen[0] - want)[real].abs().max() <= 1e-5
