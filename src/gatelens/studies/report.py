"""The report of a run: its verdict, the cards of its sections, and how it was measured, drawn from its tables alone.

Everything here raises OutputError where the run lacks a finished table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure

from gatelens.errors import DataError, GatelensError, OutputError
from gatelens.plots import page
from gatelens.runs import Run
from gatelens.studies.study import Study, verdict_of


@contextmanager
def read_from(*runs: Run) -> Iterator[None]:
    """What is shown within the block was read from runs as they lie on disk, where anybody may have changed a file.

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
            "makes them anew from what was measured"
        ) from error


def page_of(study: Study, run: Run) -> page.Page:
    """What the report shows."""
    settings, said = run.settings, verdict_of(run)
    lead: list[str | tuple[str, str]] = [study.title]
    lead += [(name, str(settings[key])) for key, name in study.lead.items() if key in settings]
    absent = run.json("absent") if run.has("absent") else []
    missing = {reason.split(" (")[0] for reason in absent}
    sections = [s for s in study.sections if s.name in settings["sections"] and s.name not in missing]
    return page.Page(
        title=f"{said['headline']} · {settings['model']}",
        lead=[*lead, run.manifest["created"][:10]],
        verdicts=[page.Verdict.from_json(said, study.tones)],
        cards=[*(card for s in sections for card in s.page(run)), *study.closing(run)],
        method=study.words(run),
        facts=page.facts(run.manifest, run.seconds()),
        absent=absent,
    )


def render_report(study: Study, run: Run) -> str:
    """The report as one HTML page."""
    return page.render(page_of(study, run))


def write_report(study: Study, run: Run) -> None:
    """Draw the figures of a run (``figures/*.png``) and write ``report.html`` beside its tables."""
    shown = page_of(study, run)
    charts = page.draw_charts(shown)
    for name, data in charts.items():
        run.save(f"figures/{name}.png", data)
    run.save("report.html", page.render(shown, charts).encode())


def figure(study: Study, run: Run, name: str, dark: bool = False) -> Figure:
    """One figure of a run's report, named as its file in ``figures/`` is without the suffix.

    Raises:
        DataError: the report has no such figure; the message lists those it has.
    """
    charts = page_of(study, run).charts()
    if name not in charts:
        raise DataError(f"run {run.label} has no figure {name!r}; it has {', '.join(charts)}")
    return charts[name].draw(dark)
