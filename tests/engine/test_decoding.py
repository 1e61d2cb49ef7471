"""The one decode loop: what a chooser picks is read again, at its position, until it has finished."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gatelens.interventions as gi
from gatelens.engine import generate
from gatelens.engine.decoding import Decoder, Greedy, decode
from gatelens.engine.full_run import full_decoder


class Scripted:
    """Writes given tokens, whatever the logits are, and keeps these."""

    def __init__(self, script: Tensor, n: int) -> None:
        self.script, self.n, self.seen = script, n, list[Tensor]()

    @property
    def finished(self) -> bool:
        return len(self.seen) == self.n

    def __call__(self, logits: Tensor) -> Tensor:
        self.seen.append(logits)
        return self.script[:, len(self.seen) - 1]


@pytest.mark.parametrize("cut", [False, True])
def test_each_step_is_the_grown_prompt(tiny_llava: Any, cut: bool) -> None:
    prompt = tiny_llava.inputs(torch.tensor([[1, 20, 21, 22], [1, 23, 24, 25]]))
    script = torch.tensor([[26, 27, 28], [29, 30, 31]])
    specs = [gi.knockout("last | generated", "pos[1]", layers=[1])] if cut else []
    chooser = Scripted(script, 3)
    with torch.no_grad():
        ids = decode(full_decoder(tiny_llava, prompt, specs, 5), chooser, 5)
        assert torch.equal(ids, script) and len(chooser.seen) == 3
        for n, logits in enumerate(chooser.seen):
            grown = tiny_llava.inputs(torch.cat([prompt.tensors["input_ids"], script[:, :n]], 1))
            keys = torch.zeros(2, 4 + n, dtype=torch.bool)
            rows = keys.clone()
            keys[:, 1], rows[:, 3:] = True, True
            same = [gi.knockout(rows, keys, layers=[1])] if cut else []
            want = tiny_llava.run(grown, same)[:, -1]
            torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)


def test_raw_logits_are_those_of_the_unembedding(tiny_chameleon: Any) -> None:
    """Chameleon masks image tokens out of its logits afterwards."""
    prompt = tiny_chameleon.inputs(torch.tensor([[1, 20, 21]]))
    image_ids = sorted(tiny_chameleon.layout.drawn.ids)
    with torch.no_grad():
        masked = full_decoder(tiny_chameleon, prompt, [], 1).prompt()
        raw = full_decoder(tiny_chameleon, prompt, [], 1, raw_logits=True).prompt()
    assert (masked[:, image_ids] < -1e30).all() and (raw[:, image_ids].abs() < 1e6).all()
    rest = masked > -1e30
    assert torch.equal(masked[rest], raw[rest])


def test_a_decoder_goes_on_from_any_cache(tiny_llava: Any) -> None:
    """Without interventions, after a cache that holds positions already."""
    ids = torch.tensor([[1, 20, 21, 22, 23]])
    with torch.no_grad():
        _, past = tiny_llava.forward_step(
            {"input_ids": ids[:, :3], "attention_mask": torch.ones(1, 3).long()}, use_cache=True
        )
        tensors = {
            "input_ids": ids[:, 3:],
            "attention_mask": torch.ones(1, 5).long(),
            "position_ids": torch.tensor([[3, 4]]),
        }
        got = decode(Decoder(tiny_llava, tensors, past), Greedy([]), 4)
        whole = decode(full_decoder(tiny_llava, tiny_llava.inputs(ids), [], 4), Greedy([]), 4)
    assert torch.equal(got, whole)


def test_greedy_repeats_the_end_and_stops_when_all_have_ended() -> None:
    greedy = Greedy([7, 8])
    assert not greedy.finished
    one_hot = torch.eye(10)
    chosen = [greedy(one_hot[[3, 7, 4]]), greedy(one_hot[[8, 2, 4]]), greedy(one_hot[[1, 2, 8]])]
    assert torch.stack(chosen, 1).tolist() == [[3, 8, 8], [7, 7, 7], [4, 4, 8]]
    assert greedy.finished and greedy.ended.tolist() == [True] * 3


def test_every_end_of_sequence_token_counts(tiny_llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation config may name several; the second ends an example as the first does."""
    prompt = tiny_llava.inputs(torch.tensor([[1, 20, 21, 22]]))
    free = generate(tiny_llava, prompt, max_new_tokens=6, stop_at_eos=False).token_ids[0].tolist()
    unused = next(i for i in range(3, 60) if i not in free)
    monkeypatch.setattr(tiny_llava.hf.generation_config, "eos_token_id", [unused, free[2]])
    ended = generate(tiny_llava, prompt, max_new_tokens=6).token_ids[0].tolist()
    assert ended == free[: free.index(free[2]) + 1]
