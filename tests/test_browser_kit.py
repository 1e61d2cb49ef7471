"""The browser kit finds what it is there to find, and nothing on a page that has no fault."""

from __future__ import annotations

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from browser_kit import (
    SCREENS,
    chromium,
    overflow,
    pdf_pages,
    screenshot,
    serious_faults,
    set_screen,
    watched_page,
)

CLEAN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clean</title>
<meta name="viewport" content="width=device-width"><style>:root { color-scheme: light dark } p { color: CanvasText }
</style></head><body><main><h1>A page</h1>%s</main></body></html>"""


@pytest.fixture
def at(tmp_path: Path) -> Any:
    """The address of a page with this inside."""

    def write(inside: str = "") -> str:
        file = tmp_path / "page.html"
        file.write_text(CLEAN % inside, encoding="utf-8")
        return file.as_uri()

    return write


def test_a_clean_page_passes(page: Any, at: Any) -> None:
    page.goto(at("<p>words</p><div style='overflow-x:auto'><div style='width:3000px'>wide</div></div>"))
    for width, scheme in SCREENS:
        set_screen(page, width, scheme)
        assert serious_faults(page) == []
        assert overflow(page) == []
        corner = screenshot(page).getpixel((1, 1))
        assert (min(corner) > 200) == (scheme == "light")
        assert screenshot(page).width == width
    assert pdf_pages(page) == 1


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<script>console.error('oh')</script>", "console: oh"),
        ("<script>throw new Error('no')</script>", "uncaught: .*no"),
        ("<img alt='' src='http://example.org/a.png'>", "request off the page: http://example.org/a.png"),
        ("<img alt='' src='http://127.0.0.1:1/a.png'>", "request off the page: http://127.0.0.1:1"),
        ("<script>new WebSocket('ws://127.0.0.1:1/s')</script>", "request off the page: ws://127.0.0.1:1"),
        (
            "<iframe title='f' srcdoc=\"<script>console.error('within')</script>\"></iframe>",
            "console: within",
        ),
        (
            "<link rel=stylesheet href='https://example.org/s.css'>",
            "request off the page: https://example.org",
        ),
    ],
    ids=["console", "exception", "request", "port", "socket", "frame", "style"],
)
def test_a_page_that_misbehaves_fails(browser: Any, at: Any, inside: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said), watched_page(browser) as page:
        page.goto(at(inside))
        page.wait_for_timeout(50)


def test_only_the_server_that_is_named_may_be_asked(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(CLEAN % "<p>served</p>", encoding="utf-8")
    (tmp_path / "favicon.ico").touch()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with watched_page(browser, origins=[address]) as page:
            page.goto(address)
            assert page.inner_text("p") == "served"
        with pytest.raises(AssertionError, match="off the page"), watched_page(browser) as page:
            page.goto("about:blank")
            page.evaluate("url => fetch(url, {mode: 'no-cors'}).catch(() => 0)", f"{address}/")
        server.shutdown()


def test_faults_that_axe_must_find_also_in_frames(page: Any, at: Any) -> None:
    page.goto(at("<p style='color:#ccc;background:#fff'>pale</p><button></button>"))
    assert {fault.split(":")[0] for fault in serious_faults(page)} == {"color-contrast", "button-name"}
    page.goto(
        at("<iframe title='f' srcdoc=\"<html lang='en'><title>t</title><button></button></html>\"></iframe>")
    )
    assert [fault.split(":")[0] for fault in serious_faults(page)] == ["button-name"]


def test_what_reaches_beyond_the_window_is_named(page: Any, at: Any) -> None:
    page.goto(at("<div class='wide' style='width:900px'>wide</div>"))
    assert overflow(page) == []
    set_screen(page, 390)
    (named,) = overflow(page)
    assert named.startswith("div.wide from ")


def test_sheets_are_counted(page: Any, at: Any) -> None:
    page.goto(at("<p style='break-after:page'>1</p><p style='break-after:page'>2</p><p>3</p>"))
    assert pdf_pages(page) == 3


def test_screenshots_are_kept_where_asked(
    page: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATELENS_SCREENSHOTS", str(tmp_path / "shots"))
    page.goto(at("<div id='d' style='position:fixed;top:0;width:40px;height:30px;background:#123456'></div>"))
    shown = screenshot(page, "d", of="#d")
    assert shown.size == (40, 30) and shown.getpixel((20, 15)) == (0x12, 0x34, 0x56)
    assert (tmp_path / "shots" / "d.png").is_file()


def test_a_missing_browser_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("GATELENS_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser on the PATH"):
        chromium()
    monkeypatch.setenv("GATELENS_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no browser on the PATH"):
        chromium()
