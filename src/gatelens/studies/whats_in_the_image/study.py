"""Where is visual information stored and read? The study of Kaduri et al. (arXiv 2411.17491) on any model and data.

Attention by token type, knockout configurations scored by the objects that are still named, localisation of words,
the compressed context, a verdict in words; tables, figures and a report on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from gatelens.engine import generate_many
from gatelens.errors import DataError, InterventionError
from gatelens.measures.judge import Judge, OfflineJudge
from gatelens.measures.objects import Vocabulary
from gatelens.runs import Run, check_writable, fingerprint
from gatelens.studies.common import (
    Progress,
    auto_batch_size,
    chunks,
    chunks_by_length,
    data_fingerprint,
    inference,
    model_fingerprint,
    model_name,
    prepare,
    provenance,
    resolve_data,
    resolve_model,
)
from gatelens.studies.whats_in_the_image import compressed_context as context
from gatelens.studies.whats_in_the_image import configurations as wi
from gatelens.studies.whats_in_the_image import descriptions as words
from gatelens.studies.whats_in_the_image import evidence, questions, scores
from gatelens.studies.whats_in_the_image.planted import planted_in
from gatelens.studies.whats_in_the_image.setup import PRESETS, judge_of, pictures, vocabulary_of
from gatelens.studies.whats_in_the_image.truth import Segmenter, masks_of, objects_in, segmented
from gatelens.studies.whats_in_the_image.verdict import kept_shares, verdict

if TYPE_CHECKING:
    from gatelens.data import Dataset, Example
    from gatelens.model import HookedVLM

STUDY = "whats-in-the-image"
COST_OF_QUESTIONS = 8  # of a batch, in units of one knockout of a batch: for the progress bar
SHOWN = 6  # pictures in the report, the first drawn


def whats_in_the_image(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] | None = None,
    *,
    how: str = "mask",
    first_token: str = "sees",
    preset: str = "data",
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    n: int = 120,
    n_asked: int | None = None,
    keep: Sequence[float] = (0.02, 0.05),
    judge: str | Judge = "offline",
    vocabulary: Vocabulary | None = None,
    segmenter: Segmenter | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    n_boot: int = 1000,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Run:
    """Run the study, or finish one that was cut short in the same folder.

    Args:
        model: a model or its name.
        data: a data set, its name or a folder. Its captions' pictures are described, else those of its classes or
            questions. Questions are asked of the compressed context where it has any.
        out: folder of the run; None keeps the tables in memory and draws no figures.
        how: ``"mask"`` (−inf before the softmax, as the paper does), ``"zero"`` (0 after it) or ``"both"``.
        first_token: whether the row that writes the first token still ``"sees"`` the image when image → generated
            is cut (the paper's code) or is ``"blocked"`` as well.
        preset: ``"data"`` (the data's own caption prompt, 60 tokens) or ``"paper"`` (its prompt, 300 tokens).
        prompt, max_new_tokens: in place of the preset's.
        limit: at most this many pictures (and pictures asked about).
        n: pictures described. The paper has 80.
        n_asked: pictures whose questions are put to the compressed context; None is 60, or all of MME; 0 is none.
        keep: the shares of image tokens it keeps, beside none and all.
        judge: ``"offline"`` (the vocabulary), ``"llm"`` (the endpoint in the environment; prompts and replies are
            kept in ``judge.jsonl`` of ``out``) or a judge of your own.
        vocabulary: objects to look for; None is the data's classes where it names its objects, else MS-COCO's.
        segmenter: gives masks by name for ``(picture, names)``, where the data has none.
        skip_bad: leave bad rows of data given by name out, and list them in the manifest, instead of stopping.
        seed: draws examples and bootstrap samples.
        batch_size: None fits it to the length of the prompts.
        device, dtype: where to load a model given by name.

    Returns:
        The run: ``run.table("knockout")``, ``"shares"``, ``"token_types"``, ``"predictions"``, and where there is
        something to measure ``"localisation"`` and ``"trade_off"``; ``run.json("verdict")``, ``"window"``; with
        ``out`` also ``figures/…``, ``report.html``.

    Raises:
        OutputError: ``out`` can't be written or holds other settings (before any compute).
        DataError: the data has no pictures to describe, or an argument makes no sense.
    """
    hows = wi.check_words(how, first_token)
    if preset not in PRESETS:
        raise DataError(f"preset={preset!r} is unknown; choose {' or '.join(map(repr, PRESETS))}")
    if out is not None:
        check_writable(out)
    for name, value in (
        ("limit", limit),
        ("n", n),
        ("max_new_tokens", max_new_tokens),
        ("batch_size", batch_size),
        ("n_boot", n_boot),
    ):
        if value is not None and value < 1:
            raise DataError(f"{name}={value} leaves nothing to do; give at least 1")
    for share in keep:
        if not 0 < share < 1:
            raise DataError(f"keep={share}: give shares of the image tokens between 0 and 1, such as 0.05")
    if prompt is not None and "<image>" not in prompt:
        raise DataError(f"prompt {prompt!r} has no <image>; say where the picture goes")
    judging = judge_of(judge, out)
    called = model_name(model)
    options = {k: v for k, v in (("device", device), ("dtype", dtype)) if v is not None}
    source = resolve_data(
        data, skip_bad
    )  # before the model, which takes longer to load than bad data to find
    longest = max_new_tokens or PRESETS[preset]["max_new_tokens"]
    drawn = pictures(source, n if limit is None else min(n, limit), seed, prompt or PRESETS[preset]["prompt"])
    found = vocabulary or vocabulary_of(source, drawn)
    vlm = resolve_model(model, **options)
    size = batch_size or auto_batch_size(vlm, max(drawn, key=lambda e: len(e.prompt)))
    settings = {
        "model": called,
        "weights": model_fingerprint(vlm),
        "data": source.name,
        "examples": data_fingerprint(drawn),
        "n": len(drawn),
        "prompt": drawn[0].prompt,
        "max_new_tokens": longest,
        "how": how,
        "first_token": first_token,
        "n_asked": n_asked if limit is None else limit if n_asked is None else min(n_asked, limit),
        "keep": list(keep),
        "judge": judge if isinstance(judge, str) else type(judge).__name__,
        "vocabulary": fingerprint(found.names),
        "segmenter": getattr(segmenter, "__name__", None if segmenter is None else type(segmenter).__name__),
        "seed": seed,
        "n_boot": n_boot,
        "batch_size": size,
        "dtype": str(vlm.dtype),
    }
    info = {
        "device": str(vlm.device),
        "model_class": type(vlm.hf).__name__,
        "n_layers": int(vlm.cfg.n_layers),
        "preset": preset,
        **provenance(source),
    }
    run = Run.open(out, study=STUDY, settings=settings, info=info)
    study = _Study(vlm, source, drawn, hows, size, run, found, judging or OfflineJudge(found), segmenter)
    with inference():
        study.run_all(progress)
    if out is not None:
        # as in the other study: its last act is to have itself drawn
        from gatelens.views.report import write_report

        write_report(run)
    return run


@dataclass
class _Study:
    """The stages of one run, in order."""

    model: HookedVLM
    data: Dataset
    drawn: list[Example]
    hows: Sequence[wi.How]
    size: int
    run: Run
    vocabulary: Vocabulary
    judge: Judge
    segmenter: Segmenter | None

    def run_all(self, progress: bool) -> None:
        self.set = self.run.manifest["settings"]
        self.n_layers = int(self.model.cfg.n_layers)
        self.named = scores.Named(self.judge)
        self.chunks = chunks_by_length(self.model, self.drawn, self.size)
        self.shown = {e.id for e in self.drawn[:SHOWN]}
        curve = wi.by_start(self.n_layers, wi.curve_starts(self.n_layers))
        width = len(wi.by_window(self.n_layers, 0, 1))
        work = {"descriptions": 1, "curve": len(curve) * len(self.hows), "window": width * len(self.hows)}
        total = sum(
            units
            for stage, units in work.items()
            for number, *_ in self.chunks
            if not self.run.done(f"shards/{stage}-{number:04d}")
        )
        self.asked, self.paired = questions.questions(self.data, self.set["n_asked"], self.set["seed"])
        total += COST_OF_QUESTIONS * sum(
            1
            for number, *_ in chunks(self.asked, self.size)
            if not self.run.done(f"shards/questions-{number:04d}")
        )
        with Progress(total, progress) as self.bar:
            self._describe()
            found = [self._texts("curve", curve, *chunk) for chunk in self.chunks]
            window = self._window(pd.concat(found, ignore_index=True))
            if window is not None:
                inside = wi.by_window(self.n_layers, int(window["start"]), int(window["stop"]))
                found += [self._texts("window", inside, *chunk) for chunk in self.chunks]
            self._trade_off()
        self._conclude(pd.concat(found, ignore_index=True), window)

    # -- stages

    def _describe(self) -> None:
        """Descriptions of all pictures, attention by token type, localisation; one prompt's tokens."""
        if not self.run.done("tokens"):
            shown = prepare(self.model, self.drawn[:1]).tokens.show()
            value = {"header": list(shown.header[1:]), "rows": [list(r[1:]) for r in shown.rows]}
            self.run.save_json("tokens", {**value, "prompt": self.drawn[0].prompt})
        for number, start, part in self.chunks:
            self.run.stage(f"shards/descriptions-{number:04d}", partial(self._described, number, start, part))
        everything = pd.concat(
            [self.run.table(f"shards/descriptions-{number:04d}") for number, *_ in self.chunks],
            ignore_index=True,
        )
        self.descriptions = dict(zip(everything.id, everything.text, strict=True))

    def _described(self, number: int, start: int, part: Sequence[Example]) -> pd.DataFrame:
        """The descriptions of one batch; what was seen while they were written goes to shards of its own."""
        inputs = prepare(self.model, part, start)
        out = words.describe(self.model, inputs, self.set["max_new_tokens"])
        hits: list[pd.DataFrame] = []
        for b, (e, description) in enumerate(zip(part, out.texts, strict=True)):
            spelled = words.Words(description, lambda ids: self.model.decode(ids)[0])
            masks = self._masks(e, spelled.text)
            for table in words.localisation_rows(
                spelled, out.attention, inputs.tokens, b, self.vocabulary, masks
            ):
                table.insert(0, "id", e.id)
                hits.append(table)
            if e.id in self.shown:
                page = words.looking(spelled, out.attention, inputs.tokens, b, e, self.vocabulary, masks)
                self.run.save_json(f"shards/looking-{self.drawn.index(e):04d}", page)
        self.run.save_table(f"shards/types-{number:04d}", out.types)
        self.run.save_table(f"shards/hits-{number:04d}", pd.concat(hits) if hits else pd.DataFrame())
        self.bar.step("descriptions")
        return pd.DataFrame({"id": [e.id for e in part], "text": [d.text for d in out.texts]})

    def _masks(self, example: Example, text: str) -> Any:
        given = masks_of(example, getattr(self.data, "path", None))
        if given or self.segmenter is None:
            return given
        names = self.vocabulary.objects(text)
        return segmented(self.segmenter, example, names) if names else {}

    def _texts(
        self,
        stage: str,
        configurations: Sequence[wi.Configuration],
        number: int,
        start: int,
        part: Sequence[Example],
    ) -> pd.DataFrame:
        """What is written of one batch under every configuration."""

        def compute() -> pd.DataFrame:
            places = [(how, c) for how in self.hows for c in configurations]
            policy = self.set["first_token"]
            runs = [wi.specs(c, self.n_layers, how, policy) for how, c in places]
            inputs = prepare(self.model, part, start)
            said = generate_many(self.model, inputs, runs, self.set["max_new_tokens"])
            rows = [
                (how, c.name, c.path, c.scope, c.start, c.stop, e.id, text)
                for (how, c), out in zip(places, said, strict=True)
                for e, text in zip(part, out.texts, strict=True)
            ]
            self.bar.step(f"knockouts, {stage}", len(places))
            return pd.DataFrame(rows, columns=[*scores.PLACE, "id", "text"])

        return self.run.stage(f"shards/{stage}-{number:04d}", compute)

    def _score(self, texts: pd.DataFrame) -> pd.DataFrame:
        truth = {e.id: objects_in(e) for e in self.drawn}
        return scores.scored(texts, self.descriptions, truth, self.named)

    def _window(self, texts: pd.DataFrame) -> dict[str, Any] | None:
        """The layers whose window is knocked out; kept, so that a run goes on with the same ones."""
        if not self.run.done("window"):
            self.run.save_json("window", scores.find_window(self._score(texts), self.hows[0], self.n_layers))
        return self.run.json("window")

    def _trade_off(self) -> None:
        """Questions answered from contexts of several sizes, a few pictures a shard."""
        if self.run.done("trade_off") or self.run.done("no_trade_off"):
            return
        found: list[pd.DataFrame] = []
        settings = {
            "prompt": self.set["prompt"],
            "describe_tokens": self.set["max_new_tokens"],
            "score": questions.score(self.paired),
        }
        try:
            for number, _, part in chunks(self.asked, self.size):
                answer = partial(context.answer_all, self.model, part, self._keeps(), **settings)
                found.append(self.run.stage(f"shards/questions-{number:04d}", answer))
                self.bar.step("compressed context", COST_OF_QUESTIONS)
        except InterventionError as error:  # some families' attention leaves no room for it
            self.run.save_json("no_trade_off", str(error))
            return
        if not found:
            self.run.save_json("no_trade_off", f"data {self.data.name!r} has no questions to ask")
            return
        answers = pd.concat(found, ignore_index=True)
        self.run.save_table("answers", answers)
        self.run.save_table("trade_off", context.summarise(answers, self.set["n_boot"], self.set["seed"]))
        if self.paired:
            table = questions.mme_table(answers, self.asked, self.set["n_boot"], self.set["seed"])
            self.run.save_table("mme", table)

    def _keeps(self) -> list[float]:
        return [1.0, *sorted(self.set["keep"], reverse=True), 0.0]

    # -- from what is stored to tables and words; cheap, so always made anew

    def _conclude(self, texts: pd.DataFrame, window: dict[str, Any] | None) -> None:
        boot, seed, run = self.set["n_boot"], self.set["seed"], self.run
        whole = pd.concat([scores.unmodified(self.descriptions, self.hows), texts], ignore_index=True)
        predictions = self._score(whole)
        run.save_table("predictions", predictions)
        table = scores.summarise(predictions, boot, seed)
        run.save_table("knockout", table)
        shares = kept_shares(predictions, boot, seed)
        run.save_table("shares", shares)
        types = words.pooled_types([run.table(f"shards/types-{number:04d}") for number, *_ in self.chunks])
        run.save_table("token_types", types)
        hits = [run.table(f"shards/hits-{number:04d}") for number, *_ in self.chunks]
        places = evidence.localisation_table(hits, boot, seed)
        if len(places):
            run.save_table("localisation", places)
        trade = run.table("trade_off") if run.done("trade_off") else None
        notes = evidence.notes(types, places, trade)
        planted = planted_in(self.set["model"])
        run.save_json("verdict", verdict(shares, table, window, notes, planted))
        run.save_json("examples", self._examples(predictions))

    def _examples(self, predictions: pd.DataFrame) -> list[dict[str, Any]]:
        """The first drawn pictures, not picked by what they show, with what is written under the main cuts."""
        shown = predictions[(predictions.how == self.hows[0]) & (predictions.scope != wi.FROM)]
        out = []
        for i, e in enumerate(self.drawn[:SHOWN]):
            part = shown[shown.id == e.id]
            rows = [
                {"row": r.row, "text": r.text, "objects": [o for o in r.objects.split("|") if o], "f1": r.f1}
                for r in part.itertuples()
            ]
            rows = json.loads(pd.DataFrame(rows).to_json(orient="records"))
            out.append({**self.run.json(f"shards/looking-{i:04d}"), "truth": objects_in(e), "rows": rows})
        return out
