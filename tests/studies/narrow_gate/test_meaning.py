"""The section *meaning* against hidden states of plain transformers, brute-force neighbours and planted classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from case import cases

from gatelens.examples import prepare
from gatelens.measures import linear_probe
from gatelens.model import HookedVLM
from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate import meaning
from gatelens.studies.narrow_gate.readings import TOLERANCE, averaged, readings, untied
from gatelens.studies.narrow_gate.study import STUDY
from gatelens.studies.section import Absent, Measured
from section_helpers import run_sections, setup_of
from study_helpers import TinyData


def test_the_stream_is_that_of_plain_hidden_states(tiny: HookedVLM, oracle: Any) -> None:
    """Prompts of two lengths in one batch: padding must not leak into a mean."""
    examples = TinyData(n=4).examples("vqa")
    further = [("token five", "image", 5)]
    stream = meaning.residual_stream(tiny, examples, 0, further)
    assert list(stream) == [*meaning.PLACES, "token five"]
    for b, e in enumerate(examples):
        inputs = prepare(tiny, [e])
        with torch.no_grad():
            states = oracle(**inputs.tensors, output_hidden_states=True).hidden_states
        image = inputs.tokens.positions("image")
        where = {
            "gate": [image[-1] + 1],
            "last image token": image[-1:],
            "internal image tokens, mean": image[:-1],
            "first image token": image[:1],
            "last prompt position": [inputs.tokens.n_pos - 1],
            "token five": image[5:6],
        }
        for place, positions in where.items():
            wanted = torch.stack([states[layer][0, positions].mean(0) for layer in range(3)])
            torch.testing.assert_close(stream[place][b, :3], wanted, atol=1e-4, rtol=1e-4)
            assert stream[place].shape == (4, 4, 32)


def planted(n: int = 80) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Four classes: the gate has them from layer 1 on, "same" is the gate turned, "constant" one vector, "noise"."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    noise = torch.randn(3, n, 2, 8, generator=generator)
    gate = noise[0].clone()
    gate[:, 1, :4] += 20 * torch.eye(4)[labels]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    constant = torch.ones(n, 2, 8)
    return {"gate": gate, "same": gate @ turn, "constant": constant, "noise": noise[1]}, labels


def measured() -> pd.DataFrame:
    stream, labels = planted()
    table = averaged(readings(stream, labels, k=30, folds=4, probed=[0, 1], seed=0), n_boot=200, seed=0)
    return table.set_index(["place", "layer", "measure"])


def test_a_planted_class_is_found_where_it_is() -> None:
    table = measured()
    assert set(table.loc[(slice(None), slice(None), "overlap"), "k"]) == {8}  # a tenth of 80
    chance = 19 / 79  # 20 examples per class
    for place in ("gate", "same"):
        assert table.loc[(place, 1, "overlap"), "mean"] == 1
        assert table.loc[(place, 1, "probe"), "mean"] > 0.97
        assert table.loc[(place, 0, "overlap"), "mean"] < 0.35
    for layer in (0, 1):
        row = table.loc[("noise", layer, "overlap")]
        assert row.chance == pytest.approx(chance) and row["mean"] == pytest.approx(chance, abs=0.08)
        assert table.loc[("noise", layer, "probe"), "low"] < 0.3
    # turning does not change who is near whom
    assert table.loc[("same", 0, "overlap with the gate"), "mean"] == pytest.approx(1)
    shared = table.loc[("noise", 1, "overlap with the gate")]
    assert shared.chance == pytest.approx(8 / 79) and shared["mean"] < 0.2
    assert ("gate", 0, "overlap with the gate") not in table.index


def test_equal_vectors_have_neighbours_by_chance() -> None:
    """Without the tie-break all would have the same first ones as neighbours."""
    row = measured().loc[("constant", 1, "overlap")]
    assert row.chance == pytest.approx(19 / 79) and row["mean"] == pytest.approx(19 / 79, abs=0.06)
    assert measured().loc[("constant", 1, "overlap with the gate"), "mean"] < 0.2
    x = untied(torch.randn(50, 6), 0)
    order = torch.cdist(x, x).argsort()
    plain = torch.cdist(x.float().double(), x.float().double()).argsort()
    assert (order[:, :10] == plain[:, :10]).float().mean() > 0.99


def test_overlap_is_brute_force_and_small_classes_cap_it() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0] * 30 + [1] * 3)
    x = torch.randn(33, 1, 5, generator=generator)
    table = averaged(readings({"gate": x}, labels, k=30, folds=5, probed=[0], seed=0), n_boot=20, seed=0)
    distance = torch.cdist(x[:, 0], x[:, 0]).fill_diagonal_(float("inf"))
    near = distance.argsort(-1)[:, :3]
    wanted = (labels[near] == labels[:, None]).float().mean()
    row = table[table.measure == "overlap"].iloc[0]
    assert row["mean"] == pytest.approx(float(wanted), abs=1e-6)
    assert row.most == pytest.approx((30 * 3 + 3 * 2) / (33 * 3))
    assert not (table.measure == "probe").any()  # one class of three examples cannot be dealt over five folds


def test_a_layer_is_a_batch_and_the_model_runs_on_a_few_examples(tiny_chameleon: Any) -> None:
    """However the examples are cut into batches, and each layer by itself: the numbers are those of all at once."""
    tables = []
    for size in (10, 24):
        setup = setup_of(STUDY, tiny_chameleon, TinyData(n=24), {"meaning": {"folds": 2, "layers": 2}}, size)
        run_sections(STUDY, setup)
        names = [b.name for b in meaning.batches(setup, measured_of(setup.run, "meaning"))]
        streams = [f"stream-{i:04d}" for i in range(-(-24 // size))]
        assert names == [*streams, "layer-000", "layer-001", "layer-002", "layer-003"]
        tables.append(setup.run.table("meaning"))
    pd.testing.assert_frame_equal(*tables)
    examples = setup.drawn["class"]
    stream = meaning.residual_stream(tiny_chameleon, examples, 0)
    labels = torch.tensor([sorted({e.label for e in examples}).index(e.label) for e in examples])
    k, n_boot = 30, setup.options.n_boot
    at_once = averaged(readings(stream, labels, k, 2, [0, 3], setup.options.seed), n_boot, setup.options.seed)
    pd.testing.assert_frame_equal(tables[1], at_once)


def measured_of(run: Run, section: str) -> Measured:
    """What a run in memory has measured."""
    names = {name.split("/")[2] for name in run._memory if name.startswith(f"shards/{section}/")}
    return Measured({name: run.batch(section, name) for name in sorted(names)})


def test_a_study_of_a_tiny_model(tiny_chameleon: Any) -> None:
    data = TinyData(n=24)
    run = run_sections(
        STUDY, setup_of(STUDY, tiny_chameleon, data, {"meaning": {"folds": 2, "layers": 2}}, size=10)
    )
    table = run.table("meaning")
    assert list(dict.fromkeys(table.place)) == list(meaning.PLACES)
    assert set(table[table.measure == "probe"].layer) == {0, 3}
    assert set(table[table.measure == "overlap"].layer) == {0, 1, 2, 3}
    assert ((table.low <= table["mean"] + 1e-12) & (table["mean"] <= table.high + 1e-12)).all()
    assert set(table.n) == {24}
    each = run.table("meaning_by_example")
    assert set(each.id) == {e.id for e in data.examples("class")}
    section = STUDY.section("meaning")
    means = section.values(run).groupby(["metric", "row"]).value.mean()
    cells = section.cells(run).set_index(["metric", "row"])["mean"]
    assert means.to_dict() == pytest.approx(cells.to_dict(), abs=1e-7)
    # the literal end-of-image token is the same in every prompt before it has read anything
    start = table[(table.place == "gate") & (table.layer == 0) & (table.measure == "overlap")].iloc[0]
    assert abs(start["mean"] - start.chance) < 0.2


def test_what_stands_out_becomes_a_place() -> None:
    case = cases()["pixtral"]
    model = HookedVLM.from_module(case.model(), case.processor())
    data = TinyData(n=24)
    wanted = {"attention": {"times": 0.0, "least": 0.001}, "meaning": {"folds": 2, "layers": 1, "extra": 3}}
    run = run_sections(STUDY, setup_of(STUDY, model, data, wanted, size=12))
    positions = run.table("attention_positions")
    top = positions[positions.stands_out & positions.kind.isin(["image", "row_break"])].head(3)
    further = list(zip(top.name, top.kind, top["index"], strict=True))
    assert meaning.standing_out(run, 3) == further
    # those that are a place already (the first and last image token) are not there twice
    mine = [name for name, kind, index in further if (kind, index) not in (("image", 0), ("image", 3))]
    assert list(dict.fromkeys(run.table("meaning").place)) == [*meaning.PLACES, *mine]
    assert "row break 0" in set(positions.name)


def test_places_that_are_not_there_or_one_and_the_same(tiny_llava: Any) -> None:
    image = TinyData().examples("class")[0].image
    ends_with_the_gate = prepare(tiny_llava, [SimpleNamespace(image=image, prompt="<image>this")]).tokens
    shown = meaning.places(ends_with_the_gate, [("none", "row_break", 0), ("again", "image", 15)])
    assert list(shown) == [name for name in meaning.PLACES if name != "last prompt position"]


def test_without_classes_there_is_nothing(tiny_llava: Any) -> None:
    for data in (TinyData(tasks=("vqa",)), TinyData(classes=("dog",)), TinyData(n=4)):
        with pytest.raises(Absent, match="several examples each"):
            meaning.batches(setup_of(STUDY, tiny_llava, data, {"meaning": {}}), Measured())


@pytest.mark.parametrize(
    ("n_layers", "most", "wanted"), [(6, 8, [*range(7)]), (6, 3, [0, 3, 6]), (5, 1, [0]), (4, 0, [])]
)
def test_layers_of_the_probe(n_layers: int, most: int, wanted: list[int]) -> None:
    assert meaning.evenly(n_layers, most) == wanted


def test_a_looser_probe_predicts_the_same_also_without_gradients() -> None:
    stream, labels = planted(120)
    x = stream["gate"][:, 1]
    exact = linear_probe(x + 3 * stream["noise"][:, 1], labels)
    with torch.inference_mode():
        loose = linear_probe((x + 3 * stream["noise"][:, 1]).clone(), labels.clone(), tolerance=TOLERANCE)
    assert torch.equal(exact.correct, loose.correct)


@pytest.fixture(scope="module")
def by_place() -> pd.DataFrame:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    stream = {
        place: torch.randn(60, 3, 6, generator=generator)
        for place in [*meaning.PLACES, "image token 7", "row break 2"]
    }
    stream["gate"][:, 1:, :3] += 9 * torch.eye(3)[labels][:, None]
    return averaged(readings(stream, labels, k=30, folds=3, probed=[0, 2], seed=0), n_boot=20, seed=0)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_are_the_table(by_place: pd.DataFrame, dark: bool) -> None:
    table = by_place
    figure = meaning.class_by_layer(table, dark)
    for axes, name in zip(figure.axes, meaning.PANELS, strict=True):
        mine = table[table.measure == name]
        lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
        assert set(lines) == set(mine.place)
        for place, line in lines.items():
            part = mine[mine.place == place]
            assert list(line.get_xdata()) == part.layer.tolist()
            assert list(line.get_ydata()) == part["mean"].tolist()
    assert png(figure).startswith(b"\x89PNG")
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(set(table.place))
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines.values()}
    assert len(looks) == len(lines)  # no two places look alike


def test_the_card_says_where_it_is_highest(by_place: pd.DataFrame) -> None:
    run = Run.open(None, study="narrow-gate", settings={"sections": {"meaning": {"folds": 3}}})
    table = by_place
    run.save("meaning", table)
    (card,) = meaning.page(run)
    (figure,) = card.blocks
    gate = table[(table.place == "gate") & (table.measure == "overlap")].set_index("layer")["mean"]
    assert gate.idxmax() in (1, 2)
    assert f"Highest at the gate: layer {gate.idxmax()} ({gate.max():.2f}" in figure.caption  # type: ignore[union-attr]
    assert "6 nearest neighbours" in card.words["neighbourhood overlap"]  # a tenth of 60
    assert "3-fold" in card.words["linear probe"]


def test_without_a_probe_there_is_one_panel_less(by_place: pd.DataFrame) -> None:
    figure = meaning.class_by_layer(by_place[by_place.measure != "probe"])
    assert [a.get_title(loc="left") for a in figure.axes] == [
        "Neighbours of the same class",
        "Neighbours shared with the gate",
    ]
