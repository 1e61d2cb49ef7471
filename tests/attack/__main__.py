"""``python -m attack``: random interventions against plain transformers, as many as one wants.

From the repository: ``PYTHONPATH=tests:tests/families python -m attack --compositions 2000 --generations 500``.
"""

from __future__ import annotations

import argparse
import sys
import time

from tqdm.auto import tqdm

from attack import compositions, generations


def main() -> int:
    parser = argparse.ArgumentParser(prog="attack", description=__doc__)
    parser.add_argument("--compositions", type=int, default=2000)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", nargs="*", default=sorted(compositions.family_cases()))
    asked = parser.parse_args()
    bad = 0
    for what, n, module in (
        ("compositions", asked.compositions, compositions),
        ("generations", asked.generations, generations),
    ):
        start, total = time.monotonic(), compositions.Outcome()
        for outcome in tqdm(module.attack(asked.families, n, asked.seed), desc=what):
            total.add(outcome)
        counts = ", ".join(f"{number} {name}" for name, number in sorted(total.counts.items()))
        print(
            f"{what}: {counts}; {len(total.wrong)} wrong; worst {total.worst:.1e}; {time.monotonic() - start:.0f} s"
        )
        print("\n".join(total.wrong))
        bad += len(total.wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
