"""One short entry per data set: where it is, its columns, and how the papers ask about a row.

Column names are those of the data sets' own cards on the hub; after the first name stand other names seen in
copies of the same data. Which rows the paper took is read off its public code (``order``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gatelens.data import prompts
from gatelens.data.hub import coco_objects
from gatelens.data.hub.fields import captions, class_names, question_answers, yes_or_no

Order = Literal["first", "sample", "classes", "subsets"]
Columns = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A data set.

    Attributes:
        name: what ``--data`` calls it.
        repo, split, revision, files: where the hub has it; ``files`` where its own layout does not tell the split.
        task: the task its rows give.
        prompt: the wording, with ``{question}`` where the row's question goes.
        columns: what a row must have: role → the names its column may carry, the repository's own first.
        more: the same for what a row may have.
        answers: reads the answers from a row by role; raises ``ValueError`` with the reason a row is bad.
        facts: further facts of a row for ``Example.meta``.
        order: which rows come first when only some are wanted. ``first``: as they lie. ``sample``:
            ``random.sample`` with the seed, as the paper's code draws. ``classes``: seeded, the same number of
            each class. ``subsets``: seeded, the same number of each ``category``, the questions of one picture (same
            ``id``) together.
        n: how many the paper took.
        url: where the picture of a row is when the data has none, with roles in braces.
        classes: keep at most this many classes, of the first ``of_first`` (drawn with seed 42).
        note: what to know of the data set, for people.
    """

    name: str
    repo: str
    split: str
    task: str
    prompt: str
    columns: Columns
    answers: Callable[[Mapping[str, Any]], tuple[str, ...]]
    more: Columns = field(default_factory=dict)
    facts: Callable[[Mapping[str, Any], tuple[int, int]], Mapping[str, Any]] | None = None
    revision: str | None = None
    files: str | None = None
    order: Order = "first"
    n: int = 2000
    url: str | None = None
    classes: int | None = None
    of_first: int | None = None
    note: str = ""


VQAV2 = Entry(
    name="vqav2",
    repo="lmms-lab/VQAv2",
    split="validation",
    task="vqa",
    prompt="<image>" + prompts.PAPER_QUESTION_PROMPT,
    columns={
        "image": ("image",),
        "question": ("question",),
        "answers": ("answers", "multiple_choice_answer"),
    },
    more={
        "id": ("question_id", "id"),
        "picture": ("image_id", "id_image"),
        "kind": ("answer_type",),
        "question_type": ("question_type",),
    },
    answers=question_answers,
    order="sample",
    note="VQAv2 validation, 214,354 questions with ten answers each",
)

FLICKR30K = Entry(
    name="flickr30k",
    repo="nlphuji/flickr30k",
    # The repository is a loading script, which datasets 4 refuses; the hub keeps its own Parquet copy of it.
    revision="refs/convert/parquet",
    files="TEST/test/*.parquet",
    split="test",
    task="caption",
    prompt="<image>" + prompts.PAPER_CAPTION_PROMPT,
    columns={"image": ("image",), "captions": ("caption", "captions", "sentences", "text")},
    more={"id": ("img_id", "imgid", "id", "filename"), "folder": ("filepath",), "part": ("split",)},
    answers=captions,
    note="Flickr30k with five captions per picture; this split holds all 31,014 pictures, and the paper's code "
    "takes its first 2,000 (Karpathy's test part alone has 1,000)",
)

COCO = Entry(
    name="coco",
    repo="yerevann/coco-karpathy",
    split="test",
    task="caption",
    prompt="<image>" + prompts.PAPER_CAPTION_PROMPT,
    columns={
        "image": ("image", "filename", "url"),
        "captions": ("sentences", "captions", "caption", "text"),
    },
    more={"id": ("imgid", "cocoid", "id"), "folder": ("filepath",), "address": ("url",)},
    answers=captions,
    note="COCO captions, Karpathy's test split of 5,000; the table has no pictures, they come one by one from its "
    "'url' column unless they lie in the folder given",
)

IMAGENET = Entry(
    name="imagenet",
    repo="ILSVRC/imagenet-1k",
    split="validation",
    task="class",
    prompt="<image>" + prompts.PAPER_CLASS_PROMPT,
    columns={"image": ("image",), "label": ("root_label", "label")},
    answers=class_names,
    order="classes",
    classes=100,
    of_first=398,  # the first 398 of ImageNet's 1,000 classes are animals (tench … puffer)
    note="100 animal classes; the paper does not list its own 100, so these are drawn with seed 42 from the 398 "
    "animals unless the data has at most 100 classes; gated: accept its terms on the hub, then log in",
)

MME = Entry(
    name="mme",
    repo="lmms-lab/MME",
    split="test",
    task="vqa",
    prompt="<image>{question}",
    columns={
        "image": ("image",),
        "question": ("question",),
        "answers": ("answer", "answers"),
        "category": ("category",),
    },
    more={"id": ("question_id", "id")},
    answers=yes_or_no,
    facts=lambda row, size: {"category": row["category"], "pair": row.get("id")},
    order="subsets",
    n=2374,
    note="MME, 14 subsets in the column 'category'; two questions per picture, answered yes or no",
)

COCO_OBJECTS = Entry(
    name="coco-objects",
    repo="ClownRat/COCO2017-Instance",
    split="val",
    task="caption",
    prompt="<image>" + prompts.PAPER_DESCRIBE_PROMPT,
    columns={"objects": ("objects", "annotations")},
    more={
        "image": ("image", "file_name", "coco_url"),
        "id": ("image_id", "id"),
        "folder": ("folder",),
        "address": ("coco_url",),
    },
    answers=coco_objects.names,
    facts=coco_objects.facts,
    order="sample",
    n=80,
    url="http://images.cocodataset.org/val2017/{id:012d}.jpg",
    note="COCO val2017 with instance masks; also reads a folder with annotations/instances_val2017.json and the "
    "pictures; pictures a table lacks come from the COCO server",
)

ENTRIES: Mapping[str, Entry] = {e.name: e for e in (VQAV2, FLICKR30K, COCO, IMAGENET, MME, COCO_OBJECTS)}
