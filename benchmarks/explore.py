"""How long the page of `gatelens explore` takes from a moved control to the drawn answer, in Chromium.

``python -m benchmarks --only explore``, or by itself on another organism: ``python -m benchmarks.explore --model …``.
Each value of the slider is asked for by itself, and is a new state. Needs the extras ``explore`` and ``dev`` and a
Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from typing import Any

LIMIT = 1.0  # seconds of the slowest answer, on an organism

SLIDE = """async (values) => {
  const slider = document.querySelector("#steer"), taken = [];
  const rest = () => new Promise((done) => {
    const look = () => (document.body.hasAttribute("data-rest") ? done() : setTimeout(look, 1));
    look();
  });
  for (const value of values) {
    const begun = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await rest();
    document.body.getBoundingClientRect(); // laid out
    taken.push(performance.now() - begun);
  }
  return taken;
}"""


def measure(model: str = "organism:gated", n: int = 40) -> dict[str, Any]:
    """Seconds of the answers, by what is switched on."""
    found = {
        name: {"median_s": statistics.median(each) / 1000, "most_s": max(each) / 1000, "answers": n}
        for name, each in timed(model, n).items()
    }
    slowest = max(one["most_s"] for one in found.values())
    return {"model": model, "times": found, "limit": LIMIT, "passes": slowest < LIMIT}


def timed(model: str, n: int) -> dict[str, list[float]]:
    """Milliseconds of each answer, by what is switched on."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-u", "-m", "gatelens.cli", "explore", "--no-browser", "--model", model]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.findall(r"http://\S+/", server.stdout.readline())[0]
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        with sync_playwright() as playwright:
            page = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page()
            page.set_default_timeout(120_000)
            found = {}
            for name, hash_ in (
                ("steering", ""),
                (
                    "steering, two knockouts and a patch",
                    'cut=[["text","gate"],["text","image"]]&patch="gate"',
                ),
            ):
                page.goto("about:blank")
                page.goto(f"{address}#{hash_}")
                page.wait_for_selector("body[data-rest]")
                page.evaluate(SLIDE, [5])  # makes the direction
                found[name] = page.evaluate(SLIDE, [round(0.1 * (i % 40) + 0.1, 1) for i in range(n)])
            return found
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="organism:gated")
    parser.add_argument("-n", type=int, default=40, help="positions of the slider")
    given = parser.parse_args()
    for name, took in measure(given.model, given.n)["times"].items():
        seconds = f"median {1000 * took['median_s']:.0f} ms, at most {1000 * took['most_s']:.0f} ms"
        print(f"{name}: {seconds} of {took['answers']}")


if __name__ == "__main__":
    main()
