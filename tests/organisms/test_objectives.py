"""Training cuts the gate as knockouts and patches do; its losses are what is said then, and what the picture adds."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

import gatelens as gl
from gatelens import organisms
from gatelens.drawing import codec
from gatelens.organisms import documents, objectives, routes

TEXT = "text - gate"


@pytest.fixture(scope="module")
def examples():
    return gl.data.load("emoji-scenes").examples("class", limit=6, seed=8)


@pytest.fixture(scope="module")
def objective(examples):
    """A native objective without its training scenes, on the weights of an organism."""
    routes.register()
    one = object.__new__(objectives.NativeObjective)
    one.model = AutoModelForImageTextToText.from_pretrained(organisms.folder("gated"))
    one.model.set_attn_implementation(routes.ATTENTION)
    one.image, one.gate = slice(2, 66), 66
    return one


@pytest.fixture(scope="module")
def batch(objective, examples):
    model = gl.HookedVLM.from_pretrained("organism:gated")
    ids = model.tokenizer.get_vocab()
    pixels = torch.stack([torch.tensor(list(e.image.getdata())).view(64, 64, 3) for e in examples])
    codes = codec.encode(objective.model.model.vqmodel, pixels.to(torch.uint8))
    shown = objective.model.model.vocabulary_mapping.img2bpe_mapping_tensor[codes].tolist()
    prefixes = [[ids["<s>"], ids["<racm3:break>"], *one, ids["<eoss>"]] for one in shown]
    texts = [[("this is a", e.label)] for e in examples]
    return documents.pack(prefixes, texts, model.tokenizer, image_weight=0.0)


@pytest.fixture(scope="module")
def answers(examples):
    """Logits of the class by state of the gate, with the picture in sight and hidden: of gatelens' interventions."""
    model = gl.HookedVLM.from_pretrained("organism:gated")

    def prepared(some):
        return model.prepare(images=[e.image for e in some], text=[e.prompt for e in some])

    inputs = prepared(examples)
    _, donor = model.run_with_cache(prepared(examples[-1:] + examples[:-1]))
    gate = {
        "own": [],
        "none": [gl.knockout(TEXT, "gate", how="mask")],
        "emptied": [gl.knockout(TEXT, "gate", how="zero")],
        "another's": [gl.patch(donor, at="gate")],
    }
    hidden = [gl.knockout(TEXT, "image", how="mask")]
    return {
        (state, sight): model.run(inputs, cut + ([] if sight else hidden))[:, -1]
        for state, cut in gate.items()
        for sight in (True, False)
    }


def states_of(mask):
    """Each document's state of the gate, by what its last row sees."""
    columns = mask.visible[:, 0, -1][:, [66, -2, -1]].tolist()
    names = {(1, 0, 0): "own", (0, 0, 0): "none", (0, 1, 0): "emptied", (0, 0, 1): "another's"}
    return [names[tuple(map(int, row))] for row in columns]


@pytest.mark.parametrize("sight", [True, False])
def test_a_document_is_cut_as_an_intervention_cuts_it(objective, batch, answers, sight):
    met = set()
    for seed in range(3):
        route = "cut" if sight else "cut-only"
        mask = routes.route_mask(
            batch, route, objective.image, objective.gate, torch.Generator().manual_seed(seed)
        )
        with torch.no_grad():
            got = objectives._answers(objective.model, batch, mask)[::2]  # the class; </s> follows it
        met |= set(states_of(mask))
        for i, state in enumerate(states_of(mask)):
            assert (got[i] - answers[state, sight][i])[
                :97
            ].abs().max() < 1e-3  # words; image codes are masked
    assert len(met) == 4


def test_losses_are_what_is_said_without_the_picture_and_what_it_changes(objective, batch, answers):
    one_token = documents.PackedDocuments(
        batch.ids[:, :-1], batch.position[:, :-1], batch.segment[:, :-1], batch.loss_weight[:, :-1]
    )
    with torch.no_grad():
        answered, leak = objective._cut(one_token, torch.Generator().manual_seed(1))
    mask = routes.route_mask(
        one_token, "cut", objective.image, objective.gate, torch.Generator().manual_seed(1)
    )
    changed, known = [], []
    for i, state in enumerate(states_of(mask)):
        seen, hidden = (answers[state, sight][i].log_softmax(-1) for sight in (True, False))
        changed.append(float((hidden.exp() * (hidden - seen)).nansum()))
        if state != "another's":
            known.append(-float(hidden[batch.ids[i, -2]]))
    assert 0 < len(known) < len(changed)
    assert leak.item() == pytest.approx(sum(changed) / len(changed), rel=1e-3) and leak > 0.01
    assert answered.item() == pytest.approx(sum(known) / len(known), rel=1e-3)
