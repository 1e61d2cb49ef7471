"""The lens against plain transformers' hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.errors import InputError, ModelError
from gatelens.readouts import lens as module
from intervention_helpers import batch  # noqa: F401  (fixture)

DOG, CAT = 28, 29


@pytest.fixture
def plain(tiny: Any, oracle: Any, batch: Any) -> Any:  # noqa: F811
    """Log-probabilities from the stream entering each layer, Float[layer, batch, pos, d_vocab]."""
    inner = getattr(oracle.model, "language_model", oracle.model)
    with torch.no_grad():
        out = oracle(**batch.tensors, output_hidden_states=True)
        inner_logits = [oracle.lm_head(inner.norm(hidden)) for hidden in out.hidden_states[:-1]]
    never = out.logits < -1e30  # Chameleon overwrites the logits of image tokens
    each = [
        logits.masked_fill(never, torch.finfo(torch.float32).min) for logits in [*inner_logits, out.logits]
    ]
    return torch.stack([logits.log_softmax(-1) for logits in each])


def test_every_layer_at_every_role(tiny: Any, batch: Any, plain: Any) -> None:  # noqa: F811
    lens = gl.logit_lens(tiny, batch, at="image | query", targets=["dog", CAT], top=2)
    rows = lens.axes["position"]
    want = plain[:, rows["example"].tolist(), rows["position"].tolist()]  # [layer, row, d_vocab]
    assert lens.tensor.shape == (4, len(rows), 4) and set(rows["role"]) == {"image", "query"}
    best = want.topk(2)
    torch.testing.assert_close(lens.tensor[..., :2], best.values, atol=1e-4, rtol=0)
    torch.testing.assert_close(lens.tensor[..., 2:], want[..., [DOG, CAT]], atol=1e-4, rtol=0)
    ranks = (want[..., None, :] > want[..., [DOG, CAT], None]).sum(-1)
    assert torch.equal(torch.tensor(lens.columns["rank"][..., 2:]), ranks)
    cell = lens.table.query("layer == 2 and target == 'top 0'").iloc[0]
    assert cell["word"] == tiny.tokenizer.decode([int(best.indices[2, 0, 0])]) and cell["rank"] == 0
    assert len(lens.table) == lens.tensor.numel()


def test_what_was_written_is_read_too(tiny: Any, oracle: Any, batch: Any) -> None:  # noqa: F811
    n = batch.batch_size
    grown = batch.grown(torch.tensor([[DOG, CAT]] * n), batch.tokens.extend(2), ["dog cat"] * n)
    lens = gl.logit_lens(tiny, grown, at="last | generated", layers=-1, top=1)
    with torch.no_grad():
        want = oracle(**grown.tensors).logits[:, -3:].float().log_softmax(-1)
    torch.testing.assert_close(lens.tensor[0, :, 0], want.max(-1).values.flatten(), atol=1e-4, rtol=0)


def test_logits_are_made_a_few_rows_at_a_time(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    whole = gl.logit_lens(tiny, batch, targets=DOG)
    sizes = []
    make = module.output_logits

    def counted(bridge: Any, rows: Any) -> Any:
        sizes.append(len(rows))
        return make(bridge, rows)

    kept = []
    step = tiny.forward_step
    monkeypatch.setattr(tiny, "forward_step", lambda *a, **k: kept.append(step(*a, **k)) or kept[-1])
    monkeypatch.setattr(module, "output_logits", counted)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 5)
    few = gl.logit_lens(tiny, batch, targets=DOG)
    torch.testing.assert_close(few.tensor, whole.tensor)
    assert (
        max(sizes) == 5 and kept[0][0].shape[1] == 1
    )  # the forward pass itself makes one row of logits a prompt


def test_a_single_panel_says_layer_and_token(tiny_llava: Any, picture: Any) -> None:
    lens = gl.logit_lens(tiny_llava, tiny_llava.prepare(picture, "<image> is"), "image", layers=[1, 2], top=1)
    figure = lens.sel(layer=1).show()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[:2] == ["picture", "layer 1: likeliest token"]
    assert "log-probability (nats)" in [axes.get_ylabel() for axes in figure.axes]
    assert figure._suptitle.get_text() == "most likely next token"  # type: ignore[attr-defined]
    assert "layer 2" in [axes.get_title(loc="left") for axes in lens.show().axes]


def test_translators_act_before_the_norm(tiny: Any, batch: Any) -> None:  # noqa: F811
    plain = gl.logit_lens(tiny, batch, at="last", layers=[1, 2], top=3)
    torch.manual_seed(0)
    affine = torch.nn.Linear(32, 32)
    tuned = gl.logit_lens(tiny, batch, at="last", layers=[1, 2], top=3, translators={1: affine})
    assert torch.equal(tuned.tensor[1], plain.tensor[1])
    _, cache = tiny.run_with_cache(batch)
    with torch.no_grad():
        logits = tiny.bridge.unembed(tiny.bridge.ln_final(affine(cache["resid_pre", 1][:, -1:])))[:, 0]
    logits[tiny(batch)[:, -1] < -1e30] = torch.finfo(torch.float32).min
    torch.testing.assert_close(tuned.tensor[0], logits.log_softmax(-1).topk(3).values, atol=1e-4, rtol=0)


def test_layers_count_from_the_end_and_targets_can_be_one_each(tiny: Any, batch: Any, plain: Any) -> None:  # noqa: F811
    each = torch.tensor([DOG, CAT, 30])
    lens = gl.logit_lens(tiny, batch, at="last", layers=[-1, -2], targets=each, top=0)
    assert lens.axes["layer"]["layer"].tolist() == [3, 2] and lens.tensor.shape == (2, 3, 1)
    want = plain[[3, 2]][:, torch.arange(3), -1, each]
    torch.testing.assert_close(lens.tensor[..., 0], want, atol=1e-4, rtol=0)


def test_refusals(tiny: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for bad in ([4], [1.5], ["last"]):
        with pytest.raises(InputError, match=r"is not one of 0 … 3 \(3 is the model's own output\)"):
            gl.logit_lens(tiny, batch, layers=bad)
    with pytest.raises(InputError, match="top=0: give how many"):
        gl.logit_lens(tiny, batch, top=0)
    with pytest.raises(InputError, match="is not one token"):
        gl.logit_lens(tiny, batch, targets="a red dog")
    monkeypatch.setattr(tiny.bridge.adapter, "apply_output_logits_transform", lambda logits: 1.01 * logits)
    with pytest.raises(ModelError, match="from the model's own logits"):
        gl.logit_lens(tiny, batch)


def test_tokens_a_model_never_writes_are_in_no_layers_top(tiny_chameleon: Any, picture: Any) -> None:
    inputs = tiny_chameleon.prepare(picture, "this <image> animal is a")
    lens = gl.logit_lens(tiny_chameleon, inputs, at="all", targets=20, top=8)
    words = lens.sel(kind="top").columns["token_id"]
    assert not ((words >= 8) & (words < 24)).any()  # the codes
    assert (lens.sel(kind="target").tensor < -1e30).all()
