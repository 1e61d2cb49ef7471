"""``python -m benchmarks.kills``: kill each study at random moments, start it again until it is done, compare.

A run that was killed and continued must hold what an undisturbed one holds, bit for bit but for the clock. Signals take
turns: SIGKILL, which can't be handled, SIGTERM and SIGINT, which must end the command with their own exit code and one
line that says where it goes on. Between two kills a study must get on: a process that lives longer than ``STRETCH``
seconds of CPU time must have finished something. Settings are small, so that a study takes seconds; the imports are
done once, and each attempt is a fork of this process, which computes nothing itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pandas as pd

import gatelens.studies.catalogue
import gatelens.studies.presets
import gatelens.views  # noqa: F401  (loaded here, so that a fork begins at once)
from gatelens.cli import main as gatelens_command
from gatelens.runs import Run

STRETCH = 15.0  # seconds of CPU time
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
FEW = ["--limit", "24", "--n-boot", "20", "--quiet"]
QUICK = "quick"  # a second of work, for the share that runs as a test
STUDIES: dict[str, list[str]] = {
    QUICK: [*FEW, "--limit", "4", "--sections", "knockouts", "--n-vqa", "0", "--n-caption", "0"],
    "narrow-gate": [
        *FEW, "--limit", "20", "--vqa-tokens", "2", "--caption-tokens", "2", "--random-repeats", "1",
        *(part for option in (
            "progressive.n=4", "progressive.n_vqa=4", "questions.n=4", "attention.n=8", "modality_gap.n=10",
            "meaning.folds=2", "meaning.layers=1", "patching.n_pairs=4", "patching.every=3", "finder.n_pairs=2",
            "finder.refine=1", "finder.narrow=1", "steering.n=1", "steering.n_random=1", "steering.doses=[1]",
            "steering.every=3", "drawing.n=1",
        ) for part in ("--option", option)),
    ],
    "find-gate": [*FEW, "--option", "finder.n_pairs=4"],
    "whats-in-the-image": [*FEW, "--limit", "6", "--max-new-tokens", "8"],
    "gate-finetuning": [
        *FEW, "--steps", "4", "--swap-steps", "2", "--n-train", "64", "--batch-size", "4", "--limit", "8",
        "--measured", '{"sections": ["knockouts"], "vqa_tokens": 4, "caption_tokens": 4, "random_repeats": 1}',
    ],
}  # fmt: skip


@dataclass
class Outcome:
    """What became of one study.

    Attributes:
        undisturbed: CPU seconds of the undisturbed run.
        kills: signals that met a study at work, by name.
        runs: finished, each after some kills.
        longest_idle: CPU seconds of the longest attempt that finished nothing.
        faults: what must not be.
    """

    undisturbed: float = 0.0
    kills: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    longest_idle: float = 0.0
    faults: list[str] = field(default_factory=list)


def attempt(arguments: list[str], log: Path, end: Callable[[int], None]) -> tuple[int, float, str]:
    """Run a command in a fork; ``end`` may signal its process. Its exit code, CPU seconds and stderr.

    A negative code is the signal that ended the process.
    """
    pid = os.fork()
    if pid == 0:
        code = 70
        for number in CODES:  # ignored ones would stay so, as under nohup
            if number != signal.SIGKILL:
                signal.signal(
                    number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                )
        try:
            with open(log, "w") as said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = gatelens_command(arguments)
        finally:
            os._exit(code)
    end(pid)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, log.read_text()


def after(seconds: float, number: signal.Signals) -> Callable[[int], None]:
    """Sends a signal after so many seconds to a process that is still at work by then."""

    def end(pid: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.005)
        os.kill(pid, number)

    return end


def finished(folder: Path) -> int:
    """Pieces of work that are there: measured batches, and steps of a training that are in a checkpoint."""
    batches = [p for p in folder.rglob("shards/*/*") if not p.name.startswith(".")]
    steps = [len(log.read_text().splitlines()) for log in folder.rglob("training_log.csv")]
    return len(batches) + sum(steps)


def leftovers(folder: Path) -> set[Path]:
    """What is half-written; a process that is killed leaves it, hidden, and one that is asked to end takes it back."""
    return set(folder.rglob(".*.part"))


def contents(folder: Path) -> Iterator[tuple[str, object]]:
    """All that a run and the runs within it hold, but clocks and pictures."""
    for manifest in sorted(folder.rglob("manifest.json")):
        run, place = Run.load(manifest.parent), manifest.parent.relative_to(folder)
        yield f"{place}: settings", run.settings
        for name in run.tables():
            table = run.table(name)
            yield f"{place}: {name}", table[[c for c in table.columns if not str(c).startswith("seconds")]]
        for file in sorted(manifest.parent.glob("*.json")):
            if file != manifest:
                yield f"{place}: {file.name}", run.json(file.stem)
        for file in sorted(manifest.parent.glob("*.safetensors")):
            yield f"{place}: {file.name}", file.read_bytes()
    for file in sorted(folder.rglob("model.safetensors")):
        yield str(file.relative_to(folder)), file.read_bytes()


def differences(whole: Path, run: Path) -> list[str]:
    """What two runs do not have in common."""
    there, here = dict(contents(whole)), dict(contents(run))
    different = [f"{name} is in one run alone" for name in there.keys() ^ here.keys()]
    for name in there.keys() & here.keys():
        a, b = there[name], here[name]
        same = a.equals(b) if isinstance(a, pd.DataFrame) and isinstance(b, pd.DataFrame) else a == b
        if not same:
            different.append(f"{name} differs")
    return different


def torment(study: str, kills: int, folder: Path, moments: random.Random) -> Outcome:
    """Kill a study until it was killed ``kills`` times, and its last run is done."""
    outcome, log = Outcome(), folder / "stderr"
    whole = folder / "whole"
    name = "narrow-gate" if study == QUICK else study
    command = ["study", name, "--model", "organism:gated", *STUDIES[study], "--out"]
    started = time.monotonic()
    code, outcome.undisturbed, said = attempt([*command, str(whole)], log, lambda pid: None)
    took = time.monotonic() - started
    if code != 0:
        outcome.faults.append(f"undisturbed: exit code {code}: {said.strip()[-200:]}")
        return outcome
    turn, run = 0, folder / "run-0"
    while True:
        number = list(CODES)[turn % len(CODES)]
        before, parts = finished(run), leftovers(run)
        signalled = sum(outcome.kills.values()) < kills
        end = after(moments.uniform(0, took / 6), number) if signalled else lambda pid: None
        began = time.monotonic()
        code, used, said = attempt([*command, str(run)], log, end)
        if code == 0:
            took = min(took, time.monotonic() - began)  # the first run may have waited for the machine
            outcome.faults += [f"run {outcome.runs}: {what}" for what in differences(whole, run)]
            outcome.runs += 1
            if sum(outcome.kills.values()) >= kills:
                return outcome
            shutil.rmtree(run)
            run = folder / f"run-{outcome.runs}"
            continue
        turn += 1
        outcome.kills[number.name] = outcome.kills.get(number.name, 0) + 1
        outcome.faults += wrong_end(number, code, said, run)
        if code > 0:
            outcome.faults += [f"{number.name} left {part}" for part in leftovers(run) - parts]
        if finished(run) == before:
            outcome.longest_idle = max(outcome.longest_idle, used)
            if used > STRETCH:
                outcome.faults.append(f"{used:.0f} s of CPU time and nothing finished")
        if len(outcome.faults) > 5:
            return outcome


def wrong_end(number: signal.Signals, code: int, said: str, run: Path) -> list[str]:
    """What is wrong with how a signalled command ended."""
    if code not in (CODES[number], -number):  # the signal may come before the command listens
        return [f"{number.name}: exit code {code}: {said.strip()[-200:]}"]
    line = f"gatelens: stopped; the same command resumes in {run}"
    if code > 0 and said.strip() not in (line, "gatelens: stopped"):
        return [f"{number.name}: {said.strip()[-200:]!r}"]
    return []


def main() -> int:
    """Exit code 1 where anything was wrong."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    words.add_argument(
        "--studies", default=",".join(s for s in STUDIES if s != QUICK), help=f"some of {','.join(STUDIES)}"
    )
    words.add_argument("--kills", type=int, default=30, help="kills of each study, at least (default 30)")
    words.add_argument("--seed", type=int, default=0, help="of the moments")
    given = words.parse_args()
    wrong = 0
    for study in given.studies.split(","):
        with tempfile.TemporaryDirectory() as place:
            outcome = torment(study, given.kills, Path(place), random.Random(given.seed))
        kills = ", ".join(f"{n} {name}" for name, n in outcome.kills.items())
        print(
            f"{study}: {kills or 'no kill'}; {outcome.runs} runs finished, undisturbed {outcome.undisturbed:.1f} s of "
            f"CPU time, longest attempt that finished nothing {outcome.longest_idle:.1f} s; "
            f"{len(outcome.faults)} faults",
            flush=True,
        )
        for fault in outcome.faults:
            print(f"  {fault}", flush=True)
        wrong += len(outcome.faults)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
