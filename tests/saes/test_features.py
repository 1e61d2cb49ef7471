"""The strongest patches of features against a plain search, and their pictures pixel by pixel; a trainer beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gatelens as gl
from gatelens.errors import GatelensError
from store_helpers import examples, small_store


@pytest.fixture(scope="module")
def store(tiny_llava: Any, tmp_path_factory: Any) -> Any:
    return small_store(tiny_llava, tmp_path_factory.mktemp("stores") / "s", layers=[1])


@pytest.fixture(scope="module")
def sae() -> gl.SAE:
    torch.manual_seed(1)
    w = {
        "W_enc": torch.randn(32, 20),
        "W_dec": torch.randn(20, 32),
        "b_dec": torch.zeros(32),
        "b_enc": torch.zeros(20),
    }
    return gl.SAE({"architecture": "standard", "hook_name": "blocks.1.hook_resid_pre"}, w)


def test_the_strongest_patch_of_each_picture(store: Any, sae: gl.SAE) -> None:
    hits = sae.features(store, [3, 11], examples(), top=4, where="role == 'image'", progress=False)
    values, index = sae.encode(store.read()), store.index
    patches = (index.role == "image").to_numpy()
    for feature in (3, 11):
        best = {}
        for row in np.flatnonzero(patches):
            value, name = float(values[row, feature]), index.image_id[row]
            if value > max(0.0, best.get(name, (0.0, 0))[0]):
                best[name] = (value, row)
        want = sorted(best.values(), reverse=True)[:4]
        mine = hits.table[hits.table.feature == feature]
        assert mine.store_row.tolist() == [row for _, row in want] and mine["rank"].tolist() == list(
            range(len(want))
        )
        np.testing.assert_allclose(mine.value, [value for value, _ in want], rtol=1e-5)
        assert hits.share[feature] == float((values[patches][:, feature] > 0).float().mean())
        for hit in mine.itertuples():
            over = hits.maps[feature, hit.picture]
            assert len(over) == 16 and set(over.example) == {hit.example}
            np.testing.assert_allclose(over.value, values[over.index.to_numpy(), feature], rtol=1e-5)


def test_the_patch_is_coloured_and_lined(store: Any, sae: gl.SAE, tmp_path: Path) -> None:
    hits = sae.features(store, 3, examples(), top=1, where="role == 'image'", progress=False)
    figure = hits.show()
    figure.savefig(tmp_path / "f.png", dpi=100)
    axes = figure.axes[0]
    pixels = np.asarray(Image.open(tmp_path / "f.png").convert("RGB")).astype(int)
    hit = hits.table.iloc[0]

    def colour(x: float, y: float) -> Any:
        across, down = axes.transData.transform((x, y)) * 100 / figure.dpi
        return pixels[len(pixels) - 1 - int(down), int(across)]

    strongest = colour((hit.x0 + hit.x1) / 2, (hit.y0 + hit.y1) / 2)
    over = hits.maps[3, hit.picture]
    weakest = over.loc[over.value.idxmin()]
    plain = colour((weakest.x0 + weakest.x1) / 2, (weakest.y0 + weakest.y1) / 2)
    assert strongest[0] - strongest[1] > 60  # the colour of values
    assert abs(plain[0] - plain[1]) < strongest[0] - strongest[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, a: s.features(a, 20), "20 is not a feature"),
        (lambda s, a: s.features(a, 1, where="role == 'boi'"), "leaves no row"),
        (lambda s, a: s.features(a, 1, where="rule"), "rule"),
        (lambda s, a: s.features(a, 1, top=0), "top=0"),
        (lambda s, a: s.features(a, 1, progress=False).show(), "give data="),
        (lambda s, a: s.features(a, 1, [1]), "list of examples"),
        (
            lambda s, a: gl.SAE({**s.config, "hook_name": "blocks.2.hook_mlp_out"}, s.weights).features(a, 1),
            "mlp_out",
        ),
    ],
    ids=range(7),
)
def test_what_cannot_be_found_is_one_line(store: Any, sae: gl.SAE, call: Any, words: str) -> None:
    with pytest.raises(GatelensError) as error:
        call(sae, store)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_trained_sparse_coder_becomes_an_sae(store: Any) -> None:
    """The example of docs/saes.md: eai-sparsify's SparseCoder, fed by a store."""
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed")
    torch.manual_seed(0)
    coder = sparsify.SparseCoder(32, sparsify.SparseCoderConfig(num_latents=64, k=8))
    optimiser = torch.optim.Adam(coder.parameters(), 1e-2)
    unexplained = []
    for epoch in range(12):
        for x in store.iterate(34, shuffle=epoch):
            loss = coder(x.float()).fvu
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            unexplained.append(loss.item())
    assert unexplained[-1] < 0.6 * unexplained[0]
    weights = {
        "W_enc": coder.encoder.weight.detach().T.contiguous(),
        "b_enc": coder.encoder.bias.detach(),
        "W_dec": coder.W_dec.detach(),
        "b_dec": coder.b_dec.detach(),
    }
    config = {
        "architecture": "topk",
        "k": 8,
        "apply_b_dec_to_input": True,
        "hook_name": "blocks.1.hook_resid_pre",
    }
    x = store.read().float()
    with torch.no_grad():
        torch.testing.assert_close(
            gl.SAE(config, weights).reconstruct(x), coder(x).sae_out, atol=1e-4, rtol=1e-4
        )
