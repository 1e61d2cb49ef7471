"""The words of descriptions, where they looked, and the tables and cards made of that."""

from __future__ import annotations

import base64
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from gatelens.examples import prepare
from gatelens.measures.objects import Vocabulary
from gatelens.plots.style import png
from gatelens.studies.whats_in_the_image import descriptions, words
from scene_helpers import TinyScenes


def test_words_and_what_a_page_shows(tiny_llava: Any) -> None:
    e = TinyScenes().examples("caption")[0]
    inputs = prepare(tiny_llava, [e])
    out = words.describe(tiny_llava, inputs, 6)
    spelled = out.words[0]
    assert " ".join(spelled.text[a:b] for a, b in spelled.spans) == spelled.text
    vocabulary = Vocabulary([spelled.text[slice(*spelled.spans[0])]])
    name = vocabulary.names[0]
    shown = out.word_maps(0, vocabulary)
    assert shown["grid"] == [4, 4]
    assert shown["bands"] == ["all layers", "layer 0", "layer 1", "layer 2"]
    assert shown["words"][0]["object"] == name
    assert "".join(w["before"] + w["text"] for w in shown["words"]) + shown["after"] == spelled.text
    # the second word's map in layer 1 against the pattern of a plain run of the grown prompt
    ids = torch.cat([inputs.tensors["input_ids"], torch.tensor([out.ids[0]])], dim=1)
    grown = tiny_llava.inputs(input_ids=ids, pixel_values=inputs.tensors["pixel_values"])
    _, cache = tiny_llava.run_with_cache(grown, names_filter="blocks.1.attn.hook_pattern")
    token = spelled.rows(*spelled.spans[1])[0]
    row = inputs.tokens.n_pos - 1 + token
    wanted = cache["blocks.1.attn.hook_pattern"][0, :, row].mean(0)[: inputs.tokens.n_pos]
    wanted = wanted[inputs.tokens.mask("image")[0]]
    got = np.frombuffer(base64.b64decode(shown["words"][1]["values"]), np.uint8).reshape(4, 16)[2]
    assert got.max() == 255
    np.testing.assert_allclose(got / 255, (wanted / wanted.max()).detach().numpy(), atol=0.01)
    assert shown["words"][1]["mass"][2] == pytest.approx(float(wanted.sum()), abs=1e-3)


def test_localisation_rows_need_a_mask(tiny_llava: Any) -> None:
    e = TinyScenes().examples("caption")[0]
    inputs = prepare(tiny_llava, [e])
    out = words.describe(tiny_llava, inputs, 6)
    spelled = out.words[0]
    first = spelled.text[slice(*spelled.spans[0])]
    everywhere = {first: np.ones((16, 16), bool)}
    tables = out.localised(0, Vocabulary([first]), everywhere)
    assert tables[0].hit.tolist() == [1, 1, 1]
    assert tables[0].chance.tolist() == [1, 1, 1]
    assert not out.localised(0, Vocabulary([first]), {})
    empty = {first: np.zeros((16, 16), bool)}
    assert not out.localised(0, Vocabulary([first]), empty)


def test_pooled_types_equal_one_batch() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(9)

    def table(part: np.ndarray) -> pd.DataFrame:
        n, se = len(part), part.std() / len(part) ** 0.5
        row = (0, "image", part.mean(), se, 0.5, 1.0, n, 3 * n)
        return pd.DataFrame([row], columns=["layer", "kind", "share", "se", "even", "mass", "n", "n_rows"])

    both = descriptions.pooled_types(pd.concat([table(values[:4]), table(values[4:])])).iloc[0]
    assert both.share == pytest.approx(values.mean())
    assert both.se == pytest.approx(values.std() / 3)
    assert (both.n, both.n_rows) == (9, 27)
    assert descriptions.pooled_types(pd.DataFrame()).empty


def test_localisation_by_bands_of_layers() -> None:
    places = pd.DataFrame(
        [(4 * i, 4 * i + 3, 0.1 * i, 0.05 * i, 0.15 * i, 0.07, 0.2, 0.1, 0.3, 0.15, 0.5, 9) for i in range(4)],
        columns=["first", "last", "hit", "hit_low", "hit_high", "chance", "near", "near_low", "near_high",
                 "chance_near", "mass", "n"],
    )  # fmt: skip
    before = dict(mpl.rcParams)
    for dark in (False, True):
        assert png(descriptions.localisation_figure(places, dark)).startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    drawn = descriptions.localisation_figure(places)
    names = [t.get_text() for t in drawn.axes[0].get_xticklabels()]
    assert names == ["0–3", "4–7", "8–11", "12–15"]


def test_localisation_is_a_mean_over_objects() -> None:
    hits = pd.DataFrame(
        [(layer, layer, i % 2, 1.0, 0.25, 0.5, 0.1 * layer) for layer in (1, 0) for i in range(4)],
        columns=["first", "last", "hit", "near", "chance", "chance_near", "mass"],
    )
    table = descriptions.localisation_table(hits, 50, 0)
    assert table["first"].tolist() == [0, 1]
    assert table.hit.tolist() == [0.5, 0.5] and (table.hit_low < 0.5).all()
    assert table[["near", "near_high"]].to_numpy().tolist() == [[1, 1], [1, 1]]
    assert table.near_low.between(
        0.4, 0.6
    ).all()  # four words that all look there do not say that all words do
    assert table.mass.tolist() == pytest.approx([0, 0.1]) and table.n.tolist() == [4, 4]
