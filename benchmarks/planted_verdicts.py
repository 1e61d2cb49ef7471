"""How often the verdict of the narrow-gate study errs, on models in which what carries the picture is planted.

    python -m benchmarks.planted_verdicts --split heldout --out runs/verdicts [--plants 39] [--workers 2]

A pool of pictures of each plant goes through the study's own sections *knockouts* and *patching*. Examples are then
drawn from it without overlap, 40, 200 and 500 at a time, and each draw gets its verdict by the study's own rule. Kinds
of plants and what the study should say of each are in :mod:`.verdict_plants`. Started again with the same ``--out``, it
goes on where it stopped, or adds plants.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from gatelens.bench.checks import SPLITS
from gatelens.executors import executing
from gatelens.measures.stats import wilson_interval
from gatelens.studies.narrow_gate import knockouts
from gatelens.studies.narrow_gate.knockout_table import FLOOR, GATE, IMAGE, NONE, table_rows
from gatelens.studies.narrow_gate.patching.section import INPUT, SITE, Patch, draw_pairs, summarise_patching
from gatelens.studies.narrow_gate.patching.section import measure as patched
from gatelens.studies.narrow_gate.verdict import (
    DISTRIBUTED,
    INCONCLUSIVE,
    MIXED,
    NARROW,
    attention_input_evidence,
    patching_evidence,
    task_verdicts,
    verdict,
)
from gatelens.units import Done, Unit, measured, numbered, opened

from .verdict_plants import KINDS, TRUTHS, Planted, planted

HOWS = ("zero", "mask")
VERDICTS = (NARROW, DISTRIBUTED, MIXED, INCONCLUSIVE)
POOL, BLOCK, PAIRS = (
    600,
    20,
    12,
)  # pictures of a plant and of a block; pairs within a block, so that a draw has its own
N = (40, 200, 500)
MOST_PAIRS = 224  # as the study draws
BATCH = 100
N_BOOT = 500


def pool_of(one: Planted, pool: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The study's ``answers`` and ``pairs`` of a plant's pictures, with the ``block`` that each belongs to."""
    data = one.data(pool)
    examples, model = data.examples(), one.plant.model
    rows = [row for row in table_rows(1, 1) if row.name in (NONE, GATE, IMAGE, FLOOR)]
    answers, tables = [], []
    for start in range(0, pool, BATCH):
        part = examples[start : start + BATCH]
        work = knockouts.Answers("class", "class", start, part, HOWS, rows, 0, 1, data.classes)
        answers.append(knockouts.measure(model, work)["answers"])
    pairs = [
        pair
        for start in range(0, pool, BLOCK)
        for pair in draw_pairs(examples[start : start + BLOCK], PAIRS, start)
    ]
    for start in range(0, len(pairs), BATCH):
        tables.append(patched(model, Patch("pairs", start, pairs[start : start + BATCH], None))["pairs"])
    block = {e.id: i // BLOCK for i, e in enumerate(examples)}
    said, turned = pd.concat(answers, ignore_index=True), pd.concat(tables, ignore_index=True)
    return said.assign(block=said.id.map(block)), turned.assign(block=turned.base_id.map(block))


def draws(pool: int) -> Iterator[tuple[int, int, range]]:
    """``n``, the number of the draw, and the blocks that it takes."""
    for n in N:
        for number in range(pool // n):
            yield n, number, range(number * n // BLOCK, (number + 1) * n // BLOCK)


def evidence_of(pairs: pd.DataFrame) -> list[dict[str, str]]:
    """What the study says of pairs."""
    pairs = pairs[pairs.pair.isin(pairs.pair.unique()[:MOST_PAIRS])]
    read = pairs[(pairs.site == INPUT) & (pairs.layer <= 0)]  # the evidence is of the layer 0
    # the bootstrap is of overlaps alone, which are no evidence
    stream, read = (summarise_patching(part, 2, 0) for part in (pairs[pairs.site == SITE], read))
    return patching_evidence(stream) + attention_input_evidence(read)


def judged(
    answers: pd.DataFrame, evidence: Sequence[dict[str, str]], n_classes: int, seed: int
) -> dict[str, Any]:
    """What the study says of examples, beside the evidence of pairs."""
    return verdict(task_verdicts(answers, n_classes, N_BOOT, seed), evidence, "the gate")


def measure(split: str, pool: int, number: int, done: Done) -> dict[str, pd.DataFrame]:
    """``verdicts``: ``plant, kind, family, tries, how, n, draw, verdict, sentence`` of one plant; what it is of."""
    one = planted(split, number)
    answers, pairs = pool_of(one, pool)
    shared = {"plant": number, "kind": one.kind, "family": one.family, "tries": one.tries}
    n_classes, rows = len(one.data(1).names), []
    for n, draw, blocks in draws(pool):
        evidence = evidence_of(pairs[pairs.block.isin(blocks)])
        for how in HOWS:
            part = answers[(answers.how == how) & answers.block.isin(blocks)]
            said = judged(part, evidence, n_classes, draw)
            found = {"how": how, "n": n, "draw": draw, "verdict": said["verdict"]}
            rows.append({**shared, **found, "sentence": said["sentence"]})
    done(1)
    return {"verdicts": pd.DataFrame(rows), "answers": answers, "pairs": pairs}


def rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """By kind, knockout and n: how often each verdict came out, and how often not the true one with its interval."""
    rows = []
    for (kind, how, n), part in verdicts.groupby(["kind", "how", "n"], sort=False):
        wrong = int((part.verdict != TRUTHS[kind]).sum())
        low, high = wilson_interval(wrong, len(part))
        said = {name: float((part.verdict == name).mean()) for name in VERDICTS}
        shared = {"kind": kind, "truth": TRUTHS[kind], "how": how, "n": n, "plants": part["plant"].nunique()}
        rows.append(
            {**shared, "draws": len(part), **said, "wrong": wrong / len(part), "low": low, "high": high}
        )
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame, how: str) -> str:
    """The rates of one knockout as Markdown, in per cent."""
    part = table[table.how == how]
    lines = [f"| {how}: what carries the picture | should be | " + " | ".join(f"n = {n}" for n in N) + " |"]
    lines.append("|" + "---|" * (2 + len(N)))
    for kind in (kind for kind in KINDS if kind in set(part.kind)):
        cells = []
        for n in N:
            for row in part[(part.kind == kind) & (part.n == n)].to_dict("records"):
                said = " / ".join(f"{100 * row[name]:.0f}" for name in VERDICTS)
                wrong, low, high = (f"{100 * row[name]:.0f}" for name in ("wrong", "low", "high"))
                cells.append(f"{said}; wrong {wrong} [{low}, {high}]")
        lines.append(f"| {kind} | {TRUTHS[kind]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=list(SPLITS), default="dev")
    parser.add_argument("--plants", type=int, default=3 * len(KINDS))
    parser.add_argument("--pool", type=int, default=POOL)
    parser.add_argument("--out")
    parser.add_argument("--workers", type=int)
    asked = parser.parse_args()
    settings = {"split": asked.split, "pool": asked.pool}  # more plants may be asked for later
    units = [Unit(numbered(i), 1, partial(measure, asked.split, asked.pool, i)) for i in range(asked.plants)]
    with executing(asked.workers) as executor, opened(asked.out, "verdicts", lambda: settings) as run:
        found = measured(run, "verdicts", units, True, (f"{asked.split} plants", "plant"), executor)
        table = rates(pd.concat([one["verdicts"] for one in found], ignore_index=True))
        run.save("table", table)
    order = " / ".join(VERDICTS)
    print(f"{asked.plants} plants of {asked.split}, {asked.pool} pictures each. {order}, in per cent\n")
    for how in HOWS:
        print(shown(table, how) + "\n")
    for n in N:
        part = table[table.n == n]
        for how, some in part.groupby("how", sort=False):
            wrong, draws_of = round(float((some.wrong * some.draws).sum())), int(some.draws.sum())
            low, high = wilson_interval(wrong, draws_of)
            said = f"{100 * wrong / draws_of:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {draws_of} draws wrong"
            worst = some.loc[some.wrong.idxmax()]
            most = f"; most of {worst.kind!r}, {100 * worst.wrong:.0f} %" if wrong else ""
            print(f"{how}, n = {n}: {said}{most}")


if __name__ == "__main__":
    main()
