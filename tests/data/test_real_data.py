"""What exporters write, used or named: `check` says usable exactly when a run takes a step and an evaluation."""

import json
import os
import re
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask

from dwtriton.config.load import load_config
from dwtriton.core.errors import UserError
from dwtriton.data import __main__ as command
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.images import BrokenImageError, read_header
from dwtriton.data.loaders import eval_loader, train_loader
from dwtriton.data.prepare import data_as_json, prepare_data
from dwtriton.data.values import mask_box
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.train import __main__ as train_command
from tests.support.real_data import COUNTS, change_all, coco_content, drop, pictures, write_coco, write_files
from tests.support.short_run import SMALL_IMAGES, brief_settings, run_briefly

SMALL = SMALL_IMAGES


@pytest.fixture
def look(call, tmp_path, monkeypatch):
    """Check a folder, with a sheet of nothing: (exit code, result, error); training must agree."""
    monkeypatch.setattr(command, "draw_sheet", lambda found: Figure(figsize=(1, 1)))

    def run(root, *settings):
        options = [word for setting in settings for word in ("--set", setting)]
        code, printed, error = call(command, "check", root, "--out", tmp_path / "sheets", "--json", *options)
        result = json.loads(printed)
        assert (code == 0) == result["usable"]
        if result["usable"]:
            assert_a_run_begins_and_ends(result["command"])
        else:
            assert_no_run_begins(root, settings)
        return code, result, error

    return run


def assert_a_run_begins_and_ends(text):
    """By the data that the printed command reads: a batch to train on, and one to evaluate."""
    arguments = train_command.build_parser().parse_args(
        [*shlex.split(text)[3:], *[w for s in SMALL for w in ("--set", s)]]
    )
    cfg = train_command.read_config(arguments)
    train, val = prepare_data(cfg)
    assert all(len(batch) for batch in train_loader(train, cfg))
    assert any(len(batch) for batch in eval_loader(val, cfg))
    assert any(not box["iscrowd"] for box in val.coco.anns.values())


def assert_no_run_begins(root, settings):
    cfg = load_config("r50_1x", [*SMALL, "head.num_classes=2", *settings], root)
    with pytest.raises(UserError):
        prepare_data(cfg)


def boxes(root, *settings):
    """Boxes by label and file of the training and the validation set, as a run reads them."""
    cfg = load_config("r50_1x", [*SMALL, "head.num_classes=2", "data.flip=0", *settings], root)
    found = []
    for dataset in prepare_data(cfg):
        for index in range(len(dataset)):
            sample = dataset[index]
            scale = torch.tensor([*sample.scale_factor] * 2)
            corners = (sample.target["boxes"] / scale).round().int().tolist()
            found.append(sorted(zip(sample.target["labels"].tolist(), corners)))
    return found


def drawn_boxes():
    """What `boxes` gives for data without a fault."""
    return [
        sorted((c, [x, y, x + w, y + h]) for c, x, y, w, h in picture.objects)
        for split in COUNTS
        for picture in pictures(split)
    ]


def rle(content):
    for annotation in content["annotations"][::2]:
        annotation.update(iscrowd=1, segmentation={"counts": [0, 9], "size": [72, 96]})


def each(function):
    return lambda split, content, folder: function(content)


def name_by(pattern):
    """File names that another machine or a browser knows."""
    return change_all("images", file_name=lambda image: pattern.format(image["file_name"]))


def as_polygon(annotation):
    x, y, w, h = annotation["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def without_boxes(content):
    for annotation in content["annotations"]:
        annotation["segmentation"] = as_polygon(annotation)
        annotation.pop("bbox")


def with_masks_alone(compressed):
    """Boxes only as masks, one of them beside a box of zeros as coco-annotator writes it."""

    def change(content):
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for number, annotation in enumerate(content["annotations"]):
            x, y, w, h = annotation["bbox"]
            pixels = np.zeros(sizes[annotation["image_id"]], dtype=np.uint8, order="F")
            pixels[y : y + h, x : x + w] = 1
            rle = mask.encode(pixels)
            counts = rle["counts"].decode()
            if not compressed:
                flat = pixels.ravel(order="F")
                ends = np.flatnonzero(np.diff(flat, prepend=1 - flat[0], append=1 - flat[-1]))
                counts = [0] * int(flat[0]) + np.diff(ends).tolist()
            annotation["segmentation"] = {"size": rle["size"], "counts": counts}
            annotation["bbox"] = [0, 0, 0, 0]
            if number:
                annotation.pop("bbox")

    return each(change)


def rename_ids(content):
    names = {image["id"]: f"clip_{image['id']:03}" for image in content["images"]}
    for image in content["images"]:
        image["id"] = names[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = names[annotation["image_id"]]


def add_group(content):
    content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
    for category in content["categories"][1:]:
        category["supercategory"] = "shapes"


def start_at_0(content):
    for image in content["images"]:
        image["id"] -= 1
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"] - 1)


READ_RIGHTLY = {  # by what is in the file
    "iscrowd null": change_all("annotations", iscrowd=None),
    "iscrowd a string": change_all("annotations", iscrowd="0"),
    "iscrowd false": change_all("annotations", iscrowd=False),
    "no iscrowd, no area": drop("annotations", "iscrowd", "area"),
    "area 0": change_all("annotations", area=0),
    "area null": change_all("annotations", area=None),
    "numbers as strings": change_all("annotations", bbox=lambda a: [str(v) for v in a["bbox"]], area=lambda a: "9"),
    "ids as floats": change_all("annotations", image_id=lambda a: float(a["image_id"]), id=lambda a: float(a["id"])),
    "category id a string": change_all("annotations", category_id=lambda a: str(a["category_id"])),
    "all category ids strings": each(
        lambda content: (
            [r.update(id=str(r["id"])) for r in content["categories"]]
            + [r.update(category_id=f"{r['category_id']}.0") for r in content["annotations"]]
        )
    ),
    "image ids from 0, named by strings": each(start_at_0),
    "image ids that are names": each(rename_ids),
    "no width and height": drop("images", "width", "height"),
    "width and height -1": change_all("images", width=-1, height=-1),
    "a height alone missing": drop("images", "height"),
    "width and height null": change_all("images", width=None, height=None),
    "width and height strings": change_all(
        "images", width=lambda image: str(image["width"]), height=lambda image: f"{image['height']}.0"
    ),
    "polygons without boxes": each(without_boxes),
    "empty boxes with polygons": change_all("annotations", segmentation=as_polygon, bbox=lambda a: []),
    "compressed masks without boxes": with_masks_alone(compressed=True),
    "masks without boxes": with_masks_alone(compressed=False),
    "a category that only groups": each(add_group),
    "backslashes": name_by("images\\{}"),
    "backslashes of another folder": name_by("..\\..\\label-studio\\media\\upload\\4\\{}"),
    "a folder too many": name_by("images/1/{}"),
    "a URL": name_by("https://host:8080/data/upload/{}?token=a/b"),
    "an absolute path of another machine": name_by("/home/someone/pictures/{}"),
    "a quoted name": name_by("my%20pictures/{}"),
    "a URL under another key": each(
        lambda content: [
            image.update(coco_url=f"http://images.org/train2017/{image.pop('file_name')}")
            for image in content["images"]
        ]
    ),
}


@pytest.mark.parametrize("name", READ_RIGHTLY)
def test_what_can_be_read_is_read_rightly(name, tmp_path, look):
    root = write_coco(tmp_path / "data", READ_RIGHTLY[name])
    code, result, error = look(root)
    assert (code, error) == (0, "")
    assert "num_classes=2" in result["command"]
    assert boxes(root) == drawn_boxes()


@pytest.mark.parametrize("name", ["iscrowd null", "image ids that are names", "polygons without boxes"])
def test_a_run_takes_steps_and_evaluates(name, tmp_path):
    root = write_coco(tmp_path / "data", READ_RIGHTLY[name])
    run_briefly(load_config("r50_1x", ["head.num_classes=2"], root), tmp_path / "run")


@pytest.mark.parametrize(
    "counts", ["", "P", "0P", "PPPPPPP0", "é", "04" * 40, 3, None, [-1, 5], [0, 99], ["a"], [], [9]]
)
def test_a_broken_mask_has_no_box(counts):
    assert mask_box({"size": [4, 4], "counts": counts}) is None
    for size in ([4], [4, 0], [4, None], "44", [2**40, 2**40], None):
        assert mask_box({"size": size, "counts": [2, 3]}) is None
    assert mask_box({"size": [4, 4], "counts": [1.0, "2"]}) == [0, 1, 1, 2]


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".png", ".webp", ".jfif"])
def test_kinds_of_files(suffix, tmp_path, look):
    root = write_coco(tmp_path / "data", suffix=suffix, **({"format": "JPEG"} if suffix == ".jfif" else {}))
    assert look(root)[0] == 0
    assert boxes(root) == drawn_boxes()


# --- nothing labelled is left unused in silence


def kinds(result, split=0):
    return {kind: problem["count"] for kind, problem in result["splits"][split]["problems"].items()}


def test_half_of_the_boxes_as_crowd_is_a_warning_with_cause_and_remedy(tmp_path, look):
    root = write_coco(tmp_path / "data", each(rle))
    code, result, _ = look(root)
    assert code == 0
    assert kinds(result) == {"crowd region, not learned: trained as background": 4}
    (warning,) = result["splits"][0]["warnings"]
    assert warning.startswith("4 of 8 boxes are marked as crowd (iscrowd = 1), as CVAT marks every mask: they are not")
    assert "--set data.crowd=train" in warning
    assert kinds(result, 1) == {"crowd region, neither right nor wrong in the evaluation": 2}
    _, result, _ = look(root, "data.crowd=train")
    assert result["splits"][0]["warnings"] == []
    assert "--set data.crowd=train" in result["command"]
    assert boxes(root, "data.crowd=train") == drawn_boxes()


def test_crowd_alone_is_refused_with_the_same_remedy(tmp_path, look):
    root = write_coco(tmp_path / "data", change_all("annotations", iscrowd=1))
    code, result, error = look(root)
    assert code == 2
    assert "8 of 8 boxes are marked as crowd" in error
    assert "--set data.crowd=train uses them" in error
    assert "there is no object to measure a detector by; 4 of 4 boxes are marked as crowd" in result["fatal"][1]
    assert look(root, "data.crowd=train")[0] == 0


def test_rotated_boxes_and_a_broken_area_are_named(tmp_path, look):
    root = write_coco(tmp_path / "data", change_all("annotations", attributes={"rotation": 35.0}, area=-1))
    _, result, _ = look(root)
    assert kinds(result) == {
        "area of 0 though the box has one, that of the box is used": 8,
        "rotated box, used as if it were upright": 8,
    }
    upright = write_coco(tmp_path / "upright", change_all("annotations", attributes={"rotation": 0.0}))
    assert kinds(look(upright)[1]) == {}


def test_boxes_of_five_and_eight_numbers_are_rotated_and_used_by_their_polygons_alone(tmp_path, look):
    def change(split, content, folder):
        for number, annotation in enumerate(content["annotations"]):
            if number % 4 != 3:  # of others the polygon tells the upright box
                annotation["segmentation"] = as_polygon(annotation)
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [[x, y, w, h, 30.0], [x, y, x + w, y, x + w, y + h, x, y + h]][number % 2]

    root = write_coco(tmp_path / "data", change)
    _, result, _ = look(root)
    assert kinds(result) == {
        "rotated box, used as if it were upright": 6,
        "rotated box without an upright one, annotation skipped": 2,
    }
    assert all(box in drawn for found, drawn in zip(boxes(root), drawn_boxes()) for box in found)


def test_annotation_files_of_any_depth_are_used_or_named(tmp_path, look, call):
    root = write_coco(tmp_path / "data")
    deep = root / "more" / "labels"
    deep.mkdir(parents=True)
    (root / "annotations" / "instances_val2017.json").rename(deep / "instances_val2017.json")
    (root / "val2017").rename(root / "more" / "val2017")
    (deep / "instances_test.json").write_text(json.dumps(coco_content(pictures("val"))))
    (deep / "notes.json").write_text("{}")
    for hidden in (".old/instances_val.json", "annotations/._instances_val2017.json"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_text("no JSON")
    (root / "linked").symlink_to(root)
    code, result, _ = look(root)
    assert code == 0
    assert "data.val_annotations=more/labels/instances_val2017.json" in result["command"]
    assert result["unused"] == ["neither trained nor measured on: test, 2 images with 4 boxes"]
    (ignored,) = result["ignored"]
    assert ignored.startswith(f"{deep}/notes.json is not COCO detection JSON")
    lines = (tmp_path / "sheets" / "problems.txt").read_text().splitlines()
    assert lines[1:] == [*result["unused"], f"ignored: {ignored}"]
    arguments = train_command.build_parser().parse_args(shlex.split(result["command"])[3:])
    cfg = train_command.read_config(arguments)
    assert data_as_json(cfg.data, {})["unused"] == ["more/labels/instances_test.json", "more/labels/notes.json"]
    _, printed, _ = call(command, "tile", root, "--size", "64", "--out", tmp_path / "tiles")
    assert "1 x split that is neither to train nor to validate with, not cut: test" in printed


def test_names_of_splits_differ_whatever_their_files_are_called(tmp_path):
    content = coco_content(pictures("val"))
    names = ("a/x/labels.json", "b/x/labels.json", "a-x/labels.json", "labels.json")
    write_files(tmp_path, dict.fromkeys(names, content))
    found, _ = find_splits(tmp_path)
    assert len({split.name for split in found}) == len(names)


def test_training_and_evaluation_say_what_they_leave_out(tmp_path, call):
    """In lines and in JSON, with what turns out only as images are read."""

    def change(split, content, folder):
        content["annotations"][0]["iscrowd"] = 1
        (folder / "0002.jpg").write_text("no image")

    root = write_coco(tmp_path / "data", change)
    (root / "annotations" / "instances_test.json").write_text("{}")
    words = [word for setting in brief_settings("head.num_classes=2") for word in ("--set", setting)]
    out = tmp_path / "run"
    code, printed, _ = call(train_command, "--cfg", "r50_1x", "--data", root, "--out", out, "--json", *words)
    assert code == 0
    data = json.loads(printed)["data"]
    problems = data["training"]["problems"]
    assert problems["crowd region, not learned: trained as background"]["count"] == 1
    assert [path.rpartition("/")[2][:8] for path in data["unreadable"]] == ["0002.jpg", "0002.jpg"]
    assert data["unused"] == ["annotations/instances_test.json"]
    code, printed, _ = call(evaluate_command, "--weights", out / "last.pt", "--json")
    assert code == 0
    evaluated = json.loads(printed)["data"]
    assert evaluated["validation"] == data["validation"]
    assert len(evaluated["unreadable"]) == 1
    code, printed, _ = call(evaluate_command, "--weights", out / "last.pt", "--force")
    assert f"JSON files in {root} that are not used: 1, annotations/instances_test.json" in printed


def test_all_problems_go_to_a_file_and_into_the_json(tmp_path, look):
    root = write_coco(tmp_path / "data", change_all("annotations", area=0))
    _, result, _ = look(root)
    assert (
        len(result["splits"][0]["problems"]["area of 0 though the box has one, that of the box is used"]["examples"])
        == 8
    )
    lines = (tmp_path / "sheets" / "problems.txt").read_text().splitlines()
    assert len(lines) == 1 + 8 + 4
    assert (
        lines[1]
        == "train2017: area of 0 though the box has one, that of the box is used: annotation 1 of image 1 (0001.jpg)"
    )


def test_a_check_replaces_its_own_output_and_removes_what_is_mended(tmp_path, call):
    root, out = write_coco(tmp_path / "data", change_all("annotations", area=0)), tmp_path / "sheets"
    assert call(command, "check", root, "--out", out)[0] == 0
    assert (out / "problems.txt").exists()
    shutil.rmtree(root)
    write_coco(root)
    (out / "train.png").write_bytes((out / "train2017.png").read_bytes())  # of another data set's check
    Image.new("RGB", (8, 8)).save(out / "mine.png")
    code, printed, error = call(command, "check", root, "--out", out)
    assert (code, error) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["mine.png", "train2017.png", "val2017.png"]
    assert printed.count("no problems found") == 2
    assert not (out / "problems.txt").exists()
    (out / "problems.txt").write_text("mine")
    code, _, error = call(command, "check", root, "--out", out)
    assert (code, "problems.txt already exists" in error) == (2, True)


# --- named, where the data cannot be used


def shares(annotation):
    x, y, w, h = annotation["bbox"]
    return [x / 96, y / 96, w / 96, h / 96]


def corners(annotation):
    x, y, w, h = annotation["bbox"]
    return [x, y, x + w, y + h]


def test_boxes_in_shares_and_boxes_as_corners_are_recognised(tmp_path, look):
    code, _, error = look(write_coco(tmp_path / "shares", change_all("annotations", bbox=shares)))
    assert (code, "its boxes are shares of the images' sides" in error) == (2, True)
    code, result, _ = look(write_coco(tmp_path / "corners", change_all("annotations", bbox=corners)))
    assert code == 0
    assert any(
        line.startswith("the boxes look like corners x1, y1, x2, y2") for line in result["splits"][0]["warnings"]
    )


@pytest.mark.parametrize("wrong", [shares, corners])
@pytest.mark.parametrize("wrong_split", ["train", "val"])
def test_a_stray_box_does_not_hide_what_an_exporter_means(wrong_split, wrong, tmp_path, look):
    """Nearly all boxes decide, of either split."""

    def change(split, content, folder):
        ids = {"image_id": 1, "category_id": 1, "iscrowd": 0}
        if split == wrong_split:
            for annotation in content["annotations"]:
                annotation["bbox"] = wrong(annotation)
            content["annotations"] *= 5
            for number, annotation in enumerate(content["annotations"], 1):
                content["annotations"][number - 1] = annotation | {"id": number}
            content["annotations"].append({"id": 900, "bbox": [60, 40, 30, 20], "area": 600, **ids})

    code, result, error = look(write_coco(tmp_path / "data", change))
    if wrong is shares:
        assert (code, f"{wrong_split}2017.json: its boxes are shares of the images' sides" in error) == (2, True)
    else:
        assert code == 0
        (warning,) = result["splits"][wrong_split == "val"]["warnings"]
        assert warning.startswith("the boxes look like corners x1, y1, x2, y2")


def test_some_boxes_in_shares_are_counted_as_such(tmp_path, look):
    def change(split, content, folder):
        for annotation in content["annotations"][::2]:
            annotation["bbox"] = shares(annotation)

    _, result, _ = look(write_coco(tmp_path / "data", change))
    assert kinds(result)["box in shares of the image's sides, as it lies in 0..1, not used as a target"] == 4


def test_validation_with_boxes_without_area_alone_cannot_be_measured(tmp_path, look):
    def change(split, content, folder):
        for annotation in content["annotations"] if split == "val" else []:
            annotation["bbox"][2] = 0

    code, _, error = look(write_coco(tmp_path / "data", change))
    assert (code, "there is no object to measure a detector by" in error) == (2, True)


def test_an_image_that_is_nowhere_is_named_with_its_path_and_the_nearest_file(tmp_path, look):
    root = write_coco(tmp_path / "data", name_by("shot_{}"))
    code, _, error = look(root)
    assert code == 2
    assert f"looked for {root}/train2017/shot_0001.jpg; the nearest file is {root}/train2017/0001.jpg" in error


def broken(*splits):
    def change(split, content, folder):
        for path in folder.iterdir():
            if split in splits:
                path.write_text("no image")

    return change


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_is_refused_by_check_and_by_training(split, tmp_path, look):
    code, _, error = look(write_coco(tmp_path / "data", broken(split)))
    assert code == 2
    assert f"none of the {COUNTS[split]} images can be read; the first: " in error
    assert "cannot be identified as an image" in error


def test_validation_without_objects_is_refused_by_check_and_by_training(tmp_path, look):
    def change(split, content, folder):
        content["annotations"] = content["annotations"] if split == "train" else []

    code, _, error = look(write_coco(tmp_path / "data", change))
    assert (code, "instances_val2017.json: there is no object to measure a detector by" in error) == (2, True)


def test_an_orientation_of_wrong_sizes_is_left_out_and_the_other_one_trained_on(tmp_path, look):
    def change(split, content, folder):
        for image in content["images"][::2]:  # the landscape ones
            image.update(width=192, height=144)

    code, result, _ = look(write_coco(tmp_path / "data", change))
    assert code == 0
    kind = "image file that cannot be used, nor any other of its orientation, left out"
    assert result["splits"][0]["problems"][kind]["count"] == 2
    assert "is 96x72 when upright, its annotations say 192x144" in result["splits"][0]["problems"][kind]["examples"][0]


def test_the_same_files_in_both_splits_are_a_leak(tmp_path, look):
    root = write_coco(tmp_path / "data")
    shutil.copy(root / "train2017" / "0001.jpg", root / "val2017" / "0001.jpg")
    _, result, _ = look(root)
    assert result["leaks"] == [[f"{root}/val2017/0001.jpg", f"{root}/train2017/0001.jpg"]]
    assert look(write_coco(tmp_path / "other"))[1]["leaks"] == []


def test_a_missing_file_of_a_missing_size_is_left_out_alone(tmp_path, look):
    def change(split, content, folder):
        (folder / "0001.jpg").unlink()
        content["images"][0].pop("height")

    code, result, _ = look(write_coco(tmp_path / "data", change))
    assert (code, kinds(result)) == (0, {"image file missing, image skipped": 1})


def test_very_many_objects_in_an_image_are_a_warning(tmp_path, look):
    def change(split, content, folder):
        box = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 25}
        content["annotations"] += [
            {"id": 100 + n, "bbox": [n % 80, n % 60, 5, 5], **box} for n in range(101 if split == "val" else 0)
        ]

    _, result, _ = look(write_coco(tmp_path / "data", change))
    (warning,) = result["splits"][1]["warnings"]
    assert warning.startswith("1 images hold more than 100 objects, the fullest 103: an evaluation counts 100")


def test_background_images_are_counted_and_can_be_trained_on(tmp_path, look):
    def change(split, content, folder):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 2]

    root = write_coco(tmp_path / "data", change)
    _, result, _ = look(root)
    kind = "image without an annotation, not trained on (data.background = true trains on it as background)"
    assert kinds(result) == {kind: 2}
    _, result, _ = look(root, "data.background=true")
    assert kinds(result) == {}
    assert result["splits"][0]["warnings"] == [
        "2 images without an annotation are trained on as background (data.background = true): 50% of the images of an "
        "epoch, and about as much of its time"
    ]
    assert [len(found) for found in boxes(root, "data.background=true")[:4]] == [2, 2, 0, 0]


# --- classes by name


def test_validation_may_lack_categories_and_number_them_otherwise(tmp_path, look):
    def fewer(split, content, folder):
        if split == "val":
            content["categories"] = content["categories"][1:]
            content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 2]

    def swapped(split, content, folder):
        if split == "val":
            content["categories"] = [{"id": 1, "name": "disc"}, {"id": 2, "name": "box"}]
            for annotation in content["annotations"]:
                annotation["category_id"] = 3 - annotation["category_id"]

    root = write_coco(tmp_path / "fewer", fewer)
    code, result, _ = look(root)
    assert code == 0
    assert result["splits"][1]["warnings"] == [
        f"classes without a category in {root}/annotations/instances_val2017.json, not measured: box"
    ]
    assert boxes(root)[4:] == [[box for box in found if box[0] == 1] for found in drawn_boxes()[4:]]
    root = write_coco(tmp_path / "swapped", swapped)
    code, result, _ = look(root)
    assert "another order" in result["splits"][1]["warnings"][0]
    assert boxes(root) == drawn_boxes()


def test_the_group_that_roboflow_adds_may_have_the_name_of_the_only_class(tmp_path, look):
    def change(split, content, folder):
        group, only = (
            {"id": 0, "name": "box", "supercategory": "none"},
            {"id": 1, "name": "box", "supercategory": "box"},
        )
        content["categories"] = [group, only]
        for annotation in content["annotations"]:
            annotation["category_id"] = 1

    code, result, _ = look(write_coco(tmp_path / "data", change))
    assert (code, kinds(result)) == (0, {"category that only groups others, no class": 1})
    assert "head.num_classes=1" in result["command"]


# --- orientation


def turn(path, orientation):
    """Give a picture an orientation of EXIF and leave its pixels as they lie."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.copy().save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientations", [(6, 6), (6, 3), (8, 2)])
def test_annotations_of_the_file_as_it_lies_are_recognised(orientations, tmp_path, look):
    """Two of the four images tell by their sizes, and the others are read in the same way."""

    def change(split, content, folder):
        for path, orientation in zip(sorted(folder.iterdir()), [orientations[0], orientations[0], *orientations]):
            turn(path, orientation)

    root = write_coco(tmp_path / "data", change)
    code, result, _ = look(root)
    assert code == 0
    assert "as they lie in their files" in result["splits"][0]["warnings"][0]
    assert boxes(root) == drawn_boxes()
    assert_pictures_are_as_drawn(root)


def assert_pictures_are_as_drawn(root):
    train, _ = prepare_data(load_config("r50_1x", [*SMALL, "head.num_classes=2"], root))
    for index, picture in enumerate(pictures("train")):
        assert np.abs(train.read(index).permute(1, 2, 0).numpy().astype(int) - np.asarray(picture.image)).mean() < 4


def test_exif_can_be_settled_by_hand(tmp_path, look):
    def change(split, content, folder):
        for path in folder.iterdir():
            turn(path, 6)

    root = write_coco(tmp_path / "data", change)
    code, _, error = look(root, "data.exif=apply")
    assert code == 2
    assert "is 72x96 when upright, its annotations say 96x72; data.exif = ignore takes it so" in error
    assert look(root, "data.exif=ignore")[0] == 0


# --- images


def test_images_with_too_many_pixels_are_left_aside_before_they_are_decoded(tmp_path, look):
    root = write_coco(tmp_path / "data")
    code, _, error = look(root, "data.max_pixels=6000")
    assert (code, "has 96x72 pixels, more than data.max_pixels = 6000; cut it into tiles" in error) == (2, True)


def test_what_no_command_can_decode_is_not_advised_to_be_cut_by_one(tmp_path, monkeypatch):
    Image.new("L", (90, 90)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match="cut it into tiles with another program, as nothing here decodes more"):
        read_header(tmp_path / "a.png")


def test_12_bits_in_16_are_named(tmp_path, look):
    def change(split, content, folder):
        for path, image in zip(sorted(folder.iterdir()), content["images"]):
            ramp = np.linspace(0, 4095, image["width"] * image["height"]).astype(np.uint16)
            Image.fromarray(ramp.reshape(image["height"], image["width"])).save(path)

    root = write_coco(tmp_path / "data", change, suffix=".png")
    _, result, _ = look(root)
    assert kinds(result) == {"image of 16 bits that uses 12 at most, nearly black": 4}
    for split, count in zip(prepare_data(load_config("r50_1x", [*SMALL, "head.num_classes=2"], root)), (4, 2)):
        (line,) = split.problems.summary()  # which training and evaluation print
        assert line.startswith(
            f"{count} of {count} images of 16 bits that were looked at use 12 of them at most, such as"
        )


def test_special_files_and_foreign_formats_are_named(tmp_path, look):
    def change(split, content, folder):
        files = sorted(folder.iterdir())
        files[0].write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
        if split == "train":
            files[2].unlink()
            os.mkfifo(files[2])

    _, result, _ = look(write_coco(tmp_path / "data", change))
    text = json.dumps(result["splits"][0]["problems"])
    assert "0001.jpg: is a HEIC file; save it as JPEG or PNG" in text
    assert "image file missing" in text


def test_names_in_any_script(tmp_path, call):
    root = tmp_path / "data"
    content = coco_content(pictures("train"))
    for image, name in zip(content["images"], ("日本 語/фото.jpg", 'it\'s "q".jpg', "Größe [1].jpg", "a#b?c%20.jpg")):
        image["file_name"] = name
    files = {f"images/{image['file_name']}": p.image for image, p in zip(content["images"], pictures("train"))}
    write_files(root, files | {"labels.json": content})
    content["categories"][0]["name"] = "箱 $x^$"
    (root / "labels.json").write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, printed, error = call(command, "check", root, "--out", tmp_path / "sheets")
    assert (code, error) == (0, "")
    assert "no problems found" in printed


# --- layouts


def test_fiftyone_has_a_folder_for_each_split(tmp_path, look):
    root = tmp_path / "data"
    for split, folder in (("train", "train"), ("val", "validation")):
        drawn = pictures(split)
        images = {f"{folder}/data/{n:04}.jpg": picture.image for n, picture in enumerate(drawn, 1)}
        write_files(root, images | {f"{folder}/labels.json": coco_content(drawn)})
    code, result, _ = look(root)
    assert code == 0
    assert [Path(split["image_folder"]).relative_to(root).as_posix() for split in result["splits"]] == [
        "train/data",
        "validation/data",
    ]


def test_what_predict_wrote_is_read_with_the_images_and_not_the_pictures_that_it_drew(tmp_path, look, monkeypatch):
    write_coco(tmp_path / "my-data")
    content = coco_content(pictures("train"))
    for image in content["images"]:
        image["drawn"], image["file_name"] = image["file_name"], f"my-data/train2017/{image['file_name']}"
    drawn = {image["drawn"]: Image.new("RGB", (image["width"], image["height"])) for image in content["images"]}
    write_files(tmp_path / "found", drawn | {"detections.json": content})
    monkeypatch.chdir(tmp_path)
    code, result, error = look(Path("found"))
    assert (code, error, kinds(result)) == (0, "", {})
    assert "--set data.train_images=.. --set data.train_annotations=detections.json" in result["command"]
    monkeypatch.chdir(tmp_path / "my-data")
    code, _, error = look(tmp_path / "found")
    assert code == 2
    assert "`predict` writes paths as it was given them, so run this in the folder where it ran" in error


def test_folders_of_other_layouts_are_pointed_to_convert(tmp_path, call):
    root = write_files(
        tmp_path / "yolo", {"data.yaml": "names: [box, disc]", "images/train/a.jpg": pictures("val")[0].image}
    )
    expected = re.escape(f"python -m dwtriton.data convert {root} --out yolo-coco")
    for arguments in ((command, "check", root), (train_command, "--cfg", "r50_1x", "--data", root)):
        code, _, error = call(*arguments)
        assert code == 2
        assert re.search(expected, error), error
