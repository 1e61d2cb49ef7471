"""Measure what a graded organism is: which positions carry which fact to the answering row, under three kinds of cut.

    python -m gatelens.organisms.graded.truth build/graded/gate-at-image-47

Every number is a pass of plain transformers (:mod:`gatelens.plain_runs`) over pairs of scenes of one object
that differ in the fact asked for (:mod:`gatelens.data.scene_pairs`), of combinations kept out of training. Of each pass
only what the answering row reads is changed, the last row of the prompt: it does not read some positions, before the
softmax (``mask``) or after it (``zero``), or reads them in the prompt of the pair's other picture (``resample``). In
``resample, all rows``, all activations at the positions are the other picture's, for every row to read.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoProcessor, ChameleonForConditionalGeneration

from gatelens import data
from gatelens.data.pairing import pairs as make_pairs
from gatelens.measures.stats import mean_interval
from gatelens.model.differences import add_difference, read_difference
from gatelens.organisms.graded.kinds import EOI, IMAGE, KINDS, QUESTIONS, Kind
from gatelens.plain_runs import How, PlainRuns
from gatelens.shipped_organisms import DIFFERENCE_FILE, organism_folder

Logits: TypeAlias = Float[Tensor, "prompt d_vocab"]
HOWS: tuple[How, ...] = ("mask", "zero", "resample")
CLOSE, FAR = 0.06, 0.1  # of accuracy: what counts as unchanged, and how far above chance a cut may leave it
LEAST = 0.85  # accuracy with nothing cut, and share of answers that follow another picture's carriers


class FactRuns:
    """One fact of one organism: pairs of scenes, and passes over both of each pair.

    Attributes:
        own, other: token of the right answer for the picture shown, and for the pair's other one.
        answers: tokens of all answers.
        chance: how often the best constant answer is right, or one at random if that is more.
    """

    def __init__(self, hf: Any, processor: Any, fact: str, n: int, seed: int) -> None:
        self.fact = fact
        with warnings.catch_warnings():  # another colour of a held-out combination is one of training
            warnings.simplefilter("ignore", UserWarning)
            pairs = make_pairs(data.load("emoji-scenes"), differ=fact, n=n, seed=seed)
        examples = [example for pair in pairs for example in (pair.clean, pair.corrupt)]
        self.partner = torch.arange(len(examples)) ^ 1
        images, texts = [e.image for e in examples], [e.prompt for e in examples]
        self.runs = PlainRuns(hf, processor, images, texts)
        words = processor.tokenizer.get_vocab()
        self.own = torch.tensor([words[e.answers[0]] for e in examples])
        self.other = self.own[self.partner]
        self.answers = [words[name] for name in QUESTIONS[fact][1]]
        most = Counter(self.own.tolist()).most_common(1)[0][1] / len(examples)
        self.chance = max(1 / len(self.answers), most)
        self.layers = tuple(range(len(self.runs.layers)))

    def cut(self, positions: Sequence[int], how: How, layers: Sequence[int] | None = None) -> Logits:
        """What the answering row says with positions cut in some layers, or in all."""
        where = self.layers if layers is None else layers
        return self.runs.logits(dict.fromkeys(where, positions), how, self.partner)

    def resampled(self, positions: Sequence[int], own: Sequence[int] = ()) -> Logits:
        """The same with positions the other picture's for all rows, and ``own`` ones as in an unmodified run."""
        return self.runs.resampled(positions, self.partner, own)

    def right(self, logits: Logits, other: bool = False) -> list[float]:
        """1 where the likeliest token is the right answer."""
        return (logits.argmax(-1) == (self.other if other else self.own)).float().tolist()

    def accuracy(self, logits: Logits) -> float:
        return _mean(self.right(logits))

    def probability(self, logits: Logits, other: bool = False) -> float:
        """Of the right answer among all answers, on average."""
        among = torch.tensor(self.answers)
        shares = logits[:, among].softmax(-1)
        return float(shares[(self.other if other else self.own)[:, None] == among].mean())


# test, kind of cut, whose answer, what is said, and from where to where the accuracy must be
Row = tuple[str, str, str, Logits, float, float]


def truth(hf: Any, processor: Any, kind: Kind, n: int, seed: int) -> pd.DataFrame:
    """What must hold of an organism of a kind, measured.

    Args:
        n: pairs of each fact.

    Returns:
        Columns ``fact``, ``test``, ``how``, ``answer`` (``own``: right for the picture shown; ``other``: for the one
        that activations come from), ``mean`` accuracy with ``low`` and ``high`` (95 % interval), ``probability`` of the
        right answer among the answers there are, ``n``, ``least`` and ``most`` (what the kind asks of the accuracy; of
        a cut the probability too must be at most that) and ``holds``.
    """
    rows: list[dict[str, Any]] = []
    for fact in kind.facts:
        one = FactRuns(hf, processor, fact, n, seed)
        for test, how, answer, logits, least, most in _tests(one, kind):
            values = one.right(logits, answer == "other")
            low, high = mean_interval(values)
            mean, probability = _mean(values), one.probability(logits, answer == "other")
            holds = least <= mean <= most and (most == 1.0 or probability <= most)
            rows.append(
                {
                    "fact": fact, "test": test, "how": how, "answer": answer, "mean": mean, "low": float(low),
                    "high": float(high), "probability": probability, "n": len(values), "least": least, "most": most,
                    "holds": holds,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _tests(one: FactRuns, kind: Kind) -> Iterator[Row]:
    carriers = kind.positions(one.fact)
    everything = (*IMAGE, EOI, *kind.gates_in_text)
    others = tuple(p for p in everything if p not in carriers)
    reading = tuple(layer for layer in one.layers if kind.reads(layer))
    rest = tuple(layer for layer in one.layers if not kind.reads(layer))
    clean = one.runs.logits()
    unchanged, guess = one.accuracy(clean) - CLOSE, one.chance + FAR
    yield "nothing cut", "", "own", clean, LEAST, 1.0
    for how in HOWS:
        yield "all others cut", how, "own", one.cut(others, how), unchanged, 1.0
        # where resampled, the right answer is one that nothing read tells
        yield "carriers cut", how, "own", one.cut(carriers, how), 0.0, guess
        if rest:
            yield "all cut in the other layers", how, "own", one.cut(everything, how, rest), unchanged, 1.0
            yield "carriers cut in their layers", how, "own", one.cut(carriers, how, reading), 0.0, guess
        yield from _groups(one, kind, how, everything, unchanged)
    everywhere = "resample, all rows"
    yield "carriers from another picture", everywhere, "other", one.resampled(carriers), LEAST, 1.0
    held = one.resampled(others, own=carriers)
    yield "all others from another picture", everywhere, "own", held, unchanged, 1.0


def _groups(
    one: FactRuns, kind: Kind, how: How, everything: Sequence[int], unchanged: float
) -> Iterator[Row]:
    """Each group alone is enough; or, where each tells one digit, none can be spared."""
    groups = kind.carriers[one.fact]
    for number, group in enumerate(groups if len(groups) > 1 else ()):
        name = f"{group[0]}" if len(group) == 1 else f"{group[0]} to {group[-1]}"
        if kind.digits:
            yield f"{name} cut", how, "own", one.cut(group, how), 0.0, 1 / kind.digits[number] + FAR
        elif how != "resample":  # one group's picture against that of all the others says nothing
            rest = [p for p in everything if p not in group]
            yield f"{name} alone", how, "own", one.cut(rest, how), unchanged, 1.0


def distraction(hf: Any, processor: Any, kind: Kind, n: int, seed: int) -> dict[str, dict[str, float]]:
    """By fact, the share of the answering row's attention that goes to the distractor, and to the carriers."""
    shares = {}
    for fact in kind.facts:
        attention = FactRuns(hf, processor, fact, n, seed).runs.attention()
        carriers = float(attention[list(kind.positions(fact))].sum())
        shares[fact] = {"distractor": float(attention[kind.distractor]), "carriers": carriers}
    return shares


def by_position(hf: Any, processor: Any, kind: Kind, n: int, seed: int) -> pd.DataFrame:
    """Accuracy by fact, with each position of the picture, the end-of-image token and the words cut alone.

    Returns:
        Columns ``fact``, ``position``, ``clean`` (nothing cut), ``mask``, ``zero``, ``resample``.
    """
    rows: list[dict[str, Any]] = []
    for fact in kind.facts:
        one = FactRuns(hf, processor, fact, n, seed)
        clean = one.accuracy(one.runs.logits())
        for position in range(IMAGE[0], one.runs.ids.shape[1] - 1):
            cut = {str(how): one.accuracy(one.cut((position,), how)) for how in HOWS}
            rows.append({"fact": fact, "position": position, "clean": clean, **cut})
    return pd.DataFrame(rows)


def by_layer(hf: Any, processor: Any, kind: Kind, n: int, seed: int) -> pd.DataFrame:
    """Accuracy by fact, with the carriers cut in one layer, and in all others.

    Returns:
        Columns ``fact``, ``layer``, ``how``, ``here`` and ``elsewhere``.
    """
    rows: list[dict[str, Any]] = []
    for fact in kind.facts:
        one = FactRuns(hf, processor, fact, n, seed)
        for layer in one.layers:
            for how in HOWS:
                elsewhere = [x for x in one.layers if x != layer]
                here, there = (
                    one.accuracy(one.cut(kind.positions(fact), how, which)) for which in ([layer], elsewhere)
                )
                rows.append({"fact": fact, "layer": layer, "how": how, "here": here, "elsewhere": there})
    return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def load_plain(folder: Path, base: str) -> tuple[Any, Any]:
    """The organism in a folder as a plain transformers model, with its processor."""
    where = organism_folder(base)
    hf = ChameleonForConditionalGeneration.from_pretrained(where).eval()
    add_difference(hf, read_difference(folder / DIFFERENCE_FILE, where))
    return hf, AutoProcessor.from_pretrained(where)


def measure(folder: Path, n: int, n_scan: int, seed: int) -> dict[str, Any]:
    """All that is stored with an organism: what holds, by position, by layer."""
    training = json.loads((folder / "training.json").read_text())
    kind = KINDS[training["kind"]]
    hf, processor = load_plain(folder, training["base"])
    holds = truth(hf, processor, kind, n, seed)
    measured = {
        "seed": seed,
        "carriers": {fact: list(kind.positions(fact)) for fact in kind.facts},
        "holds": {str(fact): bool(part.all()) for fact, part in holds.groupby("fact").holds},
        "truth": holds.round(4).to_dict("records"),
    }
    if kind.distractor is not None:
        measured["attention"] = distraction(hf, processor, kind, n, seed)
    if n_scan:
        measured["scan n"] = 2 * n_scan
        measured["by position"] = by_position(hf, processor, kind, n_scan, seed).to_dict("list")
        measured["by layer"] = by_layer(hf, processor, kind, n_scan, seed).to_dict("list")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=100, help="pairs of each fact")
    parser.add_argument("--n-scan", type=int, default=25, help="pairs of each fact by position and layer")
    parser.add_argument("--seed", type=int, default=321)
    args = parser.parse_args()
    measured = measure(args.folder, args.n, args.n_scan, args.seed)
    (args.folder / "measured.json").write_text(json.dumps(measured) + "\n")
    print(shown(pd.DataFrame(measured["truth"])))


def shown(table: pd.DataFrame) -> str:
    """A test a row and a fact a column; "!" where a test does not hold."""
    cells = table["mean"].map("{:.2f}".format) + table.holds.map({True: "", False: " !"})
    test = table.test + ", " + table.how + ", " + table.answer
    wide = table.assign(cell=cells, name=test).pivot(index="name", columns="fact", values="cell")
    return wide.fillna("").to_string()


if __name__ == "__main__":
    main()
