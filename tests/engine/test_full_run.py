"""Running interventions: what counts as having acted, and that nothing stays behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import gatelens.interventions as gi
from gatelens.engine import generate, run, sweep
from gatelens.errors import InterventionError


@dataclass(frozen=True, eq=False, repr=False)
class Custom(gi.Intervention):
    """An intervention of one's own: one function at one hook point."""

    name: str
    function: Any

    def edits(self, tokens: Any, cfg: Any, span: Any) -> list[gi.Edit]:
        return [gi.Edit(self.name, self.function)]


def boom(tensor: Any, hook: Any = None) -> Any:
    raise RuntimeError("boom")


def hook_count(model: Any) -> int:
    points = {id(point): point for point in model.bridge.hook_dict.values()}
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in points.values())


@pytest.mark.parametrize("how", ["run", "generate", "sweep"])
def test_hooks_are_gone_after_the_call_and_after_an_exception(tiny: Any, batch: Any, how: str) -> None:
    def call(specs: Any) -> Any:
        if how == "sweep":
            return sweep(tiny, batch, {"x": [specs]}, lambda logits: logits[:, -1, 0], progress=False)
        return run(tiny, batch, specs) if how == "run" else generate(tiny, batch, specs, max_new_tokens=2)

    clean, at_rest = tiny(batch), hook_count(tiny)
    good = [gi.knockout("text", "image"), gi.ablate("last", "resid_mid", 1)]
    call(good)
    assert hook_count(tiny) == at_rest
    for bad in (
        [*good, Custom("blocks.2.hook_resid_pre", boom)],
        [*good, gi.steer(torch.ones(5), "last", layers=2)],
        [*good, Custom("blocks.9.hook_resid_pre", boom)],
    ):
        with pytest.raises((RuntimeError, InterventionError)):
            call(bad)
        assert hook_count(tiny) == at_rest
    assert torch.equal(tiny(batch), clean)


def test_a_hook_that_never_fires_is_an_error(tiny: Any, batch: Any) -> None:
    silent = Custom("blocks.1.attn.hook_hidden_states", lambda tensor, hook=None: None)
    for call in (run, generate):
        with pytest.raises(InterventionError, match=r"'blocks.1.attn.hook_hidden_states' never fired"):
            call(tiny, batch, silent)


def test_a_hook_point_the_model_lacks_is_an_error(tiny: Any, batch: Any) -> None:
    with pytest.raises(InterventionError, match=r"no hook point 'blocks.1.hook_nowhere'"):
        run(tiny, batch, Custom("blocks.1.hook_nowhere", boom))


def test_an_edit_that_is_discarded_is_an_error(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens' own bridge of the CLIP tower fires pattern hooks after the fact and throws edits away."""
    from gatelens.bridge import towers
    from gatelens.model import HookedVLM
    from intervention_helpers import prompts
    from tiny_models import make_llava, make_llava_processor

    edit = Custom("vision_encoder.encoder_layers.0.attn.hook_pattern", lambda tensor, hook=None: tensor * 0)
    inputs = prompts(tiny_llava)
    assert (run(tiny_llava, inputs, edit) - tiny_llava(inputs)).abs().max() > 1e-3  # ours takes them
    monkeypatch.setattr(towers, "install_towers", lambda bridge: None)
    bare = HookedVLM.from_module(make_llava(), make_llava_processor())
    with pytest.raises(InterventionError, match="discards the edit"):
        run(bare, inputs, edit)


def test_interventions_of_ones_own_compose(tiny: Any, batch: Any) -> None:
    negate = Custom("blocks.1.hook_resid_pre", lambda tensor, hook=None: -tensor)
    twice = run(tiny, batch, [negate, gi.knockout("text", "image", layers=2), negate])
    assert torch.equal(twice, run(tiny, batch, gi.knockout("text", "image", layers=2)))


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_a_run_made_within_another_leaves_its_knockouts_in_place(tiny: Any, batch: Any, how: str) -> None:
    """A hook may run the model to decide what to do; the outer run goes on with its own cuts."""
    cut = gi.knockout("text", "image", layers=[0, 2], how=how)
    inner: list[torch.Tensor] = []

    def ask(tensor: torch.Tensor, hook: Any = None) -> None:
        if not inner:  # hooks of the outer run act in the inner one too
            inner.append(torch.empty(0))
            inner.append(run(tiny, batch, gi.knockout("last", "system", layers=[1])))

    asking = run(tiny, batch, [Custom("blocks.1.hook_resid_pre", ask), cut])
    assert len(inner) == 2
    torch.testing.assert_close(asking[:, -1], run(tiny, batch, cut)[:, -1], atol=1e-5, rtol=1e-4)
    assert all(block.attn.cuts is None for block in tiny.bridge.blocks)


def test_the_models_own_methods_lead_here(tiny: Any, batch: Any) -> None:
    spec = gi.knockout("text", "image")
    assert torch.equal(tiny.run(batch, [spec]), run(tiny, batch, spec))
    assert (
        tiny.generate(batch, [spec], max_new_tokens=3) == generate(tiny, batch, spec, max_new_tokens=3).texts
    )


@pytest.mark.parametrize("site", [*gi.SITES, "mask", "zero"])
def test_fused_attention_gives_the_same(tiny: Any, batch: Any, real: torch.Tensor, site: str) -> None:
    """Layers nobody looks into may run transformers' fused attention; interventions must not notice."""
    if site in ("mask", "zero"):
        spec = gi.knockout("text", "image", layers=1, heads=[0, 2], how=site)
    else:
        spec = gi.ablate("gate | random_image:3", site, layers=1)
    before = tiny.attention
    try:
        tiny.attention = "fused"
        fused = run(tiny, batch, spec)
        tiny.attention = "stepwise"
        stepwise = run(tiny, batch, spec)
        assert (stepwise - tiny(batch))[:, -1].abs().max() > 1e-4
    finally:
        tiny.attention = before
    torch.testing.assert_close(fused[real], stepwise[real], atol=3e-5, rtol=1e-4)


def test_a_batch_is_its_examples(tiny: Any, batch: Any, real: torch.Tensor) -> None:
    specs = [
        gi.knockout("text", "image", heads=[1]),
        gi.ablate("gate", "z", 1),
        gi.steer(torch.ones(32), "last"),
    ]
    together = run(tiny, batch, specs)
    for b in range(3):
        alone = run(tiny, batch.select([b]), specs)
        torch.testing.assert_close(together[b][real[b]], alone[0][real[b]], atol=2e-5, rtol=1e-4)
