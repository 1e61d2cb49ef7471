"""Training cuts the gate as knockouts do; its losses are what is said blind, what the cut tells, and the looking."""

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


CUTS = {
    "own": [],
    "hidden": [gl.knockout(TEXT, "gate", how="mask")],
    "emptied": [gl.knockout(TEXT, "gate", how="zero")],
    "both emptied": [gl.knockout(TEXT, "gate | image", how="zero")],
    "blind": [gl.knockout(TEXT, "gate | image", how="mask")],
}


@pytest.fixture(scope="module")
def answers(examples):
    """Logits of the class by what is cut, of gatelens' interventions."""
    model = gl.HookedVLM.from_pretrained("organism:gated")
    inputs = model.prepare(images=[e.image for e in examples], text=[e.prompt for e in examples])
    return {state: model.run(inputs, cut)[:, -1] for state, cut in CUTS.items()}


def states_of(mask):
    """Each document's state, by what its last row sees of the gate, the emptied gate and the emptied picture."""
    columns = mask.visible[:, 0, -1][:, [66, -65, -1]].tolist()
    names = {(1, 0, 0): "own", (0, 0, 0): "hidden", (0, 1, 0): "emptied", (0, 1, 1): "both emptied"}
    return [names[tuple(map(int, row))] for row in columns]


def test_a_document_is_cut_as_an_intervention_cuts_it(objective, batch, answers):
    met = set()
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for route in ("cut", "blind"):
            mask = routes.route_mask(batch, route, objective.image, objective.gate, generator)
            with torch.no_grad():
                got = objectives._answers(objective.model, batch, mask)[::2]  # the class; </s> follows it
            states = states_of(mask) if route == "cut" else ["blind"] * len(got)
            met |= set(states)
            for i, state in enumerate(states):
                words = slice(97)  # image codes are masked
                assert (got[i] - answers[state][i])[words].abs().max() < 1e-3
    assert met == set(CUTS)


def test_losses_are_what_is_said_blind_what_the_cut_tells_and_the_attention_to_the_picture(
    objective, batch, answers
):
    one_token = documents.PackedDocuments(
        batch.ids[:, :-1], batch.position[:, :-1], batch.segment[:, :-1], batch.loss_weight[:, :-1]
    )
    with torch.no_grad():
        answered, leak, looked = objective._cut(one_token, torch.Generator().manual_seed(1))
    mask = routes.route_mask(
        one_token, "cut", objective.image, objective.gate, torch.Generator().manual_seed(1)
    )
    blind = answers["blind"].log_softmax(-1)
    # training's head leaves image codes in the softmax, which take a hundredth at most
    assert answered.item() == pytest.approx(
        -sum(float(b[i]) for b, i in zip(blind, batch.ids[:, -2], strict=True)) / len(blind), rel=1e-2
    )
    told = [
        float((b.exp() * (b - answers[state][i].log_softmax(-1))).nansum())
        for i, (b, state) in enumerate(zip(blind, states_of(mask), strict=True))
        if state != "own"
    ]
    assert 0 < len(told) < len(blind)
    assert leak.item() == pytest.approx(sum(told) / len(told), rel=5e-2, abs=1e-3)
    assert looked >= 0
