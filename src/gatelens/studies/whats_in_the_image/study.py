"""Where is visual information stored and read? The study of Kaduri et al. (arXiv 2411.17491) on any model and data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field, field_validator

from gatelens.data import Dataset
from gatelens.data.prompts import PAPER_DESCRIBE_PROMPT
from gatelens.errors import DataError
from gatelens.measures.judge import Judge, LLMJudge
from gatelens.measures.objects import Vocabulary
from gatelens.measures.stats import IN_WORDS
from gatelens.model import HookedVLM
from gatelens.plots.card import Block, Card, Checks, Text, token_card
from gatelens.plots.opening import BarTable, Diagram, Opening, Planted
from gatelens.runs import Run
from gatelens.runs.manifest import fingerprint
from gatelens.studies.options import MOST, AtLeastOne, CountsExamples, Says
from gatelens.studies.runner import run_study
from gatelens.studies.section import VALUES, Evidence
from gatelens.studies.study import Drawn, Study, StudyOptions
from gatelens.studies.whats_in_the_image import compressed_context, descriptions, knockouts
from gatelens.studies.whats_in_the_image.configurations import ALL, BOTH, GENERATED, NONE, QUERY, FirstToken
from gatelens.studies.whats_in_the_image.pictures import Segmenter, pictures, vocabulary_of
from gatelens.studies.whats_in_the_image.planted import PLANTED
from gatelens.studies.whats_in_the_image.questions import draw_questions
from gatelens.studies.whats_in_the_image.scores import AGAINST_TRUTH, F1, METRICS, NO_LOG, CachedJudge
from gatelens.studies.whats_in_the_image.verdict import TONES, paths_of, verdict

PRESETS: dict[str, tuple[str | None, int]] = {  # prompt (None is the data's own) and longest description
    "data": (None, 60),
    "paper": ("<image>" + PAPER_DESCRIBE_PROMPT, 300),
}
WORDS = {
    "interval": f"Over pictures (for words: over words), {IN_WORDS}",
    "verdict": (
        "The share of the F1 between floor and 1 that a knockout keeps. The floor: image → both cut in all layers, or "
        "another picture’s description where that is higher. Stored in the query tokens: less than half is kept with "
        "image → query cut, and at least 25 points more with image → generated cut. Read directly: the reverse. "
        "Intervals are taken into account. It needs 20 descriptions that name an object."
    ),
}


class WhatsInTheImageOptions(StudyOptions):
    """What can be asked of the study."""

    how: Annotated[
        Literal["mask", "zero", "both"],
        Field(description="Knockout: mask (before the softmax, as the paper does), zero (after it) or both."),
    ] = "mask"
    first_token: Annotated[
        FirstToken,
        Field(
            description="Whether the row that writes the first token still sees the image when image → generated is "
            "cut (the paper's code), or is blocked as well."
        ),
        Says("'sees' (the first generated token still sees the image, as in the paper) or 'blocked'"),
    ] = "sees"
    preset: Annotated[
        Literal["data", "paper"],
        Field(description="The data's own caption prompt and 60 tokens, or the paper's prompt and 300."),
        Says("'data' or 'paper'"),
    ] = "data"
    prompt: Annotated[
        str | None, Field(description="Prompt to use instead of the preset's, with <image> in it.")
    ] = None
    max_new_tokens: Annotated[
        AtLeastOne | None,
        Field(description="Longest description, in place of the preset's."),
        Says("a whole number, 1 or more"),
    ] = None
    n: Annotated[AtLeastOne, Field(description="Pictures described. The paper has 80."), CountsExamples()] = (
        120
    )
    n_asked: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST,
            description="Pictures whose questions are put to the compressed context; 0 is none. Default: 60, or all "
            "of MME.",
        ),
        Says("a whole number, 0 or more"),
    ] = None
    keep: Annotated[
        list[float] | tuple[float, ...],
        Field(description="Shares of image tokens the compressed context keeps, beside none and all."),
    ] = (0.02, 0.05)
    judge: Annotated[
        str | Judge | CachedJudge,
        Field(
            description="What finds objects: offline (a list of words), llm (GATELENS_JUDGE_URL, _MODEL, _KEY) or a "
            "judge of your own."
        ),
    ] = "offline"
    vocabulary: Annotated[
        Vocabulary | None,
        Field(
            description="Objects to look for. Default: the data's classes where it names its objects, else MS-COCO's."
        ),
        Says("a gatelens.measures.Vocabulary"),
    ] = None
    segmenter: Annotated[
        Segmenter | None,
        Field(description="Gives masks by name for (picture, names), where the data has none."),
        Says("a function of a picture and names that gives masks by name"),
    ] = None

    @field_validator("prompt")
    @classmethod
    def _has_image(cls, prompt: str | None) -> str | None:
        if prompt is not None and "<image>" not in prompt:
            raise ValueError("it has no <image>; say where the picture goes")
        return prompt

    @field_validator("keep", mode="before")
    @classmethod
    def _shares(cls, keep: Any) -> tuple[float, ...]:
        shares = tuple(keep) if isinstance(keep, list | tuple) else (keep,)
        for share in shares:
            if not isinstance(share, int | float) or not 0 < share < 1:
                raise ValueError(
                    f"keep={share!r} is not a share of the image tokens; give numbers between 0 and 1, such as 0.05"
                )
        return shares

    @field_validator("judge", mode="before")
    @classmethod
    def _asked_once(cls, judge: Any) -> str | CachedJudge:
        if judge == "llm":
            LLMJudge.from_environment(os.devnull)  # raises where the environment names no endpoint
        if judge in ("offline", "llm") or isinstance(judge, CachedJudge):
            return judge
        if isinstance(judge, Judge):
            return CachedJudge(judge)
        raise ValueError("give 'offline', 'llm' or a judge of your own")

    def capped(self, limit: int | None) -> WhatsInTheImageOptions:
        """With at most ``limit`` pictures, described or asked about."""
        capped = super().capped(limit)
        if limit is None:
            return capped
        asked = limit if self.n_asked is None else min(self.n_asked, limit)
        return capped.model_copy(update={"n_asked": asked})

    @property
    def longest(self) -> int:
        """Most new tokens of a description."""
        return self.max_new_tokens or PRESETS[self.preset][1]

    @property
    def judge_name(self) -> str:
        """What the manifest calls the judge."""
        return type(self.judge.judge).__name__ if isinstance(self.judge, CachedJudge) else str(self.judge)


def draw(data: Dataset, options: WhatsInTheImageOptions) -> Drawn:
    """``pictures`` with the prompt that has them described, and ``questions`` for the compressed context.

    Raises:
        DataError: the data has no pictures, or questions that are not about one picture.
    """
    prompt = options.prompt or PRESETS[options.preset][0]
    return {
        "pictures": pictures(data, options.n, options.seed, prompt),
        "questions": draw_questions(data, options.n_asked, options.seed),
    }


def settings(
    model: HookedVLM, data: Dataset, drawn: Drawn, options: WhatsInTheImageOptions
) -> Mapping[str, Any]:
    """What the manifest says of the options once the data is known."""
    described = drawn["pictures"]
    vocabulary = options.vocabulary or vocabulary_of(data, described)
    return {
        "n": len(described),
        "prompt": described[0].prompt,
        "max_new_tokens": options.longest,
        "judge": options.judge_name,
        "vocabulary": fingerprint(vocabulary.names),
    }


def conclude(run: Run, evidence: list[Evidence]) -> Mapping[str, Any]:
    """The verdict; the knockouts decide."""
    planted = PLANTED.get(run.settings["model"])
    return verdict(run.table("shares"), run.table("knockout"), run.json("window"), evidence, planted)


CONTEXTS = {"how": "compressed context", "metric": "accuracy"}  # cells of the comparison of two runs


def comparable(run: Run) -> pd.DataFrame:
    """F1 under every knockout, and accuracies from every context."""
    table = run.table("knockout")
    table = table[table.metric.isin([F1, AGAINST_TRUTH])]  # precision and recall would only repeat F1
    if not run.has("trade_off"):
        return table
    trade = run.table("trade_off").rename(columns={"context": "row", "accuracy": "mean", "n_questions": "n"})
    return pd.concat([table, trade.assign(**CONTEXTS)], ignore_index=True)


def answers(run: Run) -> pd.DataFrame:
    """What these are the means of: F1 by picture, accuracy by picture asked about."""
    texts = run.table("predictions")
    tables = [
        texts.assign(metric=metric, value=texts[METRICS[metric]]).dropna(subset="value")
        for metric in (F1, AGAINST_TRUTH)
    ]
    if run.has("trade_off"):
        asked = run.table("answers").rename(columns={"context": "row", "picture": "id", "score": "value"})
        tables.append(asked.assign(**CONTEXTS))
    return pd.concat(tables, ignore_index=True).assign(span=1.0)[VALUES]


def summary(run: Run) -> list[str]:
    """Verdict and, of an organism, whether it comes out as planted."""
    said = run.json("verdict")
    lines = [said["headline"], said["sentence"]]
    if said["planted"] is not None and said["planted"]["accordingly"] is not None:
        come = "come" if said["planted"]["accordingly"] else "do not come"
        lines.append(f"what was planted in this model is known: the configurations {come} out as expected")
    return lines


def closing(run: Run) -> list[Card]:
    """What was planted, where it is known, and who is where in one prompt."""
    tokens = token_card(run.json("tokens"), "The first picture’s prompt")
    planted = run.json("verdict")["planted"]
    if planted is None:
        return [tokens]
    checks: Block = Checks([(check["holds"], check["text"]) for check in planted["checks"]])
    if not planted["checks"]:
        checks = Text("Too little was measured to compare with it.")
    finding = {True: "it came out", False: "it did not come out", None: ""}[planted["accordingly"]]
    return [Card("What was planted in this model", [checks], short="Planted", finding=finding), tokens]


def opening(run: Run, said: Mapping[str, Any]) -> Opening:
    """The first screen: the two paths, and what is still named when one is cut in all layers."""
    shares, table, tokens = run.table("shares"), run.table("knockout"), run.json("tokens")
    first = shares.iloc[0].to_dict() if len(shares) else {"how": "none"}
    through, direct = paths_of(first)
    picture = next((e["picture"] for e in run.json("examples")), "")
    n_image = next((int(row[2]) for row in tokens["rows"] if str(row[0]).startswith("image")), 0)
    under = f"{n_image} tokens" if n_image else "tokens"
    diagram = Diagram(
        through, direct, ("the image", under), ("query tokens", "the prompt"), ("generated", "the text"), picture,
        "#knockouts",
    )  # fmt: skip
    part = table[table.how.isin([first["how"], NONE]) & (table.metric == F1) & table.scope.isin([ALL, NONE])]
    part = part.assign(row=part.path)
    bars = None
    if len(part):
        colors = {GENERATED: "image", QUERY: "gate", BOTH: "faint"}
        names = {GENERATED: "from generated", QUERY: "from query", BOTH: "from both"}
        bars = BarTable.from_means(
            part, colors, names=names, tops={F1: 1.0}, chances={F1: knockouts.chance_of(run) or 0.0}, link="#knockouts",
            caption=(
                "Objects still named with the image hidden. Whiskers: 95 % interval. Dashed: another picture’s "
                "text."
            ),
        )  # fmt: skip
    known = said["planted"]
    planted = None if known is None else Planted(known["truth"], known["accordingly"])
    words = {term: text for term, text in knockouts.words_of(run).items() if term in knockouts.FIRST}
    return Opening([diagram], bars, planted, words)


STUDY = Study(
    name="whats-in-the-image",
    title="what’s in the image?",
    options=WhatsInTheImageOptions,
    sections=(descriptions.SECTION, knockouts.SECTION, compressed_context.SECTION),
    draw=draw,
    verdict=conclude,
    comparable=comparable,
    answers=answers,
    always=("descriptions", "knockouts"),
    settings=settings,
    summary=summary,
    tones=TONES,
    words=lambda run: WORDS,
    closing=closing,
    decides="knockouts",
    opening=opening,
)


def whats_in_the_image(
    model: HookedVLM | str,
    data: Dataset | str = "emoji-scenes",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Run:
    """Run the study, or finish one that was cut short in the same folder.

    Args:
        model: a model or its name.
        data: a data set, its name or a folder. Its captions' pictures are described, else those of its classes or
            questions. Questions are asked of the compressed context where it has any.
        out: folder of the run; None keeps the tables in memory and draws no report.
        options: of the study (:class:`WhatsInTheImageOptions`: ``how``, ``first_token``, ``preset``, ``prompt``,
            ``n``, ``keep``, ``judge``, ``limit``, ``seed``…) and of the runner
            (:func:`gatelens.studies.runner.run_study`: ``sections``, ``name``, ``skip_bad``, ``device``, ``dtype``,
            ``progress``, ``workers``, ``ray``). With ``judge="llm"`` prompts and replies are kept in ``judge.jsonl`` of
            ``out``.

    Returns:
        The run: ``run.table("knockout")``, ``"shares"``, ``"token_types"``, ``"predictions"``, and where there is
        something to measure ``"localisation"`` and ``"trade_off"``; ``run.json("verdict")``, ``"window"``; with
        ``out`` also ``figures/…``, ``report.html``.

    Raises:
        OutputError: ``out`` can't be written or holds other settings (before any compute).
        DataError: the data has no pictures to describe, or an option makes no sense.

    Example:
        >>> few = gl.studies.whats_in_the_image(model, n=2, limit=2, sections=["knockouts"], progress=False)
        >>> few.table("knockout").columns.tolist()
        ['how', 'row', 'path', 'scope', 'start', 'stop', 'metric', 'mean', 'low', 'high', 'n']
    """
    if out is None and options.get("judge") == "llm":
        raise DataError(NO_LOG)
    return run_study(STUDY, model, data, out, **options)
