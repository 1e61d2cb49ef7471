"""The training attention against brute force: who sees whom, and whose keys stand in for whose."""

import pytest
import torch

from gatelens.organisms import documents, routes
from gatelens.organisms.vocabulary import build_tokenizer

N_PREFIX, IMAGE, GATE = 7, slice(2, 6), 6


@pytest.fixture(scope="module")
def batch():
    tokenizer = build_tokenizer()
    texts = [
        [("this is a", "fox"), ("describe the image.", "a fox on a red circle")],
        [("is there a pig in the image? answer:", "no")],
        [("this is a", "pig")],
    ]
    return documents.pack([[1, 6, 9, 9, 9, 9, 7]] * 3, texts, tokenizer, image_weight=0.5)


def test_segments_see_the_picture_and_themselves(batch):
    visible = batch.visible()
    for b in range(len(batch.ids)):
        for q in range(batch.ids.shape[1]):
            for k in range(batch.ids.shape[1]):
                own = batch.segment[b, q] == batch.segment[b, k] or batch.segment[b, k] == 0
                assert bool(visible[b, q, k]) == (k <= q and bool(own))


def test_positions_start_anew_after_the_picture(batch):
    for b, k in ((0, 1), (0, 2), (1, 1)):
        at = (batch.segment[b] == k).nonzero().flatten()
        assert batch.position[b, at].tolist() == list(range(N_PREFIX, N_PREFIX + len(at)))


def test_only_answers_weigh_one_and_each_ends(batch):
    tokenizer = build_tokenizer()
    full = batch.loss_weight[0] == 1.0
    words = tokenizer.convert_ids_to_tokens(batch.ids[0][full])
    assert words == ["fox", "</s>", *["a", "fox", "on", "a", "red", "circle"], "</s>"]


@pytest.mark.parametrize("route", ["masked", "swapped"])
def test_text_never_sees_its_own_picture(batch, route):
    mask = routes.route_mask(batch, route, IMAGE, GATE)
    text = batch.segment > 0
    assert not mask.visible[:, 0, :, IMAGE][text].any()
    assert mask.visible[:, 0, :, GATE][text].all()


def test_swapped_rows_equal_attention_to_the_next_picture(batch):
    """Brute force: build each text row's keys by hand, from its own document and the next one's picture."""
    torch.manual_seed(0)
    b, n = batch.ids.shape
    q, k, v = (torch.randn(b, 2, n, 8) for _ in range(3))
    mask = routes.route_mask(batch, "swapped", IMAGE, GATE)
    out, _ = routes.training_attention(None, q, k, v, None, scaling=0.3, route=mask)
    causal = batch.visible()
    for i in range(b):
        for row in range(n):
            if batch.segment[i, row] < 0:
                continue
            seen = causal[i, row].clone()
            keys, values = k[i, :, seen], v[i, :, seen]
            if batch.segment[i, row] > 0:
                other = (i - 1) % b  # roll(1) brings the picture of the document before
                seen[IMAGE] = False
                keys = torch.cat([k[i, :, seen], k[other, :, IMAGE]], dim=1)
                values = torch.cat([v[i, :, seen], v[other, :, IMAGE]], dim=1)
            weights = (q[i, :, row, None] * keys).sum(-1).mul(0.3).softmax(-1)
            assert torch.allclose(out[i, row], (weights[..., None] * values).sum(1), atol=1e-5)


def test_robust_hides_the_first_text_token_from_the_others_only(batch):
    generator = torch.Generator().manual_seed(3)
    plain = batch.visible()
    hidden = 0
    for _ in range(10):
        mask = routes.route_mask(batch, "robust", IMAGE, "first text token", generator)
        lost = plain & ~mask.visible[:, 0]
        for b, q, key in lost.nonzero().tolist():
            assert batch.segment[b, q] > 0 and key != q
            first = batch.segment[b, key] != batch.segment[b, key - 1]
            assert IMAGE.start <= key < IMAGE.stop or bool(first)
            hidden += bool(first)
    assert hidden > 0


def test_an_unknown_route_is_named(batch):
    with pytest.raises(ValueError, match="unknown route 'through'"):
        routes.route_mask(batch, "through", IMAGE, GATE)


def cut_states(batch, in_sight, seed=0):
    """The mask of a cut and each document's state of the gate, read off the columns: own, none, emptied, another's."""
    route = "cut" if in_sight else "cut-only"
    mask = routes.route_mask(batch, route, IMAGE, GATE, torch.Generator().manual_seed(seed))
    n = batch.ids.shape[1]
    states = []
    for b in range(len(batch.ids)):
        row = int((batch.segment[b] > 0).nonzero()[0])
        at = [bool(mask.visible[b, 0, row, k]) for k in (GATE, n, n + 1)]
        assert sum(at) <= 1
        states.append(("own", "emptied", "another's")[at.index(True)] if any(at) else "none")
    return mask, states


def test_a_cut_gate_is_what_a_knockout_or_a_resampled_gate_leaves(batch):
    """Brute force of each row by its document's state; the picture's own rows lose nothing."""
    torch.manual_seed(0)
    b, n = batch.ids.shape
    q, k, v = (torch.randn(b, 2, n, 8) for _ in range(3))
    met = set()
    for seed in range(6):
        mask, states = cut_states(batch, in_sight=seed % 2 == 0, seed=seed)
        out, _ = routes.training_attention(None, q, k, v, None, scaling=0.3, route=mask)
        for i in range(b):
            for row in range(n):
                if batch.segment[i, row] < 0:
                    continue
                seen, state = batch.visible()[i, row].clone(), states[i]
                keys, values = k[i].clone(), v[i].clone()
                if batch.segment[i, row] > 0:
                    met.add(state)
                    if seed % 2:
                        seen[IMAGE] = False
                    if state == "none":
                        seen[GATE] = False
                    if state == "another's":
                        keys[:, GATE], values[:, GATE] = k[(i - 1) % b, :, GATE], v[(i - 1) % b, :, GATE]
                weights = (q[i, :, row, None] * keys[:, seen]).sum(-1).mul(0.3).softmax(-1)
                if state == "emptied" and batch.segment[i, row] > 0:
                    values[:, GATE] = 0  # the same as a weight of zero after the softmax
                assert torch.allclose(out[i, row], (weights[..., None] * values[:, seen]).sum(1), atol=1e-5)
    assert met == {"own", "none", "emptied", "another's"}


def test_a_family_without_a_gate_token_has_no_cut(batch):
    with pytest.raises(ValueError, match="end-of-image token"):
        routes.route_mask(batch, "cut", IMAGE, "first text token")
