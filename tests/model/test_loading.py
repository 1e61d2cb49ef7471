"""What a checkpoint must hold to be the model of its name, and loading calls that mean nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from gatelens.errors import GatelensError, ModelError, OutputError
from gatelens.families import FixedGrid, Geometry, Layout
from gatelens.model import HookedVLM
from tiny_models import make_llava, make_llava_processor, make_picture, make_tokenizer

WEIGHTS = "model.safetensors"
LAYER = "model.language_model.layers.1."  # as the model has it
STORED = "language_model.model.layers.1."  # as the file has it, and the hub's older ones
LAYOUT = Layout(placeholder_id=5, plan=FixedGrid(4, 4, Geometry((16, 16))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("llava")
    make_llava().save_pretrained(where)
    make_llava_processor().save_pretrained(where)
    return where


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


NO_PROCESSOR = "ignore:.*no usable processor"


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    held = load_file(folder / WEIGHTS)
    edit(held)
    save_file(held, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        HookedVLM.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_counted_and_named(copy: Path) -> None:
    def a_layer(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if name.startswith(STORED)]:
            del held[name]

    edit_weights(copy, a_layer)
    assert f"9 tensors missing ({LAYER}input_layernorm.weight, " in refused(copy)


def test_one_missing_tensor_is_named(copy: Path) -> None:
    edit_weights(copy, lambda held: held.pop("multi_modal_projector.linear_1.bias"))
    said = refused(copy)
    assert "1 tensor missing (model.multi_modal_projector.linear_1.bias); get all of its files" in said


def test_tensors_with_no_place_are_named(copy: Path) -> None:
    edit_weights(copy, lambda held: held.update({f"{STORED}mlp.down_proj.bias": torch.ones(32)}))
    assert f"1 tensor with no place in the model ({LAYER}mlp.down_proj.bias)" in refused(copy)
    # the way out that the message names: a model the caller vouches for
    model = HookedVLM.from_module(AutoModelForImageTextToText.from_pretrained(copy))
    assert model.cfg.n_layers == 3


def test_layers_beyond_the_config_are_not_dropped(copy: Path) -> None:
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit_json(copy / "config.json", text_config={**text, "num_hidden_layers": 2})
    assert "9 tensors with no place in the model (model.language_model.layers.2." in refused(copy)
    edit_json(copy / "config.json", text_config={**text, "num_hidden_layers": 5})
    assert "18 tensors missing (model.language_model.layers.3." in refused(copy)


def test_tensors_of_another_shape_are_named_with_both(copy: Path) -> None:
    edit_weights(copy, lambda held: held.update({f"{STORED}mlp.down_proj.weight": torch.ones(3, 4)}))
    assert f"1 tensor of another shape ({LAYER}mlp.down_proj.weight [3, 4] for [32, 48])" in refused(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_that_are_not_finite_are_named(value: float, dtype: str | None, copy: Path) -> None:
    edit_weights(copy, lambda held: held[f"{STORED}mlp.down_proj.weight"].__setitem__((2, 3), value))
    with pytest.raises(ModelError, match=rf"1 tensor with NaN or inf \({LAYER}mlp.down_proj.weight\)"):
        HookedVLM.from_pretrained(str(copy), dtype=dtype)


@pytest.mark.filterwarnings(NO_PROCESSOR)
def test_a_shard_that_is_missing_or_another(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    make_llava().save_pretrained(whole, max_shard_size="50KB")
    HookedVLM.from_pretrained(str(whole))
    first, second, *_ = sorted(file.name for file in whole.glob("model-*.safetensors"))
    shutil.copy(whole / first, whole / second)  # a download under a wrong name
    assert "tensors missing (model." in refused(whole)
    (whole / second).unlink()
    assert second in refused(whole)
    index = json.loads((whole / f"{WEIGHTS}.index.json").read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != second}
    edit_json(whole / f"{WEIGHTS}.index.json", weight_map=kept)
    assert f"{len(index['weight_map']) - len(kept)} tensors missing (" in refused(whole)


@pytest.mark.filterwarnings(NO_PROCESSOR)
def test_what_transformers_derives_is_no_fault(folder: Path, tmp_path: Path) -> None:
    """Tied weights are written once; buffers that older versions wrote are computed."""
    tied = make_llava()
    tied.config.tie_word_embeddings = tied.config.text_config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / WEIGHTS))
    old = {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    old |= {"vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    edit_weights(tmp_path, lambda held: held.update(old))
    loaded = HookedVLM.from_pretrained(str(tmp_path))
    inputs = HookedVLM.from_module(make_llava(), make_llava_processor()).prepare(make_picture(), "<image> is")
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), tied(**inputs.tensors).logits, atol=1e-5, rtol=0)


def test_a_path_is_a_name(folder: Path) -> None:
    assert HookedVLM.from_pretrained(folder).processor is not None


class Attack:
    """Pickled, it would run code where it is loaded."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was run",))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config is a number": (lambda f: (f / "config.json").write_text("5"), "cannot load the folder"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "cannot load the folder"),
    "architectures": (lambda f: edit_json(f / "config.json", architectures={"a": 1}), "KeyError: 0"),
    "text_config": (lambda f: edit_json(f / "config.json", text_config=5), "'text_config'.*with value 5"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no file named model.safetensors"),
    "no image token": (lambda f: edit_json(f / "config.json", image_token_id=None), "placeholder_id is None"),
    "a pickle": (
        lambda f: (
            (f / WEIGHTS).unlink(),
            (f / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(), protocol=2)),
        ),
        "holds pickled objects beside its tensors, which can run code: save it as safetensors",
    ),
    "a pickled list": (
        lambda f: ((f / WEIGHTS).unlink(), torch.save([1, 2], f / "pytorch_model.bin")),
        "cannot load the folder",
    ),
    "generation config": (lambda f: (f / "generation_config.json").write_text("[]"), "cannot load"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_folder_is_one_line(how: str, copy: Path) -> None:
    damage, message = DAMAGE[how]
    damage(copy)
    with pytest.raises(ModelError, match=message):
        HookedVLM.from_pretrained(str(copy))
    assert refused(copy)


@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_processor_is_told_of(file: str, copy: Path) -> None:
    (copy / file).write_text("[]")
    with pytest.warns(UserWarning, match="no usable processor"):
        assert HookedVLM.from_pretrained(str(copy)).processor is None


BY_NAME: dict[str, tuple[Any, dict[str, Any], str]] = {
    "None": (None, {}, "the model's name is None: give organism:NAME, a folder or a hub id"),
    "number": (5, {}, "name is 5"),
    "nothing": ("", {}, "name is ''"),
    "bytes": (b"x", {}, "name is b'x'"),
    "tensor": (torch.ones(1), {}, "name is tensor"),
    "too long": ("x" * 300, {"local_files_only": True}, "is not a repository"),
    "device list": ("here", {"device": []}, r"device '\[\]' cannot be used"),
    "device meta": ("here", {"device": "meta"}, "device 'meta' cannot be used: it holds no weights"),
    "device word": ("here", {"device": "fast"}, "device 'fast' cannot be used"),
    "two devices": ("here", {"device": "cpu", "device_map": "auto"}, "both given"),
    "device_map": ("here", {"device_map": []}, "cannot load the folder .*: AttributeError"),
    "dtype": ("here", {"dtype": "int8"}, "not a floating-point dtype"),
    "torch_dtype": ("here", {"torch_dtype": "bfloat16"}, "torch_dtype= is not passed on .*: write dtype="),
    "config": ("here", {"config": "x"}, "config= is not passed on .* HookedVLM.from_module"),
    "shapes": ("here", {"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes= is not passed on"),
    "report": ("here", {"output_loading_info": True}, "output_loading_info= is not passed on"),
    "unknown": (
        "here",
        {"nonsense": 3},
        "unexpected keyword argument 'nonsense'; check its files and the key",
    ),
}


@pytest.mark.parametrize("call", BY_NAME)
def test_names_and_keywords(call: str, folder: Path) -> None:
    name, keywords, message = BY_NAME[call]
    with pytest.raises(ModelError, match=message) as caught:
        HookedVLM.from_pretrained(str(folder) if name == "here" else name, **keywords)
    assert "\n" not in str(caught.value)


BY_MODULE: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (
        lambda: HookedVLM.from_module(None),
        "a NoneType is not a transformers model: give a loaded one",
    ),
    "name": (
        lambda: HookedVLM.from_module("a/b"),
        "'a/b' is not a transformers model.* name to HookedVLM.from_pretrained",
    ),
    "class": (lambda: HookedVLM.from_module(nn.Linear), "a type is not a transformers model"),
    "plain module": (lambda: HookedVLM.from_module(nn.Linear(2, 2)), "a Linear is not a transformers model"),
    "wrapped": (lambda: HookedVLM.from_module(wrapped()), "this HookedVLM is wrapped already"),
    "hooked": (lambda: HookedVLM.from_module(wrapped().hf), "wrapped already: wrap a fresh one"),
    "word as processor": (
        lambda: HookedVLM.from_module(make_llava(), "x"),
        "processor is a str: give what takes",
    ),
    "tokenizer as processor": (
        lambda: HookedVLM.from_module(make_llava(), make_tokenizer()),
        r"processor is a \w+: give what takes images= and text=",
    ),
    "class as processor": (
        lambda: HookedVLM.from_module(make_llava(), type(make_llava_processor())),
        "processor is a type",
    ),
    "layout": (lambda: HookedVLM.from_module(make_llava(), None, 5), "layout is a int"),  # type: ignore[arg-type]
    "parts of None": (
        lambda: HookedVLM.from_parts(None, print, LAYOUT),
        "no adapter for the decoder NoneType",
    ),
    "parts without layout": (
        lambda: HookedVLM.from_parts(decoder(), print, None),  # type: ignore[arg-type]
        "layout is a NoneType",
    ),
    "encoder": (lambda: HookedVLM.from_parts(decoder(), "x", LAYOUT), "embed_images is a str"),  # type: ignore[arg-type]
    "ids": (lambda: Layout(placeholder_id="5", plan=print), "placeholder_id is '5': give token ids"),  # type: ignore[arg-type]
    "markers": (lambda: Layout(5, plan=print, eoi_ids=7), "eoi_ids is 7: give token ids"),  # type: ignore[arg-type]
    "plan": (lambda: Layout(5, plan=3), "plan is 3: give a function"),  # type: ignore[arg-type]
    "placeholder": (
        lambda: Layout(5, plan=print, placeholder=""),
        "placeholder is '': give the text that represents",
    ),  # type: ignore[arg-type]
    "two_way": (lambda: Layout(5, plan=print, two_way="all"), "two_way is 'all': give one of"),  # type: ignore[arg-type]
    "pixels": (lambda: Layout(5, plan=print, pixels="row"), "pixels is 'row': give one of"),  # type: ignore[arg-type]
}


def wrapped() -> HookedVLM:
    return HookedVLM.from_module(make_llava())


def decoder() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
    )


@pytest.mark.parametrize("call", BY_MODULE)
def test_what_cannot_be_wrapped(call: str) -> None:
    do, message = BY_MODULE[call]
    with pytest.raises(ModelError, match=message) as caught:
        do()
    assert "\n" not in str(caught.value)


TO_SAVE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "None": (None, {}, "the folder to save in is None: give its path"),
    "number": (5, {}, "the folder to save in is 5"),
    "nothing": ("", {}, "the folder to save in is ''"),
    "bytes": (b"x", {}, "the folder to save in is b'x'"),
    "too long": ("x" * 300, {}, "cannot save in 'xxx.*File name too long"),
    "below a file": ("file/x", {}, "cannot save .*Not a directory"),
    "a NUL": ("x\0y", {}, r"cannot save .* in 'x\\x00y'"),
    "a lone surrogate": ("x\ud800", {}, r"cannot save .* in 'x\\ud800'"),
    "overwrite": ("new", {"overwrite": "yes"}, "overwrite='yes': give True or False"),
    "shards of nothing": (
        "new",
        {"max_shard_size": 0},
        "max_shard_size=0: give bytes, or a size such as '5GB'",
    ),
    "shards below nothing": ("new", {"max_shard_size": "-5GB"}, "max_shard_size='-5GB'"),
    "shards of a list": ("new", {"max_shard_size": []}, r"max_shard_size=\[\]"),
    "shards of no unit": ("new", {"max_shard_size": "5 potatoes"}, "cannot save"),
    "here": (".", {"overwrite": True}, "'.' holds the working directory: give a folder of its own"),
}


@pytest.mark.parametrize("call", TO_SAVE)
def test_where_nothing_can_be_saved(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, keywords, message = TO_SAVE[call]
    here = tmp_path / "here"
    here.mkdir()
    if call != "here":
        (here / "file").write_text("mine")
    monkeypatch.chdir(here)
    with pytest.raises(OutputError, match=message) as caught:
        wrapped().save_pretrained(where, **keywords)
    assert "\n" not in str(caught.value) and isinstance(caught.value, GatelensError)
    assert [file.name for file in tmp_path.rglob("*")] == (["here"] if call == "here" else ["here", "file"])
