"""Section *descriptions*: what the unmodified model writes, and where the rows that write it look.

Attention by token type (Fig. 1 of the paper), and whether the word of an object looks at that object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gatelens.data import Example
from gatelens.examples import prepare
from gatelens.measures.objects import Vocabulary
from gatelens.measures.stats import SHARE, summary
from gatelens.model import HookedVLM
from gatelens.plots.card import Block, Card, Chart, Html, Text
from gatelens.plots.curve import curves
from gatelens.plots.numbers import number, percent, percent_cell
from gatelens.plots.pictures import picture_uri
from gatelens.plots.style import NotebookFigure, SeriesStyle
from gatelens.runs import Run
from gatelens.studies.section import VALUES, Batch, Evidence, Measured, Section, Setup, Tables, cells, span_of
from gatelens.studies.whats_in_the_image.pictures import (
    Masks,
    Segmenter,
    mask_box,
    masks_of,
    objects_in,
    segmented,
    vocabulary_of,
)
from gatelens.studies.whats_in_the_image.verdict import NOTE
from gatelens.studies.whats_in_the_image.word_widget import shown_example
from gatelens.studies.whats_in_the_image.words import band_name, describe

TOKEN_TYPES = "token_types"  # figure and card
SHOWN = 6  # pictures in the report, the first drawn
PROMPT_KINDS = ("query", "system", "markers")  # the paper's query tokens: the prompt without the image
VISIBLE = 0.005  # a part of the query tokens has a curve of its own where it gets more attention than this
EVEN = "if attention were uniform"
# what two runs are compared in
LOOKED, HIT = "attention of generated tokens", "words that attend most to their object"
BANDS = ["first", "last"]  # layers of a band, both included

LOOKING = (
    "The first pictures drawn, not selected. Point at a word, tap it, or use the arrow keys. The "
    "attention of the row that wrote the word lies over the picture; a line goes around what reaches half of its "
    "largest value. Underlined words name an object."
)
LOCALISATION = (
    "Attention of the rows that write an object’s word, mean over heads, painted on the image tokens’ places. A hit is "
    "the share of the maximum’s pixels in the object’s mask. Near counts pixels around it, as far as the paper’s 40 in "
    "a picture of 640. Chance: a map without any preference."
)


@dataclass(frozen=True)
class PictureBatch(Batch):
    """Pictures to be described.

    Attributes:
        start: number of the first picture in the study.
        examples: pictures and prompts.
        max_new_tokens: the longest description.
        vocabulary: the objects to look for.
        segmenter: gives masks where the data has none.
        shown: ids of the pictures in the report.
    """

    start: int
    examples: Sequence[Example]
    max_new_tokens: int
    vocabulary: Vocabulary
    segmenter: Segmenter | None
    shown: frozenset[str]


def batches(setup: Setup, measured: Measured) -> list[Batch]:
    """All pictures."""
    options, drawn = setup.options, setup.drawn["pictures"]
    vocabulary = options.vocabulary or vocabulary_of(setup.data, drawn)
    shown = frozenset(e.id for e in drawn[:SHOWN])
    return [
        PictureBatch(f"{number:04d}", start, part, options.longest, vocabulary, options.segmenter, shown)
        for number, start, part in setup.batched_by_length(drawn)
    ]


def measure(model: HookedVLM, batch: PictureBatch) -> Tables:
    """``texts``: ``id, text``; ``types``: attention by token type, and ``type_shares`` by picture; ``hits``:
    localisation of every named object; ``maps``: ``id, map`` (JSON) of the pictures in the report."""
    written = describe(model, prepare(model, batch.examples, batch.start), batch.max_new_tokens)
    hits, maps = [], []
    for i, e in enumerate(batch.examples):
        masks = _masks(batch, e, written.words[i].text)
        hits += [table.assign(id=e.id) for table in written.localised(i, batch.vocabulary, masks)]
        if e.id in batch.shown:
            marks = {name: mask_box(mask) for name, mask in masks.items() if mask.any()}
            maps.append((e.id, json.dumps({**written.word_maps(i, batch.vocabulary), "marks": marks})))
    each = written.type_shares
    if len(each):
        named = each.assign(id=[batch.examples[i].id for i in each.picture])
        each = named.drop(columns="picture").astype({"share": "float32"})
    return {
        "texts": pd.DataFrame({"id": [e.id for e in batch.examples], "text": written.texts}),
        "types": written.types,
        "type_shares": each,
        "hits": pd.concat(hits, ignore_index=True) if hits else pd.DataFrame(),
        "maps": pd.DataFrame(maps, columns=["id", "map"]),
    }


def _masks(batch: PictureBatch, example: Example, text: str) -> Masks:
    """The data's masks, else those of the segmenter for the objects a text names."""
    masks = masks_of(example)
    if masks or batch.segmenter is None:
        return masks
    names = batch.vocabulary.objects(text)
    return segmented(batch.segmenter, example, names) if names else {}


def conclude(setup: Setup, measured: Measured) -> Mapping[str, Any]:
    """``descriptions``, ``token_types`` and, where a named object has a mask, ``localisation``, both with the values
    of each example; ``tokens`` and ``examples`` of the report."""
    options, drawn = setup.options, setup.drawn["pictures"]
    tokens = prepare(setup.model, drawn[:1]).tokens.show()
    maps = measured.table("maps").set_index("id")["map"]
    tables: dict[str, Any] = {
        "descriptions": measured.table("texts"),
        "token_types": pooled_types(measured.table("types")),
        "token_types_by_picture": measured.table("type_shares"),
        "tokens": {
            "header": list(tokens.header[1:]),
            "rows": [list(r[1:]) for r in tokens.rows],
            "prompt": drawn[0].prompt,
        },
        "examples": [{**_shown(e), **json.loads(maps[e.id])} for e in drawn[:SHOWN]],
    }
    hits = measured.table("hits")
    if len(hits):
        tables["localisation"] = localisation_table(hits, options.n_boot, options.seed)
        tables["localisation_by_object"] = hits[[*BANDS, "id", "object", "hit"]]
    return tables


def _shown(example: Example) -> dict[str, Any]:
    """A picture of the report, and what is in it."""
    assert example.image is not None
    return {
        "id": example.id,
        "prompt": example.prompt,
        "picture": picture_uri(example.image, 320, enlarge=True),
        "truth": objects_in(example),
    }


def pooled_types(types: pd.DataFrame) -> pd.DataFrame:
    """Token-type tables of batches, one under the other, as one: means and standard errors over all pictures."""
    columns = ["layer", "kind", "share", "se", "even", "n", "n_rows"]
    if types.empty:
        return pd.DataFrame(columns=columns)
    sums = types.assign(
        share=types.share * types.n,
        square=(types.se**2 * types.n + types.share**2) * types.n,
        even=types.even * types.n,
    )
    sums = sums.groupby(["layer", "kind"], sort=False, as_index=False)[
        ["share", "square", "even", "n", "n_rows"]
    ].sum()
    share = sums.share / sums.n
    variance = (sums.square / sums.n - share**2).clip(lower=0)
    return sums.assign(share=share, se=np.sqrt(variance / sums.n), even=sums.even / sums.n)[columns]


def localisation_table(hits: pd.DataFrame, n_boot: int, seed: int) -> pd.DataFrame:
    """Means over named objects, by band of layers, with intervals over objects.

    Columns ``first, last, hit, hit_low, hit_high, chance, near, near_low, near_high, chance_near, mass, n``.
    """
    table = hits.groupby(BANDS, as_index=False)[["chance", "chance_near", "mass"]].mean()
    for name in ("hit", "near"):
        names = (name, f"{name}_low", f"{name}_high")
        means = summary(hits, BANDS, name, unit=None, names=names, n_boot=n_boot, seed=seed)
        table = table.merge(means, on=[*BANDS, "n"] if "n" in table else BANDS)
    numbers = ["hit", "hit_low", "hit_high", "chance", "near", "near_low", "near_high", "chance_near"]
    return table[[*BANDS, *numbers, "mass", "n"]]


def with_interval(types: pd.DataFrame) -> pd.DataFrame:
    """Shares with ``low, high``: 1.96 standard errors over pictures, between 0 and 1."""
    half = 1.96 * types.se
    return types.assign(low=(types.share - half).clip(lower=0), high=(types.share + half).clip(upper=1))


def by_paper(types: pd.DataFrame) -> pd.DataFrame:
    """The token-type table with the paper's three kinds: ``layer, kind (image, query, generated), share, even, se, low,
    high``."""
    kinds = types.kind.where(~types.kind.isin(PROMPT_KINDS), "query")
    # the standard error of a sum is at most the sum of theirs
    sums = types.assign(kind=kinds).groupby(["layer", "kind"], as_index=False)[["share", "even", "se"]].sum()
    return with_interval(sums)


def evidence(run: Run) -> list[Evidence]:
    """Where the text looks; it decides nothing."""
    notes = []
    types = run.table("token_types")
    if len(types):
        image = by_paper(types).query("kind == 'image'").set_index("layer")
        peak = int(image.share.idxmax())
        text = (
            f"generated tokens give the image {percent(image.share.mean())} of their attention on average over layers "
            f"({percent(image.even.mean())} if attention were uniform), most in layer {peak} "
            f"({percent(image.share.max())}). Attention shows where text looks, not what it uses"
        )
        even = percent(image.even.mean())
        line = f"generated tokens give the image {percent(image.share.mean())} of it; an even share would be {even}"
        link = {"link": f"#{TOKEN_TYPES}"}
        notes.append({"kind": "attention by token type", "says": NOTE, "text": text, "line": line, **link})
    if run.has("localisation"):
        best = _best(run.table("localisation"))
        text = (
            "the word of a named object attends most to a point of that object in "
            f"{percent_cell(best.hit, best.hit_low, best.hit_high)} of {int(best.n)} cases in "
            f"{_band(best)}, the best; chance is {percent(best.chance)}"
        )
        hit = percent_cell(best.hit, best.hit_low, best.hit_high)
        line = f"an object’s word attends most to it in {hit} of {int(best.n)} cases; chance {percent(best.chance)}"
        notes.append(
            {"kind": "localisation", "says": NOTE, "text": text, "line": line, "link": "#localisation"}
        )
    return notes


def _best(places: pd.DataFrame) -> pd.Series:
    """The layers in which words look at their objects best."""
    return places.loc[places.hit.idxmax()]


def _band(row: pd.Series) -> str:
    return band_name(int(row["first"]), int(row["last"]))


def page(run: Run) -> list[Card]:
    """Where each word looked, attention by token type, and localisation."""
    cards = [_looking_card(run)]
    types = run.table("token_types")
    if len(types):
        image = by_paper(types).query("kind == 'image'")
        caption = (
            "Attention of rows at generated positions, mean over heads and rows. Over all layers the image gets "
            f"{percent(image.share.mean())}; an even share is {percent(image.even.mean())} (dotted). Bands: 95 % "
            f"intervals over {int(types.n.max())} pictures."
        )
        numbers = with_interval(types).rename(columns={"low": "share_low", "high": "share_high"})
        chart = Chart(
            TOKEN_TYPES, lambda dark: token_types_figure(types, dark), caption, numbers.drop(columns="se")
        )
        finding = f"the image gets {percent(image.share.mean())} of their attention"
        cards.append(
            Card("Where generated tokens look", [chart], name=TOKEN_TYPES, short="Attention", finding=finding)
        )
    title, blocks = "Do words look at their objects?", list[Block]()
    if not run.has("localisation"):
        blocks.append(Text("Not measured: no object that was named has a mask in this data."))
        return [*cards, Card(title, blocks, short="Objects")]
    places = run.table("localisation")
    best = _best(places)
    caption = (
        f"How often the row that writes an object’s word attends most to that object, of {int(best.n)} words. Best in "
        f"{_band(best)}: {number(best.hit)}, where chance is {number(best.chance)}. Bands: 95 % intervals."
    )
    blocks.append(Chart("localisation", lambda dark: localisation_figure(places, dark), caption, places))
    return [
        *cards,
        Card(
            title,
            blocks,
            {"localisation": LOCALISATION},
            name="localisation",
            short="Objects",
            finding=f"{percent(best.hit)} in {_band(best)}; chance {percent(best.chance)}",
        ),
    ]


def _looking_card(run: Run) -> Card:
    band = _band(_best(run.table("localisation"))) if run.has("localisation") else ""
    predictions = run.table("predictions") if run.has("predictions") else pd.DataFrame()
    examples = [shown_example(example, predictions, band) for example in run.json("examples")]
    scripts = ["overlay.js", "look.js"]
    widget = Html.from_template("look.html.j2", styles=["look.css"], scripts=scripts, examples=examples)
    finding = f"{len(examples)} pictures; point at a word"
    return Card(
        "Where each word looked", [Text(LOOKING), widget], framed=False, short="Words", finding=finding
    )


def token_types_figure(types: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """Where the generated tokens' attention goes, by layer (Fig. 1 of the paper)."""
    kinds = by_paper(types).rename(columns={"share": "mean"})
    even = kinds.assign(kind=kinds.kind + ", even", mean=kinds.even, low=kinds.even, high=kinds.even)
    parts = with_interval(types[types.kind.isin(["system", "markers"])]).rename(columns={"share": "mean"})
    parts = parts.groupby("kind").filter(lambda part: part["mean"].max() > VISIBLE)
    series = [
        SeriesStyle("image", "image tokens", "image", marker="o"),
        SeriesStyle("query", "query tokens: the prompt without the image", "gate", marker="s"),
        SeriesStyle("generated", "generated tokens", "third", marker="^"),
        SeriesStyle("system", "of the query tokens: before the image", "gate", line="--", marker=""),
        SeriesStyle("markers", "of these: image markers", "gate", line="-.", marker=""),
        *(
            SeriesStyle(f"{kind}, even", EVEN, color, line=":", marker="")
            for kind, color in (("image", "image"), ("query", "gate"), ("generated", "third"))
        ),
    ]
    table = pd.concat([kinds, parts, even], ignore_index=True)
    return curves(table, series, by="kind", ylabel="share of attention", ylim=(0, 1), dark=dark)


def localisation_figure(places: pd.DataFrame, dark: bool = False) -> NotebookFigure:
    """How often an object's word attends most to a point of the object, by layers, with chance."""
    line = places.sort_values("first")
    single = bool((line["first"] == line["last"]).all())
    layers = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(line["first"], line["last"], strict=True)]
    parts = []
    for name, chance in (("hit", "chance"), ("near", "chance_near")):
        band = {"mean": line[name], "low": line[f"{name}_low"], "high": line[f"{name}_high"]}
        parts.append(pd.DataFrame({"layers": layers, "what": name, **band}))
        parts.append(pd.DataFrame({"layers": layers, "what": chance, "mean": line[chance]}))
    hit, near = "maximum on the object", "maximum on the object or near it"
    series = [
        SeriesStyle("hit", hit, "image"),
        SeriesStyle("near", near, "neutral", marker="s"),
        SeriesStyle("chance", f"chance: {hit}", "image", line=":", marker="", band=False),
        SeriesStyle("chance_near", f"chance: {near}", "neutral", line=":", marker="", band=False),
    ]
    return curves(
        pd.concat(parts, ignore_index=True), series, by="what", x="layers", dark=dark,
        xlabel="layer" if single else "layers, attention averaged", ylabel="share of named objects",
    )  # fmt: skip


def compared(run: Run) -> pd.DataFrame:
    """Attention by token type, and how often words look at their objects, by layer, for the comparison of two runs."""
    types = with_interval(run.table("token_types").query("even > 0")).assign(mean=lambda t: t.share)
    parts = [cells(types, LOOKED, _type_names(types))]
    if run.has("localisation"):
        places = run.table("localisation")
        places = places.assign(mean=places.hit, low=places.hit_low, high=places.hit_high)
        parts.append(cells(places, HIT, places.apply(_band, axis=1)))
    return pd.concat(parts, ignore_index=True)


def compared_values(run: Run) -> pd.DataFrame:
    """What these are the means of: shares by picture, and by object of a picture whether its word looks at it."""
    types, hits = (
        run.table(name) if run.has(name) else pd.DataFrame()
        for name in ("token_types_by_picture", "localisation_by_object")
    )
    parts = [pd.DataFrame(columns=VALUES)]
    if len(types):
        named = types.assign(how="", metric=LOOKED, row=_type_names(types), span=span_of(None))
        parts.append(named.assign(value=types.share.astype(float))[VALUES])
    if len(hits):
        named = hits.assign(how="", metric=HIT, row=hits.apply(_band, axis=1), span=span_of(SHARE))
        parts.append(named.assign(id=hits.id + ": " + hits.object, value=hits.hit.astype(float))[VALUES])
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _type_names(types: pd.DataFrame) -> pd.Series:
    return types.kind + ", layer " + types.layer.astype(str)


SECTION = Section(
    "descriptions",
    "what is written of each picture, and where the rows that write it look",
    batches,
    measure,
    conclude,
    evidence=evidence,
    cells=compared,
    values=compared_values,
    page=page,
)
