"""Drawing against running the whole grown prompt again at every step, in plain transformers and by plain hooks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.engine.drawing import _Sampler, begun, canvas, draw, draw_many
from gatelens.errors import InputError, InterventionError, ModelError
from gatelens.tokens import Role, position_ids
from intervention_helpers import prompts

CELLS = 16


@pytest.fixture(scope="module")
def drawable(tiny_chameleon: Any) -> Any:
    """Padded prompts with a picture each, as codes."""
    return prompts(tiny_chameleon)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the sampler chose from at each step: log-probabilities [batch, code]."""
    kept: list[torch.Tensor] = []
    choose = _Sampler._choose

    def keeping(self: Any, log_p: torch.Tensor, *rest: Any) -> torch.Tensor:
        kept.append(log_p)
        return choose(self, log_p, *rest)

    monkeypatch.setattr(_Sampler, "_choose", keeping)
    return kept


def grown(inputs: Any, ids: torch.Tensor) -> Any:
    """The prompt with drawn tokens as part of the input, known as generated."""
    mask = torch.cat([inputs.tensors["attention_mask"], torch.ones_like(ids)], 1)
    tensors = {
        **inputs.tensors,
        "input_ids": torch.cat([inputs.tensors["input_ids"], ids], 1),
        "attention_mask": mask,
        "position_ids": position_ids(mask),
    }
    return dataclasses.replace(inputs, tensors=tensors, tokens=inputs.tokens.extend(ids.shape[1]))


SPECS = {
    "none": [],
    "drawing cannot read the gate": [gl.knockout("last | generated", "gate")],
    "drawing cannot read the picture": [gl.knockout("last | generated", "image | gate", how="zero")],
    "text and drawing cannot": [gl.knockout("(query | last | generated) - gate", "image", layers=[0, 2])],
    "steered": [gl.steer(torch.linspace(-2, 2, 32), "gate", layers=1)],
    "ablated while drawing": [gl.ablate("last | generated", "z", layers=[1], heads=[1])],
}


@pytest.mark.parametrize("name", SPECS)
def test_every_step_is_a_full_recomputation(
    tiny_chameleon: Any, drawable: Any, seen: list[torch.Tensor], name: str
) -> None:
    found = draw(tiny_chameleon, drawable, SPECS[name], temperature=0)
    inputs, codes = begun(tiny_chameleon, drawable), torch.tensor(sorted(tiny_chameleon.layout.drawn.ids))
    for n in (0, 1, 2, 7, CELLS - 1):
        whole = grown(inputs, found.token_ids[:, :n])
        raw: list[torch.Tensor] = []
        pairs = [p for spec in SPECS[name] for p in spec.hooks(whole.tokens, tiny_chameleon.cfg)]
        look = ("unembed.hook_out", lambda logits, hook: raw.append(logits.clone()))  # noqa: B023
        tiny_chameleon.run_with_hooks(whole, fwd_hooks=[*pairs, look])
        wanted = raw[0][:, -1][:, codes].log_softmax(-1)
        torch.testing.assert_close(seen[n], wanted, atol=5e-5, rtol=1e-4)
        assert torch.equal(found.token_ids[:, n], codes[wanted.argmax(-1)])


def test_sampling_and_guidance_in_plain_transformers(
    tiny_chameleon: Any, hf_chameleon: Any, drawable: Any
) -> None:
    """A loop without cache or gatelens: multinomial draws from the guided distribution over image tokens."""
    temperature, guidance = 0.7, 1.5
    inputs, codes = begun(tiny_chameleon, drawable), torch.tensor(sorted(tiny_chameleon.layout.drawn.ids))
    streams = [[inputs.tensors["input_ids"], inputs.tensors["attention_mask"]]]
    free = torch.tensor([[1, tiny_chameleon.layout.boi_id]] * 3)
    streams.append([free, torch.ones_like(free)])
    generator = torch.Generator().manual_seed(8)
    drawn = torch.zeros(3, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(CELLS):
            log_p = []
            for ids, mask in streams:
                mask = torch.cat([mask, torch.ones_like(drawn)], 1)
                hidden = hf_chameleon.model(
                    input_ids=torch.cat([ids, drawn], 1),
                    attention_mask=mask,
                    position_ids=position_ids(mask),
                )
                logits = hf_chameleon.lm_head(
                    hidden.last_hidden_state[:, -1]
                )  # before image tokens are masked
                log_p.append(logits[:, codes].log_softmax(-1))
            guided = log_p[1] + guidance * (log_p[0] - log_p[1])
            p = (guided / temperature).softmax(-1)
            drawn = torch.cat([drawn, codes[torch.multinomial(p, 1, generator=generator)]], 1)
    found = draw(tiny_chameleon, drawable, temperature=temperature, guidance=guidance, seed=8)
    assert torch.equal(found.token_ids, drawn)
    assert len(set(drawn.flatten().tolist())) > 4  # not one code for all


def test_many_runs_at_once_are_each_alone(tiny_chameleon: Any, drawable: Any) -> None:
    runs = list(SPECS.values())
    how = {"temperature": 1.0, "guidance": 2.0, "seed": 3}
    together = draw_many(tiny_chameleon, drawable, runs, **how)
    alone = [draw(tiny_chameleon, drawable, specs, **how) for specs in runs]
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0].token_ids, together[1].token_ids)
    other = draw(tiny_chameleon, drawable, **{**how, "seed": 4})
    assert not torch.equal(other.token_ids, together[0].token_ids)


def test_guidance_is_without_the_interventions(
    tiny_chameleon: Any, drawable: Any, seen: list[torch.Tensor]
) -> None:
    """guided = free + g (prompted − free) at g = 1, 2, 3 lies on a line for one token chosen alike at first."""
    spec = gl.knockout("last | generated", "image | gate")
    steps = []
    for guidance in (1.0, 2.0, 3.0):
        seen.clear()
        draw(tiny_chameleon, drawable, spec, temperature=0, guidance=guidance)
        steps.append(seen[0])
    torch.testing.assert_close(steps[2] - steps[1], steps[1] - steps[0], atol=1e-4, rtol=1e-4)
    free = steps[0] - (steps[1] - steps[0])
    seen.clear()
    draw(tiny_chameleon, tiny_chameleon.inputs(torch.tensor([[1]])), temperature=0)
    torch.testing.assert_close(free, seen[0].expand(3, -1), atol=1e-4, rtol=1e-4)


def test_the_map_of_a_drawing(tiny_chameleon: Any, drawable: Any) -> None:
    tokens = dataclasses.replace(drawable.tokens, example_ids=(5, 6, 7))
    found = draw(tiny_chameleon, dataclasses.replace(drawable, tokens=tokens))
    n = drawable.tokens.n_pos
    assert (found.rows, found.cols) == canvas(tiny_chameleon) == (4, 4)
    assert found.tokens.example_ids == (5, 6, 7)
    assert (found.tokens.roles[:, n] == Role.BOI).all() and (
        found.tokens.roles[:, n + 1 :] == Role.GENERATED
    ).all()
    assert found.tokens.n_pos == n + 1 + CELLS
    assert found.tokens.mask("last").nonzero()[:, 1].tolist() == [n] * 3
    assert torch.isin(found.token_ids, torch.tensor(sorted(tiny_chameleon.layout.drawn.ids))).all()
    again = begun(tiny_chameleon, drawable)
    assert begun(tiny_chameleon, again) is again


def test_what_cannot_be_drawn_says_so(tiny_chameleon: Any, tiny_llava: Any, drawable: Any) -> None:
    with pytest.raises(ModelError, match="no image tokens"):
        draw(tiny_llava, tiny_llava.prepare(text="a dog"))
    with pytest.raises(InputError, match="temperature=-1"):
        draw(tiny_chameleon, drawable, temperature=-1)
    with pytest.raises(InterventionError, match="layer 9"):
        draw(tiny_chameleon, drawable, gl.knockout("last | generated", "gate", layers=9))
    shapeless = dataclasses.replace(tiny_chameleon.layout.drawn, cols=None)
    before, tiny_chameleon.layout = (
        tiny_chameleon.layout,
        dataclasses.replace(tiny_chameleon.layout, drawn=shapeless),
    )
    try:
        with pytest.raises(ModelError, match="no fixed grid"):
            draw(tiny_chameleon, drawable)
    finally:
        tiny_chameleon.layout = before
