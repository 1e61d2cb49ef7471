"""The section *modality gap* against hidden states of plain transformers and plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from case import cases

from gatelens.errors import DataError
from gatelens.model import HookedVLM
from gatelens.studies.narrow_gate.modality_gap import section as modality_gap
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.section import Absent, Measured
from section_helpers import run_sections, setup_of
from study_helpers import TinyData


def prepared(model: Any, examples: list[Any]) -> Any:
    return model.prepare(images=[e.image for e in examples], text=modality_gap.texts(examples))


def test_text_is_the_caption_too() -> None:
    caption, question = TinyData().examples("caption", 1)[0], TinyData().examples("vqa", 1)[0]
    assert modality_gap.texts([caption, question]) == [
        "<image>it shows a dog dog left of the dog cat",
        question.prompt,
    ]


def test_positions_are_drawn_by_number(tiny_llava: Any) -> None:
    examples = TinyData(n=8).examples("caption")
    tokens = prepared(tiny_llava, examples).tokens
    mask = modality_gap.draw_positions(tokens, 0, seed=3)
    image, text = tokens.mask("image"), tokens.mask("text - gate")
    assert (mask & image).sum(-1).tolist() == [1] * 8 and (mask & text).sum(-1).tolist() == [1] * 8
    assert mask.sum() == 16
    parts = [modality_gap.draw_positions(tokens.select(range(i, i + 4)), i, seed=3) for i in (0, 4)]
    assert torch.equal(torch.cat(parts), mask)
    assert not torch.equal(modality_gap.draw_positions(tokens, 0, seed=4), mask)
    assert len(set((mask & image).nonzero()[:, 1].tolist())) > 2
    bare = tiny_llava.prepare(images=examples[0].image, text="<image>this").tokens
    with pytest.raises(DataError, match="example 7 has no text after the gate"):
        modality_gap.draw_positions(bare, 7, seed=0)


def test_cosines_are_those_of_plain_hidden_states(tiny: HookedVLM, oracle: Any) -> None:
    run = run_sections(STUDY, setup_of(STUDY, tiny, TinyData(n=12), {"modality_gap": {"n": 12}}))
    table = run.table("modality_gap").set_index(["layer", "pair"])
    examples = TinyData(n=12).examples("caption")
    image, text = [[] for _ in range(3)], [[] for _ in range(3)]
    for number, e in enumerate(examples):
        inputs = prepared(tiny, [e])
        mask = modality_gap.draw_positions(inputs.tokens, number, seed=0)[0]
        with torch.no_grad():
            states = oracle(**inputs.tensors, output_hidden_states=True).hidden_states
        for layer in range(3):
            for where, kept in (("image", image), ("text", text)):
                kept[layer].append(states[layer][0, mask & inputs.tokens.mask(where)[0]][0])
    for layer in range(3):
        a, b = torch.stack(image[layer]).double(), torch.stack(text[layer]).double()
        every = [[abs(float(x @ y / x.norm() / y.norm())) for y in b] for x in a]
        row = table.loc[(layer, "image-text")]
        quartiles = np.quantile(np.array(every).flatten(), [0.25, 0.5, 0.75], method="lower")
        assert [row.q25, row["median"], row.q75] == pytest.approx(quartiles, abs=1e-4)
        assert row.n == 144
        within = [abs(float(x @ y / x.norm() / y.norm())) for i, x in enumerate(b) for y in b[:i]]
        assert table.loc[(layer, "text-text")]["median"] == pytest.approx(
            np.quantile(within, 0.5, method="lower"), abs=1e-4
        )
    assert set(table.index.get_level_values("layer")) == {0, 1, 2, 3}  # the output of the last block too
    shares = run.table("modality_gap_histogram").groupby(["layer", "pair"]).share.sum()
    assert len(shares) == 12 and shares.to_numpy() == pytest.approx(1)


def test_the_last_layer_is_the_stream_before_the_final_norm(tiny_llava: Any, hf_llava: Any) -> None:
    examples = TinyData(n=3).examples("caption")
    found = modality_gap.drawn_tokens(tiny_llava, examples, 0, seed=0)
    seen: list[torch.Tensor] = []
    norm = hf_llava.model.language_model.norm
    handle = norm.register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    inputs = prepared(tiny_llava, examples)
    with torch.no_grad():
        hf_llava(**inputs.tensors)
    handle.remove()
    mask = modality_gap.draw_positions(inputs.tokens, 0, seed=0)
    wanted = seen[0][mask].view(3, 2, -1)
    torch.testing.assert_close(found[:, :, 3], wanted.transpose(0, 1), atol=1e-4, rtol=1e-4)


def test_two_heaps_and_one() -> None:
    """Directions around one axis for each modality are clusters of one modality; around one axis for both, not."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(2, 150, 12, generator=generator)
    axes = torch.eye(12)
    spreads, histogram, apart = modality_gap.compare(noise[0] + 3 * axes[0], noise[1] + 3 * axes[1])
    assert (
        apart is not None and apart["homogeneity"] > 0.99 and apart["clusters"] >= 2 and apart["chance"] < 0.1
    )
    median = {row["pair"]: row["median"] for row in spreads}
    assert median["image-text"] < 0.2 and min(median["image-image"], median["text-text"]) > 0.8
    assert sum(row["share"] for row in histogram) == pytest.approx(3)
    _, _, mixed = modality_gap.compare(noise[0] + 3 * axes[0], noise[1] + 3 * axes[0])
    assert mixed is not None and mixed["homogeneity"] < 0.15


def test_too_few_points_have_cosines_but_no_clusters(tiny_llava: Any) -> None:
    run = run_sections(STUDY, setup_of(STUDY, tiny_llava, TinyData(n=6), {"modality_gap": {"n": 6}}))
    assert len(run.table("modality_gap")) == 4 * 3
    assert run.table("modality_clusters").empty


def test_rows_of_pictures_and_other_tasks() -> None:
    case = cases()["pixtral"]
    model = HookedVLM.from_module(case.model(), case.processor())
    data = TinyData(n=24, tasks=("class",))
    run = run_sections(STUDY, setup_of(STUDY, model, data, {"modality_gap": {"n": 20}}, size=8))
    assert run.table("modality_gap").n.max() == 400
    assert run.table("modality_clusters").homogeneity.between(0, 1).all()
    assert len(run.table("modality_clusters")) >= 3


def test_more_are_drawn_than_the_study_wants(tiny_llava: Any) -> None:
    data = TinyData(n=12)
    drawn = {"caption": data.examples("caption")[:3]}
    setup = setup_of(STUDY, tiny_llava, data, {"modality_gap": {"n": 9}}, drawn=drawn)
    assert len(modality_gap.samples(setup)) == 9
    none = setup_of(STUDY, tiny_llava, data, {"modality_gap": {"n": 0}})
    with pytest.raises(Absent, match="two samples"):
        modality_gap.batches(none, Measured())
