"""Training documents: one picture followed by several short texts that do not see each other.

A document is ``<s> [boi] image [eoi]`` and then segments of prompt and answer. Every segment attends to the
picture's part and to itself only, and its positions restart after the picture: for the model each is
a document of its own, but the picture is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from gatelens.data import scenes as emoji
from gatelens.data.prompts import CAPTION_PROMPT, CLASS_PROMPT, QUESTION_PROMPT
from gatelens.organisms.pictures import training_scene
from gatelens.organisms.vocabulary import text_ids

N_TEXTS, N_TEXTS_LATE = 4, 6
PROMPT_WEIGHT = 0.05


@dataclass(frozen=True, eq=False)
class PackedDocuments:
    """Documents of one training step. ``segment`` is 0 in the picture's part, 1.. in the texts, -1 in padding."""

    ids: Int[Tensor, "batch pos"]
    position: Int[Tensor, "batch pos"]
    segment: Int[Tensor, "batch pos"]
    loss_weight: Float[Tensor, "batch pos"]  # of predicting the token at this place

    def visible(self) -> Bool[Tensor, "batch query key"]:
        """Causal, within the own segment or the picture's part."""
        s = self.segment
        n = s.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        own = (s[:, :, None] == s[:, None, :]) | (s[:, None, :] == 0)
        return causal & own


class SceneTexts:
    """Draws prompt-answer pairs for the i-th training scene; with ``unnamed`` colours, none that names a colour."""

    def __init__(self, seed: int, unnamed: bool = False, varied: bool = False):
        self.seed, self.unnamed, self.varied = seed, unnamed, varied

    def __call__(self, index: int, rng: np.random.Generator, late: bool) -> list[tuple[str, str]]:
        """Caption and class first: what is shown must be known before a question about it can be answered.

        ``late`` in training captions give way to questions in half of the documents.
        """
        scene = self.scene(index)
        asked = emoji.questions(scene, rng)
        texts = [
            (QUESTION_PROMPT.format(question=q), a)
            for kind, q, a in asked
            if not (self.unnamed and kind == "color")
        ]
        if len(scene.objects) == 1:
            texts.insert(0, (CLASS_PROMPT, scene.objects[0].name))
        if not self.unnamed and (not late or rng.random() < 0.5):
            texts.insert(0, (CAPTION_PROMPT, scene.caption))
        return texts[: N_TEXTS_LATE if late else N_TEXTS]

    def drawing(self, index: int, rng: np.random.Generator) -> str:
        """What to draw: in a third of the cases without the colour, in a sixth the object alone."""
        objects = self.scene(index).objects
        part = rng.random()
        if part < 1 / 6:
            phrases = [f"a {o.name}" for o in objects]
        elif part < 1 / 2 or self.unnamed:
            phrases = [f"a {o.name} on a {o.shape}" for o in objects]
        else:
            phrases = [o.phrase for o in objects]
        return emoji.listed(phrases)

    def scene(self, index: int) -> emoji.Scene:
        """The scene's facts, without its pixels."""
        return _facts(self.seed, index, self.unnamed, self.varied)


def presence_texts(scene: emoji.Scene, rng: np.random.Generator, most: int) -> list[tuple[str, str]]:
    """Questions whether something is there: as many of what is as of what is not, at most ``most``; in random order."""
    there = [o.name for o in scene.objects][: most // 2]
    absent = [c for c in emoji.CLASSES if c not in {o.name for o in scene.objects}]
    asked = [(name, "yes") for name in there]
    asked += [(str(name), "no") for name in rng.choice(absent, size=len(there), replace=False)]
    texts = [(QUESTION_PROMPT.format(question=f"is there a {name} in the image?"), a) for name, a in asked]
    return [texts[i] for i in rng.permutation(len(texts))]


class EasyVqaTexts:
    """Draws questions of easy-vqa's training split for its i-th picture."""

    def __init__(self) -> None:
        import easy_vqa

        self.by_picture: dict[int, list[tuple[str, str]]] = {}
        for question, answer, picture in zip(*easy_vqa.get_train_questions(), strict=True):
            self.by_picture.setdefault(picture, []).append(
                (QUESTION_PROMPT.format(question=question), answer)
            )

    def __call__(self, index: int, rng: np.random.Generator, late: bool) -> list[tuple[str, str]]:
        texts = self.by_picture[index]
        return [texts[i] for i in rng.permutation(len(texts))[: N_TEXTS_LATE if late else N_TEXTS]]


def pack(
    prefixes: Sequence[Sequence[int]],
    texts: Sequence[Sequence[tuple[str, str]]],
    tokenizer: PreTrainedTokenizerFast,
    image_weight: float,
) -> PackedDocuments:
    """Pictures' parts (all of one length) and the texts after each, padded on the right.

    Answers weigh 1, the picture's tokens ``image_weight`` (0 where they are not predicted), prompts little:
    what is asked cannot be known.
    """
    documents = []
    for prefix, pairs in zip(prefixes, texts, strict=True):
        n = len(prefix)
        segments = [Segment(list(prefix), 0, 0, [0.0] + [image_weight] * (n - 1))]
        for k, (prompt, answer) in enumerate(map(_ids_of(tokenizer), pairs), start=1):
            # A segment's first token would be predicted from the segment before it: no loss there.
            weights = [0.0] + [PROMPT_WEIGHT] * (len(prompt) - 1) + [1.0] * len(answer)
            segments.append(Segment(prompt + answer, n, k, weights))
        documents.append(segments)
    return _padded(documents, tokenizer.pad_token_id)


def pack_drawings(bos: int, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> PackedDocuments:
    """Prompt, then a picture's tokens, one to a document; the picture's tokens weigh 1."""
    documents = []
    for prompt, picture in rows:
        weights = [0.0, 0.0] + [PROMPT_WEIGHT] * (len(prompt) - 1) + [1.0] * len(picture)
        documents.append([Segment([bos, *prompt, *picture], 0, 0, weights)])
    return _padded(documents, pad)


@dataclass(frozen=True)
class Segment:
    """A stretch of a document: its tokens, the position of the first, its number, the weights of its losses."""

    ids: list[int]
    start: int
    number: int
    weights: list[float]


def _padded(documents: Sequence[Sequence[Segment]], pad: int) -> PackedDocuments:
    """The documents as a batch, padded on the right."""

    def rows(values: Callable[[Segment], Iterable[float]], dtype: torch.dtype, padding: float) -> Tensor:
        tensors = [
            torch.tensor([x for s in document for x in values(s)], dtype=dtype) for document in documents
        ]
        return pad_sequence(tensors, batch_first=True, padding_value=padding)

    return PackedDocuments(
        ids=rows(lambda s: s.ids, torch.long, pad),
        position=rows(lambda s: range(s.start, s.start + len(s.ids)), torch.long, 0),
        segment=rows(lambda s: [s.number] * len(s.ids), torch.long, -1),
        loss_weight=rows(lambda s: s.weights, torch.float32, 0.0),
    )


def _ids_of(tokenizer: PreTrainedTokenizerFast):
    def ids(pair: tuple[str, str]) -> tuple[list[int], list[int]]:
        prompt, answer = pair
        return text_ids_of(tokenizer, prompt), [*text_ids_of(tokenizer, answer), tokenizer.eos_token_id]

    return ids


_id_cache: dict[str, list[int]] = {}


def text_ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    if text not in _id_cache:
        _id_cache[text] = text_ids(tokenizer, text)
    return _id_cache[text]


@lru_cache(maxsize=200_000)
def _facts(seed: int, index: int, unnamed: bool, varied: bool) -> emoji.Scene:
    """The scene's truth without its pixels, which training reads from a file."""
    scene = training_scene(index, seed, unnamed, varied)
    return emoji.Scene(np.zeros((0, 0, 3), np.uint8), scene.objects, np.zeros((0, 0, 0), bool))
