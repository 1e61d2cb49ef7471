"""Attention heads with the image tokens shown as the image: choose a word, see where each head looks."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from circuitsvis.attention import attention_heads
from jaxtyping import Float
from torch import Tensor

from gatelens.errors import DataError
from gatelens.inputs import VLMInputs
from gatelens.plots.overlay import Part, draw_heat, show_picture
from gatelens.plots.style import NotebookFigure, styled
from gatelens.tokens import SelectorLike, TokenMap
from gatelens.views.packing import STEPS, Block, geometry, lined, pooled, squares_of, summed
from gatelens.views.page import View, render
from gatelens.views.patterns import patterns_of, query_rows, text_side
from gatelens.views.prompts import Prompt, prompt_of

MOST_BYTES = (
    4_200_000  # of weights on a page; with lines, base64, pictures and circuitsvis it stays under 10 MB
)
MOST_IN_CIRCUITSVIS = 150_000  # weights it writes as text
MOST_POOLED = 16  # tokens along one side of what is shown as one
MOST_POOLED_QUERIES = 4  # the largest default grouping of patches as queries; larger groups average too much


@dataclass(frozen=True, eq=False, repr=False)
class HeadsView(View):
    """Attention of some queries by layer and head.

    Attributes:
        title: of the page.
        prompt: whose attention it is.
        layers, heads: which, in order.
        queries: positions of words whose attention is shown.
        patches: of each part, the squares of image tokens whose attention is shown, numbered after ``queries``.
        pool, patch_pool: image tokens are shown in squares of ``pool`` × ``pool``, and as queries of ``patch_pool`` ×
            ``patch_pool``; 1 is each by itself, 0 that there is no room for them as queries.
        parts: the image tokens as shown.
        pictures: attention to each part, Float[layer, head, query, cell] each; weights of pooled keys are summed, rows
            of pooled queries averaged.
        words: attention to the other positions, ``Prompt.words`` in order and then what has no place on a picture.
        text: Float[layer × head, query, key], all words and a position for each picture, for circuitsvis.
        text_labels: of these positions.

    Example:
        >>> cache = model.run_with_cache(inputs)[1]
        >>> view = gl.views.heads(cache, inputs, layer=3)
        >>> view.layers, view.heads
        ((3,), (0, 1, 2, 3))
    """

    title: str
    prompt: Prompt
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    patches: tuple[Part, ...]
    pool: int
    patch_pool: int
    parts: tuple[Part, ...]
    pictures: tuple[Block, ...]
    words: Block
    text: Float[Tensor, "head query key"]
    text_labels: tuple[str, ...]

    hint: ClassVar[str] = (
        "Point at a word, or move with Tab and the arrow keys: its attention lies over the picture. Bars under words "
        "show its attention to them. Choose a head below."
    )
    longest: ClassVar[int | None] = None  # pixels of a picture; None is as many as its panels leave

    @property
    def n_queries(self) -> int:
        """Words and patches whose attention is shown."""
        return len(self.queries) + sum(len(part.places) for part in self.patches)

    @property
    def note(self) -> str:
        """What was pooled or is missing, and how exact the weights of the page are."""
        n = sum(len(part.places) for part in self.prompt.parts)
        shown = "one by one" if self.pool == 1 else f"in squares of {self.pool} × {self.pool}, weights summed"
        said = f"{n:,} image tokens {shown}. "
        said += self._patches_note()
        said += (
            f"A weight is exact to 1/{2 * STEPS} of the largest in its row; shares of attention are exact."
        )
        return said if self.prompt.given else f"{said} No picture is known: pass images=[picture]."

    def _patches_note(self) -> str:
        if self.n_queries > len(self.queries):
            side = self.patch_pool
            averaged = f", {side} × {side} tokens averaged" if side > 1 else ""
            return f"Click a patch to see where it looks{averaged}. "
        no_room = "There is no room for patches as queries: choose fewer layers or heads. "
        return "" if self.patch_pool else no_room

    def __repr__(self) -> str:
        sizes = f"{len(self.layers)} layers, {len(self.heads)} heads, {self.n_queries} queries"
        return f"{type(self).__name__}({self.title}; {sizes}; {self.note})"

    def page(self) -> str:
        """The view as one HTML document."""
        return render(
            "heads.html.j2",
            ["overlay.js", "heads.js"],
            self.data(),
            title=self.title,
            note=self.note,
            hint=self.hint,
            layers=self.layers,
            heads=self.heads,
            chips=self.chips(),
            circuits=self._circuits(),
        )

    def query_name(self, query: int) -> str:
        """The word or the patch whose attention a query is."""
        if query < len(self.queries):
            return self.prompt.word(self.queries[query])
        places = [(part, *place) for part in self.patches for place in part.places]
        part, tile, row, column = places[query - len(self.queries)]
        where = f"tile {tile}, " if part.name == "tiles" else ""
        return f"{self.prompt.name(part)}, {where}row {row}, column {column}"

    def data(self) -> dict[str, Any]:
        """What the script of the page reads."""
        panels, number = [], len(self.queries)
        within = lined(self.pictures)
        for i, (part, block) in enumerate(zip(self.parts, self.pictures, strict=True)):
            panel = self.prompt.panel(part, self.longest)
            panel |= {"attention": block.packed(), "lined": within[i]}
            if self.patches and self.patches[i].places:
                size = self.prompt.pictures[part.image].size
                panel["queries"] = geometry(self.patches[i], size, (panel["width"], panel["height"]))
                panel["queries"] |= {"first": number, "pool": self.patch_pool}
                number += len(self.patches[i].places)
            panels.append(panel)
        return {
            "panels": panels,
            "words": self.words.packed(),
            "layers": self.layers,
            "heads": self.heads,
            "n_queries": self.n_queries,
            "first": max(0, len(self.queries) - 1),
            "given": self.prompt.given,
        }

    def chips(self) -> list[dict[str, Any]]:
        """The prompt in order: words with their number as key and as query (-1: none), and pictures."""
        words, query_of = self.prompt.words, {p: i for i, p in enumerate(self.queries)}
        shown: list[dict[str, Any]] = []
        for item in self.prompt.stretches():
            if isinstance(item, tuple):
                name = "picture" if len(self.prompt.pictures) == 1 else f"picture {item[0] + 1}"
                panels = [i for i, part in enumerate(self.parts) if part.image == item[0]]
                shown.append({"picture": name, "n": item[1], "panels": panels})
            else:
                word = self.prompt.word(item)
                shown.append(
                    {"text": word, "key": words.index(item), "query": query_of.get(item, -1), "at": item}
                )
        for i, (kind, where) in enumerate(self.prompt.unplaced.items()):
            shown.append({"text": f"{len(where)} {kind}", "key": len(words) + i, "query": -1, "at": where[0]})
            for p in where:
                if p in query_of:
                    shown.append({"text": self.prompt.word(p), "key": -1, "query": query_of[p], "at": p})
        return shown

    def _circuits(self) -> str:
        """circuitsvis' heads of the words as a document in base64; empty where there would be too much of it."""
        if not self.text.numel() or self.text.numel() > MOST_IN_CIRCUITSVIS:
            return ""
        drawn = attention_heads(
            attention=self.text.double().numpy().round(4),  # float32 would be written to 17 digits
            tokens=[label.replace(" ", "·") for label in self.text_labels],  # it drops every kind of space
            attention_head_names=[f"L{layer}H{head}" for layer in self.layers for head in self.heads],
            min_value=0.0,
            max_value=1.0,
        ).local_src
        start = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>circuitsvis</title></head>'
        style = "margin:12px;background:#fff;color:#1d2430;font:14px/1.5 system-ui,sans-serif"
        page = f'{start}<body style="{style}">{drawn}</body></html>'
        return base64.b64encode(page.encode()).decode()

    def figure(
        self, query: int = -1, layer: int | None = None, columns: int = 4, dark: bool = False
    ) -> NotebookFigure:
        """Where each head looks from one query, as a still picture: ``figure().savefig("heads.pdf")``.

        Each head has its own scale, from 0 to its largest weight on a picture; its share is written over it.

        Args:
            query: number among ``queries`` and then ``patches``; -1 is the last word, or the last patch where the view
                has no words.
            layer: which; None is the first of the view.
            columns: heads in a row.
            dark: draw on dark ground.

        Raises:
            DataError: no such query or layer, or image tokens without a place.
        """
        which = self._index("layer", self.layers, self.layers[0] if layer is None else layer)
        from_end = (len(self.queries) or self.n_queries) if query < 0 else 0
        query = self._index("query", range(self.n_queries), query + from_end)
        if not self.parts:
            raise DataError("heads: these image tokens have no place in the picture (their box is unknown)")
        rows = [(h, i) for h in range(len(self.heads)) for i in range(len(self.parts))]
        across = min(columns * len(self.parts), len(rows))
        down = math.ceil(len(rows) / across)
        with styled(dark):
            ratio = max(p.height / p.width for p in self.prompt.pictures)
            figure = NotebookFigure(
                figsize=(1.9 * across, (1.75 * ratio + 0.3) * down + 0.4), layout="constrained"
            )
            figure.suptitle(
                f"Layer {self.layers[which]}, attention of “{self.query_name(query)}”",
                x=0.01, ha="left", fontsize=10.5, fontweight="bold",
            )  # fmt: skip
            grid = list(figure.subplots(down, across, squeeze=False).flat)
            for axes in grid[len(rows) :]:
                axes.set_visible(False)
            for axes, (h, i) in zip(grid, rows, strict=False):
                part, block = self.parts[i], self.pictures[i]
                show_picture(axes, self.prompt.pictures[part.image], grey=True)
                values = block.values[which, h, query].numpy()
                top = max(float(b.values[which, h, query].max()) for b in self.pictures)
                draw_heat(axes, part.boxes, values, top)
                name = (
                    f"H{self.heads[h]}"
                    if len(self.parts) == 1
                    else f"H{self.heads[h]}, {self.prompt.name(part)}"
                )
                axes.set_title(
                    f"{name}  {float(block.share[which, h, query]):.1%}", fontsize=8.5, fontweight="normal"
                )
        return figure

    @staticmethod
    def _index(what: str, there: Sequence[int], wanted: int) -> int:
        if wanted not in there:
            raise DataError(
                f"heads: {what} {wanted} is not in the view, which has {', '.join(map(str, there))}"
            )
        return list(there).index(wanted)


def heads(
    cache: Mapping[str, Tensor] | Float[Tensor, "batch head query key"],
    tokens: TokenMap | VLMInputs,
    layer: int | None = None,
    example: int = 0,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    images: Any = None,
    queries: SelectorLike | None = None,
    pool: int | Literal["auto"] = "auto",
) -> HeadsView:
    """Where each head looks, the image tokens shown as the image; the words also in circuitsvis.

    Point at a word of the prompt, or move with Tab and the arrow keys: its attention is shown over the picture, for
    each head, and under the other words. Weights are stored as bytes: exact to 1/510 of the largest in their row on
    that picture.

    Args:
        cache: from ``run_with_cache`` (holding ``blocks.<layer>.attn.hook_pattern``), or the pattern of one layer.
        tokens: the inputs' TokenMap, or the inputs.
        layer: which.
        example: which prompt of the batch.
        layers: several layers instead of one; with neither, all that the cache has.
        heads: which heads; None is all.
        images: ``inputs.images``, or the pictures of this prompt; None takes those that the inputs or the cache have.
            Where none are known, boxes are drawn on a blank background.
        queries: selector of the positions whose attention is shown; None is all words, and the image tokens as far as
            there is room, in squares whose rows are averaged. Click a patch to choose it.
        pool: image tokens in squares of ``pool`` × ``pool``, their weights summed; ``"auto"`` is the least with which
            the page stays under 10 MB.

    Raises:
        DataError: no pattern in the cache, no such layer, head or example, or a page too large to open.

    Example:
        >>> logits, cache = model.run_with_cache(inputs)
        >>> view = gl.views.heads(cache, inputs, layer=5)
        >>> view.save(folder / "heads.html").name  # or view.figure().savefig("heads.png")
        'heads.html'
    """
    if images is None and isinstance(tokens, TokenMap):
        images = getattr(cache, "images", None) or None
    prompt = prompt_of("heads", tokens, example, images)
    patterns = patterns_of(cache, layer, layers, prompt)
    n_heads = next(iter(patterns.values())).shape[0]
    chosen = list(range(n_heads)) if heads is None else [int(h) for h in heads]
    wrong = [h for h in chosen if not 0 <= h < n_heads]
    if wrong or not chosen:
        raise DataError(f"heads: head(s) {wrong or 'none'} asked for, there are 0 to {n_heads - 1}")
    return view_of(prompt, {at: one[chosen] for at, one in patterns.items()}, chosen, queries, pool)


def view_of(
    prompt: Prompt,
    patterns: Mapping[int, Float[Tensor, "head query key"]],
    heads: Sequence[int],
    queries: SelectorLike | None,
    pool: int | Literal["auto"],
) -> HeadsView:
    """The view of whole patterns of one prompt, by layer."""
    mask = None if queries is None else prompt.tokens.mask(queries)[prompt.example]
    asked = prompt.words if mask is None else mask.nonzero().flatten().tolist()
    if not asked:
        raise DataError(f"heads: queries={queries!r} selects no position of prompt {prompt.example}")
    image_tokens = prompt.parts if mask is None else [part.only(asked) for part in prompt.parts]
    placed = {p for part in prompt.parts for p in part.positions}
    words = [p for p in asked if p not in placed]
    keys = [[p] for p in prompt.words] + list(prompt.unplaced.values())
    n_rows = len(patterns) * len(heads)
    side = pool_for("heads", prompt.parts, n_rows * max(1, len(words)), len(keys), pool)
    room = MOST_BYTES // (n_rows * (len(keys) + squares_of(prompt.parts, side))) - len(words)
    query_side = _query_side(image_tokens, side, room, queries)
    patches = [pooled(part, query_side) for part in image_tokens] if query_side else []
    rows = query_rows(patterns, [[p] for p in words] + [group for groups, _ in patches for group in groups])
    squares = [pooled(part, side) for part in prompt.parts]
    text, labels = text_side(prompt, patterns)
    title = (
        f"Attention, layer {min(patterns)}" if len(patterns) == 1 else f"Attention, {len(patterns)} layers"
    )
    return HeadsView(
        title if prompt.tokens.batch_size == 1 else f"{title}, prompt {prompt.example}",
        prompt,
        tuple(patterns),
        tuple(heads),
        tuple(words),
        tuple(part for _, part in patches),
        side,
        query_side,
        tuple(part for _, part in squares),
        tuple(summed(rows, groups) for groups, _ in squares),
        summed(rows, keys),
        text,
        labels,
    )


def _query_side(image_tokens: Sequence[Part], side: int, room: int, queries: SelectorLike | None) -> int:
    """How many tokens along a side are one query, at most ``room`` queries in all; 0 where patches are not queries.

    Raises:
        DataError: patches were asked for, and there is no room.
    """
    if not any(part.places for part in image_tokens):
        return side
    for query_side in range(side, (MOST_POOLED_QUERIES if queries is None else MOST_POOLED) + 1):
        if squares_of(image_tokens, query_side) <= room:
            return query_side
    if queries is None:
        return 0
    raise DataError(
        f"heads: the attention of the image tokens of queries={queries!r} does not fit on a page: choose fewer "
        "layers=[…], heads=[…] or queries"
    )


def pool_for(who: str, parts: Sequence[Part], n_rows: int, n_keys: int, pool: int | Literal["auto"]) -> int:
    """How many tokens along a side are shown as one.

    Raises:
        DataError: a page would be too large, or ``pool`` is no such number.
    """
    if pool != "auto" and (type(pool) is not int or pool < 1):
        raise DataError(
            f"{who}: pool={pool!r}: give the tokens along a side of a square, from 1 on, or 'auto'"
        )
    for side in range(1, MOST_POOLED + 1) if pool == "auto" else [pool]:
        if n_rows * (n_keys + squares_of(parts, side)) <= MOST_BYTES:
            return side
    raise DataError(
        f"{who}: {n_rows:,} rows of attention on {n_keys + squares_of(parts, 1):,} keys do not fit on a page: choose "
        "layers=[…], heads=[…], queries='…' or a larger pool="
    )
