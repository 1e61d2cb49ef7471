"""The papers' data sets, on tiny copies of the same schema: nothing is downloaded."""

from __future__ import annotations

import io
import json
import random
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import fsspec
import numpy as np
import pytest
from PIL import Image

import paper_copies as copies
from gatelens import data
from gatelens.data.hub import ENTRIES, HubDataset, coco_objects
from gatelens.data.hub.rows import ParquetRows, StreamedRows
from gatelens.data.hub.sources import from_hub
from gatelens.errors import DataError
from gatelens.measures.mme import SUBSETS

VQA_PROMPT = "<image>What is thing 3?\nAnswer the question using a single word or phrase. Answer:"
CAPTION_PROMPT = "<image>Provide a one-sentence caption for the provided image."


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A local copy of every data set."""
    copies.write(tmp_path / "vqav2/data/validation-00000-of-00002.parquet", copies.vqav2()[:24])
    copies.write(tmp_path / "vqav2/data/validation-00001-of-00002.parquet", copies.vqav2()[24:])
    copies.write(tmp_path / "flickr30k/TEST/test/0000.parquet", copies.flickr30k())
    copies.write(tmp_path / "coco/data/test-00000-of-00001.parquet", copies.coco())
    copies.write(tmp_path / "coco/data/train-00000-of-00001.parquet", copies.coco(2))
    for i in range(8):
        file = tmp_path / f"coco/val2014/COCO_val2014_{i:012d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(copies.png(i))
    (tmp_path / "imagenet").mkdir()
    copies.imagenet().to_parquet(tmp_path / "imagenet/validation-00000-of-00001.parquet")
    copies.write(tmp_path / "mme/data/test-00000-of-00001.parquet", copies.mme())
    copies.write(tmp_path / "coco-objects/data/val-00000-of-00001.parquet", copies.coco_objects_rows())
    for row in copies.coco_objects_rows():
        (tmp_path / "coco-objects" / row["image"]).write_bytes(copies.png(row["image_id"], (6, 4)))
    return tmp_path


def opened(place: Path, name: str, **options: Any) -> Any:
    return data.load(f"{name}:{place / name}", **options)


@pytest.mark.parametrize(
    ("name", "task", "prompt", "answers", "picture"),
    [
        ("vqav2", "vqa", VQA_PROMPT, ("red",) * 7 + ("pink 3",) * 3, 3),
        ("flickr30k", "caption", CAPTION_PROMPT, tuple(f"Caption {k} of picture 3." for k in range(5)), 3),
        ("coco", "caption", CAPTION_PROMPT, tuple(f"A thing 3 seen {k} times" for k in range(5)), 3),
        ("imagenet", "class", "<image>This animal is a", ("ostrich", "Struthio camelus"), 3),
        ("mme", "vqa", "<image>Is there a cat in this image? Please answer yes or no.", ("No",), 1),
    ],
)
def test_a_row_becomes_the_papers_prompt(
    place: Path, name: str, task: str, prompt: str, answers: tuple[str, ...], picture: int
) -> None:
    found = {e.meta["row"]: e for e in opened(place, name).examples(task)}
    e = found[3]
    assert (e.prompt, e.answers, e.task) == (prompt, answers, task)
    assert e.label == (answers[0] if task == "class" else None)
    assert (
        e.image.mode == "RGB" and e.image.tobytes() == Image.open(io.BytesIO(copies.png(picture))).tobytes()
    )
    assert isinstance(opened(place, name), data.Dataset)
    assert len({e.id for e in found.values()}) == len(found)
    assert opened(place, name).examples(task, 3)[0].id == opened(place, name).examples(task, 3)[0].id


def test_vqav2_draws_the_rows_the_papers_code_draws(tmp_path: Path) -> None:
    rows = [
        {k: v for k, v in r.items() if k != "image"} | {"image": copies.picture(0)}
        for r in copies.vqav2(2600)
    ]
    copies.write(tmp_path / "validation.parquet", rows, row_group=200)
    random.seed(42)
    wanted = random.sample(list(range(2600)), 2000)
    found = data.load(f"vqav2:{tmp_path}")
    assert [e.meta["row"] for e in found.examples("vqa", 30, 42)] == wanted[:30]
    assert [e.meta["row"] for e in found.examples("vqa", 30, 43)] != wanted[:30]
    assert [e.meta["row"] for e in found.examples("vqa", 2000, 42)] == wanted


def test_captions_come_as_they_lie(place: Path) -> None:
    for name in ("flickr30k", "coco"):  # the paper's code takes rows 0, 1, 2, …
        assert [e.meta["row"] for e in opened(place, name).examples("caption", 5, 42)] == [0, 1, 2, 3, 4]


def test_classes_come_in_equal_numbers(place: Path) -> None:
    found = opened(place, "imagenet")
    labels = [e.label for e in found.examples("class", 12, 42)]
    assert found.classes == ("tench", "goldfish", "hen", "ostrich")
    assert all(labels.count(name) == 3 for name in found.classes)
    assert [e.id for e in found.examples("class", 12, 1)] != [e.id for e in found.examples("class", 12, 2)]


def test_a_hundred_of_the_animals_are_kept(tmp_path: Path) -> None:
    names = tuple(f"animal {i}" if i < 398 else f"thing {i}" for i in range(1000))
    copies.imagenet(1000, names).to_parquet(tmp_path / "validation.parquet")
    found, again = (data.load(f"imagenet:{tmp_path}") for _ in range(2))
    labels = {e.label for e in found.examples("class", 2000)}
    assert len(found.classes) == 100 and labels == set(found.classes) and found.classes == again.classes
    assert all(label.startswith("animal") for label in labels)


def test_the_papers_own_classes_are_all_kept(tmp_path: Path) -> None:
    rows = [{"image": copies.picture(i), "label": i, "root_label": ("cat", "dog")[i % 2]} for i in range(6)]
    copies.write(tmp_path / "a.parquet", rows)
    assert data.load(f"imagenet:{tmp_path}").classes == ("cat", "dog")


def test_mme_names_its_subsets(place: Path) -> None:
    found = opened(place, "mme").examples("vqa")
    assert [e.meta["category"] for e in found[::2]] == ["existence", "OCR", "code_reasoning"]
    assert [e.meta["pair"] for e in found[:2]] == ["existence/0.png"] * 2
    few = opened(place, "mme").examples("vqa", 4, 42)  # two subsets, both questions of a picture of each
    assert few[0].meta["pair"] == few[1].meta["pair"] and few[2].meta["pair"] == few[3].meta["pair"]
    assert len({e.meta["category"] for e in few}) == 2 and {e.answers for e in few[:2]} == {("Yes",), ("No",)}
    assert len(set(SUBSETS)) == 14 and {e.meta["category"] for e in found} < set(SUBSETS)


# -- reading no more than is asked for ---------------------------------------------------------------------------


def test_pictures_are_decoded_when_looked_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = opened(place, "vqav2").examples("vqa", 5)
    assert not any(isinstance(v, Image.Image) for e in examples for v in vars(e).values())
    count = []
    monkeypatch.setattr("PIL.Image.open", lambda *a, real=Image.open, **k: count.append(1) or real(*a, **k))
    assert examples[2].image.size == (20, 12) and len(count) == 1


def test_a_few_rows_of_the_hub_download_only_their_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    noise = np.random.default_rng(0)
    rows = copies.vqav2(400)
    for row in rows:
        row["image"] = {"bytes": copies.png(1) + noise.bytes(20_000), "path": None}
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=20, compression="none")
    memory.pipe_file("/vqav2/validation-0.parquet", buffer.getvalue())
    read: list[int] = []

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def open(self) -> Any:
            inner = self.file.open()
            original = inner.read
            inner.read = lambda n=-1: (lambda block: read.append(len(block)) or block)(original(n))
            return inner

    monkeypatch.setattr("fsspec.open", lambda url, mode, real=fsspec.open: Counted(real(url, mode)))
    builder = SimpleNamespace(
        name="parquet",
        config=SimpleNamespace(data_files={"validation": ["memory://vqav2/validation-0.parquet"]}),
        info=SimpleNamespace(features=None, splits=None),
    )
    asked: list[Any] = []
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *a, **k: asked.append(a) or builder)
    found = data.load("vqav2").examples("vqa", 2, 42)
    assert asked == [("lmms-lab/VQAv2",)] and len(found) == 2
    assert 2 * 20_000 < sum(read) < len(buffer.getvalue()) / 5
    memory.rm("/vqav2", recursive=True)


@pytest.mark.parametrize("name", [n for n in ENTRIES if n != "coco-objects"])
def test_the_library_itself_finds_the_files(place: Path, name: str) -> None:
    entry = ENTRIES[name]
    rows = from_hub(str(place / name), entry.split, name, files=entry.files)
    assert isinstance(rows, ParquetRows) and len(rows) == len(opened(place, name).rows)


def test_other_forms_are_streamed(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{i}", "answers": ["x"], "image": f"{i}.png"}) for i in range(50)]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    rows = from_hub(str(tmp_path), "validation", "vqav2")
    assert isinstance(rows, StreamedRows) and rows.columns == ("question", "answers", "image")
    assert [(i, r["question"]) for i, r in rows.read([4, 1], ["question"])] == [(1, "q1"), (4, "q4")]
    assert len(rows) == 50 and rows.column("question")[49] == "q49"


# -- local copies in other forms -----------------------------------------------------------------------------------


def test_save_to_disk_folders(tmp_path: Path) -> None:
    table = copies.imagenet()
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"validation": table, "train": table}).save_to_disk(tmp_path / "dict")
    for folder in ("one", "dict"):
        found = data.load(f"imagenet:{tmp_path / folder}")
        assert found.classes[0] == "tench" and len(found.examples("class")) == 24
    with pytest.raises(DataError, match=r"no split 'test' \(it has: validation, train\)"):
        data.load(f"imagenet:{tmp_path / 'dict'}", split="test")


def test_json_lines_with_pictures_beside(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / f"images/{i}.png").write_bytes(copies.png(i))
    rows = [{"image": f"{i}.png", "caption": f"one thing {i}"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for where in (tmp_path, tmp_path / "a.jsonl"):
        found = data.load(f"flickr30k:{where}").examples("caption")
        assert [e.answers for e in found] == [("one thing 0",), ("one thing 1",), ("one thing 2",)]


@pytest.mark.parametrize(
    "answers",
    [
        ["a", "b"],
        [{"answer": "a"}, {"answer": "b"}],
        {"answer": ["a", "b"], "answer_id": [1, 2]},
        '["a", "b"]',
    ],
)
def test_answers_in_every_form_of_the_copies(tmp_path: Path, answers: Any) -> None:
    (tmp_path / "p.png").write_bytes(copies.png(0))
    row = {"image": "p.png", "question": "q?", "answers": answers}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert data.load(f"vqav2:{tmp_path}").examples("vqa")[0].answers == ("a", "b")


# -- what is bad is named ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "role"),
    [
        (name, columns[0], role)
        for name, entry in ENTRIES.items()
        for role, columns in entry.columns.items()
        if (name, role) != ("coco", "image")
    ],
)
def test_a_missing_column_is_named_with_those_there(place: Path, name: str, column: str, role: str) -> None:
    rows = {"vqav2": copies.vqav2, "flickr30k": copies.flickr30k, "coco": copies.coco, "mme": copies.mme}
    made = rows[name]() if name in rows else copies.coco_objects_rows()
    if name == "imagenet":
        made = [{"image": copies.picture(0), "label": "cat"}]
        column = {"image": "image", "label": "label"}[role]
    other = set(ENTRIES[name].columns[role]) - {column}
    made = [{k: v for k, v in row.items() if k != column and k not in other} for row in made]
    copies.write(place / "bad" / f"{ENTRIES[name].split}.parquet", made)
    with pytest.raises(DataError, match=f"{name}: .* has no column .*{column!r}.* for the {role}") as caught:
        data.load(f"{name}:{place / 'bad'}")
    assert "\n" not in str(caught.value) and all(f"{there}" in str(caught.value) for there in made[0])


BAD = {
    "no answers": ("vqav2", {"answers": []}, "no answers"),
    "empty answers": (
        "vqav2",
        {"answers": [{"answer": " ", "answer_confidence": "no", "answer_id": 1}]},
        "no answers",
    ),
    "no question": ("vqav2", {"question": ""}, "no question"),
    "no picture": ("vqav2", {"image": None}, "no picture"),
    "half a picture": (
        "vqav2",
        {"image": {"bytes": copies.png(5, (200, 200), "JPEG")[:700], "path": None}},
        "not a readable picture",
    ),
    "not a picture": ("flickr30k", {"image": {"bytes": b"<html>", "path": None}}, "not a readable picture"),
    "no caption": ("flickr30k", {"caption": []}, "no caption"),
    "empty caption": ("flickr30k", {"caption": ["a", "  ", "c", "d", "e"]}, "caption 2 of 5 is empty"),
    "odd answer": ("mme", {"answer": "maybe"}, "'maybe' is neither yes nor no"),
    "mask of another size": (
        "coco-objects",
        {
            "objects": {
                "bboxes": [[0.0] * 4],
                "classes": [1],
                "iscrowds": [0],
                "masks": [{"counts": b"0", "size": [1, 1]}],
            }
        },
        "a mask of 1x1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_and_skipped_only_when_told(tmp_path: Path, case: str) -> None:
    name, change, why = BAD[case]
    rows: list[dict[str, Any]] = {
        "vqav2": copies.vqav2,
        "flickr30k": copies.flickr30k,
        "mme": copies.mme,
        "coco-objects": copies.coco_objects_rows,
    }[name]()
    rows[1] = {**rows[1], **change}
    entry = ENTRIES[name]
    copies.write(tmp_path / f"{entry.split}.parquet", rows)
    for row in copies.coco_objects_rows():
        (tmp_path / row["image"]).write_bytes(copies.png(0, (6, 4)))
    with pytest.raises(DataError, match=f"{name} row 1 of {entry.split} .*{why}.*--skip-bad") as caught:
        data.load(f"{name}:{tmp_path}").examples(entry.task)
    assert "\n" not in str(caught.value)
    found = data.load(f"{name}:{tmp_path}", skip_bad=True)
    kept = found.examples(entry.task)
    assert len(kept) == len(rows) - 1 and 1 not in {e.meta["row"] for e in kept}
    found.examples(entry.task)
    assert [(s["data"], s["row"]) for s in found.skipped] == [(name, 1)] and why in found.skipped[0]["why"]


def test_one_bad_picture_in_a_thousand(tmp_path: Path) -> None:
    rows = [{"image": copies.picture(i), "caption": [f"thing {i}"]} for i in range(1000)]
    rows[617]["image"] = {"bytes": copies.png(617)[:60], "path": None}
    copies.write(tmp_path / "test.parquet", rows, row_group=100)
    with pytest.raises(DataError, match=r"flickr30k row 617 of test .*not a readable picture"):
        data.load(f"flickr30k:{tmp_path}").examples("caption")
    found = data.load(f"flickr30k:{tmp_path}", skip_bad=True)
    assert len(found.examples("caption")) == 999 and [s["row"] for s in found.skipped] == [617]


def test_labels_without_names_and_rows_without_label(tmp_path: Path) -> None:
    copies.write(tmp_path / "a.parquet", [{"image": copies.picture(0), "label": 4}])
    with pytest.raises(DataError, match=r"'label' .* holds numbers \(4\) and nothing names them"):
        data.load(f"imagenet:{tmp_path}").examples("class")
    rows = [{"image": copies.picture(i), "label": label} for i, label in enumerate(("cat", "dog", None))]
    copies.write(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError, match=r"imagenet row 2 of validation .*: no label"):
        data.load(f"imagenet:{tmp_path}").examples("class")
    found = data.load(f"imagenet:{tmp_path}", skip_bad=True)
    assert {e.label for e in found.examples("class")} == {"cat", "dog"} == set(found.classes)


def test_all_rows_bad_or_none_there(tmp_path: Path) -> None:
    rows = [{"image": copies.picture(0), "caption": [""]} for _ in range(3)]
    copies.write(tmp_path / "test.parquet", rows)
    with pytest.raises(DataError, match="all 3 rows read are bad, the first: caption 1 of 1 is empty"):
        data.load(f"flickr30k:{tmp_path}", skip_bad=True).examples("caption")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        data.load(f"flickr30k:{tmp_path / 'empty'}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: data.load(f"vqav2:{p}"), "holds no .parquet or .jsonl file"),
        (lambda p: data.load(f"vqav2:{p}/nothing"), "no folder or file"),
        (lambda p: data.load("vqav2:"), "names no place after the colon"),
        (lambda p: data.load("vqav3"), "no data set 'vqav3': use .*vqav2"),
        (lambda p: data.load("vqav2"), r"vqav2: the hub cannot be reached for lmms-lab/VQAv2 \(offline\?\)"),
        (lambda p: data.load("vqav2:someone/else"), "the hub cannot be reached for someone/else"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "validation.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"validation\.parquet is not a readable Parquet file"):
        data.load(f"vqav2:{tmp_path}")
    (tmp_path / "a.jsonl").write_text('{"image": 1}\n{"image"\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2: not JSON"):
        data.load(f"vqav2:{tmp_path / 'a.jsonl'}")
    copies.write(tmp_path / "other/train.parquet", copies.vqav2(2))
    with pytest.raises(DataError, match=r"no files of split 'validation' \(it has: train\)"):
        data.load(f"vqav2:{tmp_path / 'other'}")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'x' is a gated dataset on the Hub.\nAsk for access."
            ),
            "is gated: accept its terms on its hub page and run 'hf auth login'",
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"),
            "the hub has no data set",
        ),
        (ConnectionError("no\nroute"), "the hub cannot be reached"),
        (
            RuntimeError("Dataset scripts are no longer supported, but found x.py"),
            "cannot be opened .*scripts",
        ),
    ],
)
def test_why_the_hub_does_not_give_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset_builder", fails)
    with pytest.raises(DataError, match=f"imagenet: .*{message}.*--data imagenet:FOLDER") as caught:
        data.load("imagenet")
    assert "\n" not in str(caught.value)


def test_without_the_library_local_parquet_still_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(opened(place, "vqav2").examples("vqa", 3)) == 3
    with pytest.raises(DataError, match=r"pip install 'gatelens\[hub\]'"):
        data.load("vqav2")


def test_pictures_are_fetched_once_and_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of COCO's captions has addresses instead of pictures; the server is our own."""
    asked: list[str] = []

    class Server(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "kept"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=place / "coco/val2014"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    rows = [
        {**r, "url": f"{address}/{r['filename']}"} for r in copies.coco(12)
    ]  # 8 to 11 are not on the server
    copies.write(tmp_path / "alone/test.parquet", rows)
    try:
        for _ in range(2):
            found = data.load(f"coco:{tmp_path / 'alone'}").examples("caption", 3)
            assert [e.image.getpixel((0, 0)) for e in found] == [(37 * i, 91 * i, i) for i in range(3)]
        assert len(asked) == 3
        with pytest.raises(DataError, match=r"coco row 8 of test .*the picture http.* is not there \(404"):
            data.load(f"coco:{tmp_path / 'alone'}").examples("caption")
        assert len(data.load(f"coco:{tmp_path / 'alone'}", skip_bad=True).examples("caption")) == 8
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(DataError, match=r"000000000008\.jpg cannot be fetched .*refused.*connect"):
        data.load(f"coco:{tmp_path / 'alone'}", skip_bad=True).examples(
            "caption"
        )  # an outage is not a bad row
    assert len(list((tmp_path / "kept/gatelens/pictures").iterdir())) == 8


# -- masks -----------------------------------------------------------------------------------------------------------


def test_objects_with_masks(place: Path) -> None:
    found = {e.answers[0]: e for e in opened(place, "coco-objects").examples("caption")}
    assert set(found) == {"toothbrush", "person"}  # ids 90 and 1: COCO's own numbers
    e = found["person"]
    assert e.prompt == "<image>\n describe the image"
    (thing,), (mask,) = e.meta["objects"], e.meta["masks"]
    assert thing == coco_objects.CocoObject("person", (2.0, 1.0, 5.0, 3.0))
    assert mask.dtype == bool and mask.tolist() == [
        [1 < r < 5 and 0 < y < 3 for r in range(6)] for y in range(4)
    ]


def test_places_in_the_list_and_numbers_that_could_be_both() -> None:
    assert coco_objects.category_names({0, 5, 79})[79] == "toothbrush"  # type: ignore[index]
    assert coco_objects.category_names({1, 90})[1] == "person"  # type: ignore[index]
    assert coco_objects.category_names({1, 5}) is None and coco_objects.category_names({0, 90}) is None
    assert len(coco_objects.CATEGORIES) == len(coco_objects.COCO_IDS) == 80


def test_cocos_own_annotation_file(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017/000000000139.jpg").write_bytes(copies.png(1, (30, 20)))
    square = [[4.0, 2.0, 14.0, 2.0, 14.0, 12.0, 4.0, 12.0]]
    crowd = {"counts": [0, 600], "size": [20, 30]}
    common = {"image_id": 139, "area": 100.0}
    content = {
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 30, "height": 20},
            {"id": 7, "file_name": "no-objects.jpg", "width": 30, "height": 20},
        ],
        "annotations": [
            {
                "id": 1,
                "category_id": 18,
                "segmentation": square,
                "bbox": [4, 2, 10, 10],
                "iscrowd": 0,
                **common,
            },
            {
                "id": 2,
                "category_id": 1,
                "segmentation": crowd,
                "bbox": [0, 0, 30, 20],
                "iscrowd": 1,
                **common,
            },
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    (e,) = data.load(f"coco-objects:{tmp_path}").examples("caption")
    assert e.answers == ("dog",) and e.meta["objects"][0].box == (4.0, 2.0, 14.0, 12.0)
    rows, cols = np.nonzero(e.meta["masks"][0])
    assert (rows.min(), cols.min()) == (2, 4) and 100 <= len(rows) <= 121  # a border pixel more or less
    with pytest.raises(DataError, match=r"no instances_train….json \(it has: instances_val2017.json\)"):
        data.load(f"coco-objects:{tmp_path}", split="train")


# Encoded by pycocotools 2.0 (mask.encode) in an environment of its own.
ENCODED = (
    ("2110010O141MNO011OO01011NO0021OOO00023", (7, 9), None),
    ("01[n2a1WSM" + "0" * 217 + "lm1", (100, 160), (20, 70, 30, 140)),
)


def test_compressed_masks_as_pycocotools_writes_them() -> None:
    text, (height, width), box = ENCODED[1]
    mask = coco_objects.decode({"counts": text, "size": [height, width]}, (width, height))
    wanted = np.zeros((height, width), bool)
    assert box is not None
    wanted[box[0] : box[1], box[2] : box[3]] = True
    wanted[0, 0] = True
    assert np.array_equal(mask, wanted)
    text, (height, width), _ = ENCODED[0]
    mask = coco_objects.decode({"counts": text.encode(), "size": [height, width]}, (width, height))
    assert np.array_equal(mask, np.random.default_rng(0).random((7, 9)) < 0.5)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
def test_masks_go_there_and_back(density: float) -> None:
    mask = np.random.default_rng(int(100 * density)).random((31, 47)) < density
    for counts in (copies.compressed(mask), copies.compressed(mask).decode()):
        assert np.array_equal(coco_objects.decode({"counts": counts, "size": [31, 47]}, (47, 31)), mask)


# -- several at once --------------------------------------------------------------------------------------------------


def test_several_data_sets_keep_their_tasks_apart(place: Path) -> None:
    names = ("vqav2", "flickr30k", "coco", "imagenet")
    both = data.load(",".join(f"{n}:{place / n}" for n in names))
    assert both.name == "vqav2,flickr30k,coco,imagenet"
    assert both.tasks == ("vqa", "caption (flickr30k)", "caption (coco)", "class")
    assert both.classes == ("tench", "goldfish", "hen", "ostrich")
    assert both.examples("caption (coco)", 2, 42)[1].answers[0] == "A thing 1 seen 0 times"
    assert both.examples("caption (flickr30k)", 1, 42)[0].answers[0] == "Caption 0 of picture 0."
    with pytest.raises(DataError, match="no task 'caption'"):
        both.examples("caption")
    with pytest.raises(DataError, match="named twice"):
        data.load(f"vqav2:{place / 'vqav2'},vqav2:{place / 'vqav2'}")
    with pytest.raises(DataError, match="all have classes"):
        data.load(f"emoji-scenes,imagenet:{place / 'imagenet'}")
    assert data.load(f"vqav2:{place / 'vqav2'},coco:{place / 'coco'}").tasks == ("vqa", "caption")


def test_a_folder_skips_bad_rows_when_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(copies.png(1))
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "data.csv").write_text("image,label\na.png,x\nzzz.png,y\nb.png,z\n")
    found = data.load(tmp_path, skip_bad=True)
    assert [e.label for e in found.examples("class")] == ["x"]
    assert [s["row"] for s in found.skipped] == [2, 3]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="row 2: no picture"):
        data.load(tmp_path)


def test_an_entry_can_be_a_users_own(place: Path) -> None:
    import dataclasses

    own = dataclasses.replace(ENTRIES["vqav2"], name="own", prompt="<image>Q: {question} A:", order="first")
    e = HubDataset(own, place / "vqav2").examples("vqa", 1)[0]
    assert e.prompt == "<image>Q: What is thing 0? A:" and e.id == "own-0-262148000"
