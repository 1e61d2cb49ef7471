"""The report of a run: its verdict, the cards of its sections, and how it was measured, drawn from its tables alone.

Everything here raises OutputError where the run lacks a finished table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure

from gatelens.errors import DataError, GatelensError, OutputError
from gatelens.plots import page
from gatelens.plots.card import Card
from gatelens.plots.style import saved
from gatelens.runs import Run
from gatelens.studies.section import Section
from gatelens.studies.study import Study, evidence_of, verdict_of


@contextmanager
def read_from(*runs: Run) -> Iterator[None]:
    """What is shown within the block was read from runs as they lie on disk, where a file may have been changed.

    Raises:
        OutputError: tables do not hold what the study wrote there.
    """
    try:
        yield
    except GatelensError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        named, why = " and ".join(run.label for run in runs), f"{type(error).__name__}: {error}"
        raise OutputError(
            f"the files of run {named} do not hold what the study wrote ({why}); run the same command again, which "
            "rebuilds them from what was measured"
        ) from error


def page_of(study: Study, run: Run) -> page.Page:
    """What the report shows. The verdict is recomputed, so that an older run is worded as today."""
    verdict_of(run)  # there is one: the run is finished
    settings, sections = run.settings, measured_sections(study, run)
    said = dict(study.verdict(run, evidence_of(sections, run)))
    decides = f"#{study.decides}" if study.decides else ""
    evidence = [
        {"link": f"#{e['section']}" if "section" in e else decides, **e} for e in said.get("evidence", ())
    ]
    lead: list[str | tuple[str, str]] = [study.title]
    lead += [(name, str(settings[key])) for key, name in study.lead.items() if key in settings]
    return page.Page(
        title=f"{said['headline']} · {settings['model']}",
        lead=[*lead, run.manifest["created"][:10]],
        verdicts=[page.Verdict.from_json({**said, "evidence": evidence}, study.tones, link=decides)],
        cards=[*(card for s in sections for card in _cards(s, run)), *study.closing(run)],
        method=study.words(run),
        facts=page.facts(run.manifest, run.seconds()),
        absent=run.json("absent") if run.has("absent") else [],
        opening=study.opening(run, said),
    )


def measured_sections(study: Study, run: Run) -> list[Section]:
    """The sections a run has tables of."""
    absent = run.json("absent") if run.has("absent") else []
    missing = {reason.split(" (")[0] for reason in absent}
    asked = run.settings.get("sections", {})
    return [s for s in study.sections if s.name in asked and s.name not in missing]


def _cards(section: Section, run: Run) -> list[Card]:
    """The cards of a section; links to the section lead to the first."""
    cards = section.page(run)
    return [
        card if card.name else dataclasses.replace(card, name=section.name if i == 0 else "")
        for i, card in enumerate(cards)
    ]


def render_report(study: Study, run: Run) -> str:
    """The report as one HTML page."""
    return page.render(page_of(study, run))


def write_report(study: Study, run: Run) -> None:
    """Draw a run’s figures (``figures/NAME.png``, ``.svg``, ``.pdf``) and write ``report.html`` next to its tables."""
    shown = page_of(study, run)
    figures = page.draw_charts(shown)
    for name, drawn in figures.items():
        for kind in page.FILES:
            run.save(f"figures/{name}.{kind}", saved(drawn, kind))
    run.save("report.html", page.render(shown, figures).encode())


def figure(study: Study, run: Run, name: str, dark: bool = False) -> Figure:
    """One figure of a run's report, named as its file in ``figures/`` is without the suffix.

    Raises:
        DataError: the report has no such figure; the message lists those it has.
    """
    charts = page_of(study, run).charts()
    if name not in charts:
        raise DataError(f"run {run.label} has no figure {name!r}; it has {', '.join(charts)}")
    return charts[name].draw(dark)
