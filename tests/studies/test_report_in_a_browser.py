"""The reports of whole studies in a real Chromium: the first screen, narrow windows, keyboard, print, and the words."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from browser_kit import SCREENS, overflow, pdf_pages, screenshot, serious_faults, set_screen
from gatelens.plots.page import draw_charts, render
from gatelens.runs import Run
from gatelens.studies.catalogue import study_of
from gatelens.studies.report import page_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

STUDIES = ("narrow-gate", "whats-in-the-image")
MOST_WORDS, MOST_SHEETS, MOST_BYTES, SCREEN = 2000, 12, 3_000_000, 800


def drawn(folder: Path, into: Path) -> Path:
    """The report of one study, drawn from its stored tables; each curve has an interval, or its caption says why."""
    run = Run.load(folder)
    shown = page_of(study_of(run), run)
    figures = draw_charts(shown)
    path = into / f"{run.study}.html"
    path.write_text(render(shown, figures), encoding="utf-8")
    for name, chart in shown.charts().items():
        assert curves_without_interval(figures[name]) == 0 or re.search(
            "No interval|quartiles", chart.caption
        ), name
    return path


def curves_without_interval(figure: Figure) -> int:
    """How many of its curves have no band of their own."""
    missing = 0
    for axes in figure.axes:
        curves = [
            c for c in axes.lines if c.get_linestyle() != "None" and c.get_marker() not in ("None", "", "_")
        ]
        bands = [b for b in axes.collections if isinstance(b, PolyCollection)]
        missing += max(0, len([c for c in curves if len(c.get_xdata()) > 1]) - len(bands))
    return missing


@pytest.fixture(scope="module", params=STUDIES)
def report(request: pytest.FixtureRequest, stored_runs: dict[str, Path], tmp_path_factory: Any) -> Path:
    return drawn(stored_runs[request.param], tmp_path_factory.mktemp("report"))


@pytest.fixture
def opened(page: Page, report: Path) -> Page:
    page.goto(report.as_uri())
    return page


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = true; })")


def test_the_first_screen_is_the_answer(opened: Page) -> None:
    set_screen(opened, 1280, height=SCREEN)
    for what in ("h1", ".sentence", ".planted", ".diagram svg", ".bars table", "ul.evidence"):
        box = opened.locator(what).first.bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= SCREEN, what
    # one line a piece of evidence
    heights = opened.evaluate("[...document.querySelectorAll('ul.evidence li')].map((e) => e.offsetHeight)")
    assert heights and max(heights) <= 34
    assert opened.evaluate("document.documentElement.scrollHeight") <= 6 * SCREEN
    assert len(opened.locator("body").inner_text().split()) <= MOST_WORDS
    every_number_links_to_its_table(opened)


# of the first screen, and of what stands beside a folded section's title: the text, and where it links or what it opens
LINKED = """() => {
  const texts = (e) => {
    const walk = document.createTreeWalker(e, NodeFilter.SHOW_TEXT), found = [];
    while (walk.nextNode()) found.push(walk.currentNode.data);
    return found;
  };
  const held = new Map(), found = [];
  const parts = ".sentence, ul.evidence li > :last-child, .bars td, .diagram .share, summary .finding";
  for (const e of document.querySelectorAll(parts)) {
    const part = e.closest(".part"), links = [...e.querySelectorAll("a")];
    const targets = part ? ["#" + part.id] : [e.closest("a") ?? links[0]].map((a) => a?.getAttribute("href") ?? "");
    // of a sentence each number is a link
    const unlinked = e.matches(".sentence") ? texts(e).filter((t) => !links.some((a) => a.textContent === t)) : [];
    for (const target of targets) {
      const to = target.startsWith("#") && document.querySelector(target);
      if (to && !held.has(target)) held.set(target, [...to.querySelectorAll("table, figcaption")].flatMap(texts));
      found.push([texts(e).join(""), to ? held.get(target) : null, unlinked]);
    }
  }
  return found;
}"""


def numbers_in(texts: list[str], whole: bool = True) -> set[float]:
    """Shares as numbers: 14 % is .14. Of whole numbers (counts, layers) only where asked."""
    found = set()
    for text in texts:
        for number in re.findall(r"(?<![\w.])[−+-]?\d+(?:\.\d+)?(?:\s?%)?(?!\w)", text):
            plain = re.sub(r"[+%\s]", "", number).replace("−", "-")
            if "%" in number:
                found.add(round(float(plain) / 100, 4))
            elif whole or "." in plain:
                found.add(round(float(plain), 2))
    return found


def every_number_links_to_its_table(page: Page) -> None:
    found = page.evaluate(LINKED)
    assert len(found) > 10
    for text, held, unlinked in found:
        if re.search(r"\d", text):
            assert held is not None, f"{text!r} links to nothing"
            assert numbers_in([text], whole=False) <= numbers_in(held), text
            assert not any(numbers_in([part]) for part in unlinked), text


def test_a_search_opens_with_the_smallest_set(
    page: Page, stored_runs: dict[str, Path], tmp_path: Path
) -> None:
    page.goto(drawn(stored_runs["find-gate"], tmp_path).as_uri())
    fits_one_screen(page)
    size = Run.load(stored_runs["find-gate"]).json("verdict")["sets"]["zero"]
    said = page.locator(".sentence").inner_text()
    assert f"{size['size']} of 67 positions [{size['low']}, {size['high']}]" in said
    assert "<eoss> (position 66)" in said and "<eoss>" in page.locator("h1").inner_text()
    assert page.locator(".bars tbody th").first.inner_text() == "<eoss> (66)"


def test_fine_tuning_opens_with_before_and_after(
    page: Page, stored_runs: dict[str, Path], tmp_path: Path
) -> None:
    page.goto(drawn(stored_runs["gate-finetuning"], tmp_path).as_uri())
    fits_one_screen(page)
    assert page.locator(".diagram").count() == 3
    table = Run.load(stored_runs["gate-finetuning"]).table("knockout")
    table = table[table.metric == "class accuracy"].set_index(["row", "stage"])["mean"]
    for row, name in (("none", "nothing cut"), ("gate → text", "gate cut"), ("image → text", "image cut")):
        for stage in ("before", "masked", "control"):
            line = page.locator(".bars tbody tr", has_text=f"{name}, {stage}")
            assert float(line.locator("td a").first.inner_text()) == pytest.approx(
                table[row, stage], abs=0.006
            )


def fits_one_screen(page: Page) -> None:
    """The answer is in sight at once; nothing is cut or out of reach on a narrow screen, opened."""
    every_number_links_to_its_table(page)
    set_screen(page, 1280, height=SCREEN)
    for what in ("h1", ".sentence", ".planted .right", ".diagram svg", ".bars table", "ul.evidence"):
        box = page.locator(what).first.bounding_box()
        assert box is not None and box["y"] >= 0 and box["y"] + box["height"] <= SCREEN, what
    heights = page.evaluate("[...document.querySelectorAll('ul.evidence li')].map((e) => e.offsetHeight)")
    assert heights and max(heights) <= 34
    assert [s for s in sentences(page) if words(s) > 25] == []
    unfold(page)
    for width, scheme in ((390, "light"), (1280, "dark")):
        set_screen(page, width, scheme)  # type: ignore[arg-type]
        assert overflow(page) == [] and serious_faults(page) == [], (width, scheme)


def test_size(report: Path) -> None:
    assert report.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "unfolded"])
def test_nothing_is_cut_and_no_accessibility_fault(opened: Page, report: Path, folded: bool) -> None:
    if not folded:
        unfold(opened)
    for width, scheme in SCREENS:
        set_screen(opened, width, scheme)
        assert overflow(opened) == [], (width, scheme)
        if os.environ.get("GATELENS_SCREENSHOTS"):  # of an opened report it takes long
            screenshot(opened, f"{report.stem}-{'' if folded else 'un'}folded-{width}-{scheme}", whole=True)
        # axe takes seconds for an opened report, so each width and each ground is checked once there
        if width != 768 if folded else (width, scheme) in ((390, "light"), (1280, "dark")):
            assert serious_faults(opened) == [], (width, scheme)


def test_names_of_rows_stay_beside_the_numbers_on_a_narrow_screen(opened: Page) -> None:
    set_screen(opened, 390)
    unfold(opened)
    boxes = opened.evaluate("""() => {
      const found = [];
      for (const table of document.querySelectorAll(".scroll > table:not(.pictures)")) {
        const scroll = table.parentElement;
        scroll.scrollLeft = 9999;
        const row = table.tBodies[0].rows[0], box = (e) => e.getBoundingClientRect(), s = box(scroll);
        const name = box(row.cells[0]), last = box(row.cells[row.cells.length - 1]);
        if (row.cells.length > 1) found.push([name.left - s.left, s.right - last.right, last.right - name.right]);
      }
      return found;
    }""")
    assert boxes
    for name_at, last_cut, beside in boxes:
        assert (
            abs(name_at) <= 1 and last_cut >= -1
        )  # the name stands at the left edge, the last number is in sight
        assert beside >= 30  # and is not under it


def test_words_do_not_run_into_each_other(opened: Page) -> None:
    unfold(opened)
    for width in (390, 1280):
        set_screen(opened, width)
        overlapping = opened.evaluate("""() => {
          const texts = [...document.querySelectorAll(".diagram")].map((d) => [...d.querySelectorAll("text")]);
          const found = [];
          for (const group of texts) for (let i = 0; i < group.length; i++) for (let j = 0; j < i; j++) {
            const a = group[i].getBoundingClientRect(), b = group[j].getBoundingClientRect(), slack = 1.5;
            const beside = a.left >= b.right - slack || b.left >= a.right - slack;
            if (!beside && a.top < b.bottom - slack && b.top < a.bottom - slack)
              found.push(group[i].textContent + " / " + group[j].textContent);
          }
          return found;
        }""")
        assert overlapping == [], width


def test_every_link_leads_to_something_that_opens(opened: Page) -> None:
    targets = opened.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => a.hash.slice(1))")
    assert {"knockouts", "method", "answer"} <= set(targets)
    for target in dict.fromkeys(targets):
        opened.evaluate("document.querySelectorAll('details').forEach((e) => { e.open = false; })")
        opened.locator(f'a[href="#{target}"]:visible').first.click()
        shown = opened.locator(f"#{target}")
        assert shown.count() == 1
        if target != "answer":
            assert shown.locator("details").first.evaluate("(e) => e.open"), target
    # the bar of contents stays in sight
    opened.locator('nav.contents a[href="#method"]').click()
    box = opened.locator("nav.contents").bounding_box()
    assert box is not None and abs(box["y"]) <= 1


def test_every_section_by_keyboard_alone(opened: Page) -> None:
    sections = opened.locator(".part > details > summary").count()
    opened.locator("nav.contents a").first.focus()
    reached = 0
    for _ in range(200):
        where = "document.activeElement.matches('.part > details > summary')"
        if opened.evaluate(where):
            assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            if not opened.evaluate("document.activeElement.parentElement.open"):
                opened.keyboard.press("Enter")
        if opened.evaluate("document.activeElement.matches('ul.evidence a, .diagram a')"):
            assert opened.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            reached += 1
        if opened.evaluate("[...document.querySelectorAll('.part > details')].every((e) => e.open)"):
            break
        opened.keyboard.press("Tab")
    assert opened.locator(".part > details[open]").count() == sections > 5
    assert reached == opened.locator("ul.evidence li, .diagram").count()


def test_print(opened: Page) -> None:
    assert pdf_pages(opened) <= MOST_SHEETS
    opened.emulate_media(media="print")
    opened.set_viewport_size({"width": 703, "height": 1000})  # A4 without its margins
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.locator(".part > details[open] svg").count() > 2  # sections are printed open
    assert overflow(opened) == []
    # names of settings beside their values
    tops = opened.evaluate("""[...document.querySelectorAll("#method dt")].map((e) =>
        [e, e.nextElementSibling].map((one) => one.getBoundingClientRect().top))""")
    assert len(tops) > 10 and all(abs(name - value) <= 4 for name, value in tops)
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator(".part > details[open]").count() == 0


def test_print_with_both_kinds_of_knockout(page: Page, stored_runs: dict[str, Path], tmp_path: Path) -> None:
    run = Run.load(shutil.copytree(stored_runs["narrow-gate"], tmp_path / "run"))
    for name in (
        "knockout",
        "tasks",
        "progressive",
        "progressive_layers",
        "question_kinds",
        "question_kinds_shares",
    ):
        table = run.table(name)
        run.save(name, pd.concat([table, table.assign(how="mask")], ignore_index=True))
    page.goto(drawn(tmp_path / "run", tmp_path).as_uri())
    assert page.locator("h3", has_text="Knockout mask").count() >= 2
    assert pdf_pages(page) <= MOST_SHEETS
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert overflow(page) == []


def test_one_figure_for_light_and_dark(opened: Page) -> None:
    unfold(opened)
    colors = {}
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        colors[scheme] = opened.evaluate("""() => {
          const text = document.querySelector(".drawing svg text");
          const ground = document.querySelector(".drawing svg path");
          return [getComputedStyle(text).fill, getComputedStyle(ground).fill];
        }""")
    assert colors["light"][1] == "rgb(255, 255, 255)" and colors["dark"][1] == "rgb(23, 27, 34)"
    assert colors["light"][0] != colors["dark"][0]


def test_no_color_of_a_figure_is_fixed(report: Path) -> None:
    """A colour that is not a variable would stay as it is on light ground."""
    drawings = re.findall(r'<svg role="img" aria-label="figure.*?</svg>', report.read_text(), re.DOTALL)
    assert drawings and not re.search(r"(fill|stroke): ?#", "".join(drawings))


def sentences(page: Page) -> list[str]:
    """Of all prose, folded or not; a full stop between digits or within a name ends none."""
    texts: list[str] = page.evaluate(
        "[...document.querySelectorAll('p:not(.wrote), figcaption, dd:not(.mono), ul.evidence li > span:last-child, "
        ".checks li')].filter((e) => !e.closest('.looking')).map((e) => e.textContent)"
    )
    return [s for text in texts for s in re.split(r"(?<=[.:!?])\s+(?=[“A-Z])", " ".join(text.split())) if s]


def words(sentence: str) -> int:
    return len(
        [part for part in re.sub(r"\[[^\]]*\]|\([^)]*\)", "", sentence).split() if re.search(r"\w", part)]
    )


def test_no_sentence_is_longer_than_25_words(opened: Page) -> None:
    assert [s for s in sentences(opened) if words(s) > 25] == []
