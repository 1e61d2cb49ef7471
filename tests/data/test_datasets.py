"""Data sets: what a study gets, and what bad data says."""

import json

import easy_vqa
import pytest
from PIL import Image

from gatelens import data
from gatelens.errors import DataError


@pytest.mark.parametrize("task", ["class", "vqa", "caption", "draw"])
def test_emoji_scenes_give_every_task(task):
    examples = data.load("emoji-scenes").examples(task, limit=12, seed=4)
    again = data.load("emoji-scenes").examples(task, limit=20, seed=4)
    assert [e.id for e in examples] == [e.id for e in again[:12]] and len(examples) == 12
    for e, same in zip(examples, again, strict=False):
        assert (e.prompt, e.answers) == (same.prompt, same.answers)
        assert e.prompt.count("<image>") == (task != "draw") and (e.image is None) == (task == "draw")
        truth = {o.name for o in e.meta["objects"]}
        if task == "class":
            assert truth == {e.label} and e.answers == (e.label,)
        if task == "caption":
            assert all(name in e.answers[0] for name in truth)


def test_easy_vqa_is_the_package_s_own():
    examples = data.load("easy-vqa").examples("vqa", limit=50)
    questions, answers, pictures = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    for e in examples:
        i = int(e.id.split("-")[1])
        assert e.prompt == f"<image>{questions[i]} answer:" and e.answers == (answers[i],)
        assert e.image.tobytes() == Image.open(paths[pictures[i]]).convert("RGB").tobytes()
    assert len(data.load("easy-vqa").examples("vqa")) == 9673


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / name)
    return tmp_path


def test_a_folder_with_csv(folder):
    (folder / "data.csv").write_text(
        "image,question,answers,caption,label,task\n"
        "a.png,what is it?,red|crimson,,,\n"
        "b.png,,,a red square,,\n"
        "b.png,,,,square,class\n"
    )
    found = data.load(folder)
    assert found.tasks == ("class", "vqa", "caption") and found.classes == ("square",)
    (vqa,) = found.examples("vqa")
    assert vqa.prompt == "<image>what is it? answer:" and vqa.answers == ("red", "crimson")
    assert vqa.image.size == (20, 10)
    assert found.examples("caption")[0].answers == ("a red square",)


def test_a_folder_with_jsonl_and_own_prompts(folder):
    rows = [
        {"image": "a.png", "question": "q?", "answers": ["x", "y | z"], "prompt": "<image>Q: q? A:"},
        {"image": "b.png", "captions": ["one", "two"], "prompt": "say it"},
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = data.load(folder)
    assert found.examples("vqa")[0].prompt == "<image>Q: q? A:"
    assert found.examples("vqa")[0].answers == ("x", "y | z")
    assert found.examples("caption")[0].prompt == "<image>say it"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\na.png,\n", "row 1 has no 'label'"),
        ("image,label\nzzz.png,cat\n", "row 1: no picture 'zzz.png'"),
        ("image,label\na.png,x\n,cat\n", "row 2 has no 'image'"),
        ("image,task,label\na.png,sing,cat\n", "unknown task 'sing'"),
        ("image,task,answer\na.png,vqa,x\n", "row 1 has no 'question'"),
    ],
)
def test_a_bad_row_is_named(folder, table, message):
    (folder / "data.csv").write_text(table)
    with pytest.raises(DataError, match=message) as caught:
        data.load(folder)
    assert "\n" not in str(caught.value)


def test_an_unreadable_picture_is_named_with_its_row(folder):
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "data.csv").write_text("image,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"row 2: .*b\.png is no readable picture"):
        data.load(folder).examples("class")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: data.load("nowhere"), "no data set 'nowhere'"),
        (lambda p: data.load(p), "has no data.csv or data.jsonl"),
        (lambda p: data.load("emoji-scenes").examples("dance"), "no task 'dance'"),
        (lambda p: data.load("emoji-scenes", split="val"), "no split 'val'"),
        (lambda p: data.load("easy-vqa").examples("caption"), "no task 'caption'"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path)
