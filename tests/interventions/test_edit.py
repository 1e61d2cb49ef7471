"""Functions as interventions, patterns, keys and projections: each against plain transformers' attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers.models.chameleon.modeling_chameleon as chameleon
import transformers.models.llama.modeling_llama as llama
from torch import Tensor

import gatelens as gl
import gatelens.interventions as gi
from gatelens.engine.full_run import full_decoder
from gatelens.errors import InterventionError
from gatelens.interventions.compile import as_interventions
from intervention_helpers import site_hooks, torch_hooks

AT = "gate | last | random_image:4"
Change = Callable[[Tensor], Tensor]


@pytest.fixture
def plain_attention(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Plain transformers whose attention function itself changes keys or the pattern in one layer."""

    def same(x: Tensor) -> Tensor:
        return x

    def run(inputs: Any, layer: int, keys: Change = same, pattern: Change = same) -> Tensor:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
        ) -> tuple[Tensor, Tensor]:
            here = module.layer_idx == layer
            key = keys(key) if here else key
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            weights = (query @ key.transpose(2, 3) * scaling + mask).softmax(-1)
            weights = pattern(weights) if here else weights
            return (weights @ value).transpose(1, 2).contiguous(), weights

        for module in (chameleon, llama):
            monkeypatch.setattr(module, "eager_attention_forward", attention)
        with torch.no_grad():
            return oracle(**inputs.tensors).logits

    return run


def close(got: Tensor, want: Tensor, real: Tensor) -> None:
    torch.testing.assert_close(got[real], want[real], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("site", gi.SITES)
def test_a_function_is_what_plain_hooks_make_of_it(
    tiny: Any, oracle: Any, blocks: Any, batch: Any, real: Tensor, site: str
) -> None:
    places = batch.tokens.mask(AT)[..., None]
    plain_edit = {site: lambda x: torch.where(places, 0.5 * x.roll(1, -1) + 0.1, x)}

    def function(rows: Tensor, where: gi.Rows) -> Tensor:
        return 0.5 * rows.flatten(1).roll(1, -1).view_as(rows) + 0.1

    with torch.no_grad(), torch_hooks(site_hooks(blocks[1], plain_edit)):
        want = oracle(**batch.tensors).logits
    got = tiny.run(batch, gl.edit(function, at=AT, site=site, layers=[1]))
    close(got, want, real)
    assert (got - tiny(batch))[real].abs().max() > 1e-3


def test_a_function_is_told_which_rows_it_gets(tiny: Any, batch: Any) -> None:
    seen: list[tuple[gi.Rows, Tensor]] = []

    def function(rows: Tensor, where: gi.Rows) -> Tensor:
        seen.append((where, rows))
        return rows.zero_()  # what it is given is its own

    _, cache = tiny.run_with_cache(batch)
    tiny.run(batch, gl.edit(function, at=AT, site="mlp_out", layers=[0, 2]))
    want = batch.tokens.mask(AT).nonzero()
    assert [where.layer for where, _ in seen] == [0, 2]
    for where, rows in seen:
        assert torch.equal(torch.stack([where.example, where.position], 1), want) and len(rows) == len(want)
    first = cache["blocks.0.hook_mlp_out"][batch.tokens.mask(AT)]
    assert first.abs().min() > 0 and torch.equal(
        seen[0][0].readable.sum(-1), _n_before(batch)[want.T.unbind()]
    )


def _n_before(batch: Any) -> Tensor:
    """How many real positions stand at or before each."""
    return (batch.tokens.roles != 0).cumsum(1)


def test_scaled_keys_and_values(
    tiny: Any, oracle: Any, blocks: Any, batch: Any, real: Tensor, plain_attention: Any
) -> None:
    """Keys as they are multiplied, after any norm that would undo a scale."""
    image = batch.tokens.mask("image")
    want = plain_attention(batch, 1, keys=lambda k: torch.where(image[:, None, :, None], 1.7 * k, k))
    spec = gl.edit(lambda rows, where: 1.7 * rows, at="image", site="rot_k", layers=[1])
    close(tiny.run(batch, spec), want, real)
    assert (want - tiny(batch))[real].abs().max() > 1e-3
    one_head = gl.edit(lambda rows, where: 1.7 * rows, at="image", site="rot_k", layers=[1], heads=[1])

    def second(k: Tensor) -> Tensor:
        return torch.where(
            image[:, None, :, None] & (torch.arange(k.shape[1]) == 1)[:, None, None], 1.7 * k, k
        )

    close(tiny.run(batch, one_head), plain_attention(batch, 1, keys=second), real)


def test_a_replaced_pattern(tiny: Any, batch: Any, real: Tensor, plain_attention: Any) -> None:
    rows_at, n_pos = batch.tokens.mask("text"), batch.tokens.n_pos
    first = (batch.tokens.roles != 0).int().argmax(1)
    to_first = torch.nn.functional.one_hot(first, n_pos).float()

    def plain(pattern: Tensor) -> Tensor:
        new = to_first[:, None, None, :].expand_as(pattern)
        heads = torch.arange(4) % 3 == 0
        return torch.where(rows_at[:, None, :, None] & heads[:, None, None], new, pattern)

    def function(rows: Tensor, where: gi.Rows) -> Tensor:
        assert rows.shape == (int(rows_at.sum()), 4, n_pos) and where.n_keys == n_pos
        return to_first[where.example][:, None, :].expand_as(rows)

    spec = gl.edit(function, at="text", site="pattern", layers=[2], heads=[0, 3])
    close(tiny.run(batch, spec), plain_attention(batch, 2, pattern=plain), real)


def test_uniform_and_random_patterns(tiny: Any, batch: Any, real: Tensor, plain_attention: Any) -> None:
    rows_at = batch.tokens.mask("text")
    open_ = torch.ones(rows_at.shape[1], rows_at.shape[1]).tril().bool() & real[:, None, :]
    even = open_ / open_.sum(-1, keepdim=True).clamp_min(1)

    def uniform(pattern: Tensor) -> Tensor:
        return torch.where(rows_at[:, None, :, None], even[:, None], pattern)

    spec = gl.ablate("text", "pattern", layers=[1], with_="uniform")
    close(tiny.run(batch, spec), plain_attention(batch, 1, pattern=uniform), real)

    name = "blocks.1.attn.hook_pattern"

    def drawn(inputs: Any, seed: int) -> Tensor:
        spec = gl.ablate("text", "pattern", layers=[1], with_="random", seed=seed)
        pairs = spec.hooks(inputs.tokens, tiny.cfg)
        pattern = tiny.run_with_cache(inputs, name, fwd_hooks=pairs)[1][name]
        return pattern.transpose(1, 2)

    pattern = drawn(batch, 0)
    rows = pattern[rows_at]
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
    assert torch.equal(rows > 0, open_[rows_at][:, None].expand_as(rows))
    assert torch.equal(drawn(batch, 0)[rows_at], rows) and not torch.equal(drawn(batch, 1)[rows_at], rows)
    assert not torch.equal(rows[:, 0], rows[:, 1])  # a draw for each head
    alone = batch.select([1])
    assert torch.equal(drawn(alone, 0)[0][alone.tokens.mask("text")[0]], pattern[1][rows_at[1]])


def test_a_knockout_acts_before_a_pattern_edit(tiny: Any, batch: Any) -> None:
    seen: list[Tensor] = []

    def function(rows: Tensor, where: gi.Rows) -> Tensor:
        seen.append(rows)
        return rows

    look = gl.edit(function, at="text", site="pattern", layers=[1])
    for how in ("mask", "zero"):
        cut = gl.knockout("text", "image", layers=[1], how=how)
        for specs in ([look, cut], [cut, look]):
            torch.testing.assert_close(
                tiny.run(batch, specs)[:, -1], tiny.run(batch, cut)[:, -1], atol=1e-5, rtol=1e-5
            )
            image = batch.tokens.mask("image")[batch.tokens.mask("text").nonzero()[:, 0]]
            assert not seen[-1].masked_select(image[:, None]).any()


def test_a_projection_takes_a_direction_out_and_nothing_else(tiny: Any, batch: Any) -> None:
    name = "blocks.1.hook_resid_pre"
    _, cache = tiny.run_with_cache(batch, name)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3
    spec = gl.ablate("text", layers=[1], with_="projection", direction=direction)
    pairs = spec.hooks(batch.tokens, tiny.cfg)
    _, after = tiny.run_with_cache(batch, name, fwd_hooks=pairs)
    text, projector = batch.tokens.mask("text"), torch.outer(direction, direction) / direction.dot(direction)
    before = cache[name][text]
    torch.testing.assert_close(after[name][text], before - before @ projector, atol=1e-5, rtol=1e-4)
    assert torch.equal(after[name][~text], cache[name][~text])
    by_layer = gl.ablate("text", with_="projection", direction={1: direction, 2: direction})
    assert by_layer.layers == (1, 2)


@torch.no_grad()
def test_a_plain_pair_is_an_intervention(
    tiny: Any, oracle: Any, blocks: Any, batch: Any, real: Tensor
) -> None:
    pair = ("blocks.1.hook_resid_post", lambda tensor, hook: 0.5 * tensor)
    with torch_hooks(site_hooks(blocks[1], {"resid_post": lambda x: 0.5 * x})):
        want = oracle(**batch.tensors).logits
    for given in (pair, [pair], [[pair], None]):
        close(tiny.run(batch, given), want, real)
    both = tiny.run(batch, [pair, gl.knockout("text", "image")])
    rest = tiny.run_with_hooks(batch, gl.hooks([pair, gl.knockout("text", "image")], batch.tokens, tiny.cfg))
    close(both, rest, real)
    first = gl.metrics.logit(5)
    table = gl.sweep(tiny, batch, {"hook": [None, pair]}, first, progress=False)
    torch.testing.assert_close(
        torch.tensor(table[table["hook"] == 1]["value"].to_numpy()).float(), first(want), atol=5e-5, rtol=1e-4
    )


def softened(rows: Tensor, where: gi.Rows) -> Tensor:
    return rows.masked_fill(~where.readable[:, None], -torch.inf).softmax(-1)


def verbs() -> list[Any]:
    half = torch.ones(32) / 2
    return [
        gl.edit(
            lambda rows, where: 0.5 * rows + where.position[:, None] / 50, "text", "resid_post", layers=[1]
        ),
        gl.edit(lambda rows, where: 2 * rows, "image | text", "rot_k", layers=[1, 2]),
        gl.edit(softened, "text", "pattern", layers=[1]),
        gl.ablate("text", "pattern", layers=[1], with_="uniform"),
        gl.ablate("text", "pattern", layers=[1, 2], with_="random", heads=[0, 2]),
        gl.ablate("text", layers=[1], with_="projection", direction=half),
        ("blocks.1.hook_resid_post", lambda tensor, hook: 0.9 * tensor),
    ]


@torch.no_grad()
@pytest.mark.parametrize("number", range(len(verbs())))
def test_it_holds_while_decoding(tiny: Any, batch: Any, number: int) -> None:
    """Each step is the grown prompt run again with plain hooks; several runs at once are each run alone."""
    spec, n_new = verbs()[number], 3
    decoder = full_decoder(tiny, batch, as_interventions(spec), n_new)
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    rest = {name: value for name, value in batch.tensors.items() if name == "pixel_values"}
    for step in range(n_new + 1):
        new = torch.tensor([30 + step, 26, 28 + step])
        got = decoder.prompt() if step == 0 else decoder.step(new)
        if step:
            ids = torch.cat([ids, new[:, None]], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        pairs = gl.hooks(spec, batch.tokens.extend(step), tiny.cfg)
        tensors = {"input_ids": ids, "attention_mask": mask, **rest}
        want, _ = tiny.forward_step(tensors, pairs)
        torch.testing.assert_close(got, want[:, -1], atol=5e-5, rtol=1e-4)
        assert (want - tiny.forward_step(tensors)[0])[:, -1].abs().max() > 1e-3
    runs = [spec, [spec, gl.knockout("last | generated", "image", layers=[2])]]
    together = gl.engine.generate_many(tiny, batch, runs, max_new_tokens=4, stop_at_eos=False)
    for run, made in zip(runs, together, strict=True):
        alone = tiny.generate(batch, run, max_new_tokens=4, stop_at_eos=False, return_type="ids")
        assert torch.equal(made.token_ids, alone.token_ids)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gl.edit(lambda rows, where: rows[:1], "text", layers=1), ["edit(", "(1, 32)", "shape"]),
        (lambda: gl.edit(lambda rows, where: None, "text", layers=1), ["a NoneType", "shape"]),
        (lambda: ("blocks.9.hook_resid_post", lambda tensor, hook: None), ["blocks.9.hook_resid_post"]),
    ],
)
def test_what_a_function_gives_is_checked(tiny: Any, batch: Any, make: Any, words: list[str]) -> None:
    with pytest.raises(InterventionError) as error:
        tiny.run(batch, make())
    assert all(word in str(error.value) for word in words), str(error.value)
