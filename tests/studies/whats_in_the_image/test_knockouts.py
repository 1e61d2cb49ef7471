"""The knockout configurations, what is written under them, and their figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gatelens.data import load
from gatelens.errors import DataError
from gatelens.examples import prepare
from gatelens.measures.objects import Vocabulary
from gatelens.model import HookedVLM
from gatelens.studies.whats_in_the_image import configurations as wi
from gatelens.studies.whats_in_the_image import knockouts
from gatelens.studies.whats_in_the_image.study import whats_in_the_image
from scene_helpers import TinyScenes

SMALL = {"batch_size": 5, "max_new_tokens": 5, "n_boot": 50, "n_asked": 0, "progress": False}


@pytest.fixture(scope="module")
def organism() -> HookedVLM:
    return HookedVLM.from_pretrained("organism:llava")


@pytest.mark.organism
@pytest.mark.parametrize("first_token", ["sees", "blocked"])
def test_texts_equal_full_recomputation(organism: HookedVLM, first_token: str) -> None:
    """Every stored text is what plain hooks give when the grown prompt is run again for every token."""
    settings = {**SMALL, "max_new_tokens": 3, "limit": 2}
    run = whats_in_the_image(organism, "emoji-scenes", None, first_token=first_token, **settings)
    stored = run.table("predictions")
    examples = load("emoji-scenes").examples("caption", limit=2)
    inputs = prepare(organism, examples)
    image, n = inputs.tokens.mask("image")[0], inputs.tokens.n_pos
    different = set()
    for row in dict.fromkeys(stored.row):
        part = stored[stored.row == row].set_index("id")
        c = wi.Configuration(*part[["path", "scope", "start", "stop"]].iloc[0])
        layers = c.layers(6) if c.path != wi.NONE else []
        ids = inputs.tensors["input_ids"]
        for _ in range(3):  # too few for any of them to end
            rows, keys = torch.zeros(2, ids.shape[1], dtype=torch.bool)
            keys[:n] = image
            if c.path in (wi.QUERY, wi.BOTH):
                rows[:n] = ~image
            if c.path in (wi.GENERATED, wi.BOTH):
                rows[n - (first_token == "blocked") :] = True

            def cut(x: torch.Tensor, hook: Any, where: Any = rows[:, None] & keys) -> torch.Tensor:
                return x.masked_fill(where, float("-inf"))

            hooks = [(f"blocks.{layer}.attn.hook_attn_scores", cut) for layer in layers]
            grown = organism.inputs(input_ids=ids, pixel_values=inputs.tensors["pixel_values"])
            best = organism.run_with_hooks(grown, fwd_hooks=hooks)[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], dim=1)
        for e, new in zip(examples, ids[:, n:].tolist(), strict=True):
            wanted = organism.tokenizer.decode(new, skip_special_tokens=True)
            assert part.text[e.id] == wanted, (row, e.id)
            if wanted != run.table("predictions").query("path == 'none'").set_index("id").text[e.id]:
                different.add(c.path)
    assert different >= {wi.GENERATED, wi.BOTH}


def test_configurations_and_their_rows(tiny_chameleon: Any) -> None:
    names = [c.name for c in wi.by_window(8, 2, 4)]
    assert names[:2] == ["image → generated, only in layers 2–3", "image → generated, in all layers but 2–3"]
    outside = wi.Configuration(wi.BOTH, wi.OUTSIDE, 2, 4)
    assert outside.layers(6) == [0, 1, 4, 5]
    assert wi.curve_starts(6) == [1, 2, 3, 4, 5]
    assert wi.curve_starts(80) == list(range(5, 80, 5))
    inputs = prepare(tiny_chameleon, TinyScenes().examples("caption")[:1])
    tokens = inputs.tokens.extend(2)
    query = tokens.mask(wi.rows_of(wi.QUERY, "sees"))[0]
    assert query.tolist() == (~tokens.mask("image | generated")[0]).tolist()  # markers and <s> as well
    both = tokens.mask(wi.rows_of(wi.BOTH, "sees"))[0]
    assert both.tolist() == (~tokens.mask("image")[0]).tolist()
    for policy, first in (("sees", tokens.n_pos - 2), ("blocked", tokens.n_pos - 3)):
        rows = tokens.mask(wi.rows_of(wi.GENERATED, policy))[0].nonzero().flatten().tolist()  # type: ignore[arg-type]
        assert rows == list(range(first, tokens.n_pos))


def _curve() -> pd.DataFrame:
    rows = []
    for path in wi.PATHS:
        for start, mean in enumerate((0.1, 0.3, 0.8, 0.9)):
            rows.append(("mask", path, "all" if start == 0 else "from", start, 4, mean))
        rows += [("mask", path, "within", 1, 3, 0.4), ("mask", path, "outside", 1, 3, 0.7)]
    table = pd.DataFrame(rows, columns=["how", "path", "scope", "start", "stop", "mean"])
    return table.assign(metric="object F1", low=table["mean"] - 0.05, high=table["mean"] + 0.05)


def test_figures_show_the_numbers_of_the_table() -> None:
    window = {"start": 1, "stop": 3}
    drawn = knockouts.knockout_curves(_curve(), 0.1, window, "mask")
    line = next(x for x in drawn.axes[0].lines if x.get_label() == "image → both")
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.3, 0.8, 0.9])
    bars = knockouts.window_bars(_curve(), 0.1, window)
    heights = sorted(round(bar.get_height(), 6) for bar in bars.axes[0].patches)
    assert heights == [0.4, 0.4, 0.4, 0.7, 0.7, 0.7]
    with pytest.raises(DataError, match="how='zero'"):
        knockouts.knockout_curves(_curve(), 0.1, None, "zero")


def test_the_window_is_cut_once_the_curve_is_known(tiny_llava: Any) -> None:
    """An untrained model has no window of its own: objects are named by what it writes."""
    options = {**SMALL, "vocabulary": Vocabulary(["dog"])}
    run = whats_in_the_image(tiny_llava, TinyScenes(), None, **options)
    assert run.json("window") is None and set(run.table("predictions").scope) == {"no", "all", "from"}
    first = run.table("descriptions").text.str.split().explode().unique().tolist()
    run = whats_in_the_image(tiny_llava, TinyScenes(), None, **{**SMALL, "vocabulary": Vocabulary(first)})
    window = run.json("window")
    assert window is not None and window["stop"] - window["start"] == 1
    inside = run.table("predictions").query("scope == 'within'")
    assert set(inside.start) == {window["start"]} and len(inside) == 7 * len(wi.PATHS)
