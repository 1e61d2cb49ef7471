"""Autoencoders against the formulas of their papers, one number at a time; spliced into runs; refused when unknown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import gatelens as gl
from gatelens.errors import GatelensError
from intervention_helpers import batch  # noqa: F401  (fixture)

D, F = 32, 48  # width of the tiny models, features
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": 5},
    "topk, rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "gated": {},
}


def made(name: str, **config: Any) -> gl.SAE:
    architecture = name.split(",")[0]
    torch.manual_seed(3)
    weights = {"W_enc": torch.randn(D, F), "W_dec": torch.randn(F, D) / 6, "b_dec": torch.randn(D) / 4}
    further = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    for one in further.get(architecture, ("b_enc",)):
        weights[one] = torch.rand(F) * 3 if one == "threshold" else torch.randn(F) / 3
    given = {"architecture": architecture, "hook_name": "blocks.1.hook_resid_post", **ARCHITECTURES[name]}
    return gl.SAE(given | config, weights)


def by_hand(sae: gl.SAE, x: list[float]) -> tuple[list[float], list[float]]:
    """Features and reconstruction of one activation, by sums of Python numbers."""
    w = {name: one.tolist() for name, one in sae.weights.items()}
    kind, config = sae.config["architecture"], sae.config
    how = config.get("normalize_activations", "none")
    mean, scale = 0.0, 1.0
    if how == "layer_norm":
        mean = sum(x) / D
        spread = math.sqrt(sum((a - mean) ** 2 for a in x) / (D - 1))
        into = [(a - mean) / (spread + 1e-5) for a in x]
        scale = spread
    elif how == "constant_norm_rescale":
        scale = math.sqrt(sum(a * a for a in x)) / math.sqrt(D)
        into = [a / scale for a in x]
    else:
        into = list(x)
    if config.get("apply_b_dec_to_input"):
        into = [a - b for a, b in zip(into, w["b_dec"], strict=True)]
    norm = [math.sqrt(sum(a * a for a in row)) for row in w["W_dec"]]
    rescaled = config.get("rescale_acts_by_decoder_norm", False)
    features = []
    for f in range(F):
        dot = sum(into[i] * w["W_enc"][i][f] for i in range(D))
        if kind == "gated":
            magnitude = dot * math.exp(w["r_mag"][f]) + w["b_mag"][f]
            features.append(max(0.0, magnitude) if dot + w["b_gate"][f] > 0 else 0.0)
        elif kind == "jumprelu":
            features.append(dot + w["b_enc"][f] if dot + w["b_enc"][f] > w["threshold"][f] else 0.0)
        elif kind == "topk":
            features.append((dot + w["b_enc"][f]) * (norm[f] if rescaled else 1))
        else:
            features.append(max(0.0, dot + w["b_enc"][f]))
    if kind == "topk":
        least = sorted(features)[-config["k"]]
        features = [max(0.0, a) if a >= least else 0.0 for a in features]
    used = [a / n if rescaled else a for a, n in zip(features, norm, strict=True)]
    out = [sum(used[f] * w["W_dec"][f][i] for f in range(F)) + w["b_dec"][i] for i in range(D)]
    return features, [a * scale + mean for a in out]


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_formulas(name: str, subtract: bool, normalize: str) -> None:
    sae = made(name, apply_b_dec_to_input=subtract, normalize_activations=normalize)
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    features, again = (
        torch.tensor(one) for one in zip(*[by_hand(sae, row) for row in x.tolist()], strict=True)
    )
    torch.testing.assert_close(sae.encode(x), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sae.reconstruct(x), again, atol=1e-4, rtol=1e-4)
    if normalize == "none":
        torch.testing.assert_close(sae.decode(features), again, atol=1e-4, rtol=1e-4)
    assert 0 < (features > 0).float().mean() < 0.7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_in_the_layout_of_saelens(name: str, tmp_path: Path) -> None:
    sae = made(name)
    config = {k: v for k, v in sae.config.items() if k != "hook_name"}
    config |= {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    config |= {"normalize_activations": "none", "reshape_activations": "none"}
    config["metadata"] = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    save_file(dict(sae.weights), tmp_path / "sae_weights.safetensors")
    read = gl.SAE.load(tmp_path)
    x = torch.randn(6, D)
    assert torch.equal(
        read.encode(x), gl.SAE({**sae.config, "apply_b_dec_to_input": True}, sae.weights).encode(x)
    )
    assert read.place == ("resid_post", 1) and (read.d_in, read.d_sae) == (D, F)
    read.save(tmp_path / "again")
    assert torch.equal(gl.SAE.load(tmp_path / "again").reconstruct(x), read.reconstruct(x))


def stream(model: Any, inputs: Any, specs: Any = None) -> torch.Tensor:
    hooks = [] if specs is None else specs.hooks(inputs.tokens, model.cfg)
    return model.run_with_cache(inputs, "blocks.1.hook_resid_post", fwd_hooks=hooks)[1][
        "blocks.1.hook_resid_post"
    ]


@pytest.mark.parametrize("name", ["topk", "gated"])
def test_spliced_into_a_run(tiny: Any, batch: Any, name: str) -> None:  # noqa: F811
    sae, clean = made(name), stream(tiny, batch)
    mask = batch.tokens.mask("image")
    old = clean[mask]
    features = sae.encode(old)
    strong = int(features.sum(0).argmax())
    less, more = features.clone(), features.clone()
    less[:, strong] = 0
    more[:, strong] += 2.5
    kept = old - sae.reconstruct(old)
    for spec, want in (
        (sae.splice("image", keep_error=False), sae.reconstruct(old)),
        (sae.splice("image", ablate=[strong]), sae.decode(less) + kept),
        (sae.splice("image", ablate=[strong], keep_error=False), sae.decode(less)),
        (sae.splice("image", steer={strong: 2.5}), sae.decode(more) + kept),
        (sae.splice("image", steer={strong: 2.5}), old + 2.5 * sae.weights["W_dec"][strong]),
    ):
        new = stream(tiny, batch, spec)
        torch.testing.assert_close(new[mask], want, atol=1e-4, rtol=1e-4)
        assert torch.equal(new[~mask], clean[~mask]) and not torch.allclose(new[mask], old)


def test_at_heads_they_are_laid_side_by_side(tiny: Any, batch: Any) -> None:  # noqa: F811
    sae = made("standard", hook_name="blocks.1.attn.hook_z", reshape_activations="hook_z")
    point, mask = "blocks.1.attn.hook_z", batch.tokens.mask("last")
    spec = sae.splice("last", keep_error=False)
    _, cache = tiny.run_with_cache(batch, point)
    _, after = tiny.run_with_cache(batch, point, fwd_hooks=spec.hooks(batch.tokens, tiny.cfg))
    want = sae.reconstruct(cache[point][mask].flatten(1)).view(-1, 4, 8)
    torch.testing.assert_close(after[point][mask], want, atol=1e-4, rtol=1e-4)


def test_a_sweep_of_features_shares_work_and_equals_runs(tiny: Any, batch: Any) -> None:  # noqa: F811
    sae = made("topk")
    here = sae.encode(stream(tiny, batch)[batch.tokens.mask("text - gate")])
    each = {i: sae.splice("text - gate", ablate=[i]) for i in here.sum(0).topk(3)[1].tolist()}
    first = int(batch.tokens.mask("text - gate").any(0).nonzero()[0])
    for spec in each.values():
        assert spec.reach(batch.tokens, tiny.cfg) == gl.interventions.Reach(first, 1)
    table = gl.sweep(tiny, batch, {"feature": each}, gl.metrics.logit(5), progress=False)
    for i, spec in each.items():
        want = tiny.run(batch, spec)[:, -1, 5]
        found = torch.tensor(table[table.feature == i].value.tolist())
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    assert table.groupby("example").value.std().max() > 1e-3
    assert not gl.explain(tiny, batch, list(each.values())).plan.full


def test_half_precision_models_keep_their_dtype(tiny: Any, batch: Any) -> None:  # noqa: F811
    sae = made("standard")
    half = torch.randn(3, D).to(torch.bfloat16)
    assert sae.reconstruct(half).dtype == torch.float32
    torch.testing.assert_close(sae.reconstruct(half), sae.reconstruct(half.float()))


X = torch.zeros(2, 7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: made("standard", architecture="matryoshka"), "'matryoshka'"),
        (lambda s: gl.SAE({}, s.weights), "no architecture"),
        (lambda s: made("standard", normalize_activations="expected_average_only_in"), "fold its factor"),
        (lambda s: made("standard", reshape_activations="conv"), "conv"),
        (lambda s: made("standard", activation_fn_str="topk"), "'topk' of an older SAELens"),
        (lambda s: made("standard", finetuning_scaling_factor=True), "finetuning_scaling_factor"),
        (lambda s: made("topk", k=None), "needs k"),
        (lambda s: made("topk", k=100), "k=100"),
        (lambda s: made("gated", rescale_acts_by_decoder_norm=True), "goes with topk"),
        (lambda s: made("standard", d_in=31), "d_in=31"),
        (lambda s: gl.SAE(s.config, {k: v for k, v in s.weights.items() if k != "b_enc"}), "no b_enc"),
        (lambda s: gl.SAE(s.config, {**s.weights, "b_gate": X}), "b_gate"),
        (lambda s: gl.SAE(s.config, {**s.weights, "W_enc": X}), "(2, 7)"),
        (lambda s: gl.SAE(s.config, {**s.weights, "b_dec": torch.full((D,), float("nan"))}), "finite"),
        (lambda s: gl.SAE.load("nowhere"), "no cfg.json"),
        (lambda s: s.encode(X), "32 numbers"),
        (lambda s: s.decode(X), "7 features"),
        (lambda s: s.splice("image"), "nothing would change"),
        (lambda s: s.splice("image", ablate=[99]), "99 is not a feature"),
        (lambda s: s.splice("image", ablate=3.5), "ablate=3.5: give the number of a feature"),
        (lambda s: s.splice("image", ablate="3"), "ablate='3': give the number of a feature"),
        (lambda s: s.splice("image", steer=3), "steer=3: give a dict"),
        (lambda s: s.splice("image", steer={1: float("inf")}), "not finite"),
        (lambda s: s.splice("image", ablate=[1], steer={1: 2}), "in ablate and in steer"),
        (lambda s: s.splice("image", "resid_past", ablate=[1]), "resid_past"),
        (lambda s: made("standard", hook_name="").splice("image", ablate=[1]), "give site= and layers="),
    ],
    ids=range(26),
)
def test_what_cannot_be_read_or_spliced_is_one_line(call: Any, words: str) -> None:
    with pytest.raises(GatelensError) as error:
        call(made("standard"))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_one_feature_needs_no_list() -> None:
    sae = made("standard")
    assert sae.splice("image", ablate=3).off == sae.splice("image", ablate=[3, 3]).off == (3,)


def sparse_coder(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """A SparseCoder as eai-sparsify 1.3.3 saves it."""
    torch.manual_seed(4)
    weights = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.randn(F) / 3}
    weights |= {"W_dec": torch.randn(F, D) / 6, "b_dec": torch.randn(D) / 4}
    said = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": 5}
    said |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D, **config}
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(said))
    save_file(weights, folder / "sae.safetensors")
    return weights


def test_a_folder_of_eai_sparsify(tmp_path: Path) -> None:
    w = sparse_coder(tmp_path)
    sae, x = gl.SAE.load(tmp_path), torch.randn(6, D)
    features = torch.zeros(6, F)
    for row, before in zip(
        features, (x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], strict=True
    ):
        for i in sorted(range(F), key=lambda i: -before[i])[:5]:
            row[i] = max(0.0, float(before[i]))
    torch.testing.assert_close(sae.encode(x), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x), features @ w["W_dec"] + w["b_dec"], atol=1e-5, rtol=1e-5)
    assert sae.place is None
    sae.save(tmp_path / "ours")
    assert torch.equal(gl.SAE.load(tmp_path / "ours").encode(x), sae.encode(x))


@pytest.mark.parametrize(
    "config", [{"transcode": True}, {"skip_connection": True}, {"activation": "groupmax"}]
)
def test_what_eai_sparsify_computes_in_another_way_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    sparse_coder(tmp_path, **config)
    with pytest.raises(GatelensError, match=rf"{next(iter(config))}.*: only autoencoders with topk") as error:
        gl.SAE.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_config_that_leaves_a_question_is_refused(tmp_path: Path) -> None:
    made("standard").save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "apply_b_dec_to_input"})
    )
    with pytest.raises(GatelensError, match="does not say apply_b_dec_to_input"):
        gl.SAE.load(tmp_path)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    made("standard").save(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(GatelensError, match="is damaged") as error:
        gl.SAE.load(tmp_path)
    assert "\n" not in str(error.value)
