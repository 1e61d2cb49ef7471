"""The offline matcher: CHAIR's special cases, plurals and compounds, and exact truth of emoji-scenes."""

from __future__ import annotations

import math
import random

import pytest

from gatelens.data import scenes
from gatelens.data.emoji_scenes import EmojiScenes
from gatelens.errors import DataError
from gatelens.measures.objects import (
    ObjectScore,
    Vocabulary,
    _table,
    object_score,
    pooled_score,
    score_table,
)
from gatelens.measures.stats import summary

COCO = Vocabulary.coco()

CHAIR_CASES = {
    # plurals, irregular ones too
    "Two men and three women with their children": ["person"],
    "knives, geese, mice and oxen": ["knife", "bird", "mouse", "cow"],
    "buses, benches, dishes and sandwiches": ["bus", "bench", "sandwich"],
    "puppies and ponies": ["dog", "horse"],
    # synonyms
    "a lady on a sofa beside the fridge": ["person", "couch", "refrigerator"],
    "a motor bike and an air plane": ["motorcycle", "airplane"],
    "a jet, a taxi and a street light": ["airplane", "car", "traffic light"],
    "a computer and a cellphone on a desk": ["laptop", "cell phone", "dining table"],
    "a DOUGHNUT and a cupcake": ["donut", "cake"],
    # double words: the longest phrase wins
    "a hot dog": ["hot dog"],
    "a dog and a hot-dog": ["dog", "hot dog"],
    "a hot, panting dog": ["dog"],
    "a teddy bear next to a bear": ["teddy bear", "bear"],
    "a stop sign, a parking meter and a fire hydrant": ["stop sign", "parking meter", "fire hydrant"],
    "a bow tie": ["tie"],
    "two wine glasses": ["wine glass"],
    "a toilet seat": ["toilet"],
    "home plate": [],
    "a baseball bat and a catcher's mitt": ["baseball bat", "baseball glove"],
    # words that name something else
    "a train station with train tracks": [],
    "a ski lift above a chair": ["chair"],
    "toilet paper": [],
    # qualifiers that are no person
    "a baby elephant with an adult elephant": ["elephant"],
    "a passenger train and a passenger jet": ["train", "airplane"],
    "a mother bear with her cubs": ["bear"],
    "a baby and an elephant": ["person", "elephant"],
    "a baby lion": [],
    "a baby, a dog": ["person", "dog"],
    # fruit or colour
    "an orange on a plate": ["orange"],
    "an orange cat": ["cat"],
    "an orange and white cat": ["cat"],
    "apples and oranges": ["apple", "orange"],
    # possessives
    "the dog's bowl, the horses' trough": ["dog", "bowl", "horse"],
    "": [],
}


@pytest.mark.parametrize("text", CHAIR_CASES)
def test_chair_cases(text: str) -> None:
    assert COCO.objects(text) == CHAIR_CASES[text]


def test_the_table_names_the_80_classes_and_no_word_twice() -> None:
    table = _table()
    assert len(table.classes) == 80
    owner: dict[str, str] = {}
    for name, more in table.classes.items():
        for phrase in [name, *more]:
            assert owner.setdefault(phrase, name) == name, phrase
            assert COCO.objects(f"the {phrase}") == [name], phrase
    assert not set(table.aside) & set(owner)
    for phrase in table.aside:
        assert not [n for n in COCO.objects(f"the {phrase}") if n != "person"], phrase


def test_mentions_say_where() -> None:
    text = "Two foxes; a hot-dog, and the FOX's den."
    v = Vocabulary(["fox", "hot dog"])
    assert [(m.name, text[m.start : m.stop]) for m in v.mentions(text)] == [
        ("fox", "foxes"),
        ("hot dog", "hot-dog"),
        ("fox", "FOX's"),
    ]


def test_a_users_vocabulary() -> None:
    v = Vocabulary(["dog", "bear", "bus"], {"bus": ["coach", "double decker"]}, aside=["coach driver"])
    assert v.objects("a hot dog, a teddy bear, a train") == []
    assert v.objects("two double deckers, a coach driver and dogs") == ["bus", "dog"]
    assert Vocabulary(["orange"]).objects("an orange plate") == ["orange"], "no rule of MS-COCO's"
    assert Vocabulary(["hot dog", "dog"]).objects("hot dogs") == ["hot dog"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vocabulary(["fox"], {"cat": ["tom"]}), "synonyms of 'cat'"),
        (lambda: Vocabulary(["fox", "cat"], {"cat": ["foxes"]}), "'foxes' names both 'fox' and 'cat'"),
        (lambda: Vocabulary(["fox", "…"]), "holds no word"),
    ],
)
def test_errors_name_the_offender(make: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()  # type: ignore[operator]


def test_agreement_with_exact_truth_on_emoji_scenes() -> None:
    """Every object of every caption and none other, for captions as the data set writes them."""
    vocabulary = Vocabulary(scenes.CLASSES)
    right = total = 0
    for split in ("test", "train"):
        for example in EmojiScenes(split).examples("caption", 500):
            truth = [o.name for o in example.meta["objects"]]
            named = [m.name for m in vocabulary.mentions(example.answers[0])]
            right += named == truth
            total += 1
    assert (right, total) == (1000, 1000)


PARAPHRASES = (
    "The {0} is here.",
    "Two {0}s? No: a {0}.",
    "I see the {0}'s plate, which is orange",
    "A small {0}-shaped sticker",
    "{0}",
)
PLURALS = {"bus": "buses", "butterfly": "butterflies", "cactus": "cacti", "fox": "foxes"}


def test_agreement_on_paraphrases_of_emoji_scenes() -> None:
    """Upper case, plurals, possessives and hyphens leave the objects the same; so do MS-COCO's classes."""
    vocabulary, rng = Vocabulary(scenes.CLASSES), random.Random(0)
    in_coco = {"bus": "bus", "elephant": "elephant", "pizza": "pizza", "panda": "bear", "penguin": "bird"}
    for i in range(300):
        scene = scenes.scene("test", 1, i) if i % 2 else scenes.unnamed_scene(1, i)
        truth = [o.name for o in scene.objects]
        assert COCO.objects(scene.caption) == [in_coco[n] for n in truth if n in in_coco]
        text = " ".join(rng.choice(PARAPHRASES).format(n) for n in truth)
        for name, plural in PLURALS.items():
            text = text.replace(f"Two {name}s", f"Two {plural}")
        assert vocabulary.objects(rng.choice([str.upper, str.lower, str.title])(text)) == truth, text


def test_scores() -> None:
    score = object_score(["dog", "cat", "cat"], ["cat", "bus", "tv"])
    assert score == ObjectScore(2, 3, 1)
    assert (score.precision, score.recall, score.f1) == (1 / 3, 1 / 2, 2 / 5)
    p, r = score.precision, score.recall
    assert score.f1 == pytest.approx(2 * p * r / (p + r))
    silent = object_score(["dog"], [])
    assert math.isnan(silent.precision) and silent.recall == 0 and silent.f1 == 0
    assert math.isnan(object_score([], []).f1)


def test_means_over_pictures_and_pooled() -> None:
    scores = [ObjectScore(2, 2, 2), ObjectScore(3, 0, 0), ObjectScore(0, 0, 0)]
    table = score_table(scores).assign(group="all", picture=range(3))
    names = {name: name for name in ("precision", "recall", "f1")}
    means = summary(table, ["group"], names, unit="picture", missing="skip").set_index("measure")
    assert means["mean"].to_dict() == {"precision": 1.0, "recall": 0.5, "f1": 0.5}
    assert means["n"].to_dict() == {"precision": 1, "recall": 2, "f1": 2}
    pooled = pooled_score(scores)
    assert (pooled.precision, pooled.recall, pooled.f1) == (1.0, 2 / 5, 4 / 7)
    assert math.isnan(pooled_score([]).f1)
