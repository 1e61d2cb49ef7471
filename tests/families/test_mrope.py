"""Families with positions in three streams and pictures of any size: what the conformance suite does not ask."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from case import cases
from torch import Tensor

import gatelens as gl
from gatelens.engine import generate_many, last_logits
from gatelens.engine.plan import make_plan
from gatelens.errors import InputError
from gatelens.families.common.mrope import MergedPatches
from gatelens.families.common.plan import Picture
from gatelens.families.common.processing import ImageTextParts
from gatelens.inputs import next_position_ids
from gatelens.interventions.compile import as_interventions
from gatelens.model import HookedVLM

NAMES = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm-4v"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> Any:
    case = cases()[request.param]
    plain = case.model()
    model = HookedVLM.from_module(copy.deepcopy(plain), case.processor())
    return SimpleNamespace(case=case, plain=plain, model=model, name=request.param)


def batch(family: Any) -> Any:
    """Text alone, one picture, two pictures: of three lengths."""
    a, b = (family.case.picture(i) for i in (0, 1))
    return family.model.prepare(
        [[], [b], [a, b]], ["what animal is it ?", family.case.texts[1], family.case.texts[2]]
    )


def by_transformers(family: Any, tensors: dict[str, Tensor]) -> Tensor:
    """Plain logits with the positions transformers finds itself."""
    with torch.no_grad():
        return family.plain(**{k: v for k, v in tensors.items() if k != "position_ids"}).logits


def grown(inputs: Any, more: Tensor) -> dict[str, Tensor]:
    """The prompts with tokens after them."""
    tensors = dict(inputs.tensors)
    tensors["input_ids"] = torch.cat([tensors["input_ids"], more], dim=1)
    ones = torch.ones_like(more)
    tensors["attention_mask"] = torch.cat([tensors["attention_mask"], ones], dim=1)
    tensors["mm_token_type_ids"] = torch.cat([tensors["mm_token_type_ids"], 0 * ones], dim=1)
    return tensors


def test_positions_are_those_of_transformers(family: Any) -> None:
    inputs = batch(family)
    real = inputs.tensors["attention_mask"].bool()
    assert inputs.tensors["position_ids"].shape == (3, *real.shape) and not real.all()
    logits = family.model(inputs)
    assert (logits - by_transformers(family, inputs.tensors))[real].abs().max() <= TOLERANCE
    counted = dict(inputs.tensors, position_ids=inputs.tensors["position_ids"].amax(0))
    assert (family.model.forward_step(counted)[0] - logits)[real].abs().max() > 1e-3  # streams do matter


def test_steps_on_the_cache_continue_every_stream(family: Any) -> None:
    inputs = batch(family)
    more = torch.tensor([[9, 10, 11]]).repeat(inputs.batch_size, 1)
    want = by_transformers(family, grown(inputs, more))
    n = inputs.tokens.n_pos
    tensors, past = inputs.tensors, None
    for step in range(4):
        logits, past = family.model.forward_step(tensors, past=past, use_cache=True)
        assert (logits[:, -1] - want[:, n + step - 1]).abs().max() <= TOLERANCE
        if step < 3:
            tensors = {
                "input_ids": more[:, step : step + 1],
                "attention_mask": grown(inputs, more[:, : step + 1])["attention_mask"],
                "position_ids": next_position_ids(inputs.tensors["position_ids"], step),
            }


def test_restart_on_the_cache_of_the_picture(family: Any) -> None:
    inputs = batch(family)
    whole = family.model(inputs)
    start = inputs.tokens.n_pos - 3
    assert not inputs.tokens.mask("image")[:, start:].any()
    cut = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")
    head = {k: v[..., :start] if k in cut else v for k, v in inputs.tensors.items()}
    _, past = family.model.forward_step(head, use_cache=True)
    rest = {k: inputs.tensors[k][..., start:] for k in ("input_ids", "position_ids")}
    rest["attention_mask"] = inputs.tensors["attention_mask"]
    again, _ = family.model.forward_step(rest, past=past, use_cache=True)
    assert (again - whole[:, start:]).abs().max() <= TOLERANCE


def test_positions_are_never_guessed(family: Any) -> None:
    inputs = batch(family)
    real = inputs.tensors["attention_mask"].bool()
    bare = {k: v for k, v in inputs.tensors.items() if k not in ("position_ids", "mm_token_type_ids")}
    logits, past = family.model.forward_step(bare, use_cache=True)
    assert (logits - family.model(inputs))[real].abs().max() <= TOLERANCE
    with pytest.raises(InputError, match="position_ids are missing"):
        family.model.forward_step({k: bare[k][:, -1:] for k in ("input_ids", "attention_mask")}, past=past)


RUNS = [
    [],
    gl.knockout("text", "image", layers=[1]),
    gl.knockout("last", "gate", layers=[2], how="zero"),
    gl.ablate(at="gate", site="resid_pre", layers=[1]),
    gl.ablate(at="image", site="resid_post", layers=[0]),
    [gl.ablate(at="last_image", site="z", layers=[1]), gl.knockout("query", "first_image", layers=[0])],
]


def test_many_runs_share_a_prompt(family: Any) -> None:
    """What is not computed again, from a position and a layer on, is the same; streams and additions with it."""
    inputs = batch(family).select([1, 2])
    runs = [as_interventions(run) for run in RUNS]
    for run, logits in zip(runs, last_logits(family.model, inputs, runs), strict=True):
        assert (logits - family.model.run(inputs, run)[:, -1]).abs().max() <= TOLERANCE
    assert make_plan(family.model, inputs, runs).parts  # something was shared
    texts = generate_many(family.model, inputs, runs, max_new_tokens=4)
    for run, text in zip(runs, texts, strict=True):
        assert list(text.texts) == family.model.generate(inputs, run, max_new_tokens=4)


def test_a_run_from_the_last_picture_token_on_gets_what_later_layers_add(family: Any) -> None:
    """Deep features are added at every picture token, the one a run begins at among them."""
    inputs = batch(family).select([1])
    runs = [[gl.ablate(at="last_image", site=site, layers=[0])] for site in ("resid_pre", "mlp_out")]
    for run, logits in zip(runs, last_logits(family.model, inputs, runs), strict=True):
        assert (logits - family.model.run(inputs, run)[:, -1]).abs().max() <= TOLERANCE


def test_some_of_a_batch(family: Any) -> None:
    """Rows of pixel_values are patches: they go with their picture, and the picture with its prompt."""
    inputs = batch(family)
    whole = family.model(inputs)
    for chosen in ([2], [1, 0], [0]):
        part = inputs.select(chosen)
        real = part.tensors["attention_mask"].bool()
        assert (family.model(part) - whole[chosen])[real].abs().max() <= TOLERANCE


def test_tensors_alone(family: Any) -> None:
    """Without the pictures the boxes are in the pixels the model sees."""
    prepared = batch(family)
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    inputs = family.model.inputs(**{name: prepared.tensors[name] for name in names})
    assert torch.equal(inputs.tensors["position_ids"], prepared.tensors["position_ids"])
    assert torch.equal(inputs.tokens.roles, prepared.tokens.roles)
    assert inputs.tokens.image_sizes == ((), ((42, 84),), ((56, 28), (42, 84)))
    assert inputs.tokens.box[1][inputs.tokens.mask("image")[1]][-1].tolist() == [28, 70, 42, 84]
    assert prepared.tokens.box[1][prepared.tokens.mask("last_image")[1]][0, 2:].tolist() == [36, 80]
    kept = family.model.inputs(
        **{name: prepared.tensors[name] for name in names}, position_ids=prepared.tensors["position_ids"] + 1
    )
    assert torch.equal(kept.tensors["position_ids"], prepared.tensors["position_ids"] + 1)


def test_very_large_and_very_long_pictures(family: Any) -> None:
    """The processor's limit on pixels: the shape is kept as far as whole tokens go, and boxes tile the picture."""
    for size in ((400, 300), (30, 200)):
        picture = family.case.picture(0).resize(size)
        inputs = family.model.prepare(picture, family.case.texts[0])
        tokens = inputs.tokens
        boxes = tokens.box[0][tokens.mask("image")[0]]
        assert 4 <= len(boxes) <= 24
        area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
        assert float(area) == pytest.approx(size[0] * size[1])
        real = inputs.tensors["attention_mask"].bool()
        assert (family.model(inputs) - by_transformers(family, inputs.tensors))[real].abs().max() <= TOLERANCE


def test_what_does_not_fit_is_named(family: Any) -> None:
    model, inputs = family.model, batch(family).select([2])
    tensors = {k: inputs.tensors[k] for k in ("input_ids", "pixel_values", "image_grid_thw")}
    with pytest.raises(InputError, match="placeholders without image_grid_thw"):
        model.inputs(**{k: v for k, v in tensors.items() if k != "image_grid_thw"})
    with pytest.raises(InputError, match="pixel_values hold 103"):
        model.inputs(**tensors | {"pixel_values": tensors["pixel_values"][:-1]})
    between = model.layout.boi_ids | model.layout.eoi_ids | {model.tokenizer.convert_tokens_to_ids("and")}
    touching = torch.tensor([[i for i in tensors["input_ids"][0].tolist() if i not in between]])
    with pytest.raises(InputError, match=r"2 picture\(s\) are in 1 place"):
        model.inputs(**tensors | {"input_ids": touching})
    with pytest.raises(InputError, match="video is not supported"):
        model.inputs(**tensors, pixel_values_videos=tensors["pixel_values"])
    with pytest.raises(InputError, match="2 frames"):
        MergedPatches(7, 2)(Picture(None, 4, {"image_grid_thw": torch.tensor([2, 4, 4])}))


def test_markers(family: Any) -> None:
    tokens = family.model.prepare(family.case.picture(0), "this <image> animal").tokens
    [first], [last] = tokens.positions("first_image"), tokens.positions("last_image")
    assert tokens.positions("boi") == [first - 1] and tokens.positions("eoi") == [last + 1]
    assert tokens.positions("gate") == [last + 1] and last - first + 1 == 8


def test_every_hook_of_the_tower_acts(family: Any) -> None:
    """None fires on what nothing reads afterwards."""
    model = family.model
    inputs = batch(family)
    clean = model(inputs)
    names = [name for name in model.bridge.hook_dict if name.startswith("vision")]
    assert len(names) > 50
    for name in names:
        seen: list[Tensor] = []

        def zero(tensor: Tensor, hook: Any, seen: list[Tensor] = seen) -> Tensor | None:
            seen.append(tensor)
            return torch.zeros_like(tensor) if tensor.is_floating_point() else None

        edited = model.run_with_hooks(inputs, [(name, zero)])
        assert seen, name
        assert not seen[0].is_floating_point() or (edited - clean).abs().max() > 1e-4, name


def test_the_tower_gives_what_the_decoder_gets(family: Any) -> None:
    inputs = batch(family)
    names = ["vision_encoder.hook_out", "vision_projector.hook_out", "blocks.0.hook_resid_pre"]
    _, cache = family.model.run_with_cache(inputs, names)
    image = inputs.tokens.mask("image")
    assert torch.equal(cache[names[0]], cache[names[2]][image])
    assert torch.equal(cache[names[1]].sort(0).values, cache[names[0]].sort(0).values)  # windows reorder


def test_transformer_lens_switches(family: Any) -> None:
    """Split inputs and per-head results, which TransformerLens computes itself, know the three streams too."""
    model, inputs = family.model, batch(family)
    real = inputs.tensors["attention_mask"].bool()
    clean = model(inputs)
    for switch, point in (("attn_result", "result"), ("split_qkv_input", "q_input")):
        seen: list[Any] = []
        try:
            getattr(model.bridge, f"set_use_{switch}")(True)
            name = f"blocks.1.attn.hook_{point}"
            got = model.run_with_hooks(inputs, [(name, lambda t, hook, seen=seen: seen.append(t.shape))])
        finally:
            getattr(model.bridge, f"set_use_{switch}")(False)
        assert seen and (got - clean)[real].abs().max() <= TOLERANCE


def test_parameters_are_frozen(family: Any) -> None:
    assert not any(p.requires_grad for p in family.model.hf.parameters())


def test_deepstack_adds_between_the_first_blocks() -> None:
    case = cases()["qwen3-vl"]
    model = HookedVLM.from_module(case.model(), case.processor())
    inputs = model.prepare(case.picture(0), case.texts[0])
    _, cache = model.run_with_cache(inputs)
    image = inputs.tokens.mask("image")[0]
    n = len(model.hf.config.vision_config.deepstack_visual_indexes)
    assert n == 2 < model.cfg.n_layers
    for layer in range(int(model.cfg.n_layers) - 1):
        added = cache[f"blocks.{layer + 1}.hook_resid_pre"] - cache[f"blocks.{layer}.hook_resid_post"]
        assert added[0, ~image].abs().max() == 0
    for layer in range(n):
        added = cache[f"blocks.{layer + 1}.hook_resid_pre"] - cache[f"blocks.{layer}.hook_resid_post"]
        features = cache[f"vision_encoder.deepstack_mergers.{layer}.hook_out"]
        torch.testing.assert_close(added[0, image], features, atol=1e-5, rtol=1e-5)
    # what comes in between the blocks passes a knockout of attention by: an image row still sees its picture
    patched = gl.patch(cache, at="image", site="resid_post", layers=[0])
    assert (model.run(inputs, patched) - model(inputs)).abs().max() <= TOLERANCE


def test_loading_needs_no_torchvision(family: Any, tmp_path: Path) -> None:
    """The processor of a checkpoint has a video part, which transformers cannot build here."""
    parts = family.case.processor()
    for part in (family.plain, parts.image_processor, parts.tokenizer):
        part.save_pretrained(tmp_path)
    model = HookedVLM.from_pretrained(str(tmp_path))
    assert isinstance(model.processor, ImageTextParts)
    inputs = model.prepare(family.case.picture(1), family.case.texts[0])
    want = family.model(family.model.prepare(family.case.picture(1), family.case.texts[0]))
    assert (model(inputs) - want).abs().max() <= TOLERANCE
