"""The page in a real browser, on the command as a user starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case import cases
from PIL import Image

import gatelens as gl
from browser_kit import SCREENS, overflow, screenshot, serious_faults, set_screen, watched_page
from gatelens.explore.explorer import Explorer
from gatelens.explore.state import read_state

PATIENT = 30_000  # ms: other tests may take the machine's time


@pytest.fixture(scope="module")
def address(browser: Any) -> Iterator[str]:
    """Where the page is; at its end Ctrl-C must stop the command in one line."""
    command = [sys.executable, "-u", "-m", "gatelens.cli", "explore", "--no-browser"]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout is not None
    said = started.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found, (said, started.kill(), started.communicate())
    yield found[0]
    started.send_signal(signal.SIGINT)
    try:
        _, error = started.communicate(timeout=60)
    finally:
        started.kill()
    assert (started.returncode, error) == (130, "gatelens: stopped\n")


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with watched_page(browser, origins=[address]) as watched:
        watched.set_default_timeout(PATIENT)
        watched.goto(address)
        at_rest(watched)
        yield watched


def at_rest(page: Any) -> None:
    """Waits until all that was asked for is shown."""
    page.wait_for_selector("body[data-rest]", timeout=PATIENT)


def change(page: Any, *actions: Any) -> None:
    for act in actions:
        act()
        at_rest(page)


def slide(page: Any, value: float) -> None:
    page.locator("#steer").fill(str(value))
    at_rest(page)


def drag(page: Any, box: tuple[float, float, float, float]) -> None:
    """Drags a box on the picture, given in shares of its sides."""
    page.locator("#stage").scroll_into_view_if_needed()
    stage = page.locator("#stage").bounding_box()
    x0, x1 = (stage["x"] + share * stage["width"] for share in (box[0], box[2]))
    y0, y1 = (stage["y"] + share * stage["height"] for share in (box[1], box[3]))
    page.mouse.move(x0, y0)
    page.mouse.down()
    page.mouse.move((x0 + x1) / 2, y1)
    page.mouse.move(x1, y1)
    page.mouse.up()
    at_rest(page)


def shown(page: Any) -> dict[str, Any]:
    """What the page says: answers, the table of tokens, the lens."""
    rows = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    return {
        "before": page.inner_text("#before"),
        "after": page.inner_text("#after"),
        "top": [(r[0], *r[2:]) for r in page.eval_on_selector_all("#top tbody tr", rows)],
        "lens": page.eval_on_selector_all("#lens tbody tr", rows),
    }


def error_of(page: Any) -> tuple[str, str]:
    """The one error that is shown: whose it is and what it says."""
    (line,) = page.locator(".error:visible").all()
    return line.get_attribute("data-error"), line.inner_text()


def percent(p: float) -> str:
    if p >= 0.9995:
        return "100\u00a0%"
    return "<0.1\u00a0%" if 0 < p < 0.0005 else f"{100 * p:.{1 if p < 0.0995 else 0}f}\u00a0%"


def test_upload_type_cut_drag_steer_and_copy(
    page: Any, address: str, explorer: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    monkeypatch.chdir(tmp_path)
    for name, sample in (("first.png", "sample:3"), ("second.png", "sample:4")):
        explorer.shelf[sample].image.resize((96, 96)).save(name)
    change(
        page,
        lambda: page.set_input_files("#pictures input", "first.png"),
        lambda: page.set_input_files("#seconds input", "second.png"),
        lambda: page.fill("#prompt", "<image>this is  a"),
        lambda: page.click("[data-cell='text-region']"),
    )
    assert "drag a box" in error_of(page)[1]
    assert page.inner_text("#verdict") == "This is the last result: a control has an error."
    drag(page, (0.1, 0.2, 0.6, 0.9))
    assert page.locator(".error:visible").count() == 0
    page.locator("#region").wait_for(state="visible")
    change(
        page,
        lambda: page.click("[data-choice='how'] label:has-text('mask')"),
        lambda: page.click("[data-head='1']"),
        lambda: page.click("[data-choice='patch'] label:has-text('gate')"),
        lambda: page.select_option("#steer_layer", "4"),
    )
    slide(page, 2.5)
    page.click("#copy")
    page.wait_for_selector("#copy:has-text('Copied')")
    copied = page.evaluate("navigator.clipboard.readText()")
    for part in (
        '"first.png"',
        '"second.png"',
        "image.box(9.6,19.2,57.6,86.4)",
        "heads=[1]",
        "scale=2.5",
        "gl.patch(",
    ):
        assert part in copied
    names: dict[str, Any] = {}
    exec(compile(copied, "copied.py", "exec"), names)
    told = shown(page)
    assert told["after"] == names["answer"] and told["before"] == "penguin"
    assert [(row[0], row[2]) for row in told["top"][:8]] == [(t, percent(p)) for t, p in names["top"]]
    assert [row[2].split()[0] for row in told["lens"]] == names["lens"].table["word"].tolist()


def test_a_link_restores_the_page(page: Any, browser: Any, address: str) -> None:
    change(
        page,
        lambda: page.click("#pictures [data-id='sample:3']"),
        lambda: page.click("[data-cell='text-gate']"),
        lambda: page.click("[data-choice='patch'] label:has-text('gate')"),
        lambda: page.click("#tokens button:has-text('is')"),
    )
    drag(page, (0.25, 0.25, 0.75, 0.75))
    told, link = shown(page), page.url
    for again in ("reload", "another page"):
        if again == "reload":
            page.reload()
        else:
            page.goto("about:blank")
            page.goto(link)
        at_rest(page)
        assert shown(page) == told and page.url == link
        assert page.get_attribute("[data-cell='text-gate']", "aria-pressed") == "true"
        assert page.input_value("[data-edge='2']") == "48"
    page.evaluate("location.hash = '#cut=[[\"text\",'")  # a link that was cut
    page.wait_for_selector("#after:text-is('cactus')")
    change(page, lambda: page.click("[data-cell='text-gate']"), lambda: page.click("#reset"))
    assert page.inner_text("#after") == page.inner_text("#before") == "cactus"
    page.goto("about:blank")
    page.goto(f'{address}/#picture="upload:0"&cut=[["text","gate"]]')  # of a server that has ended
    at_rest(page)
    assert error_of(page)[0] == "picture upload" and "upload it again" in error_of(page)[1]
    assert (page.inner_text("#before"), page.inner_text("#after")) == ("cactus", "frog")


def test_an_error_stands_at_its_control_and_nothing_is_lost(page: Any, tmp_path: Path) -> None:
    slide(page, 1.5)
    told = shown(page)
    change(page, lambda: page.fill("#steer_at", "gat"))
    control, said = error_of(page)
    assert "steer_at" in control.split() and "did you mean 'gate'" in said
    assert page.locator("#card-steer .error:visible").count() == 1
    assert (
        shown(page) == told and page.input_value("#steer_at") == "gat" and page.input_value("#steer") == "1.5"
    )
    change(page, lambda: page.fill("#steer_at", "gate"))
    assert page.locator(".error:visible").count() == 0 and shown(page) == told
    change(page, lambda: page.fill("#prompt", "no picture"))
    assert "prompt" in error_of(page)[0].split()
    for name, size, said in (("big.png", (16 << 20) + 1, "16 MiB"), ("no.png", 9, "not a readable picture")):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        change(page, lambda name=name: page.set_input_files("#seconds input", tmp_path / name))  # type: ignore[misc]
        assert error_of(page)[0] == "second upload-second" and said in error_of(page)[1]
    assert page.input_value("#prompt") == "no picture"


def test_the_keyboard_reaches_every_control(page: Any) -> None:
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(120):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "(e => e.id || Object.values(e.dataset).join() || e.name || e.closest('[data-range]')?.dataset.range"
            " || e.closest('[id]')?.id || e.tagName)(document.activeElement)"
        )
        reached.add(name)
        if name == "BODY":
            break
    wanted = {"reset", "copy", "look_layer", "look_head", "0", "3", "clear", "pictures", "sample:0", "prompt"}
    wanted |= {
        "prompts",
        "tokens",
        "text-gate",
        "cut_layers",
        "how",
        "all",
        "seconds",
        "patch",
        "patch_layers",
    }
    assert wanted | {"steer", "undose", "toward", "steer_at", "steer_layer"} <= reached | {"clear"}
    page.focus("[data-cell='text-gate']")
    change(page, lambda: page.keyboard.press("Space"))
    assert page.inner_text("#after") == "frog"
    page.focus("[data-range='cut_layers'] input >> nth=0")
    for _ in range(6):
        change(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.inner_text("[data-range='cut_layers'] output") == "Layer 5"
    for i, edge in enumerate((0, 0, 32, 32)):
        page.fill(f"[data-edge='{i}']", str(edge))
    change(page, lambda: page.keyboard.press("Tab"))
    assert page.locator("#region").is_visible()
    page.focus("#steer")
    change(page, *[lambda: page.keyboard.press("ArrowRight")] * 3)
    assert page.inner_text("#dose") == "0.3"
    page.focus("#tokens button >> nth=0")
    change(page, lambda: page.keyboard.press("Enter"))
    assert page.inner_text(".looked >> nth=0") == "<s>"


def test_the_attention_lies_over_its_own_pixels(page: Any, explorer: Explorer) -> None:
    change(
        page, lambda: page.select_option("#look_layer", "3"), lambda: page.select_option("#look_head", "1")
    )
    inputs = explorer.model.prepare(explorer.shelf["sample:1"].image, "<image>this is a")
    _, cache = explorer.model.run_with_cache(inputs, names_filter="blocks.3.attn.hook_pattern")
    weights = cache["blocks.3.attn.hook_pattern"][0, 1, -1]
    over = np.asarray(screenshot(page, of="#stage"), dtype=float)
    page.evaluate("document.querySelector('#overlay').style.opacity = 0")
    bare = np.asarray(screenshot(page, of="#stage"), dtype=float)
    page.evaluate("document.querySelector('#overlay').style.opacity = 1")
    scale = over.shape[0] / 64
    on_picture = inputs.tokens.positions("image")
    alpha = weights[on_picture] / weights[on_picture].max() * 0.72
    heat = np.array(
        page.evaluate(
            "getComputedStyle(document.querySelector('#overlay rect')).fill.match(/\\d+/g).map(Number)"
        )
    )
    for position, opacity in zip(on_picture, alpha.tolist(), strict=True):
        x0, y0, x1, y1 = (int(edge) for edge in inputs.tokens.box[0, position] * scale + 0.5)
        inside = (slice(y0 + 3, y1 - 3), slice(x0 + 3, x1 - 3))
        assert np.abs(over[inside] - (bare[inside] * (1 - opacity) + heat * opacity)).max() < 6
    strongest = on_picture[int(alpha.argmax())]
    x0, y0, x1, y1 = (inputs.tokens.box[0, strongest] * scale).tolist()
    stage = page.locator("#stage").bounding_box()
    page.mouse.move(stage["x"] + (x0 + x1) / 2, stage["y"] + (y0 + y1) / 2)
    assert (
        page.inner_text("#readout") == f"position {strongest}: attention {percent(float(weights[strongest]))}"
    )
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector(f".looked:has-text('image token {strongest}')")
    at_rest(page)


def test_the_answer_says_where_it_looked(page: Any, explorer: Explorer) -> None:
    change(
        page, lambda: page.fill("#prompt", "<image>describe"), lambda: page.select_option("#look_layer", "2")
    )
    inputs = explorer.model.prepare(explorer.shelf["sample:1"].image, "<image>describe")
    seen: dict[int, float] = {}

    def see(layer: int, pattern: Any, position: int) -> None:
        if layer == 2:
            seen[position] = float(pattern[0, :, -1, inputs.tokens.positions("image")].mean(0).sum())

    gl.engine.generate(explorer.model, inputs, max_new_tokens=16, see=see)
    for number, word in ((3, "cactus"), (0, "the")):
        change(page, lambda number=number: page.click(f"#written button >> nth={number + (number > 0)}"))  # type: ignore[misc]
        chosen = page.locator("#written [aria-pressed='true']")
        assert chosen.inner_text() == word and page.inner_text(".writes >> nth=0") == f"writes ‘{word}’"
        row = int(chosen.get_attribute("data-row"))
        assert page.inner_text("#tokens span").endswith(f"image tokens {percent(seen[row])}")
        assert page.inner_text("#map-note").endswith(f"mean of its heads: {percent(seen[row])}.")
        assert page.locator("#tokens [aria-pressed='true']").count() == (number == 0)
    page.evaluate("location.hash += '&look_at=400'")
    page.wait_for_selector("#look-note:has-text('position 400 does not exist')")


def test_cells_with_nothing_to_cut_cannot_be_switched_on(page: Any) -> None:
    off = page.eval_on_selector_all("[data-cell]:disabled", "all => all.map(one => one.dataset.cell)")
    assert off == ["gate-text", "image-gate", "image-text"]
    assert "Nothing to cut" in page.get_attribute("[data-cell='gate-text']", "title")
    change(
        page, lambda: page.click("[data-cell='text-text']"), lambda: page.fill("#prompt", "this is a<image>")
    )
    cell = page.locator("[data-cell='text-text']")
    assert "nothing" in error_of(page)[1] or "selects no position" in error_of(page)[1]
    change(page, cell.click, lambda: page.fill("#prompt", "<image>this is a"))
    assert page.inner_text("#verdict") == "No intervention is on."


def test_a_picture_shown_whole_and_in_tiles_shows_one_of_them(page: Any, explorer: Explorer) -> None:
    """A small random LLaVA-NeXT answers in the organism's place: 4 × 4 tokens of the whole picture, 8 × 8 of tiles."""
    case = cases()["llava-next"]
    model = gl.HookedVLM.from_module(case.model(), case.processor())
    tiled = Explorer(model, explorer.shelf, gl.data.load("emoji-scenes"), "emoji-scenes", "tiled", '"tiled"')
    asked = []

    def answer(route: Any) -> None:
        told = route.fetch().json()
        sent = read_state({**route.request.post_data_json["state"], "look_layer": 1})
        asked.append(sent)
        route.fulfill(json={**told, "result": tiled.run(sent)})

    assert page.locator("#tiles").is_hidden()
    page.route("**/run", answer)
    change(page, lambda: page.select_option("#look_head", "1"))
    boxes = "all => all.map(one => ['x', 'y', 'width', 'height'].map(name => Number(one.getAttribute(name))))"
    for shown_as, side in (("whole", 16), ("tiles", 8)):
        page.select_option("#tiles", shown_as)
        grid = [[x, y, side, side] for y in range(0, 64, side) for x in range(0, 64, side)]
        assert page.eval_on_selector_all("#overlay rect", boxes) == grid
    # the overlay is as strong as the model's own attention to these tokens
    (sent,) = asked
    inputs = model.prepare(explorer.shelf[sent.picture].image, sent.prompt)
    _, cache = model.run_with_cache(inputs)
    in_tiles = (inputs.tokens.tile[0] > 0) & inputs.tokens.mask("image")[0]
    row = cache["blocks.1.attn.hook_pattern"][0, sent.look_head, -1][in_tiles]
    opacity = "all => all.map(one => Number(one.getAttribute('fill-opacity')))"
    strength = page.eval_on_selector_all("#overlay rect", opacity)
    assert strength == pytest.approx((0.72 * row / row.max()).tolist(), abs=2e-3)


def test_what_changed_is_said_beside_the_answer(page: Any) -> None:
    change(page, lambda: page.click("[data-cell='text-gate']"))
    ((before, after),) = [row[1:3] for row in shown(page)["top"] if row[0] == "cactus"]
    assert page.inner_text("#verdict") == f"The answer changed; first token ‘cactus’ {before} → {after}."
    change(page, lambda: page.click("#reset"), lambda: page.click("[data-cell='gate-gate']"))
    assert page.inner_text("#verdict").startswith("Same answer; first token ‘cactus’")


def test_a_page_of_another_server_is_loaded_anew(page: Any) -> None:
    page.evaluate("window.old = true")
    page.route("**/run", lambda route: route.fulfill(json={"server": "other", "number": 9}), times=1)
    with page.expect_event("load"):
        page.click("[data-cell='text-gate']")
    at_rest(page)
    assert page.evaluate("window.old === undefined")
    assert page.inner_text("#after") == "frog" and page.locator(".error:visible").count() == 0


def test_links_with_values_that_no_control_has(page: Any) -> None:
    wrong = ["cut=[1]", 'cut=[["a","b"]]', 'region=[1,"x",3,4]', "picture=5", "cut_heads=[]", "chat=true"]
    wrong += ["cut_layers=[5,0]", 'steer="a"', "look_layer=77", "__proto__=1", "constructor=2"]
    wrong += ["prompt=%E0%A4%A", "picture=null"]
    page.evaluate("link => { delete document.body.dataset.rest; location.hash = link }", "&".join(wrong))
    at_rest(page)
    assert page.locator(".error:visible").count() == 0 and page.inner_text("#after") == "cactus"
    page.evaluate("location.hash = 'steer=99'")
    page.wait_for_selector("#card-steer .error:visible")
    assert "20" in error_of(page)[1]


def test_a_stale_reply_is_dropped(page: Any) -> None:
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)
            held.append(route.fetch())

    page.route("**/run", hold_the_first)
    page.click("[data-cell='text-gate']")
    page.wait_for_selector("body:not([data-rest])")
    page.click("[data-cell='text-gate']")  # off again, while the first is on its way
    at_rest(page)
    told = shown(page)
    assert told["after"] == told["before"] == "cactus"
    route, response = held
    assert json.loads(response.body())["result"]["answer"]["after"] == "frog"
    with page.expect_event("requestfinished"):
        route.fulfill(response=response)
    page.evaluate("new Promise(requestAnimationFrame)")  # the page has had its turn
    assert shown(page) == told


def test_every_screen(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (90, 200), "teal").save(tmp_path / "tall.png")
    change(
        page,
        lambda: page.click("[data-cell='text-region']"),
        lambda: page.set_input_files("#seconds input", tmp_path / "tall.png"),
        lambda: page.click("[data-choice='patch'] label:has-text('gate')"),
        lambda: page.click("details summary") or page.evaluate("document.body.dataset.rest = ''"),
    )
    for width, scheme in SCREENS:
        set_screen(page, width, scheme)
        assert overflow(page) == []
        assert serious_faults(page) == []
        screenshot(page, f"explore-{width}-{scheme}", whole=True)
    page.click("details summary")
    drag(page, (0.1, 0.1, 0.5, 0.9))
    set_screen(page, 1280, height=800)
    assert page.evaluate("document.documentElement.scrollHeight") <= 800
    change(page, lambda: page.set_input_files("#pictures input", tmp_path / "tall.png"))
    set_screen(page, 390)
    assert overflow(page) == []
    stage = page.locator("#stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(90 / 200, rel=0.02)
    screenshot(page, "explore-tall", whole=True)
