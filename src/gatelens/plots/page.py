"""The report page: what every study fills in, and its rendering to one HTML file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from gatelens.plots.card import Card, Chart, Html
from gatelens.plots.style import DPI, png
from gatelens.plots.templating import css, script, template

PAGE_DPI = 98  # CSS pixels of an inch of a figure: 9 inches fill a card


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence under the verdict.

    Attributes:
        says: what it speaks for, in a word.
        title: what kind of evidence it is.
        text: the evidence.
        tone: ``gate``, ``image``, ``mixed`` or ``none``, the colour of what it says.
        disagrees: it does not agree with the verdict.
        link: to a page about it.
        link_text: what the link is called.
    """

    says: str
    title: str
    text: str
    tone: str = "none"
    disagrees: bool = False
    link: str = ""
    link_text: str = "its report"


@dataclass(frozen=True)
class Verdict:
    """What the page opens with.

    Attributes:
        headline: a few words.
        sentence: the same with numbers.
        evidence: what speaks for and against it.
        tone: ``gate``, ``image``, ``mixed`` or ``none``, the colour of the headline.
        about: what the verdict is about, where a page has several.
    """

    headline: str
    sentence: str
    evidence: Sequence[Evidence] = ()
    tone: str = "none"
    about: str = ""

    @classmethod
    def from_json(cls, said: Mapping[str, Any], tones: Mapping[str, str], about: str = "") -> Verdict:
        """The verdict of a run.

        Args:
            said: ``verdict, headline, sentence`` and, where there is any, ``evidence`` (a list of ``kind, says,
                text`` and perhaps a ``link``) and ``disagree`` (a list of kinds).
            tones: colour by what a verdict or a piece of evidence says; others are ``mixed``.
            about: what it is about, where a page has several.
        """
        evidence = [
            Evidence(
                one["says"],
                one["kind"],
                f"{one['text']}.",
                tones.get(one["says"], "mixed"),
                one["kind"] in said.get("disagree", ()),
                one.get("link", ""),
            )
            for one in said.get("evidence", ())
        ]
        tone = tones.get(said["verdict"], "mixed")
        return cls(said["headline"], said["sentence"], evidence, tone, about)


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the browser's tab.
        lead: the line over the verdict; a pair is a name and its value.
        verdicts: one; two stand side by side.
        cards: the sections, in order.
        method: what words mean that no card explains.
        facts: settings and versions, from :func:`facts`.
        absent: what was asked for but could not be measured.
    """

    title: str
    lead: Sequence[str | tuple[str, str]]
    verdicts: Sequence[Verdict]
    cards: Sequence[Card]
    method: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    absent: Sequence[str] = ()

    def charts(self) -> dict[str, Chart]:
        """The figures by name, in the order of the page.

        Raises:
            ValueError: two figures have the same name.
        """
        charts: dict[str, Chart] = {}
        for block in self._blocks(Chart):
            if block.name in charts:
                raise ValueError(
                    f"two figures of the page are called {block.name!r}; their files would be one"
                )
            charts[block.name] = block
        return charts

    def words(self) -> dict[str, str]:
        """What each term means: those of the cards, then those of the page."""
        words = {term: text for card in self.cards for term, text in card.words.items()}
        return {**words, **self.method}

    def needs(self, kind: str) -> list[str]:
        """The ``styles`` or ``scripts`` its widgets need, each once."""
        return list(dict.fromkeys(name for block in self._blocks(Html) for name in getattr(block, kind)))

    def _blocks(self, kind: type) -> list[Any]:
        return [block for card in self.cards for block in card.blocks if isinstance(block, kind)]


def render(page: Page, charts: Mapping[str, bytes] | None = None) -> str:
    """The page as HTML.

    Args:
        page: what it shows.
        charts: its figures on light ground as PNG, where they are drawn already (:func:`draw_charts`).
    """
    draw = {name: chart.draw for name, chart in page.charts().items()}
    return template("report.html.j2").render(
        css=css(*page.needs("styles")),
        scripts=[script(name) for name in page.needs("scripts")],
        page=page,
        words=page.words(),
        charts=chart_pictures(draw, charts),
    )


def draw_charts(page: Page) -> dict[str, bytes]:
    """The page's figures on light ground as PNG, by name."""
    return {name: png(chart.draw(False)) for name, chart in page.charts().items()}


def chart_pictures(
    charts: Mapping[str, Callable[[bool], Figure]], light: Mapping[str, bytes] | None = None
) -> dict[str, Markup]:
    """Figures as pictures that follow the reader's light or dark ground.

    Args:
        charts: what draws a figure, by its name; called with whether the ground is dark.
        light: those on light ground as PNG, where they are drawn already.
    """
    done = light or {}
    return {
        name: _picture(name, done.get(name) or png(draw(False)), png(draw(True)))
        for name, draw in charts.items()
    }


def _picture(name: str, light: bytes, dark: bytes) -> Markup:
    """Both pictures, in a width that gives the writing in all figures the same size."""
    width = round(int.from_bytes(light[16:20], "big") / DPI * PAGE_DPI)  # PNG keeps its width there
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{}">'
        '<img alt="figure: {}" width="{}" src="data:image/png;base64,{}"></picture>'
    ).format(base64.b64encode(dark).decode(), name.replace("_", " "), width, base64.b64encode(light).decode())


def facts(manifest: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    """Settings, machine, versions and seconds of compute of a run, in words; all but the last from its manifest."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {words(part)}" for key, part in value.items())
        return str(value)

    named = {**manifest["settings"], **manifest.get("info", {})}
    pairs = [(name.replace("_", " "), words(value)) for name, value in named.items()]
    pairs.append(("compute", f"{seconds:.0f} s"))
    pairs.append(("versions", words(manifest.get("versions", {}))))
    return pairs
