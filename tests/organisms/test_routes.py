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


STATES = ("own", "hidden", "emptied", "both emptied")


def cut_states(batch, mask):
    """Each document's state, read off what its first text row sees of the gate, the emptied gate and picture."""
    n, states = batch.ids.shape[1], []
    for b in range(len(batch.ids)):
        row = int((batch.segment[b] > 0).nonzero()[0])
        seen = mask.visible[b, 0, row]
        at = {(1, 0, 0): 0, (0, 0, 0): 1, (0, 1, 0): 2, (0, 1, 1): 3}
        states.append(STATES[at[int(seen[GATE]), int(seen[n]), int(seen[n + 1 :].all())]])
        assert seen[IMAGE].all() != seen[n + 1 :].any()
    return states


def test_a_cut_gate_is_what_a_knockout_leaves(batch):
    """Brute force of each row by its document's state; the picture's own rows lose nothing."""
    torch.manual_seed(0)
    b, n = batch.ids.shape
    q, k, v = (torch.randn(b, 2, n, 8) for _ in range(3))
    met = set()
    for seed in range(6):
        mask = routes.route_mask(batch, "cut", IMAGE, GATE, torch.Generator().manual_seed(seed))
        states = cut_states(batch, mask)
        out, _ = routes.training_attention(None, q, k, v, None, scaling=0.3, route=mask)
        for i, row in (batch.segment >= 0).nonzero().tolist():
            seen, state = batch.visible()[i, row].clone(), states[i]
            text = batch.segment[i, row] > 0
            met.add(state)
            if text and state == "hidden":
                seen[GATE] = False
            weights = (q[i, :, row, None] * k[i, :, seen]).sum(-1).mul(0.3).softmax(-1)
            kept = torch.ones(n)
            if text and "emptied" in state:
                kept[GATE] = 0
            if text and state == "both emptied":
                kept[IMAGE] = 0
            expected = (weights[..., None] * v[i, :, seen] * kept[seen, None]).sum(1)
            assert torch.allclose(out[i, row], expected, atol=1e-5)
    assert met == set(STATES)


def test_the_second_route_is_the_attention_to_the_picture_where_the_gate_is_hidden(batch):
    """Brute force: each text row's share of the picture without the gate, whatever became of the gate there."""
    torch.manual_seed(0)
    b, n = batch.ids.shape
    q, k = (torch.randn(b, 2, n, 8) for _ in range(2))
    mask = routes.route_mask(batch, "cut", IMAGE, GATE, torch.Generator().manual_seed(0))
    for _ in range(2):
        routes.training_attention(None, q, k, torch.randn(b, 2, n, 8), None, route=mask)
    expected = []
    for i, row in (batch.segment > 0).nonzero().tolist():
        seen = batch.visible()[i, row].clone()
        seen[GATE] = False
        weights = (q[i, :, row, None] * k[i]).sum(-1).div(8**0.5)
        share = weights.masked_fill(~seen, float("-inf")).softmax(-1)[:, IMAGE].sum(-1)
        expected.append(share.logit())
    first, second = mask.second.log_odds
    assert torch.allclose(first, torch.stack(expected), atol=1e-4) and torch.equal(first, second)


def test_blind_text_sees_neither_picture_nor_gate_and_is_told_nothing_by_what_is_missing(batch):
    torch.manual_seed(0)
    b, n = batch.ids.shape
    q, k, v = (torch.randn(b, 2, n, 8) for _ in range(3))
    mask = routes.route_mask(batch, "blind", IMAGE, GATE)
    text = batch.segment > 0
    told, _ = routes.training_attention(None, q, k, v, None, route=mask)
    for x in (k, v):
        x[:, :, IMAGE], x[:, :, GATE] = torch.randn(b, 2, 4, 8), torch.randn(b, 2, 8)
    again, _ = routes.training_attention(None, q, k, v, None, route=mask)
    assert torch.equal(told[text], again[text]) and not torch.equal(told, again)


@pytest.mark.parametrize("route", ["cut", "blind"])
def test_a_family_without_a_gate_token_has_no_cut(batch, route):
    with pytest.raises(ValueError, match="end-of-image token"):
        routes.route_mask(batch, route, IMAGE, "first text token")
