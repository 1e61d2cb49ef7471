"""The finder's card in the study's page."""

from __future__ import annotations

from gatelens.views.narrow_gate.finder import cards

from gate_search_helpers import made_up
from gatelens.plots import card
from gatelens.runs import Run


def run_of() -> Run:
    return Run.open(None, study="narrow-gate", settings={})


def test_the_card_shows_the_stored_search() -> None:
    run = run_of()
    assert cards(run) == []
    found = made_up(gate=1)
    found.store(run, "finder")
    (one,) = cards(run)
    figure, layers, table = one.blocks
    assert isinstance(figure, card.Chart) and isinstance(layers, card.Chart) and isinstance(table, card.Table)
    assert (figure.name, layers.name) == ("finder", "finder_layers")
    assert figure.caption.startswith(found.verdict["sentence"])
    assert len(figure.draw(False).axes) == 6 and len(layers.draw(True).axes) == 1
    assert len(table.rows) == 12 and {len(row) for row in table.rows} == {len(table.header)}
    assert table.rows[0][0] == ("◆ this", "position 67, query")
    nats = list(table.header).index("zero:\nnats lost")
    assert table.rows[0][nats] == ("0.80", "0.78, 0.82")
    assert "smallest set" in one.words


def test_the_reason_why_nothing_was_searched_is_shown() -> None:
    run = run_of()
    run.save_json("finder", {"why_not": "data 'x' has no task class"})
    (one,) = cards(run)
    (table,) = one.blocks
    assert isinstance(table, card.Table)
    assert table.caption == "Nothing was searched: data 'x' has no task class."
