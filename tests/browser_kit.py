"""Pages in a real Chromium: the fixtures ``browser`` and ``page``, and what tests of pages ask of them.

``page`` fails its test on a console error, an uncaught exception, or a request off the page. Tests skip where there is
no browser; with ``GATELENS_BROWSER=required`` they fail instead. ``GATELENS_SCREENSHOTS=folder`` keeps the pictures
that :func:`screenshot` takes.

>>> def test_mine(page, tmp_path):
...     page.goto(view.save(tmp_path / "x.html").as_uri())
...     for width, scheme in SCREENS:
...         set_screen(page, width, scheme)
...         assert serious_faults(page) == [] and overflow(page) == []
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (390, 768, 1280)
SCREENS: tuple[tuple[int, Literal["light", "dark"]], ...] = tuple(
    (width, scheme) for width in WIDTHS for scheme in ("light", "dark")
)
HEIGHT = 900
INSIDE = re.compile(r"^(file|data|blob|about):")


def chromium() -> str:
    """The path of the browser. Where it or Playwright is missing the test skips, or fails if a browser is required."""
    why = ""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        why = "Playwright is not installed: pip install 'gatelens[dev]'"
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        why = f"no browser on the PATH: install one of {', '.join(NAMES)}"
    if path is not None and not why:
        return path
    if os.environ.get("GATELENS_BROWSER") == "required":
        pytest.fail(f"GATELENS_BROWSER=required, and {why}")
    pytest.skip(why)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser per module, and so at most one per worker.

    Playwright's event loop counts as running for as long as it is started. A longer scope would break ``asyncio.run``
    in tests of other modules.
    """
    path = chromium()
    from playwright.sync_api import sync_playwright

    off = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=off)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page 1280 pixels wide on light ground; see :func:`watched_page`."""
    with watched_page(browser) as watched:
        yield watched


@contextmanager
def watched_page(browser: Browser, origins: Sequence[str] = ()) -> Iterator[Page]:
    """A page that does not leave itself.

    Args:
        browser: the fixture.
        origins: servers it may talk to, ``http://127.0.0.1:8000``.

    Raises:
        AssertionError: at the end, naming console errors, uncaught exceptions and requests elsewhere (which were
            aborted).
    """
    context = browser.new_context(viewport={"width": 1280, "height": HEIGHT}, service_workers="block")
    problems: list[str] = []
    _watch(context, problems, origins)
    try:
        yield context.new_page()
    finally:
        context.close()
    assert not problems, "\n".join(problems)


def _watch(context: BrowserContext, problems: list[str], origins: Sequence[str]) -> None:
    def is_inside(url: str) -> bool:
        return bool(INSIDE.match(url)) or any(url == o or url.startswith(f"{o}/") for o in origins)

    def route(route: Any) -> None:
        if is_inside(route.request.url):
            route.continue_()
        else:
            problems.append(f"request off the page: {route.request.url:.200}")
            route.abort()

    def socket(socket: Any) -> None:
        if any(socket.url.startswith(f"ws{o.removeprefix('http')}/") for o in origins):
            socket.connect_to_server()
        else:
            problems.append(f"request off the page: {socket.url:.200}")
            socket.close()

    context.route("**/*", route)
    context.route_web_socket("**/*", socket)
    context.on(
        "console", lambda said: problems.append(f"console: {said.text}") if said.type == "error" else None
    )
    context.on("weberror", lambda error: problems.append(f"uncaught: {error.error}"))


def set_screen(
    page: Page, width: int, scheme: Literal["light", "dark"] = "light", height: int = HEIGHT
) -> None:
    """The width of the window, and light or dark ground."""
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)


def screenshot(page: Page, name: str = "", *, of: str = "", whole: bool = False) -> Image.Image:
    """What the page looks like, as RGB.

    Args:
        page: the fixture.
        name: of the file in the folder ``GATELENS_SCREENSHOTS``, where that is set; empty keeps none.
        of: a CSS selector of the one element to show, as much of it as the window holds; empty is the window.
        whole: the whole page instead of the window.
    """
    box = None
    if of:
        page.locator(of).scroll_into_view_if_needed()
        box = page.locator(of).bounding_box()
        assert box is not None, f"{of} is not shown"
    taken = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    if box is not None:  # the browser draws what lies between two pixels at the nearest
        left, top = floor(box["x"] + 0.5), floor(box["y"] + 0.5)
        taken = taken.crop((left, top, left + round(box["width"]), top + round(box["height"])))
    folder = os.environ.get("GATELENS_SCREENSHOTS")
    if folder and name:
        Path(folder).mkdir(parents=True, exist_ok=True)
        taken.save(Path(folder, f"{name}.png"))
    return taken


def pdf_pages(page: Page) -> int:
    """How many sheets of A4 the page prints on."""
    return len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4", print_background=True)))


def serious_faults(page: Page) -> list[str]:
    """What axe-core finds of impact serious or critical, in all frames: rule, element and what is wrong."""
    from axe_playwright_python.base import AXE_SCRIPT

    run = "async () => (await axe.run(document, {resultTypes: ['violations'], iframes: false})).violations"
    found = []
    for frame in page.frames:
        frame.evaluate(f"() => {{ {AXE_SCRIPT} }}")
        for fault in frame.evaluate(run):
            if fault["impact"] in ("serious", "critical"):
                found += [
                    f"{fault['id']}: {node['html']:.120}: {' '.join(node['failureSummary'].split()):.200}"
                    for node in fault["nodes"]
                ]
    return found


def overflow(page: Page) -> list[str]:
    """Elements that reach beyond the sides of the window, but for those within something that scrolls sideways."""
    return page.evaluate(_OVERFLOW)


_OVERFLOW = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = (e) => /auto|scroll/.test(getComputedStyle(e).overflowX);
  for (const e of document.body.querySelectorAll("*")) {
    if (e.ownerSVGElement || !e.checkVisibility()) continue;
    const box = e.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1 || (box.right <= width + 1 && box.left >= -1)) continue;
    let up = e.parentElement;
    while (up && up !== document.body && !scrolls(up)) up = up.parentElement;
    if (up && up !== document.body) continue;
    const name = e.tagName.toLowerCase() + [...e.classList].map((c) => "." + c).join("");
    found.push(`${name} from ${Math.round(box.left)} to ${Math.round(box.right)} of ${width}`);
  }
  return found;
}"""
