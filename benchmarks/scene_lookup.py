"""Whether a table of pixels names what a held-out scene shows, for the two data sets of composed scenes.

``python -m benchmarks.scene_lookup`` draws scenes of one object and prints how many patches of 8 x 8 pixels of held-out
scenes are, pixel by pixel, patches of training scenes; how often a table of those patches names the class (each known
patch votes with the classes it was seen in); how often the nearest training picture does; how many scenes are distinct.
A class guessed is right in 1 of 16.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from gatelens.data import scenes
from gatelens.data.varied_scenes import varied_scene

from .report import markdown

Draw = Callable[[str, int, int, int | None], scenes.Scene]
SPLITS: list[tuple[str, Draw, str]] = [
    ("emoji-scenes", scenes.scene, "test"),
    ("varied-scenes", varied_scene, "test"),
    ("varied-scenes", varied_scene, "style"),
]


def patches(pixels: np.ndarray) -> list[bytes]:
    """The 64 patches of 8 x 8 pixels of a picture, as keys."""
    return [bytes(p) for p in pixels.reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, -1)]


HEAD = (
    "data",
    "split",
    "equal patches",
    "table names the class",
    "nearest picture names it",
    "distinct scenes",
)


def lookup(draw: Draw, split: str, n_train: int, n_test: int) -> tuple[str, ...]:
    """What is measured of one split, in the order of ``HEAD``."""
    table: dict[bytes, Counter[str]] = defaultdict(Counter)
    pixels, names = [], []
    for i in range(n_train):
        scene = draw("train", 0, i, 1)
        names.append(scene.objects[0].name)
        pixels.append(_reduced(scene))
        for patch in set(patches(scene.pixels)):
            table[patch][names[-1]] += 1
    known = np.stack(pixels)
    equal = by_table = by_nearest = 0
    distinct = set()
    for i in range(n_test):
        scene = draw(split, 4, i, 1)
        distinct.add(scene.pixels.tobytes())
        votes: Counter[str] = Counter()
        for patch in patches(scene.pixels):
            if patch in table:
                equal += 1
                for name, count in table[patch].items():
                    votes[name] += count / table[patch].total()
        truth = scene.objects[0].name
        by_table += bool(votes) and votes.most_common(1)[0][0] == truth
        distances = (known**2).sum(1) - 2 * known @ _reduced(scene)
        by_nearest += names[int(distances.argmin())] == truth
    shares = (equal / (64 * n_test), by_table / n_test, by_nearest / n_test)
    return (*(f"{share:.3f}" for share in shares), f"{len(distinct)} of {n_test}")


def _reduced(scene: scenes.Scene) -> np.ndarray:
    return scene.pixels[::2, ::2].ravel().astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-train", type=int, default=4000)
    parser.add_argument("--n-test", type=int, default=500)
    args = parser.parse_args()
    rows = [(data, split, *lookup(draw, split, args.n_train, args.n_test)) for data, draw, split in SPLITS]
    print(markdown(HEAD, rows))


if __name__ == "__main__":
    main()
