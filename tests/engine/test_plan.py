"""Which runs share a pass."""

import copy
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch

import gatelens as gl
from gatelens.engine import plan as planning
from gatelens.engine.plan import Part
from gatelens.engine.run_batch import RunBatch


def cheapest_by_trying(positions: list[int], batch: int, n_pos: int) -> int:
    """The rows of the cheapest way to cut the positions into passes, among all ways."""
    n = len(positions)
    found = []
    for k in range(n):
        for cuts in combinations(range(1, n), k):
            edges = [0, *cuts, n]
            passes = [positions[a:b] for a, b in pairwise(edges)]
            rows = [len(some) * batch * (n_pos - some[0]) for some in passes]
            fits = all(
                len(some) == 1 or r <= (planning.MOST_ROWS if len(set(some)) == 1 else planning.JOINED_ROWS)
                for some, r in zip(passes, rows, strict=True)
            )
            found.append(sum(rows) + planning.PASS_ROWS * len(passes) if fits else 10**9)
    return min(found)


@pytest.mark.parametrize("seed", range(6))
def test_runs_are_cut_into_the_cheapest_passes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_ROWS", 400)
    monkeypatch.setattr(planning, "JOINED_ROWS", 200)
    monkeypatch.setattr(planning, "GOOD_ROWS", 0)
    random = torch.Generator().manual_seed(seed)
    positions = sorted(torch.randint(40 * (seed % 2), 100, (9,), generator=random).tolist())
    starts: dict[tuple[int, int], list[int]] = {}
    for run, position in enumerate(positions):
        starts.setdefault((position, 2), []).append(run)
    parts = planning._parts(starts, 2, 100, 4)
    assert sorted(run for part in parts for run in part.runs) == list(range(9))
    assert all(part.position == min(positions[run] for run in part.runs) for part in parts)
    rows = sum(len(part.runs) * 2 * (100 - part.position) for part in parts)
    assert rows + planning.PASS_ROWS * len(parts) == cheapest_by_trying(positions, 2, 100)


def test_a_few_rows_wait_for_the_layer_below() -> None:
    starts = {(90, 3): [0], (95, 2): [1], (20, 2): [2], (99, 0): [3]}
    assert planning._parts(starts, 2, 100, 4) == (Part(20, 2, (2,)), Part(90, 0, (0, 1, 3)))


def test_a_map_of_neighbouring_positions_takes_few_passes(tiny: Any, batch: Any) -> None:
    n = batch.tokens.n_pos
    cells = [(layer, p) for layer in range(3) for p in range(n - 4, n)]
    runs = [[gl.steer(torch.ones(tiny.cfg.d_model), at=f"pos[{p}]", layers=[layer])] for layer, p in cells]
    many = RunBatch(tiny, batch, runs)
    assert len(many.plan.parts) == 1
    for i, logits in many.each():
        assert (logits - tiny.run(batch, runs[i])).abs().max() <= 1e-5


def test_what_transformers_leaves_behind_to_look_is_no_hook_of_somebodys(oracle: Any) -> None:
    """transformers keeps its hooks for output_attentions on a model for good."""
    plain = copy.deepcopy(oracle)
    ids = torch.tensor([[1, 30, 31]])
    plain(input_ids=ids, output_attentions=True, output_hidden_states=True)
    model = gl.HookedVLM.from_module(plain)
    assert any(module._forward_hooks for module in plain.modules())
    assert not planning.hooks_stand(model)
    handle = model.blocks[0].original_component.register_forward_hook(lambda *_: None)
    assert planning.hooks_stand(model)
    handle.remove()
