"""What every family must show, each against plain transformers or by moving pixels. One row a family in cases/."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from case import Case, cases
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformer_lens.tools.analysis import direct_logit_attribution, logit_lens
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import gatelens as gl
from gatelens.examples import Labels
from gatelens.families import family_of
from gatelens.interventions.compile import compile_hooks
from gatelens.interventions.sites import SITES, head_count, hook_name
from gatelens.model import HookedVLM
from gatelens.readouts.circuits.edge_patches import EdgePatches
from gatelens.readouts.circuits.node_patches import NodePatches
from gatelens.readouts.circuits.parts import parts_of
from gatelens.readouts.circuits.runs import CircuitRuns
from gatelens.readouts.gradients.edges import Graph
from gatelens.readouts.map_metrics import MapMetric
from gatelens.tokens import Role
from intervention_helpers import site_hooks, torch_hooks
from readouts.circuits.pairs_of_all import pair_of_all

CASES = cases()
TOLERANCE = 1e-5


class Built:
    """A case built once: the plain model, the wrapped copy of it, and its processor."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.plain = case.model()
        self.processor = case.processor()
        self.model = self.wrap(self.plain)

    def wrap(self, hf: Any) -> HookedVLM:
        twin = copy.deepcopy(hf)
        if self.case.wrap is not None:
            return self.case.wrap(twin, self.processor)
        return HookedVLM.from_module(twin, self.processor)

    def inputs(self, kind: str, seed: int = 0) -> Any:
        first, second, two = self.case.texts
        a, b = self.case.picture(0, seed), self.case.picture(1, seed)
        if kind == "one":
            return self.model.prepare(a, first)
        if kind == "two":
            return self.model.prepare([a, b], two)
        return self.model.prepare([[b], [a, b]], [second, two])

    @cached_property
    def one(self) -> tuple[Any, Tensor, gl.ActivationCache]:
        """One prompt, its logits and all its activations."""
        inputs = self.inputs("one")
        return inputs, *self.model.run_with_cache(inputs)


@pytest.fixture(scope="module", params=sorted(CASES))
def built(request: pytest.FixtureRequest) -> Built:
    return Built(CASES[request.param])


def plain_logits(built: Built, inputs: Any) -> Tensor:
    with torch.no_grad():
        return built.plain(**inputs.tensors).logits


def real(inputs: Any) -> Tensor:
    return inputs.tensors["attention_mask"].bool()


@pytest.mark.parametrize("kind", ["one", "two", "batch"])
def test_logits_equal_transformers(built: Built, kind: str) -> None:
    inputs = built.inputs(kind)
    got, want = built.model(inputs), plain_logits(built, inputs)
    assert (got - want)[real(inputs)].abs().max() <= TOLERANCE
    assert want[real(inputs)].std() > 0.05  # numbers worth comparing
    if kind == "batch":
        assert not real(inputs).all()


@pytest.mark.parametrize("kind", ["one", "batch"])
def test_cached_decoding_equals_transformers(built: Built, kind: str) -> None:
    inputs = built.inputs(kind)
    n = inputs.tensors["input_ids"].shape[1]
    # position ids are transformers' own to find: what ours are is part of what is tested
    tensors = {k: v for k, v in inputs.tensors.items() if k != "position_ids"}
    with torch.no_grad():
        want = built.plain.generate(**tensors, max_new_tokens=8, min_new_tokens=8, do_sample=False)[:, n:]
    got = built.model.generate(inputs, max_new_tokens=8, stop_at_eos=False, return_type="ids").token_ids
    ends = gl.engine.generation.eos_ids(built.model)
    for mine, theirs in zip(got.tolist(), want.tolist(), strict=True):
        upto = next((i for i, t in enumerate(mine) if t in ends), len(mine))  # transformers forbids it till 8
        assert mine[:upto] == theirs[:upto] and upto > 2


def test_what_was_written_goes_back_in(built: Built) -> None:
    """The grown prompt gives the same tokens again, positions and token types going on by themselves."""
    for inputs in (built.inputs("one"), built.inputs("batch")):
        made = built.model.generate(inputs, max_new_tokens=4, stop_at_eos=False, return_type="ids")
        if torch.isin(made.token_ids, inputs.ids[inputs.tokens.roles == Role.IMAGE]).any():
            with pytest.raises(gl.errors.InputError, match="wrote an image token"):
                _ = made.inputs
            continue
        logits = built.model(made.inputs)[:, inputs.shape[1] - 1 : -1]
        chosen = logits.gather(-1, made.token_ids[..., None])[..., 0]
        assert (logits.amax(-1) - chosen).abs().max() <= 1e-4  # two may be even
        assert torch.equal(made.inputs[:, : inputs.shape[1]].ids, inputs.ids)


def test_a_pass_begins_and_ends_at_a_layer(built: Built) -> None:
    inputs = built.inputs("batch")
    logits, cache = built.model.run_with_cache(inputs)
    n_layers = int(built.model.cfg.n_layers)
    for layer in range(n_layers):
        residual = cache["resid_pre", layer]
        got = built.model(residual, start_at_layer=layer, tokens=inputs)
        assert (got - logits)[real(inputs)].abs().max() <= 1e-4
        assert (built.model(inputs, stop_at_layer=layer) - residual)[real(inputs)].abs().max() <= TOLERANCE


def changed(built: Built, model: HookedVLM, before: Any, after: Any) -> Tensor:
    """How much each position of the decoder's input moved: Float[pos] of the first example."""
    name = "blocks.0.hook_resid_pre"
    a, b = (model.run_with_cache(x, name)[1][name][0] for x in (before, after))
    return (a - b).abs().amax(-1)


def test_roles_cover_every_position_and_images_are_where_features_go(built: Built) -> None:
    inputs = built.inputs("two")
    tokens = inputs.tokens
    assert set(tokens.roles[0].tolist()) <= {int(r) for r in Role}
    assert ((tokens.roles == Role.PAD) == ~real(inputs)).all()
    assert (tokens.roles[0] == Role.QUERY).any() and len(tokens.image_sizes[0]) == 2
    placed = (tokens.roles == Role.IMAGE) & (tokens.row >= 0)
    assert not tokens.box[placed].isnan().any()
    assert (tokens.image_index[0][tokens.roles[0] == Role.IMAGE] >= 0).all()
    for which in (0, 1):
        pictures = [built.case.picture(0), built.case.picture(1)]
        pictures[which] = built.case.picture(which, seed=7)
        other = built.model.prepare(pictures, built.case.texts[2])
        moved = changed(built, built.model, inputs, other) > 1e-6
        mine = tokens.mask(f"image[{which}]")[0]
        if built.case.features is None:
            assert torch.equal(moved, mine)
        else:  # codes: some may stay as they were
            assert moved.any() and not (moved & ~mine).any()


def paint(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The picture with the pixels of a box inverted."""
    pixels = torch.tensor(list(picture.getdata()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    x0, y0, x1, y1 = (round(v) for v in box)
    pixels[y0:y1, x0:x1] = 255 - pixels[y0:y1, x0:x1]
    return Image.fromarray(pixels.numpy())


def overlap(boxes: Tensor, box: tuple[float, float, float, float], margin: float) -> Tensor:
    """Whether boxes, grown by a margin on every side, reach into a box."""
    x0, y0, x1, y1 = box
    wide = torch.minimum(boxes[:, 2] + margin, torch.tensor(x1)) - torch.maximum(
        boxes[:, 0] - margin, torch.tensor(x0)
    )
    high = torch.minimum(boxes[:, 3] + margin, torch.tensor(y1)) - torch.maximum(
        boxes[:, 1] - margin, torch.tensor(y0)
    )
    return (wide > 1e-4) & (high > 1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_pixel_boxes(built: Built, which: int) -> None:
    """Change a box of pixels: the tokens whose boxes it touches change, and no others."""
    case = built.case
    plain = copy.deepcopy(built.plain)
    if case.unmix is not None:
        case.unmix(plain)
    model = built.wrap(plain)
    text = case.texts[0]
    picture = case.picture(which)
    before = model.prepare(picture, text)
    where = before.tokens.positions("image")
    placed = [p for p in where if before.tokens.row[0, p] >= 0]
    boxes = before.tokens.box[0, placed]
    assert before.tokens.image_sizes[0][0] == picture.size
    for i in torch.linspace(0, len(placed) - 1, 7).round().int().tolist():
        box = tuple(float(round(float(v))) for v in boxes[i])
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            continue
        after = model.prepare(paint(picture, box), text)
        if case.features is not None:
            a, b = (case.features(model, x) for x in (before, after))
            moved = (a - b).abs().amax(-1)
        else:
            moved = changed(built, model, before, after)[placed]
        if not case.local:
            assert overlap(boxes[moved.argmax()][None], box, case.blur).all()
            continue
        must = overlap(boxes, box, -case.blur)
        may = overlap(boxes, box, case.blur)
        assert must.any() or case.blur > 0
        assert (moved[must] > 1e-6).all() and (moved[~may] <= 1e-6).all()
        assert may[moved.argmax()]


def test_nothing_after_the_picture_depends_on_it_when_it_is_cut_off(built: Built) -> None:
    one, other = (built.inputs("one", seed) for seed in (0, 7))
    if built.case.features is None:
        assert (built.model(one) - built.model(other))[0, -1].abs().max() > 1e-4
    # row breaks and closing markers read the picture too, so they are keys as well. Only how="mask": zeroed
    # weights leave the row's normaliser, which the picture has a part in
    picture = "image | row_break | eoi | gate"
    cut = gl.knockout(queries=f"all - ({picture})", keys=picture, how="mask")
    text = one.tokens.mask(f"query - ({picture})")
    assert text.any()
    a, b = (built.model.run(x, cut)[text] for x in (one, other))
    assert (a - b).abs().max() <= TOLERANCE
    assert (built.model(one)[text] - a).abs().max() > 1e-3


@pytest.mark.parametrize("site", SITES)
def test_self_patch_changes_nothing_and_zeroing_does(built: Built, site: str) -> None:
    inputs = built.inputs("one")
    clean, cache = built.model.run_with_cache(inputs, lambda name: name.startswith("blocks."))
    same = built.model.run(inputs, gl.patch(cache, at="all", site=site))
    assert (same - clean).abs().max() <= TOLERANCE
    for layer in range(int(built.model.cfg.n_layers)):
        zero = built.model.run(inputs, gl.ablate(at="all", site=site, layers=[layer]))
        assert (zero - clean).abs().max() > 1e-3, layer


OFFSETS = {site: 0.3 + 0.1 * i for i, site in enumerate(SITES)}


def halved(site: str) -> Callable[[Tensor, Any], Tensor]:
    """Half of the activation and a number: two of these at one hook point do not commute."""
    return lambda rows, where: 0.5 * rows + OFFSETS[site]


def test_two_sites_in_both_orders_equal_plain_transformers(built: Built) -> None:
    """Sites that share a hook point in a family included: the model's own order holds, not the list's."""
    inputs = built.inputs("one")
    last = inputs.tokens.mask("last")[..., None]
    block = next(
        m for m in built.plain.modules() if getattr(getattr(m, "self_attn", None), "layer_idx", None) == 1
    )

    def edit(site: str) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.where(last, 0.5 * x + OFFSETS[site], x)

    pairs = list(itertools.combinations(reversed(SITES), 2))
    specs = {site: gl.edit(halved(site), at="last", site=site, layers=[1]) for site in SITES}
    orders = [order for pair in pairs for order in (pair, pair[::-1])]
    together = gl.engine.last_logits(
        built.model, inputs, [[specs[site] for site in order] for order in orders]
    )
    points = {site: id(built.model.bridge.hook_dict[hook_name(site, 1)]) for site in SITES}
    for pair, got in zip(orders, together, strict=True):
        if pair in pairs:
            with torch_hooks(site_hooks(block, {site: edit(site) for site in pair})):
                want = plain_logits(built, inputs)[:, -1]
        assert (got - want).abs().max() <= 1e-4, pair
        if points[pair[0]] == points[pair[1]]:
            alone = built.model.run(inputs, [specs[site] for site in pair])[:, -1]
            assert (alone - want).abs().max() <= 1e-4, pair


def test_the_residual_stream_adds_up(built: Built) -> None:
    inputs = built.inputs("one")
    _, cache = built.model.run_with_cache(inputs, lambda name: name.startswith("blocks."))
    for layer in range(int(built.model.cfg.n_layers)):
        pre, attn, mlp, post = (
            cache[f"blocks.{layer}.hook_{n}"] for n in ("resid_pre", "attn_out", "mlp_out", "resid_post")
        )
        torch.testing.assert_close(pre + attn + mlp, post, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pre + attn, cache[f"blocks.{layer}.hook_resid_mid"], atol=1e-4, rtol=1e-4)


def test_parts_of_the_stream_sum_to_it(built: Built) -> None:
    """TransformerLens' ways of taking the stream apart, at every position, images included."""
    _, _, cache = built.one
    blocks, n_layers = built.model.bridge.blocks, int(built.model.cfg.n_layers)
    for layer in range(n_layers + 1):
        whole = cache["resid_pre", layer] if layer < n_layers else cache["resid_post", n_layers - 1]
        for parts in (cache.decompose_resid(layer), cache.get_full_resid_decomposition(layer)):
            torch.testing.assert_close(parts.sum(0), whole, atol=1e-4, rtol=0)
        for stacked in (cache.stack_head_results, cache.stack_neuron_results):
            torch.testing.assert_close(stacked(layer, incl_remainder=True).sum(0), whole, atol=1e-4, rtol=0)
        if layer == n_layers:
            break
        between = cache.get_full_resid_decomposition(layer, mlp_input=True, expand_neurons=False)
        torch.testing.assert_close(between.sum(0), cache["resid_mid", layer], atol=1e-4, rtol=0)
        # what a norm makes of the parts is what it makes of the whole
        for norm, mlp_input in (("ln1", False), ("ln2", True)):
            if getattr(blocks[layer], norm, None) is not None:
                read = cache.decompose_resid(layer, mlp_input, apply_ln=True).sum(0)
                torch.testing.assert_close(read, cache[f"blocks.{layer}.{norm}.hook_out"], atol=1e-4, rtol=0)


def test_attributions_of_transformer_lens_sum_to_the_logits(built: Built) -> None:
    inputs, logits, cache = built.one
    right, wrong = (int(t) for t in logits[0, -1].topk(2).indices)
    want = logits[..., right] - logits[..., wrong]
    attrs = cache.logit_attrs(cache.decompose_resid(), right, wrong).sum(0)
    torch.testing.assert_close(attrs, want, atol=1e-4, rtol=0)
    folded = built.wrap(built.plain)
    folded.enable_compatibility_mode()
    torch.testing.assert_close(folded(inputs), logits, atol=1e-4, rtol=0)
    for unit in ("component", "head"):
        found = direct_logit_attribution(folded, inputs, right, wrong, unit=unit)
        torch.testing.assert_close(found.attribution.sum(0), want[:, -1], atol=1e-4, rtol=0)
    for lens in (cache.logit_lens(positions=None), logit_lens(built.model, inputs, positions=None)):
        torch.testing.assert_close(
            lens.values[-1], logits, atol=1e-4, rtol=0
        )  # tokens never written included
    # capped logits too: a single logit is the one sum that shows its cap
    single = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), right, pos_slice=-1).sum(0)
    torch.testing.assert_close(single, logits[:, -1, right], atol=1e-4, rtol=0)


@pytest.mark.parametrize("by", ["component", "layer", "head", "mlp", "neuron", "position"])
def test_attributions_sum_to_the_logit_difference(built: Built, by: Any) -> None:
    inputs, logits, _ = built.one
    right, wrong = (int(t) for t in logits[0, -1].topk(2).indices)
    parts = gl.attribute(built.model, inputs, (right, wrong), by=by, at="last | image")
    at = parts.axes["row"]["at"].tolist()
    want = logits[0, at, right] - logits[0, at, wrong]
    torch.testing.assert_close(parts.tensor.sum(1), want, atol=1e-4, rtol=0)
    assert parts.error <= 1e-4 and len(set(parts.axes["part"]["part"])) == parts.tensor.shape[1]
    if by == "position":
        # the picture's share, on its own, is what its tokens' values bring in
        share = parts.sel(role="image").tensor.abs().sum()
        assert share > 0 and set(parts.sel(role="image").table["kind"]) == {"source"}


def test_circuits_of_all_and_of_none(built: Built) -> None:
    """All parts are the clean run. No node: heads and MLPs are the corrupt run's; no edge: all is."""
    model, n_layers = built.model, int(built.model.cfg.n_layers)
    pair = pair_of_all(built.case.texts[0], built.case.picture)
    clean, corrupt = (model.prepare(one.image, one.prompt) for one in (pair.clean, pair.corrupt))
    metric = gl.metrics.logit_diff(*(int(t) for t in model(clean)[0, -1].topk(2).indices))
    maps = [
        gl.patch_map(model, pair, metric, over, site=site, layers=[0, n_layers - 1], progress=False)
        for over, site in ((("layer", "head"), "z"), (("layer",), "mlp_out"))
    ]
    parts = parts_of(maps, model)

    def values(patches: Any, kept: Any) -> Any:
        measured = MapMetric(metric, Labels(model))
        return CircuitRuns(model, [pair], measured, patches, False, tqdm(disable=True)).values(kept)[:, 0]

    none_and_all = np.array([[False], [True]])
    got = values(NodePatches(model, parts), none_and_all.repeat(len(parts), 1))
    _, cache = model.run_with_cache(corrupt)
    dropped = [gl.patch(cache, "all", site, layers=[0, n_layers - 1]) for site in ("z", "mlp_out")]
    want = [float(metric(logits)) for logits in (model.run(clean, dropped), model(clean))]
    assert got == pytest.approx(want, abs=TOLERANCE * 10) and abs(got[0] - got[1]) > 1e-4
    if model.family.adds_later or "blocks.0.hook_resid_mid" not in model.hook_dict:
        with pytest.raises(gl.errors.ModelError, match="its edges cannot be separated"):
            Graph.of(model)
        return
    patches = EdgePatches(model, Graph.of(model))
    some = np.random.default_rng(0).random((1, len(patches.edges))) < 0.8  # the check that parts add up
    got = values(patches, np.concatenate([none_and_all.repeat(len(patches.edges), 1), some]))
    want = [float(metric(model(one))) for one in (corrupt, clean)]
    assert got[:2] == pytest.approx(want, abs=TOLERANCE * 10)


def test_the_last_layer_of_the_lens_is_the_model(built: Built) -> None:
    inputs, logits, _ = built.one
    n_layers = int(built.model.cfg.n_layers)
    right = int(logits[0, -1].argmax())
    lens = gl.logit_lens(built.model, inputs, at="all", layers=[1, n_layers], targets=right, top=3)
    last = lens.sel(layer=n_layers)
    positions = last.axes["position"]["position"].tolist()
    want = logits[0, positions].log_softmax(-1)
    ids = torch.tensor(last.columns["token_id"][0])
    torch.testing.assert_close(last.tensor[0], want.gather(1, ids), atol=1e-4, rtol=0)
    assert torch.equal(ids[:, 0], want.argmax(-1)) and (ids[:, 3] == right).all()
    assert torch.equal(torch.tensor(last.columns["rank"][0, :, 3]), (want > want[:, [right]]).sum(1))


class Reference:
    """Plain transformers whose attention function leaves out given entries. Nothing of gatelens is in it.

    By layer also: keys that are ``scaled``, and rows that are ``even`` over all that the model's mask lets through.
    """

    NAME = "reference"

    def __init__(self, plain: Any) -> None:
        self.plain, self.cuts = plain, {}
        self.scaled: dict[int, Tensor] = {}
        self.even: dict[int, Tensor] = {}
        AttentionInterface.register(self.NAME, self.attention)
        AttentionMaskInterface.register(self.NAME, eager_mask)

    def attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        **kw: Any,
    ) -> tuple[Tensor, Tensor]:
        layer = module.layer_idx
        if layer in self.scaled:
            key = torch.where(self.scaled[layer][:, None, :, None], 1.7 * key, key)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling
        if kw.get("softcap") is not None:
            scores = torch.tanh(scores / kw["softcap"]) * kw["softcap"]
        scores = scores + mask
        for cut, how in self.cuts.get(module.layer_idx, []):
            if how == "mask":
                scores = scores.masked_fill(cut, float("-inf"))
        pattern = scores.softmax(-1)
        for cut, how in self.cuts.get(module.layer_idx, []):
            if how == "zero":
                pattern = pattern.masked_fill(cut, 0)
        if layer in self.even:
            assert mask is not None
            open_ = (mask > torch.finfo(mask.dtype).min / 2).to(pattern)
            even = open_ / open_.sum(-1, keepdim=True).clamp_min(1)
            pattern = torch.where(self.even[layer][:, None, :, None], even, pattern)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    def logits(self, inputs: Any, cuts: dict[int, list[tuple[Tensor, str]]]) -> Tensor:
        config = self.plain.config.get_text_config()
        before, self.cuts = config._attn_implementation, cuts
        config._attn_implementation = self.NAME
        try:
            with torch.no_grad():
                return self.plain(**inputs.tensors).logits
        finally:
            config._attn_implementation = before


@pytest.fixture
def reference(built: Built) -> Iterator[Reference]:
    yield Reference(built.plain)


def cut_of(inputs: Any, queries: str, keys: str, heads: list[int] | None, n_heads: int) -> Tensor:
    q, k = inputs.tokens.mask(queries), inputs.tokens.mask(keys)
    cut = (q[:, :, None] & k[:, None, :])[:, None].expand(-1, n_heads, -1, -1).clone()
    if heads is not None:
        cut[:, [h for h in range(n_heads) if h not in heads]] = False
    return cut


@pytest.mark.parametrize("how", ["mask", "zero"])
@pytest.mark.parametrize("heads", [None, [1]])
def test_knockouts_equal_plain_transformers(built: Built, reference: Reference, how: str, heads: Any) -> None:
    inputs = built.inputs("batch")
    n_heads = int(built.model.cfg.n_heads)
    cuts = {1: [(cut_of(inputs, "query", "image", heads, n_heads), how)]}
    want = reference.logits(inputs, cuts)
    got = built.model.run(inputs, gl.knockout("query", "image", layers=[1], heads=heads, how=how))
    assert (got - want)[real(inputs)].abs().max() <= TOLERANCE
    assert (got - built.model(inputs))[real(inputs)].abs().max() > 1e-4
    with torch.no_grad():
        assert (reference.logits(inputs, {}) - built.model(inputs))[real(inputs)].abs().max() <= TOLERANCE


def test_keys_and_patterns_equal_plain_transformers(built: Built, reference: Reference) -> None:
    """Keys are scaled as they are multiplied, past any norm; an even pattern covers all that the mask lets through."""
    inputs, model = built.inputs("batch"), built.model
    image, query = inputs.tokens.mask("image"), inputs.tokens.mask("query | image")
    for layer in range(int(model.cfg.n_layers)):
        reference.scaled, reference.even = {layer: image}, {}
        double = gl.edit(lambda rows, where: 1.7 * rows, at="image", site="rot_k", layers=[layer])
        want = reference.logits(inputs, {})
        assert (model.run(inputs, double) - want)[real(inputs)].abs().max() <= 2 * TOLERANCE
        reference.scaled, reference.even = {}, {layer: query}
        even = gl.ablate("query | image", "pattern", layers=[layer], with_="uniform")
        want = reference.logits(inputs, {})
        assert (model.run(inputs, even) - want)[real(inputs)].abs().max() <= 2 * TOLERANCE
        assert (want - model(inputs))[real(inputs)].abs().max() > 1e-3


@pytest.mark.parametrize("site", ["q", "k", "v", "z"])
def test_heads_are_the_heads_of_transformers(built: Built, site: str) -> None:
    """Zeroing one head of a site is zeroing its columns in plain transformers; key-value heads under GQA."""
    inputs, model = built.inputs("one"), built.model
    n, head = head_count(site, model.cfg), 1
    assert n is not None and n >= 2
    layer = next(
        m for m in built.plain.modules() if getattr(m, "layer_idx", None) == 1 and hasattr(m, "q_proj")
    )
    width = layer.head_dim
    columns = slice(head * width, (head + 1) * width)

    def zero(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[..., columns] = 0
        return tensor

    if site == "z":
        handle = layer.o_proj.register_forward_pre_hook(lambda m, args: (zero(args[0]), *args[1:]))
    else:
        projection = getattr(layer, f"{site}_proj")
        handle = projection.register_forward_hook(lambda m, args, out: zero(out))
    try:
        want = plain_logits(built, inputs)
    finally:
        handle.remove()
    got = model.run(inputs, gl.ablate(at="all", site=site, layers=[1], heads=[head]))
    assert (got - want).abs().max() <= TOLERANCE
    assert (got - model(inputs)).abs().max() > 1e-4


def test_the_engine_equals_plain_hooks(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine shares, skips and stacks is exact in this family: prefix, restart, batch and decoding."""
    monkeypatch.setattr(gl.bridge.attention, "FUSED_ROWS", 1)  # also where so few rows would not be worth it
    inputs, model = built.inputs("batch"), built.model
    first = inputs.tokens.positions("image", 1)[0]
    runs = [
        [],
        [gl.knockout("text - gate", "image", layers=[1])],
        [gl.knockout("text - gate", "gate", how="zero")],
        [gl.ablate("last", "mlp_out", layers=[1]), gl.knockout("last", "image", layers=[1], how="zero")],
        [gl.ablate(inputs.tokens.mask(f"pos[{first}]"), "resid_pre", layers=[1])],
        [gl.knockout("image", "first_image", layers=[0])],
    ]
    many = gl.engine.run_batch.RunBatch(model, inputs, runs)
    last = gl.engine.last_logits(model, inputs, runs)
    for i, logits in many.each():
        hooks = compile_hooks(runs[i], inputs.tokens, model.cfg).pairs
        want = model.run_with_hooks(inputs, hooks)
        assert (logits - want)[real(inputs)].abs().max() <= 1e-4, (i, many.plan)
        assert (last[i] - want[:, -1]).abs().max() <= 1e-4, (i, many.plan)
    together = gl.engine.generate_many(model, inputs, runs[:4], max_new_tokens=4, stop_at_eos=False)
    for run, got in zip(runs, together, strict=False):
        alone = model.generate(inputs, run, max_new_tokens=4, stop_at_eos=False, return_type="ids")
        assert torch.equal(got.token_ids, alone.token_ids)


FULL = [(name, label) for name in sorted(CASES) for label in CASES[name].full]


@pytest.mark.parametrize("name, label", FULL, ids=[f"{n}-{label}" for n, label in FULL])
def test_full_size_builds_without_weights(name: str, label: str) -> None:
    """The real size on the meta device: the shapes fit, the adapter finds its modules, the layout resolves.

    The first size of a family has all its layers. The others differ in widths: they have the first eight.
    """
    config = CASES[name].full[label]()
    if label != next(iter(CASES[name].full)):
        cut(config.get_text_config(), 8)
    kind = type(built_class(CASES[name]))
    with torch.device("meta"):
        hf = kind(config)
    family = family_of(kind.__name__, config)
    layout = family.layout(config, None)
    model = HookedVLM.from_module(hf, None, layout)
    text = config.get_text_config()
    assert model.cfg.n_layers == text.num_hidden_layers and model.cfg.d_model == text.hidden_size
    assert f"blocks.{model.cfg.n_layers - 1}.attn.hook_pattern" in model.bridge.hook_dict
    assert layout.placeholder_id >= 0


def cut(text: Any, n_layers: int) -> None:
    """Leave a decoder's first layers in its config."""
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:n_layers]
    text.num_hidden_layers = n_layers


_CLASSES: dict[str, Any] = {}


def built_class(case: Case) -> Any:
    if case.name not in _CLASSES:
        _CLASSES[case.name] = case.model()
    return _CLASSES[case.name]
