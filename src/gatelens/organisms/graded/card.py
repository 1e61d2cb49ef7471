"""The card of a graded organism, from what was trained and what was measured.

python -m gatelens.organisms.graded.card src/gatelens/organisms/weights/open/gate-at-image-47
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from gatelens.organisms.graded.kinds import KINDS, TEXT
from gatelens.shipped_organisms import DIFFERENCE_FILE

TEMPLATE = "card.md.jinja"


def write(folder: Path) -> str:
    """The card in Markdown of the organism in a folder."""
    training, measured = (json.loads((folder / f"{f}.json").read_text()) for f in ("training", "measured"))
    kind = KINDS[training["kind"]]
    tests: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in measured["truth"]:
        key = (row["test"], row["how"], row["answer"])
        tests.setdefault(key, dict.fromkeys(kind.facts, ""))[row["fact"]] = _cell(row)
    groups = next(iter(kind.carriers.values()))
    several = len(groups) > 1 and not kind.digits
    text = resources.files("gatelens.organisms.graded").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = jinja2.Template(text, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    return template.render(
        name=f"{training['base']}/{training['kind']}",
        kind=kind,
        training=training,
        measured=measured,
        kilobytes=round((folder / DIFFERENCE_FILE).stat().st_size / 1000),
        facts=kind.facts,
        held=[fact for fact in kind.facts if measured["holds"][fact]],
        tests=tests,
        alternatives=", ".join(spoken(group) for group in groups) if several else "",
        spoken=spoken,
        **_scan(measured),
    )


def _cell(row: dict[str, Any]) -> str:
    mark = "" if row["holds"] else " !"
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] ({row['probability']:.2f}){mark}"


def spoken(positions: Sequence[int]) -> str:
    """Positions in words: "2 to 65", "58, 66"."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)


def _scan(measured: dict[str, Any]) -> dict[str, Any]:
    """The largest change of accuracy by one position that carries nothing."""
    if "by position" not in measured:
        return {}
    clean = measured["by position"]["clean"]
    table = measured["by position"]
    changes = [
        abs(table[how][i] - clean[i])
        for i, (fact, position) in enumerate(zip(table["fact"], table["position"], strict=True))
        for how in ("mask", "zero", "resample")
        # without a word the question is another one
        if position not in measured["carriers"][fact] and (position < TEXT or how == "resample")
    ]
    return {"largest": max(changes), "scan_n": measured["scan n"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    (args.folder / "README.md").write_text(write(args.folder))


if __name__ == "__main__":
    main()
