"""Layouts of labels as exporters write them: each is converted, and what is printed next leads to a run's data."""

import json
import re
import shlex
from math import cos, pi, sin

import pytest

from dwtriton.config.load import load_config
from dwtriton.data import __main__ as command
from dwtriton.data.formats.split import GROUPS
from tests.support.real_data import (
    NAMES,
    coco_content,
    cvat_xml,
    label_studio_tasks,
    labelme_json,
    pictures,
    voc_xml,
    write_coco,
    write_files,
    yolo_lines,
)
from tests.support.short_run import run_briefly

YAML = "names: [box, disc]\n"


def images(split, pattern):
    return {pattern.format(f"{n:04}"): picture.image for n, picture in enumerate(pictures(split), 1)}


def labels(split, pattern, write=yolo_lines):
    return {pattern.format(f"{n:04}"): write(picture) for n, picture in enumerate(pictures(split), 1)}


def xml(split, pattern):
    return {pattern.format(f"{n:04}"): voc_xml(picture, "x.jpg") for n, picture in enumerate(pictures(split), 1)}


def labelme(pattern, image_path):
    return {pattern.format(f"{n:04}"): labelme_json(p, image_path.format(f"{n:04}")) for n, p in numbered("train")}


def named(pattern):
    return {pattern.format(f"{n:04}"): picture for n, picture in numbered("train")}


def numbered(split):
    return enumerate(pictures(split), 1)


def decimal_class(picture):
    return yolo_lines(picture, label=lambda number: f"{number:.18e}")


def listed(split, folder):
    return "".join(f"{folder}/{number:04}.jpg\n" for number in range(1, len(pictures(split)) + 1))


TWO = {  # layouts with both splits
    "YOLO of numpy": {
        "data.yaml": YAML,
        **images("train", "images/train/{}.jpg"),
        **labels("train", "labels/train/{}.txt", decimal_class),
        **images("val", "images/val/{}.jpg"),
        **labels("val", "labels/val/{}.txt", decimal_class),
    },
    "YOLO of Roboflow": {
        "data.yaml": YAML + "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
        **images("train", "train/images/{}.jpg"),
        **labels("train", "train/labels/{}.txt"),
        **images("val", "valid/images/{}.jpg"),
        **labels("val", "valid/labels/{}.txt"),
    },
    "VOC of Roboflow": {
        **images("train", "train/{}.jpg"),
        **xml("train", "train/{}.xml"),
        **images("val", "valid/{}.jpg"),
        **xml("val", "valid/{}.xml"),
    },
    "VOC with folders in the splits": {
        **images("train", "train/photos/{}.jpg"),
        **xml("train", "train/xml/{}.xml"),
        **images("val", "val/photos/{}.jpg"),
        **xml("val", "val/xml/{}.xml"),
    },
    "VOC with .jpg in its lists": {
        "ImageSets/Main/train.txt": listed("train", "").replace("/", "").replace("\n", "\r\n"),
        "ImageSets/Main/val.txt": "site/0001.jpg 1\nsite\\0002\n",
        **images("train", "JPEGImages/{}.jpg"),
        **xml("train", "Annotations/{}.xml"),
        **images("val", "JPEGImages/site/{}.jpg"),
        **xml("val", "Annotations/site/{}.xml"),
    },
    "VOC with BMP": {
        "ImageSets/Main/train.txt": listed("train", "").replace("/", ""),
        "ImageSets/Main/val.txt": "a0001\na0002\n",
        **images("train", "JPEGImages/{}.bmp"),
        **xml("train", "Annotations/{}.xml"),
        **images("val", "JPEGImages/a{}.tif"),
        **xml("val", "Annotations/a{}.xml"),
    },
}
ONE = {  # layouts with one split
    "YOLO without val": {
        "data.yaml": YAML,
        **images("train", "images/train/{}.jpg"),
        **labels("train", "labels/train/{}.txt"),
    },
    "YOLO with val alone, of FiftyOne": {
        "dataset.yaml": YAML + "path: .\nval: ./images/val/\n",
        **images("train", "images/val/{}.jpg"),
        **labels("train", "labels/val/{}.txt"),
    },
    "YOLO with test alone": {
        "data.yaml": YAML + "test: images/test\n",
        **images("train", "images/test/{}.jpg"),
        **labels("train", "labels/test/{}.txt"),
    },
    "YOLO of CVAT, Ultralytics": {
        "data.yaml": YAML + "path: .\ntrain: train.txt\n",
        "train.txt": listed("train", "data/images/train"),
        **images("train", "images/train/{}.jpg"),
        **labels("train", "labels/train/{}.txt"),
    },
    "YOLO 1.1 of CVAT": {
        "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        "obj.names": "box\ndisc\n",
        "train.txt": listed("train", "data/obj_train_data"),
        **images("train", "obj_train_data/{}.jpg"),
        **labels("train", "obj_train_data/{}.txt"),
    },
    "YOLO of Label Studio": {
        "classes.txt": "box\ndisc\n",
        "notes.json": {"categories": []},
        **images("train", "images/{}.jpg"),
        **labels("train", "labels/{}.txt"),
    },
    "YOLO of labelImg": {
        "classes.txt": "box\ndisc\n",
        **images("train", "{}.jpg"),
        **labels("train", "{}.txt"),
        "._0001.txt": "\0",
        "._0001.jpg": "\0",
    },
    "VOC of labelImg": {**images("train", "{}.jpg"), **xml("train", "{}.xml"), "._0001.xml": "\0"},
    "VOC of labelme2voc": {**images("train", "JPEGImages/{}.jpg"), **xml("train", "Annotations/{}.xml")},
    "VOC of FiftyOne": {**images("train", "data/{}.jpg"), **xml("train", "labels/{}.xml")},
    "VOC, images and labels": {**images("train", "images/{}.jpg"), **xml("train", "labels/{}.xml")},
    "VOC, images and Annotations": {**images("train", "images/{}.jpg"), **xml("train", "Annotations/{}.xml")},
    "VOC, an own folder for XML": {**images("train", "shots/{}.jpg"), **xml("train", "shots/xml/{}.xml")},
    "VOC beside masks of the same names": {
        **images("train", "JPEGImages/{}.jpg"),
        **images("train", "Drawn/{}.png"),
        **xml("train", "Annotations/{}.xml"),
        "JPEGImages/notes.xml": "\0",
    },
    "labelme": {**images("train", "{}.jpg"), **labelme("{}.json", "{}.jpg")},
    "labelme, beside": {**images("train", "images/{}.jpg"), **labelme("labels/{}.json", "..\\images\\{}.jpg")},
    "labelme, moved": {**images("train", "images/{}.jpg"), **labelme("labels/{}.json", "C:\\me\\images\\{}.jpg")},
    "CVAT for images": {**images("train", "images/{}.jpg"), "annotations.xml": cvat_xml(named("{}.jpg"))},
    "CVAT for images, with subsets": {
        **images("train", "images/Train/{}.jpg"),
        "annotations.xml": cvat_xml(named("{}.jpg")).replace("<image ", '<image subset="Train" '),
    },
    "Label Studio": {
        **images("train", "images/{}.jpg"),
        "project-1.json": label_studio_tasks(named("/data/upload/1/0abc12ef-{}.jpg")),
    },
    "Label Studio, JSON-MIN": {
        **images("train", "images/0abc12ef-{}.jpg"),
        "result.json": label_studio_tasks(named("/data/local-files/?d=shots%2F0abc12ef-{}.jpg"), is_min=True),
    },
}
ORPHAN = "VOC beside masks of the same names"  # has a file that names no image


def content(out, split):
    return json.loads((out / "annotations" / f"instances_{split}2017.json").read_text())


def drawn(split):
    """Class names and boxes of the pictures of a split, sorted."""
    return sorted((NAMES[c], box) for picture in pictures(split) for c, *box in picture.objects)


def written(out, split):
    data = content(out, split)
    names = {category["id"]: category["name"] for category in data["categories"]}
    return sorted((names[a["category_id"]], [round(v) for v in a["bbox"]]) for a in data["annotations"])


@pytest.mark.parametrize("name", TWO)
def test_layouts_with_both_splits_are_converted(name, tmp_path, call):
    root, out = write_files(tmp_path / "export", TWO[name]), tmp_path / "coco"
    code, printed, error = call(command, "convert", root, "--out", out)
    assert (code, error) == (0, "")
    assert printed.splitlines()[-1] == f"look at it: python -m dwtriton.data check {out}"
    assert "left out" not in printed
    assert ("the split test of" in printed) == (name == "YOLO of Roboflow")
    for split in ("train", "val"):
        assert written(out, split) == drawn(split)


@pytest.mark.parametrize("name", ONE)
def test_layouts_with_one_split_lead_to_two_by_the_commands_that_are_printed(name, tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "export", ONE[name])
    skip = ["--skip-broken"] if name == ORPHAN else []
    code, printed, error = call(command, "convert", "export", "--out", "coco", *skip)
    assert (code, error) == (0, "")
    assert written(tmp_path / "coco", "train") == drawn("train")
    assert "are background" not in printed
    for _ in range(2):  # split, check
        _, _, line = printed.splitlines()[-1].partition(": ")
        program, _, module, *arguments = shlex.split(line)
        assert (program, module) == ("python", "dwtriton.data")
        code, printed, error = call(command, *arguments)
        assert code == 0, error
    assert printed.splitlines()[-1].startswith("train on it: python -m dwtriton.train --cfg ")
    both = written(tmp_path / "coco-split", "train") + written(tmp_path / "coco-split", "val")
    assert sorted(both) == drawn("train")


RUNS = {  # a case of each format
    "YOLO": TWO["YOLO of numpy"],
    "Pascal VOC": TWO["VOC of Roboflow"],
    "labelme": ONE["labelme"],
    "CVAT for images": ONE["CVAT for images"],
    "Label Studio": ONE["Label Studio"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_each_format_takes_steps_and_evaluates(name, tmp_path, call):
    out = tmp_path / "coco"
    code, _, error = call(command, "convert", write_files(tmp_path / "export", RUNS[name]), "--out", out)
    assert (code, error) == (0, "")
    settings = ["head.num_classes=2"]
    if not (out / "val2017").exists():
        settings += ["data.val_images=train2017", "data.val_annotations=annotations/instances_train2017.json"]
    run_briefly(load_config("r50_1x", settings, out), tmp_path / "run")


def test_the_one_list_of_cvats_voc_is_for_training_and_split_next(tmp_path, call):
    files = {"ImageSets/Main/default.txt": listed("train", "").replace("/", "").replace(".jpg", "")}
    root = write_files(tmp_path / "voc", files | ONE["VOC of labelme2voc"])
    code, _, error = call(command, "convert", root, "--out", tmp_path / "coco")
    options = re.search(r"(--train \S+ --val \S+) would take them", error)
    assert (code, options[1]) == (2, "--train default --val default")
    code, printed, error = call(command, "convert", root, "--out", tmp_path / "coco", *options[1].split())
    assert (code, error) == (0, "")
    assert written(tmp_path / "coco", "train") == drawn("train")
    assert not (tmp_path / "coco" / "annotations" / "instances_val2017.json").exists()
    assert printed.splitlines()[-1].startswith("split them off: python -m dwtriton.data split ")


LEFT = {  # labelled images that no split has, by what names the splits
    "YOLO, a folder without a key": (
        TWO["YOLO of numpy"] | images("val", "images/test/{}.jpg") | labels("val", "labels/test/{}.txt"),
        f"{len(pictures('val'))} labelled images are in neither train nor val, and not converted, such as",
    ),
    "YOLO, lists": (
        TWO["YOLO of numpy"]
        | {"data.yaml": YAML + "train: train.txt\nval: images/val\n", "train.txt": "./images/train/0001.jpg\n"},
        f"{len(pictures('train')) - 1} labelled images are in neither train nor val, and not converted, such as",
    ),
    "YOLO, lists beside a test split": (
        TWO["YOLO of numpy"]
        | images("val", "images/test/{}.jpg")
        | labels("val", "labels/test/{}.txt")
        | {"data.yaml": YAML + "train: train.txt\nval: images/val\ntest: images/test\n"}
        | {"train.txt": "./images/train/0001.jpg\n"},
        f"{len(pictures('train')) - 1 + len(pictures('val'))} labelled images are in neither train nor val",
    ),
    "VOC, lists": (
        TWO["VOC with .jpg in its lists"] | {"ImageSets/Main/train.txt": "0001\n", "ImageSets/Main/test.txt": "0002\n"},
        f"{len(pictures('train')) - 1} labelled images are in none of the lists and not converted, such as",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_labelled_images_in_no_split_are_counted(name, tmp_path, call):
    files, note = LEFT[name]
    code, printed, error = call(command, "convert", write_files(tmp_path / "data", files), "--out", tmp_path / "coco")
    assert (code, error) == (0, "")
    assert note in printed
    assert written(tmp_path / "coco", "val") == drawn("val")


def test_frames_and_copies_that_roboflow_names_stay_together(tmp_path, call):
    """It puts a hash behind the name, and exports changed copies of an image under the same name."""
    names = [f"clip{c}_{n:04}_jpg.rf.{n * 7 + copy:032x}.png" for c in "ab" for n in range(4) for copy in range(2)]
    root = one_split(tmp_path / "data", names)
    for group, shared in (("image", lambda name: name[:10]), ("prefix", lambda name: name[:5])):
        out = tmp_path / group
        code, _, error = call(command, "split", root, "--val", "0.4", "--group", group, "--out", out)
        assert (code, error) == (0, "")
        train, val = parts(out)
        assert sorted(train + val) == sorted(names)
        assert not set(map(shared, train)) & set(map(shared, val))


def test_no_advice_leads_to_data_without_boxes(tmp_path, call):
    files = TWO["YOLO of numpy"] | labels("train", "labels/train/{}.txt", lambda picture: "box 1 2 3 4\n")
    root = write_files(tmp_path / "export", files)
    for options in ([], ["--skip-broken"]):
        code, _, error = call(command, "convert", root, "--out", tmp_path / "coco", *options)
        assert (code, "nothing was written" in error) == (2, True)
        assert not (tmp_path / "coco").exists()
    assert "no box of train is left. 4\n" in error


def test_what_has_no_box_or_no_image_is_named(tmp_path, call):
    content = labelme_json(pictures("train")[0], "0001.jpg")
    content["shapes"] += [
        {"label": "dot", "points": [[1, 2]], "shape_type": "point"},
        {"label": "", "points": [[1, 2], [3, 4]], "shape_type": "rectangle"},
        {"label": "ring", "points": [[40, 40], [45, 40]], "shape_type": "circle"},
        {"label": "bad", "points": [[1, "x"], [3, 4]], "shape_type": "rectangle"},
    ]
    files = {"0001.jpg": pictures("train")[0].image, "0001.json": content}
    files |= {"0009.json": labelme_json(pictures("train")[1], "gone.jpg"), "free.jpg": pictures("train")[2].image}
    root = write_files(tmp_path / "export", files)
    code, _, error = call(command, "convert", root, "--out", tmp_path / "coco")
    assert code == 2
    for line in (
        "0009.json: its image",
        "0001.json: shape 3: a point has no box",
        "0001.json: shape 4: it has no label",
        "0001.json: shape 6: its points are not two or more pairs of numbers",
    ):
        assert line in error
    code, printed, _ = call(command, "convert", root, "--out", tmp_path / "coco", "--skip-broken")
    assert code == 0
    assert ("ring", [35, 35, 10, 10]) in written(tmp_path / "coco", "train")
    assert "1 images without a JSON file are background" in printed


def test_boxes_of_an_image_that_labelimg_did_not_turn_keep_their_places(tmp_path, call):
    """The XML file tells by its size that the boxes are for the file as it lies."""
    picture = pictures("train")[0]
    root = write_files(tmp_path / "export", {"a.xml": voc_xml(picture, "a.jpg")})
    exif = picture.image.getexif()
    exif[0x0112] = 6
    picture.image.save(root / "a.jpg", exif=exif)
    assert call(command, "convert", root, "--out", tmp_path / "coco")[0] == 0
    (image,) = content(tmp_path / "coco", "train")["images"]
    assert (image["width"], image["height"]) == picture.image.size
    assert written(tmp_path / "coco", "train") == sorted((NAMES[c], box) for c, *box in picture.objects)


def test_rotated_boxes_of_cvat_are_named_by_the_check(tmp_path, call):
    picture = pictures("train")[0]
    rotation = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    first, last = voc_xml(picture, "a.jpg").split("</object>", 1)
    text = f"{first}{rotation.format('35.0')}{last.replace('</object>', rotation.format('0.0'))}"
    root = write_files(tmp_path / "export", {"a.jpg": picture.image, "a.xml": text})
    assert call(command, "convert", root, "--out", tmp_path / "coco")[0] == 0
    _, printed, _ = call(command, "check", tmp_path / "coco", "--out", tmp_path / "sheets")
    assert "1 x rotated box, used as if it were upright: annotation 1 of image 1 (a.jpg)" in printed


ROTATED = {  # one box turned by 30 degrees, 40 wide and 20 high around (48, 36), by format
    "YOLO, four corners": {
        "data.yaml": YAML,
        "images/train/a.jpg": pictures("train")[0].image,
        "labels/train/a.txt": "0 "
        + " ".join(
            f"{(48 + u * cos(pi / 6) - v * sin(pi / 6)) / 96:.6f} {(36 + u * sin(pi / 6) + v * cos(pi / 6)) / 72:.6f}"
            for u, v in ((-20, -10), (20, -10), (20, 10), (-20, 10))
        ),
    },
    "labelImg2": {
        "a.jpg": pictures("train")[0].image,
        "a.xml": "<annotation><object><type>robndbox</type><name>box</name><robndbox><cx>48</cx><cy>36</cy><w>40</w>"
        f"<h>20</h><angle>{pi / 6}</angle></robndbox></object></annotation>",
    },
    "Label Studio": {
        "a.jpg": pictures("train")[0].image,
        "a.json": [
            {
                "id": 1,
                "data": {"img": "a.jpg"},
                "annotations": [
                    {
                        "result": [
                            {
                                "value": {
                                    "x": 100 * (48 - 20 * cos(pi / 6) + 10 * sin(pi / 6)) / 96,
                                    "y": 100 * (36 - 20 * sin(pi / 6) - 10 * cos(pi / 6)) / 72,
                                    "width": 100 * 40 / 96,
                                    "height": 100 * 20 / 72,
                                    "rotation": 30,
                                    "rectanglelabels": ["box"],
                                }
                            }
                        ]
                    }
                ],
            }
        ],
    },
}


@pytest.mark.parametrize("name", ROTATED)
def test_rotated_boxes_are_counted_and_the_upright_box_around_them_is_used(name, tmp_path, call):
    out = tmp_path / "coco"
    code, printed, error = call(command, "convert", write_files(tmp_path / "data", ROTATED[name]), "--out", out)
    assert (code, error) == (0, "")
    assert "1 boxes are rotated, and used as upright ones: see what `check` draws" in printed
    width, height = 40 * cos(pi / 6) + 20 * sin(pi / 6), 40 * sin(pi / 6) + 20 * cos(pi / 6)
    (box,) = content(out, "train")["annotations"]
    assert box["bbox"] == pytest.approx([48 - width / 2, 36 - height / 2, width, height], abs=1e-3)
    assert box["attributes"]["rotation"] == pytest.approx(30, abs=1e-3)


def test_polygons_and_upright_corners_are_not_rotated(tmp_path, call):
    lines = "0 .1 .1 .5 .1 .5 .6 .1 .6\n0 .1 .1 .5 .2 .5 .6\n"
    files = {"data.yaml": YAML, "images/a.jpg": pictures("train")[0].image, "labels/a.txt": lines}
    code, printed, _ = call(command, "convert", write_files(tmp_path / "data", files), "--out", tmp_path / "coco")
    assert code == 0
    assert "rotated" not in printed


def test_what_cvat_and_label_studio_hold_without_a_box_is_named(tmp_path, call):
    picture = pictures("train")[0]
    shapes = (
        '<polyline label="box" points="1,1;5,5"/><ellipse label="disc" cx="40" cy="30" rx="10" ry="5"/>'
        '<mask label="box" rle="1" left="3" top="4" width="10" height="12"/><box label="box" xtl="1"/>'
    )
    text = cvat_xml({"a.jpg": picture, "gone.jpg": picture}).replace("</image>", f"{shapes}</image>", 1)
    root = write_files(tmp_path / "cvat", {"a.jpg": picture.image, "b.jpg": picture.image, "annotations.xml": text})
    code, printed, error = call(command, "convert", root, "--out", tmp_path / "coco")
    assert code == 2
    assert "its image gone.jpg does not exist; export it again, with images" in error
    assert "image a.jpg, shape 3: a polyline has no box" in error
    assert "image a.jpg, shape 6: a box without the numbers xtl, ytl, xbr, ybr" in error
    code, printed, _ = call(command, "convert", root, "--out", tmp_path / "coco", "--skip-broken")
    assert "1 images are in no XML file and not converted" in printed
    assert ("disc", [30, 25, 20, 10]) in written(tmp_path / "coco", "train")
    assert ("box", [3, 4, 10, 12]) in written(tmp_path / "coco", "train")
    (root / "annotations.xml").write_text('<annotations><track id="0" label="box"/></annotations>')
    code, _, error = call(command, "convert", root, "--out", tmp_path / "out")
    assert (code, 'is "CVAT for video", which names no image files: export it as "COCO 1.0"' in error) == (2, True)

    (task,) = label_studio_tasks({"a.jpg": picture})
    brush = {"format": "rle", "rle": [1, 2], "brushlabels": ["box"]}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0, "ellipselabels": ["disc"]}
    results = [{"value": value} for value in (brush, ellipse, {"choices": ["good"]})]
    task["annotations"][1]["result"] += results
    task["annotations"].append({"result": results})
    root = write_files(tmp_path / "studio", {"a.jpg": picture.image, "a.json": [task, {**task, "data": {}}]})
    code, _, error = call(command, "convert", root, "--out", tmp_path / "coco2")
    assert code == 2
    assert "task 1, region 3: it has no box: a brush stroke or a key point" in error
    assert "task 2: its image is not named" in error
    code, printed, _ = call(command, "convert", root, "--out", tmp_path / "coco2", "--skip-broken")
    assert "1 images have several annotations, of which the first is taken" in printed
    assert ("disc", [38, 29, 19, 14]) in written(tmp_path / "coco2", "train")
    strange = [{"data": "a.jpg", "annotation_id": 1, "annotations": 3, "x": [4, {"x": 1}]}]
    strange += [{"data": {"image": "b.jpg"}, "annotations": [{"result": [None]}]}]
    write_files(root, {"a.json": strange, "b.jpg": picture.image})
    code, _, error = call(command, "convert", root, "--out", tmp_path / "coco3")
    assert (code, "task 1, region 1: it has no label" in error) == (2, True)


def test_errors_that_a_message_cannot_hold_go_to_a_file(tmp_path, call):
    files = TWO["YOLO of numpy"] | {"labels/train/0001.txt": "7 .5 .5 .1 .1\n" * 30}
    root, out = write_files(tmp_path / "data", files), tmp_path / "coco"
    code, _, error = call(command, "convert", root, "--out", out)
    assert code == 2
    assert f"and 10 more\n  all of them: {out}-problems.txt" in error
    lines = (tmp_path / "coco-problems.txt").read_text().splitlines()
    assert lines[1:] == [f"{root}/labels/train/0001.txt:{n}: class 7 is outside 0..1" for n in range(1, 31)]
    code, printed, _ = call(command, "convert", root, "--out", out, "--skip-broken")
    assert (code, f"all of them: {out}-problems.txt" in printed) == (0, True)
    write_files(root, {"labels/train/0001.txt": "0 .5 .5 .1 .1\n"})
    assert call(command, "convert", root, "--out", out, "--force")[0] == 0
    assert not (tmp_path / "coco-problems.txt").exists()
    (tmp_path / "coco-problems.txt").write_text("mine")
    code, _, error = call(command, "convert", root, "--out", out, "--force")
    assert (code, "coco-problems.txt exists, where errors in the labels may go" in error) == (2, True)


def test_coco_needs_no_conversion_and_other_folders_are_named_by_what_they_hold(tmp_path, call):
    root = write_coco(tmp_path / "coco")
    code, _, error = call(command, "convert", root, "--out", tmp_path / "out")
    assert (code, f"python -m dwtriton.data check {root}" in error) == (2, True)
    unknown = write_files(tmp_path / "unknown", {"a.jpg": pictures("val")[0].image, "project.json": {"shapes": {}}})
    for action in ("check", "convert"):
        code, _, error = call(command, action, unknown, "--out", tmp_path / "out")
        assert code == 2
        assert "project.json is not COCO detection JSON: it has no list 'images', 'categories', 'annotations'" in error
        assert "choose COCO, YOLO or Pascal VOC where it is exported" in error
    other = write_files(tmp_path / "other", {"a.jpg": pictures("val")[0].image})
    code, _, error = call(command, "convert", other, "--out", tmp_path / "out")
    assert (code, "it holds a.jpg" in error) == (2, True)


# --- split


def one_split(root, names):
    """A data set whose images have these names, each with an annotation that has keys of its own."""
    drawn_images = [pictures("train")[n % 4] for n in range(len(names))]
    data = coco_content(drawn_images)
    for image, name in zip(data["images"], names):
        image["file_name"] = name
    for annotation in data["annotations"]:
        annotation["weight"] = 0.5
    data["licenses"] = [{"id": 1}]
    files = {f"images/{name}": picture.image for name, picture in zip(names, drawn_images)}
    return write_files(root, files | {"labels.json": data})


def parts(out):
    return [[image["file_name"] for image in content(out, split)["images"]] for split in ("train", "val")]


@pytest.mark.parametrize("group", GROUPS)
def test_a_split_keeps_groups_together_and_everything_that_annotations_hold(group, tmp_path, call):
    names = [f"{folder}/{clip}_{n:02}.png" for folder in "ab" for clip in ("x", "y") for n in range(5)]
    root, out = one_split(tmp_path / "data", names), tmp_path / "split"
    code, printed, error = call(command, "split", root, "--val", "0.25", "--group", group, "--out", out)
    assert (code, error) == (0, "")
    train, val = parts(out)
    assert sorted(train + val) == names
    assert len(val) == {"image": 5, "folder": 10, "prefix": 5}[group]
    key = GROUPS[group]
    assert not {key(name) for name in train} & {key(name) for name in val}
    assert ("--group prefix keeps each together" in printed) == (group == "image")
    for split in ("train", "val"):
        data = content(out, split)
        assert {a["image_id"] for a in data["annotations"]} == {image["id"] for image in data["images"]}
        assert {a["weight"] for a in data["annotations"]} == {0.5}
        assert data["licenses"] == [{"id": 1}]
        assert all((out / f"{split}2017" / image["file_name"]).is_file() for image in data["images"])
    again = tmp_path / "again"
    call(command, "split", root, "--val", "0.25", "--group", group, "--out", again)
    assert parts(again) == [train, val]
    others = []
    for seed in (1, 2, 3, 4):
        call(command, "split", root, "--val", "0.25", "--group", group, "--out", again, "--seed", seed, "--force")
        others.append(parts(again))
    assert any(other != [train, val] for other in others)


def test_a_split_warns_of_files_that_are_in_both_parts(tmp_path, call):
    names = [f"{letter}.png" for letter in "abcdefgh"]  # every picture is there twice
    out = tmp_path / "split"
    _, printed, _ = call(command, "split", one_split(tmp_path / "data", names), "--val", "0.3", "--out", out)
    twice = [name for name in parts(out)[1] if any(ord(name[0]) - ord(t[0]) in (4, -4) for t in parts(out)[0])]
    assert len(twice) > 0
    assert f"{len(twice)} images of val are in train too, under other names" in printed


def test_what_cannot_be_split_is_one_clear_error(tmp_path, call):
    root = write_coco(tmp_path / "coco")
    one = one_split(tmp_path / "one", ["a.png"])
    for where, options, message in (
        (root, [], "has the splits train2017, val2017 already; check it: python -m dwtriton.data check"),
        (one, [], "there is nothing to split"),
        (one, ["--val", "10"], "--val is a share of the images between 0 and 1, such as 0.1, not 10"),
        (tmp_path / "none", [], "does not exist"),
    ):
        code, _, error = call(command, "split", where, "--out", tmp_path / "out", *options)
        assert (code, message in error) == (2, True), error
    assert not (tmp_path / "out").exists()
