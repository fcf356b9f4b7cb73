"""Annotation files that a stranger may send: values without sense, files without end, and what is said of them."""

import json
import math
import os
import time

import pytest
import yaml

from dwtriton.config.schema import Config
from dwtriton.data.annotations import read_records
from dwtriton.data.classes import different_categories, match_classes
from dwtriton.data.coco import CocoDataset
from dwtriton.data.formats.labelme import is_labelme
from dwtriton.data.formats.layouts import read_source
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.formats.yolo import read_yolo
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.text_files import read_json, read_text
from dwtriton.evaluate.coco_metrics import evaluate
from dwtriton.evaluate.tide import analyse, precision_curves
from tests.support.hostile_data import write_coco

DIGITS = "9" * 5000  # more than Python reads as a number
DEEP = "[" * 100_000


def changed(root, section, **changes):
    """A data set whose first entry of a section was changed."""
    root = write_coco(root, ["a", "b"], ["a.jpg", "b.jpg", "c.jpg"])
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        content[section][0].update(changes)
        path.write_text(json.dumps(content))
    return root


def dataset(root, split="val"):
    cfg = Config(data={"root": root, "workers": 0}, inference={"short_side": 64, "long_side": 96})
    return CocoDataset(cfg.data, split, cfg.inference)


@pytest.mark.parametrize(
    "box",
    [[1e308] * 4, [0, 0, 1e308, 1e308], [-1e308, -1e308, 1.5e308, 1.5e308], [0, 0, 10**300, 5], [0, -1e9, 9, 2e9]],
)
def test_boxes_that_no_image_can_hold_are_left_out_and_counted(tmp_path, box):
    for split in ("train", "val"):
        data = dataset(changed(tmp_path / split, "annotations", bbox=box), split)
        assert "1 x box that no image can hold, annotation skipped" in data.problems.summary()[0]
        assert all(bool(data[index].target["boxes"].isfinite().all()) for index in range(len(data)))


@pytest.mark.parametrize("value", [10**30, 1e300, DIGITS, "x", -5, 0, [64]])
def test_sizes_that_no_image_has_are_those_of_the_files(tmp_path, value):
    data = dataset(changed(tmp_path / "data", "images", width=value))
    assert data[0].scale_factor == data[1].scale_factor


@pytest.mark.parametrize("section", ["annotations", "images", "categories"])
@pytest.mark.parametrize("id_", [0, -3, 2**63, 10**40, "7", "x\x1b", DIGITS])
def test_ids_of_any_size_and_text_are_evaluated(tmp_path, section, id_):
    root = changed(tmp_path / "data", section, id=id_)
    data = dataset(root)
    results = [
        {**{key: truth[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for truth in data.coco.anns.values()
    ]
    evaluation = evaluate(data.coco, results)
    assert evaluation.metrics["AP"] == pytest.approx(1)
    analysis = analyse(data.coco, results, evaluation.evaluator)
    assert (analysis.ap50, len(analysis.detections)) == (pytest.approx(1), len(results))
    assert set(precision_curves(analysis.truths, analysis.detections)) == {r["category_id"] for r in results}


@pytest.mark.parametrize("name", [["a"], {}, None, True])
def test_names_that_are_no_text_are_fatal(tmp_path, name):
    path = changed(tmp_path / "data", "categories", name=name) / "annotations" / "instances_val2017.json"
    assert read_records(path).fatal == ["category 1: name must be text"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "http://[", "/dev/zero", ".", ""])
def test_names_that_no_file_can_have_are_missing_files(tmp_path, name):
    root = changed(tmp_path / "data", "images", file_name=name)
    assert len(dataset(root)) == 2
    assert find_splits(root)[0][0].images == root / "train2017"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DEEP, "is not valid JSON: it is nested too deeply"),
        (f'{{"a": {DIGITS}}}', r"is not valid JSON \(Exceeds the limit"),
        (b"\xff\xfe\xff", "is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"a.json {message}"):
        read_json(path)
    assert not is_labelme(tmp_path)
    assert message.partition(" \\")[0] in find_splits(tmp_path)[0][0].records.fatal[0]


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "null", "absent"])
def test_what_is_no_ordinary_file_is_not_read(tmp_path, kind):
    path = {"device": "/dev/zero", "null": "/dev/null"}.get(kind, tmp_path / "a.json")
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    for read in (read_json, read_text):
        with pytest.raises(DataError, match=r"cannot be read: No such" if kind == "absent" else "is no ordinary file"):
            read(type(tmp_path)(path))


def test_circles_without_end_are_clipped_or_named(tmp_path):
    root = write_coco(tmp_path / "coco", ["a"], ["a.jpg"]) / "val2017"
    for radius, found in ((1e200, ["a"]), (math.nextafter(math.inf, 0), ["a"]), (0, [])):
        shape = {"label": "a", "points": [[9, 9], [9 + radius, 9 - radius]], "shape_type": "circle"}
        (root / "a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [shape]}))
        problems = []
        boxes = read_source(root).read(root / "a.jpg", 48, 64, problems)
        assert ([box.name for box in boxes], len(problems)) == (found, 1 - len(found))


@pytest.mark.parametrize("line", ["/", ".", "..", "./", "a.jpg/..", "\0"])
def test_lists_of_voc_that_name_no_image(tmp_path, line):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    write_coco(tmp_path / "coco", ["a"], ["a.jpg"])
    (tmp_path / "coco" / "val2017").rename(tmp_path / "JPEGImages")
    (tmp_path / "Annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{line}\na\n")
    source = read_source(tmp_path)
    assert source.images["train"] == [tmp_path / "JPEGImages" / "a.jpg"]
    assert "train.txt:1: " in source.problems[0]


def yolo(root, text):
    (root / "images" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text(text)
    return root


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "path: *a59\nnames: [a]", "has no images"),
        (BOMB + "names: *a59", "no data.yaml with the names"),
        (BOMB + "names: [a]\ntrain: *a59", "train is neither a path nor a list of paths"),
        ("names: " + "[" * 1000, "is not valid YAML: it is nested too deeply"),
        ("names: &a [*a]", "is not valid YAML: found unconstructable recursive node"),
        ("names: [a, a]", "two classes have the name 'a'"),
        ("names:\n" + "".join(f"  {n}: c{n}\n" for n in range(1, 500)), "the numbers 1, 2, .* and 487 more, not"),
        ("names: !!python/object/apply:os.system [[a]]", "no data.yaml with the names"),
    ],
)
def test_yaml_bombs(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_yolo(yolo(tmp_path / "data", text))


def test_many_classes_take_no_time_that_grows_with_their_square(tmp_path):
    names = {number: f"class {number}" for number in range(30_000)}
    root = yolo(tmp_path / "data", yaml.safe_dump({"path": "."}))
    (root / "classes.txt").write_text("\n".join(names.values()))
    records = read_records(write_coco(tmp_path / "coco", ["a"], ["a.jpg"]) / "annotations" / "instances_val2017.json")
    records = records._replace(categories={id_: {"id": id_, "name": name} for id_, name in names.items()})
    began = time.perf_counter()
    with pytest.raises(DataError, match="has no images"):
        read_yolo(root, root / "classes.txt")
    assert different_categories(names, {0: "other"})
    match_classes(records, list(names.values()), DataProblems())
    assert time.perf_counter() - began < 5  # 0.1; with the square of the number, a minute


def test_labels_that_are_no_ordinary_files_do_not_block(tmp_path):
    image = tmp_path / "voc" / "a.jpg"
    write_coco(tmp_path / "coco", ["a"], ["a.jpg"])
    image.parent.mkdir()
    os.link(tmp_path / "coco" / "val2017" / "a.jpg", image)
    os.mkfifo(image.with_suffix(".xml"))
    os.mkfifo(tmp_path / "voc" / "b.json")
    source = read_source(image.parent)
    assert [source.read(image, 48, 64, []), source.images["train"]] == [[], [image]]
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(DataError, match="is no ordinary file"):
        read_yolo(yolo(tmp_path / "yolo", "path: ."), tmp_path / "classes.txt")
