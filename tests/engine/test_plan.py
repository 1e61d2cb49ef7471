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

N_LAYERS = 5


def cost_of(runs: list[tuple[int, int]], batch: int, n_pos: int) -> int:
    """What a pass of runs, each (position, layer), costs in rows; too much where it does not fit."""
    rows = n_pos - min(position for position, _ in runs)
    if len(runs) > 1 and len(runs) * batch * rows > planning.MOST_ROWS:
        return 10**9
    cells = sum(N_LAYERS - layer for _, layer in runs)
    return cells * batch * rows + planning.LAYER_ROWS * (N_LAYERS - min(layer for _, layer in runs))


def cheapest_by_trying(runs: list[tuple[int, int]], batch: int, n_pos: int) -> int:
    """The rows of the cheapest way to cut the runs, in the order of their positions, into passes."""
    n = len(runs)
    edges = [[0, *cuts, n] for k in range(n) for cuts in combinations(range(1, n), k)]
    return min(sum(cost_of(runs[a:b], batch, n_pos) for a, b in pairwise(some)) for some in edges)


@pytest.mark.parametrize("seed", range(6))
def test_runs_are_cut_into_the_cheapest_passes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_ROWS", 400)
    random = torch.Generator().manual_seed(seed)
    positions = sorted(torch.randperm(100 - 40 * (seed % 2), generator=random)[:9].tolist())
    layers = torch.randint(N_LAYERS, (9,), generator=random).tolist()
    runs = list(zip(positions, layers, strict=True))
    parts = planning._parts({start: [run] for run, start in enumerate(runs)}, 2, 100, N_LAYERS, 4)
    assert sorted(run for part in parts for run in part.runs) == list(range(9))
    for part in parts:
        assert part.position == min(positions[run] for run in part.runs)
        assert part.layers == tuple(sorted(layers[run] for run in part.runs))
        assert [layers[run] for run in part.runs] == list(part.layers)
    found = sum(cost_of([runs[run] for run in part.runs], 2, 100) for part in parts)
    assert found == cheapest_by_trying(runs, 2, 100)


def test_runs_of_all_layers_share_a_pass_and_join_it_where_they_begin() -> None:
    starts = {(90, 3): [0], (95, 2): [1], (20, 2): [2], (99, 0): [3]}
    parts = planning._parts(starts, 2, 100, 4, 4)
    assert parts == (Part(20, (2,), (2,)), Part(90, (3, 1, 0), (0, 2, 3)))
    assert [parts[1].begun(layer) for layer in range(4)] == [1, 1, 2, 3]
    assert parts[1].some([0, 3]) == Part(90, (3, 0), (0, 3))
    assert parts[1].by_layer() == [(0, (3,)), (2, (1,)), (3, (0,))]


def test_more_runs_of_one_start_than_a_pass_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_ROWS", 35)
    parts = planning._parts({(90, layer): [layer, 9 - layer] for layer in range(4)}, 1, 100, 4, 4)
    assert [part.layers for part in parts] == [(0, 0, 1), (1, 2, 2), (3, 3)]


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
