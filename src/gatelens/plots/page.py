"""The report page: what every study fills in, and its rendering to one HTML file that needs no network.

It opens with the answer; every section is folded below it, and a bar of contents stays in sight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from gatelens.plots.card import Card, Chart, Html
from gatelens.plots.opening import Opening
from gatelens.plots.style import inline_svg, saved
from gatelens.plots.templating import css, script, template

FOR, AGAINST, OPEN = "for", "against", "open"
FILES = ("png", "svg", "pdf")  # of a figure


@dataclass(frozen=True)
class Evidence:
    """One piece of evidence, one line under the verdict.

    Attributes:
        mark: ``for`` or ``against`` the verdict, or ``open``.
        title: what kind of evidence it is.
        text: the evidence, in a line.
        says: what it says, where it is neither for nor against.
        link: to its table, or to a page about it.
    """

    mark: str
    title: str
    text: str
    says: str = ""
    link: str = ""

    @property
    def label(self) -> str:
        """The text next to the mark."""
        return {FOR: "for", AGAINST: "against"}.get(self.mark, self.says or "undecided")


@dataclass(frozen=True)
class Verdict:
    """What the page opens with.

    Attributes:
        headline: a few words.
        sentence: the same with numbers.
        evidence: what speaks for and against it.
        tone: ``gate``, ``image``, ``mixed`` or ``none``, the colour of the headline.
        about: what the verdict is about, where a page has several.
        link: to the table of the sentence's numbers.
    """

    headline: str
    sentence: str
    evidence: Sequence[Evidence] = ()
    tone: str = "none"
    about: str = ""
    link: str = ""

    @classmethod
    def from_json(
        cls, said: Mapping[str, Any], tones: Mapping[str, str], about: str = "", link: str = ""
    ) -> Verdict:
        """The verdict of a run.

        Args:
            said: ``verdict, headline, sentence`` and, where there is any, ``answer`` (the sentence in short),
                ``evidence`` (a list of ``kind, says, text`` and perhaps ``line``, the text in short, and ``link``) and
                ``disagree`` (a list of kinds).
            tones: colour by what a verdict says; others are ``mixed``.
            about: what it is about, where a page has several.
            link: to the table of its numbers.
        """
        against = said.get("disagree", ())
        undecided = said["verdict"] == "inconclusive"
        evidence = [
            Evidence(
                AGAINST
                if one["kind"] in against
                else FOR
                if one["says"] == said["verdict"] and not undecided
                else OPEN,
                one["kind"],
                one.get("line") or one["text"],
                {"inconclusive": "undecided"}.get(one["says"], one["says"]),
                one.get("link", ""),
            )
            for one in said.get("evidence", ())
        ]
        tone = tones.get(said["verdict"], "mixed")
        return cls(said["headline"], said.get("answer") or said["sentence"], evidence, tone, about, link)


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of the browser's tab.
        lead: the line over the verdict; a pair is a name and its value.
        verdicts: one; two are shown side by side.
        cards: the sections, in order.
        method: what words mean that no card explains.
        facts: settings and versions, from :func:`facts`.
        absent: what was asked for but could not be measured.
        opening: the drawings under the verdict.
    """

    title: str
    lead: Sequence[str | tuple[str, str]]
    verdicts: Sequence[Verdict]
    cards: Sequence[Card]
    method: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    absent: Sequence[str] = ()
    opening: Opening = field(default_factory=Opening)

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

    def words_of(self, card: Card) -> dict[str, str]:
        """The terms that a card explains: those nothing before it has explained."""
        before = set(self.opening.words)
        for other in self.cards:
            if other is card:
                break
            before |= set(other.words)
        return {term: text for term, text in card.words.items() if term not in before}

    def needs(self, kind: str) -> list[str]:
        """The ``styles`` or ``scripts`` its widgets need, each once."""
        return list(dict.fromkeys(name for block in self._blocks(Html) for name in getattr(block, kind)))

    def _blocks(self, kind: type) -> list[Any]:
        return [block for card in self.cards for block in card.blocks if isinstance(block, kind)]


def render(page: Page, figures: Mapping[str, Figure] | None = None) -> str:
    """The page as HTML.

    Args:
        page: what it shows.
        figures: its figures on light ground, where they are drawn already (:func:`draw_charts`).
    """
    drawn = draw_charts(page) if figures is None else figures
    return template("report.html.j2").render(
        css=css("report.css", *page.needs("styles")),
        scripts=[script(name) for name in ["report.js", *page.needs("scripts")]],
        page=page,
        charts={name: inline_svg(saved(figure, "svg"), name) for name, figure in drawn.items()},
    )


def draw_charts(page: Page) -> dict[str, Figure]:
    """The page's figures on light ground, by name."""
    return {name: chart.draw(False) for name, chart in page.charts().items()}


def facts(manifest: Mapping[str, Any], seconds: float) -> list[tuple[str, str]]:
    """Settings, machine, versions and seconds of compute of a run, in words; all but the last from its manifest."""

    def words(value: Any, inside: bool = False) -> str:
        if isinstance(value, Mapping):
            between = "; " if any(isinstance(part, Mapping) for part in value.values()) else ", "
            return between.join(f"{key} {words(part, True)}".strip() for key, part in value.items())
        if isinstance(value, (list, tuple)):
            listed = ", ".join(map(str, value))
            return f"[{listed}]" if inside else listed or "none"
        return str(value)

    named = {**manifest["settings"], **manifest.get("info", {})}
    pairs = [(name.replace("_", " "), words(value)) for name, value in named.items()]
    pairs.append(("compute", f"{seconds:.0f} s"))
    pairs.append(("versions", words(manifest.get("versions", {}))))
    return pairs
