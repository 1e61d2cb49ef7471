"""The drawing section's page: what it says follows from the numbers, and it draws from tables alone."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gatelens.plots.style import png
from gatelens.runs import Run
from gatelens.studies.narrow_gate.drawing import page as drawing
from gatelens.studies.narrow_gate.drawing.table import NO_PICTURE, NONE

GATE, IMAGE, ALL = drawing.GATE_TEXT, drawing.IMAGE_TEXT, drawing.ALL_TEXT
FOLLOWS_IMAGE = {  # class asked, background of the picture
    NO_PICTURE: (0.7, 0.5), NONE: (0.06, 1.0), GATE: (0.05, 0.98), IMAGE: (0.2, 0.5), ALL: (0.6, 0.5),
}  # fmt: skip
FOLLOWS_NOTHING = dict.fromkeys(FOLLOWS_IMAGE, (0.7, 0.5))


def table_of(means: dict[str, tuple[float, float]]) -> pd.DataFrame:
    rows = []
    for prompt in ("colour asked", "colour open"):
        for row, (asked, follows) in means.items():
            for measure, mean in (("class asked", asked), ("background of the picture", follows)):
                rows.append((prompt, row, measure, mean, max(0.0, mean - 0.1), min(1.0, mean + 0.1), 40))
            for measure in ("colour asked", "colour of the picture", *drawing.SAYS):
                if not (measure == "colour asked" and prompt == "colour open"):
                    rows.append((prompt, row, measure, 0.2, 0.1, 0.3, 40))
    return pd.DataFrame(rows, columns=["prompt", "row", "measure", "mean", "low", "high", "n"])


@pytest.fixture
def run() -> Any:
    run = Run.open(None, study="narrow-gate", settings={})
    run.save("drawing", table_of(FOLLOWS_IMAGE))
    uri = "data:image/png;base64,AAAA"
    run.save(
        "drawing_pictures",
        {
            "prompts": [{"prompt": "colour asked", "case": 0, "text": "draw a fox on a red circle."}],
            "pictures": [uri],
            "rows": [{"row": row, "drawn": [uri]} for row in FOLLOWS_IMAGE],
        },
    )
    return run


def test_the_sentence_follows_the_numbers() -> None:
    said = drawing.in_words(table_of(FOLLOWS_IMAGE))
    assert "the picture breaks drawing" in said
    assert "With the gate cut it is in 98\u00a0%, no different." in said
    assert "With the image tokens cut it is in 50\u00a0%." in said
    assert "60\u00a0% show the class asked for again" in said
    said = drawing.in_words(table_of(FOLLOWS_NOTHING))
    assert "breaks" not in said and "no influence is seen" in said


def test_the_card(run: Any) -> None:
    (card,) = drawing.cards(run)
    _, figure, pictures, asked, open_, said = card.blocks
    assert len(pictures.header) == 1 + len(pictures.rows[0][1])
    assert [name for name, _ in pictures.rows] == ["the prompt’s picture", *FOLLOWS_IMAGE]
    assert "colour asked" in asked.header and "colour asked" not in open_.header
    assert asked.rows[1][:2] == [NONE, ("0.06", "0.00 – 0.16")]
    assert list(said.header[1:]) == list(drawing.SAYS)
    assert png(figure.draw(False)).startswith(b"\x89PNG") and png(figure.draw(True)).startswith(b"\x89PNG")


def test_bars_are_the_means(run: Any) -> None:
    panels = drawing.drawing_bars(run.table("drawing")).axes
    assert [bar.get_width() for bar in panels[0].patches] == [mean for mean, _ in FOLLOWS_IMAGE.values()]
    assert [bar.get_width() for bar in panels[3].patches] == [mean for _, mean in FOLLOWS_IMAGE.values()]
