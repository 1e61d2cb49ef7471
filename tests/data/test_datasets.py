"""Data sets: what a study gets, and what bad data says."""

import csv
import json
from pathlib import Path

import easy_vqa
import numpy as np
import pytest
from PIL import Image

from gatelens import data
from gatelens.data.loading import from_anywhere
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
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / "data" / name)
    return tmp_path / "data"


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


def test_a_row_gives_every_task_it_has_columns_for(folder):
    """A label beside a caption is no less a label."""
    rows = [
        {"image": "a.png", "label": "cat", "caption": "a cat", "kind": "pet"},
        {"image": "b.png", "label": "dog", "question": "what?", "answer": "dog", "captions": ["x", "y"]},
        {"image": "b.png", "label": "pig", "caption": "only a fact", "task": "class"},
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = data.load(folder)
    assert found.tasks == ("class", "vqa", "caption") and found.classes == ("cat", "dog", "pig")
    got = {task: [(e.id, e.answers) for e in found.examples(task)] for task in found.tasks}
    assert got == {
        "class": [("1-class", ("cat",)), ("2-class", ("dog",)), ("3", ("pig",))],
        "vqa": [("2-vqa", ("dog",))],
        "caption": [("1-caption", ("a cat",)), ("2-caption", ("x", "y"))],
    }
    prompts = [found.examples(task)[0].prompt for task in found.tasks]
    assert prompts == ["<image>this is a", "<image>what? answer:", "<image>describe the image."]
    assert found.examples("class")[0].meta["kind"] == "pet" and found.skipped == []
    (folder / "data.jsonl").unlink()
    (folder / "data.csv").write_text("image,label,caption\na.png,cat,a cat\n")
    assert data.load(folder).tasks == ("class", "caption")


ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"  # all of which str.splitlines splits at


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_row_is_read_as_it_was_written(folder, ends, mark):
    cells = [
        ODD,
        'he said "so", twice',
        "two" + ends + "lines",
        "x" * 131_072,
        "[laughs]",
        "[1, 2]",
        '["a", "b | c"]',
    ]
    written = [("a.png", cell) for cell in cells]
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(mark)
        csv.writer(file, lineterminator=ends).writerows(
            [("image", "caption"), *written, (), ("b.png", "last")]
        )
    found = data.load(folder).examples("caption")
    wanted = [(cell,) for cell in cells[:5]] + [("1", "2"), ("a", "b | c"), ("last",)]
    assert [e.answers for e in found] == wanted
    assert [e.id for e in found] == ["1", "2", "3", "4", "5", "6", "7", "9"]  # the empty row counts
    (folder / "data.csv").unlink()
    lines = [json.dumps({"image": "a.png", "caption": cell}, ensure_ascii=False) for cell in cells]
    (folder / "data.jsonl").write_bytes((mark + ends.join(lines) + ends).encode())
    assert [e.answers for e in data.load(folder).examples("caption")] == wanted[:7]


def test_objects_and_masks(folder):
    mask = np.zeros((10, 20), bool)
    mask[2:5, 3:9] = True
    Image.fromarray(mask).save(folder / "m.png")
    values = {"image": "a.png", "caption": "a cup", "objects": ["cup", "mug"], "masks": {"cup": "m.png"}}
    (folder / "data.jsonl").write_text(json.dumps(values))
    (example,) = data.load(folder).examples("caption")
    assert example.meta["objects"] == ("cup", "mug") and np.array_equal(example.meta["masks"]["cup"], mask)
    (folder / "data.jsonl").unlink()
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([values, [*list(values.values())[:2], "cup|mug", '{"cup": "m.png"}']])
    (example,) = data.load(folder).examples("caption")
    assert example.meta["objects"] == ("cup", "mug") and np.array_equal(example.meta["masks"]["cup"], mask)


def test_links_within_a_folder_and_folders_below_it(folder):
    (folder / "below").mkdir()
    (folder / "below" / "c.png").symlink_to(folder / "a.png")
    (folder / "data.csv").write_text("image,label\nbelow/c.png,cat\nbelow/../b.png,dog\n")
    (folder.parent / "linked").symlink_to(folder)
    assert len(data.load(folder.parent / "linked").examples("class")) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\na.png,\n", "row 1: no 'label'"),
        ("image,label\nzzz.png,cat\n", "row 1: no picture 'zzz.png'"),
        ("image,label\na.png,x\n,cat\n", "row 2: no 'image'"),
        ("image,task,label\na.png,sing,cat\n", "unknown task 'sing'"),
        ("image,task,answer\na.png,vqa,x\n", "row 1: no 'question'"),
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
    with pytest.raises(DataError, match=r"row 2: .*b\.png' is not a readable picture"):
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


def test_data_sets_and_examples_print_in_a_line():
    scenes = data.load("emoji-scenes")
    assert repr(scenes) == "EmojiScenes(emoji-scenes, test; tasks: class, vqa, caption, draw)"
    example = scenes.examples("class", limit=1)[0]
    assert repr(example).startswith("Example(test-class-0-0, class: '<image>") and len(repr(example)) < 400
    assert "masks" in repr(example) and "array" not in repr(example)
    assert example._repr_html_().startswith("<div><img src='data:image/png")
    assert "<img" not in scenes.examples("draw", limit=1)[0]._repr_html_()


def test_a_name_from_anywhere_means_the_same_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pics").mkdir()
    monkeypatch.chdir(tmp_path)
    assert from_anywhere("emoji-scenes") == "emoji-scenes" and from_anywhere("no-such") == "no-such"
    assert from_anywhere("pics") == from_anywhere(Path("pics")) == str(tmp_path / "pics")
    assert from_anywhere("vqav2:pics") == f"vqav2:{tmp_path / 'pics'}"
    assert from_anywhere("vqav2:org/name") == "vqav2:org/name"
    assert from_anywhere("easy-vqa, pics") == f"easy-vqa,{tmp_path / 'pics'}"


@pytest.mark.parametrize("kind", ["color", "count"])
def test_a_limit_counts_the_kind_that_is_asked_for(kind):
    scenes = data.load("emoji-scenes")
    found = scenes.examples("vqa", limit=4, seed=1, kind=kind)
    every = [one.id for one in scenes.examples("vqa", limit=60, seed=1) if one.meta["kind"] == kind]
    assert [one.id for one in found] == every[:4] and len(found) == 4


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("vqa", "colour", r"kind='colour' of task 'vqa': the kinds are color, .*; did you mean 'color'\?"),
        ("class", "color", "kind='color' of task 'class': it has no kinds, leave kind= out"),
    ],
)
def test_a_kind_that_is_not_there_is_named(task, kind, message):
    with pytest.raises(DataError, match=message):
        data.load("emoji-scenes").examples(task, limit=2, kind=kind)
    with pytest.raises(DataError, match="it has no kinds"):
        data.load("easy-vqa").examples("vqa", limit=2, kind="color")


def test_a_folder_has_the_kinds_of_its_column(folder):
    (folder / "data.csv").write_text(
        "image,question,answers,kind\na.png,what?,red,hue\nb.png,how many?,two,count\nb.png,why?,red,hue\n"
    )
    assert [e.answers for e in data.load(folder).examples("vqa", limit=2, kind="hue")] == [("red",), ("red",)]
    with pytest.raises(DataError, match="the kinds are hue, count"):
        data.load(folder).examples("vqa", kind="side")
