"""How large pages of attention are, and how fast they open and answer in Chromium.

``python -m benchmarks --only views``.

The attention is random, as sharp as that of a trained model; a page's size does not depend on it. A page is open when
the attention of its first word lies over the picture, and it has answered when that of another does. Needs the ``dev``
extra and a Chromium on the PATH.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from gatelens.tokens import Role, TokenMap
from gatelens.views import heads

LIMIT_MB, LIMIT_S = 10.0, 3.0  # of the first page
WORDS = 26  # of the prompt
PAGES = {  # layers, heads, image tokens along a side
    "1,024 image tokens × 32 heads, one layer": (1, 32, 32),
    "1,024 image tokens × 32 heads, 32 layers": (32, 32, 32),
    "4,096 image tokens × 32 heads, one layer": (1, 32, 64),
    "576 image tokens × 32 heads, one layer": (1, 32, 24),
}


def prompt(side: int, rng: np.random.Generator) -> tuple[TokenMap, Image.Image]:
    """A picture of side × side tokens before words, and the picture."""
    n, pixels = side * side, 14 * side
    size = 1 + n + WORDS
    image = torch.zeros(1, size, dtype=torch.bool)
    image[0, 1 : 1 + n] = True
    place = torch.arange(n)
    row, col = (torch.full((1, size), -1) for _ in range(2))
    row[image], col[image] = place // side, place % side
    box = torch.full((1, size, 4), float("nan"))
    box[image] = 14.0 * torch.stack([place % side, place // side, place % side + 1, place // side + 1], dim=1)
    roles = torch.where(image, int(Role.IMAGE), int(Role.QUERY))
    roles[0, 0] = Role.SYSTEM
    strings = ("<s>", *["<image>"] * n, *(f"word{i}" for i in range(WORDS)))
    shade = np.add.outer(np.linspace(0, 200, pixels), np.linspace(0, 55, pixels))[..., None]
    photo = Image.fromarray((shade + rng.normal(0, 8, (pixels, pixels, 3))).clip(0, 255).astype(np.uint8))
    index = torch.where(image, 0, -1)
    return TokenMap(roles, index, row, col, box, (((pixels, pixels),),), (strings,), size), photo


def measure(repeats: int = 5) -> dict[str, Any]:
    """Size and times of each page, and whether the first is within its limits."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        pages = {name: page_of(name, repeats, browser, Path(folder)) for name in PAGES}
        browser.close()
    return {"pages": pages, "limit_mb": LIMIT_MB, "limit_s": LIMIT_S}


def page_of(name: str, repeats: int, browser: Any, folder: Path) -> dict[str, Any]:
    """Megabytes of a page, seconds until it is open and until it answers, and what it shows."""
    n_layers, n_heads, side = PAGES[name]
    rng = np.random.default_rng(0)
    tokens, photo = prompt(side, rng)
    generator = torch.Generator().manual_seed(0)
    cache = {}
    for layer in range(n_layers):
        rows = torch.zeros(1, n_heads, tokens.n_pos, tokens.n_pos, dtype=torch.float16)
        mine = 3 * torch.randn(1, n_heads, WORDS, tokens.n_pos, generator=generator)
        rows[:, :, -WORDS:] = mine.softmax(-1).half()
        rows[:, :, :-WORDS] = rows[:, :, -1:]
        cache[f"blocks.{layer}.attn.hook_pattern"] = rows
    view = heads(cache, tokens, images=photo)
    file = view.save(folder / "view.html")
    opened, painted = [], []
    for _ in range(repeats):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.append(timed(page, lambda page=page: page.goto(file.as_uri()), WORDS))
        for query in (3, 11):
            painted.append(timed(page, page.locator("button.word").nth(query).hover, query))
        page.close()
    return {
        "mb": file.stat().st_size / 1e6,
        "open_s": statistics.median(opened),
        "most_open_s": max(opened),
        "answer_s": statistics.median(painted),
        "cells": len(view.parts[0].boxes),
        "queries": view.n_queries,
    }


def timed(page: Any, act: Any, query: int) -> float:
    """Seconds until the attention of a word is painted."""
    start = perf_counter()
    act()
    page.wait_for_function("query => document.body.dataset.query === String(query)", arg=query)
    return perf_counter() - start
