"""YOLO's and Pascal VOC's layouts made into COCO's: exact boxes, every broken place named, nothing half written."""

import json
import os
import signal
import textwrap
from multiprocessing import get_context

import pytest
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console

from dwtriton.config.schema import Config
from dwtriton.data import __main__ as command
from dwtriton.data.formats import convert as convert_module
from dwtriton.data.formats.yolo import read_yolo
from dwtriton.data.prepare import prepare_data

WIDTH, HEIGHT = 80, 40


def write_files(root, files):
    """Text as it is; images, by their suffix, of WIDTH x HEIGHT, with the text (if any) as their bytes."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png", ".bmp") and text is None:
            Image.new("RGB", (WIDTH, HEIGHT), "teal").save(path)
        else:
            path.write_text(text)


def yolo(root, **changes):
    """A data set with two classes and one image in each split; `changes` by path, None drops a file."""
    files = {
        "data.yaml": "names: [cat, dog]\n",
        "images/train/a.jpg": None,
        "images/val/b.jpg": None,
        "labels/train/a.txt": "1 0.5 0.5 0.25 0.5\n",
        "labels/val/b.txt": "0 0.25 0.25 0.5 0.5\n",
    }
    write_files(root, files | changes.pop("files", {}))
    for name in changes.pop("without", ()):
        (root / name).unlink()
    return root


def voc_xml(*objects):
    body = "\n".join(
        f"<object>\n<name>{name}</name>\n{extra}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>\n</object>"
        for name, box, extra in objects
    )
    return f"<annotation>\n{body}\n</annotation>\n"


def voc(root, files=None):
    """Two images of three objects, one in each split."""
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>\n"
    write_files(
        root,
        {
            "JPEGImages/2007_1.jpg": None,
            "JPEGImages/2007_2.jpg": None,
            "Annotations/2007_1.xml": voc_xml(
                ("dog", (1, 1, WIDTH, HEIGHT), part), ("cat", (11, 21, 20, 30), "<difficult>1</difficult>\n")
            ),
            "Annotations/2007_2.xml": voc_xml(("dog", (5, 5, 14.5, 5), "")),
            "ImageSets/Main/train.txt": "2007_1\n",
            "ImageSets/Main/val.txt": "2007_2  1\n\n",
            **(files or {}),
        },
    )
    return root


def content(out, split):
    return json.loads((out / "annotations" / f"instances_{split}2017.json").read_text())


def boxes(out, split):
    """(class, box) of every annotation of a split."""
    data = content(out, split)
    names = {category["id"]: category["name"] for category in data["categories"]}
    return [(names[a["category_id"]], [round(v, 6) for v in a["bbox"]]) for a in data["annotations"]]


def convert_yolo(call, root, *options):
    out = root.parent / "coco"
    return *call(command, "convert", root, "--out", out, *options), out


# --- YOLO


def test_yolo_boxes_are_shares_of_the_upright_image(tmp_path, call):
    root = yolo(tmp_path / "yolo")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "images/val/b.jpg", exif=exif)
    code, printed, error, out = convert_yolo(call, root)
    assert (code, error) == (0, "")
    assert f"{out}: 2 images, 0 of them without a box, 2 boxes, 2 classes" in printed
    assert f"python -m dwtriton.data check {out}" in printed
    assert boxes(out, "train") == [("dog", [30, 10, 20, 20])]
    assert boxes(out, "val") == [("cat", [0, 0, 40, 20])]
    (image,) = content(out, "val")["images"]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
    assert content(out, "train")["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert (out / "train2017/a.jpg").stat().st_ino == (root / "images/train/a.jpg").stat().st_ino


def test_what_is_written_is_what_a_training_and_pycocotools_read(tmp_path, call):
    *_, out = convert_yolo(call, yolo(tmp_path / "yolo"))
    train, val = prepare_data(Config(data={"root": out}, head={"num_classes": 2}))
    assert train.class_names == val.class_names == ["cat", "dog"]
    assert train[0].target["labels"].tolist() == [1]
    assert train.problems.summary() == val.problems.summary() == []
    assert COCO(out / "annotations/instances_train2017.json").getAnnIds() == [1]


def test_lines_of_polygons_of_turned_boxes_and_over_the_border(tmp_path, call):
    lines = "0 .1 .2 .5 .2 .3 .8\n1 .1 .1 .3 .1 .3 .5 .1 .5\n\n0 0 0.5 0.5 1\n"
    *_, out = convert_yolo(call, yolo(tmp_path / "yolo", files={"labels/train/a.txt": "\ufeff" + lines}))
    expected = [("cat", [8, 8, 32, 24]), ("dog", [8, 4, 16, 16]), ("cat", [0, 0, 20, 40])]
    assert boxes(out, "train") == expected


def test_key_points_behind_a_box_are_dropped(tmp_path, call):
    files = {
        "data.yaml": "names: [cat, dog]\nkpt_shape: [1, 2]\n",
        "labels/train/a.txt": "0 .5 .5 .5 .5 .1 .1",
        "labels/val/b.txt": "",
    }
    assert boxes(convert_yolo(call, yolo(tmp_path / "yolo", files=files))[-1], "train") == [("cat", [20, 10, 40, 20])]


def test_folders_beside_the_yaml_file_and_folders_named_twice(tmp_path, call):
    files = {
        "base/data.yaml": "train: [images/train, ../extra/images, images/val/../train]\nnames: [cat, dog]\n",
        "base/images/train/a.jpg": None,
        "base/labels/train/a.txt": "1 .5 .5 .5 .5",
        "base/images/val/b.jpg": None,
        "base/labels/val/b.txt": "0 .5 .5 .5 .5",
        "extra/images/c.jpg": None,
        "extra/labels/c.txt": "0 .5 .5 .5 .5",
    }
    write_files(tmp_path, files)
    code, _, error, out = convert_yolo(call, tmp_path / "base")
    assert (code, error) == (0, "")
    names = [image["file_name"] for image in content(out, "train")["images"]]
    assert names == ["base/images/train/a.jpg", "extra/images/c.jpg"]
    assert all((out / "train2017" / name).is_file() for name in names)
    assert {path.name for path in out.iterdir()} == {"annotations", "train2017", "val2017"}


def test_images_without_labels_are_background(tmp_path, call):
    files = {"images/train/empty.png": None, "labels/train/empty.txt": "\n", "images/train/none.png": None}
    code, printed, _, out = convert_yolo(call, yolo(tmp_path / "yolo", files=files), "--json")
    result = json.loads(printed)
    assert (code, result["images"], result["background"], result["left_out"]) == (0, 4, 2, [])
    assert [image["file_name"] for image in content(out, "train")["images"]] == ["a.jpg", "empty.png", "none.png"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("names: {0: no, 1: 1.0}", ["no", "1.0"]),
        ("names:\n- 'on'\n- on off\nnc: 2", ["on", "on off"]),
        ("names: {1: b, 0: a}", ["a", "b"]),
    ],
)
def test_class_names_are_taken_as_they_are_written(tmp_path, call, settings, names):
    *_, out = convert_yolo(call, yolo(tmp_path / "yolo", files={"data.yaml": settings}))
    assert [category["name"] for category in content(out, "val")["categories"]] == names


def test_names_from_a_file(tmp_path, call):
    root = yolo(tmp_path / "yolo", without=["data.yaml"])
    code, _, error, out = convert_yolo(call, root)
    assert (code, "--names FILE" in error) == (2, True)
    (tmp_path / "classes.txt").write_text("horse\ncow\n\n")
    assert convert_yolo(call, root, "--names", tmp_path / "classes.txt")[0] == 0
    assert boxes(out, "train") == [("cow", [30, 10, 20, 20])]


@pytest.mark.parametrize("absolute", [False, True])
def test_folders_that_the_yaml_file_names(tmp_path, call, absolute):
    """`path`, several folders for a split, and images of one name in them."""
    path = tmp_path / "elsewhere" if absolute else "../elsewhere"
    root = tmp_path / "yolo"
    write_files(root, {"mine.yaml": f"path: {path}\ntrain: [one/images, two/images]\nval: one/images\nnames: [cat]\n"})
    for part in ("one", "two"):
        write_files(tmp_path / "elsewhere" / part, {"images/a.jpg": None, "labels/a.txt": "0 .5 .5 .5 .5"})
    code, _, error = call(command, "convert", root / "mine.yaml", "--out", tmp_path / "coco")
    assert (code, error) == (0, "")
    names = [image["file_name"] for image in content(tmp_path / "coco", "train")["images"]]
    assert names == ["one/images/a.jpg", "two/images/a.jpg"]
    assert all((tmp_path / "coco/train2017" / name).is_file() for name in names)
    assert [image["file_name"] for image in content(tmp_path / "coco", "val")["images"]] == ["a.jpg"]


def test_the_layout_of_roboflow(tmp_path, call):
    root = tmp_path / "yolo"
    files = {"data.yaml": "train: ../train/images\nval: ../valid/images\nnames: ['cat']\n", "README.txt": "hello"}
    for part in ("train", "valid"):
        files |= {f"{part}/images/a.jpg": None, f"{part}/labels/a.txt": "0 .5 .5 .5 .5"}
    write_files(root, files)
    assert convert_yolo(call, root)[0] == 0


def test_classes_txt_is_no_label_file_in_any_folder(tmp_path, call):
    files = {"data.yaml": "names: [cat, dog]\ntrain: images\n", "labels/train/classes.txt": "cat\ndog\n"}
    assert convert_yolo(call, yolo(tmp_path / "yolo", files=files))[0] == 0


def test_a_path_that_is_no_longer_there_is_that_of_the_yaml_file(tmp_path, call):
    root = yolo(tmp_path / "yolo", files={"data.yaml": "path: /no/such/place\nnames: [cat, dog]\n"})
    assert convert_yolo(call, root)[0] == 0


def test_lists_of_images(tmp_path, call):
    root = yolo(
        tmp_path / "yolo",
        files={
            "data.yaml": "train: train.txt\nval: images/val\nnames: [cat, dog]\n",
            "train.txt": f"./images/train/a.jpg\n{tmp_path}/yolo/images/val/b.jpg\nimages/train/a.jpg\n\nnowhere.jpg\n",
        },
    )
    code, _, error, out = convert_yolo(call, root)
    assert code == 2
    assert f"{root}/train.txt:5: {root}/nowhere.jpg does not exist" in error
    assert convert_yolo(call, root, "--skip-broken")[0] == 0
    assert [image["file_name"] for image in content(out, "train")["images"]] == ["train/a.jpg", "val/b.jpg"]


def test_labels_beside_images_where_no_folder_is_called_images(tmp_path, call):
    root = tmp_path / "yolo"
    files = {"data.yaml": "train: train\nval: val\nnames: [cat]\n", "train/classes.txt": "cat\n"}
    for part in ("train", "val"):
        files |= {f"{part}/a.jpg": None, f"{part}/a.txt": "0 .5 .5 .5 .5"}
    write_files(root, files)
    code, _, error, out = convert_yolo(call, root)
    assert (code, error, boxes(out, "val")) == (0, "", [("cat", [20, 10, 40, 20])])


BROKEN = textwrap.dedent("""\
    1 0.5 0.5 0.25 0.5
    2 0.5 0.5 0.2 0.2
    cat 0.5 0.5 0.2 0.2
    -1 0.5 0.5 0.2 0.2
    0 0.5 0.5 0.2
    0 0.5 0.5 0.2 0.2 0.9
    0 40 20 10 10
    0 nan 0.5 0.2 0.2
    0 0.5 0.5 -0.2 0.2
    0 0.5 0.5 0 0.2
    0 0.1 0.2 0.3 0.2 0.5 0.2
""")
REASONS = [
    "2: class 2 is outside 0..1",
    "3: 'cat 0.5 0.5 0.2 0.2' is not a class number and numbers",
    "4: class -1 is outside 0..1",
    "5: 3 numbers behind the class: four of a box or pairs of a polygon are needed",
    "6: 5 numbers behind the class: four of a box or pairs of a polygon are needed",
    "7: 40 is not a share of the image, from 0 to 1",
    "8: nan is not a share of the image, from 0 to 1",
    "9: -0.2 is not a share of the image, from 0 to 1",
    "10: the box has no area inside the image",
    "11: the box has no area inside the image",
]


def test_every_broken_line_is_named_and_nothing_is_written(tmp_path, call):
    root = yolo(tmp_path / "yolo", files={"labels/train/a.txt": BROKEN})
    code, printed, error, _ = convert_yolo(call, root)
    assert (code, printed) == (2, "")
    assert error.splitlines() == [
        "error: nothing was written, errors in the labels: 10",
        *(f"  {root}/labels/train/a.txt:{reason}" for reason in REASONS),
        "  Fix them, or add --skip-broken to leave them out",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_broken_lines_can_be_left_out_and_are_counted(tmp_path, call):
    root = yolo(tmp_path / "yolo", files={"labels/train/a.txt": BROKEN})
    code, printed, _, out = convert_yolo(call, root, "--skip-broken")
    assert code == 0
    assert f"left out: 10\n  {root}/labels/train/a.txt:2: class 2" in printed
    assert boxes(out, "train") == [("dog", [30, 10, 20, 20])]


def test_a_long_list_of_broken_lines_is_cut_and_counted(tmp_path, call):
    root = yolo(tmp_path / "yolo", files={"labels/train/a.txt": "7 0 0 0 0\n" * 500})
    error = convert_yolo(call, root)[2]
    assert "errors in the labels: 500" in error
    assert "a.txt:20: " in error
    assert "a.txt:21: " not in error
    assert "and 480 more" in error


def test_broken_files_are_named_and_their_images_left_out(tmp_path, call):
    files = {
        "images/train/garbage.jpg": "no image",
        "images/train/latin.jpg": None,
        "images/train/other.ppm": "P3",
        "labels/train/other.txt": "0 .5 .5 .5 .5",
        "labels/train/classes.txt": "cat\ndog\n",
    }
    root = yolo(tmp_path / "yolo", files=files)
    Image.new("RGB", (9, 9)).save(root / "images/train/ppm.jpg", "PPM")
    (root / "labels/train/latin.txt").write_bytes(b"0 .5 .5 .5 .5 \xe9")
    code, _, error, out = convert_yolo(call, root)
    lines = [line.strip().removeprefix(f"{root}/") for line in error.splitlines()[1:-1]]
    assert code == 2
    assert [line.split(": ")[0] for line in lines] == [
        *("labels/train/other.txt", "images/train/garbage.jpg", "labels/train/latin.txt", "images/train/ppm.jpg")
    ]
    assert "has no image (JPEG, PNG, WebP, GIF, BMP or TIFF) of its name" in lines[0]
    assert "is a PPM file; save it as JPEG or PNG" in lines[3]
    assert convert_yolo(call, root, "--skip-broken")[0] == 0
    assert [image["file_name"] for image in content(out, "train")["images"]] == ["a.jpg"]
    assert [path.name for path in (out / "train2017").iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"without": ["images/val/b.jpg"]},
            "yolo/images/val has no images (.bmp, .gif, .jfif, .jpeg, ",
        ),
        ({"without": ["labels/train/a.txt"]}, "no image of train has a label file; that of"),
        ({"files": {"data.yaml": "names: {1: a, 2: b}"}}, "the classes have the numbers 1, 2, not 0..1"),
        ({"files": {"data.yaml": "names: [a, a]"}}, "two classes have the name 'a'"),
        ({"files": {"data.yaml": "names: [a, [b]]"}}, "has no data.yaml with the names"),
        ({"files": {"data.yaml": "names: [a"}}, "data.yaml is not valid YAML"),
        ({"files": {"data.yaml": "just text"}}, "data.yaml holds no settings"),
        ({"files": {"data.yaml": "names: [a]\ntrain: pictures"}}, "yolo/pictures does not exist; data.yaml may name"),
        ({"files": {"data.yaml": "names: [a]\ntrain: {a: b}"}}, "train is neither a path nor a list of paths"),
    ],
)
def test_other_layouts_are_one_clear_error(tmp_path, call, changes, message):
    code, _, error, _ = convert_yolo(call, yolo(tmp_path / "yolo", **changes))
    assert code == 2
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


# --- Pascal VOC


def test_voc_boxes_count_from_one_and_difficult_objects_are_crowd(tmp_path, call):
    code, _, _ = call(command, "convert", voc(tmp_path / "voc"), "--out", tmp_path / "coco")
    assert code == 0
    assert boxes(tmp_path / "coco", "train") == [("dog", [0, 0, WIDTH, HEIGHT]), ("cat", [10, 20, 10, 10])]
    assert boxes(tmp_path / "coco", "val") == [("dog", [4, 4, 10.5, 1])]
    assert [a["iscrowd"] for a in content(tmp_path / "coco", "train")["annotations"]] == [0, 1]
    assert [c["name"] for c in content(tmp_path / "coco", "val")["categories"]] == ["cat", "dog"]


def test_several_years_of_voc_are_joined(tmp_path, call):
    for year in ("VOC2007", "VOC2012"):
        voc(tmp_path / "kit" / year)
    lists = ["--train", "VOC2007/train", "VOC2012/train", "VOC2012/val", "--val", "VOC2007/val"]
    code, _, _ = call(command, "convert", tmp_path / "kit", *lists, "--out", tmp_path / "coco")
    assert code == 0
    images = content(tmp_path / "coco", "train")["images"]
    assert [image["file_name"] for image in images] == [
        "VOC2007/JPEGImages/2007_1.jpg",
        "VOC2012/JPEGImages/2007_1.jpg",
        "VOC2012/JPEGImages/2007_2.jpg",
    ]
    assert len({image["id"] for image in images}) == 3
    assert len(boxes(tmp_path / "coco", "train")) == 5


def test_broken_places_of_voc_have_their_lines_and_objects(tmp_path, call):
    objects = [
        ("dog", (1, 1, 10, 10), ""),
        ("", (1, 1, 10, 10), ""),
        ("dog", ("left", 1, 10, 10), ""),
        ("dog", (10, 1, 1, 10), ""),
        ("dog", (100, 1, 200, 10), ""),
    ]
    files = {
        "JPEGImages/2007_3.jpg": None,
        "JPEGImages/2007_4.jpg": None,
        "Annotations/2007_1.xml": voc_xml(*objects),
        "Annotations/2007_3.xml": "<annotation>\n<object>\n</annotation>\n",
        "ImageSets/Main/train.txt": "2007_1\n2007_3\n2007_4\n2007_5\n",
    }
    root = voc(tmp_path / "voc", files)
    code, _, error = call(command, "convert", root, "--out", tmp_path / "coco")
    assert code == 2
    xml = f"  {root}/Annotations/2007_1.xml: object"
    assert error.splitlines()[1:-1] == [
        f"  {root}/ImageSets/Main/train.txt:4: 2007_5 is not in {root}/JPEGImages",
        f"{xml} 2: it has no name",
        f"{xml} 3 (dog): it has no bndbox with the numbers xmin, ymin, xmax, ymax",
        f"{xml} 4 (dog): xmin is above xmax, or ymin above ymax",
        f"{xml} 5 (dog): the box has no area inside the image",
        f"  {root}/Annotations/2007_3.xml:3: mismatched tag: line 3, column 2",
        f"  {root}/Annotations/2007_4.xml: cannot be read: No such file or directory",
    ]
    code, _, _ = call(command, "convert", root, "--out", tmp_path / "coco", "--skip-broken")
    assert code == 0
    assert [image["file_name"] for image in content(tmp_path / "coco", "train")["images"]] == ["2007_1.jpg"]
    assert len(boxes(tmp_path / "coco", "train")) == 1


def test_xml_in_another_encoding(tmp_path, call):
    root = voc(tmp_path / "voc")
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>' + voc_xml(("café", (1, 1, 10, 10), ""))
    (root / "Annotations/2007_1.xml").write_bytes(text.encode("latin-1"))
    assert call(command, "convert", root, "--out", tmp_path / "coco")[0] == 0
    assert boxes(tmp_path / "coco", "train") == [("café", [0, 0, 10, 10])]


def test_other_layouts_than_voc_are_one_clear_error(tmp_path, call):
    root = voc(tmp_path / "kit" / "VOC2007")

    def error(where, *options):
        code, _, text = call(command, "convert", where, "--out", tmp_path / "coco", *options)
        assert code == 2
        return text

    assert "lists of folders in it are named VOC2007/train" in error(tmp_path / "kit")
    assert "trainval.txt does not exist; there are train, val" in error(root, "--train", "trainval")
    for xml in (root / "Annotations").iterdir():
        xml.write_text("<annotation/>")
    assert "no box names a class" in error(root)
    (root / "ImageSets/Main/val.txt").write_text("\n")
    assert "no image of val is left" in error(root)


# --- what is there is kept


def test_nothing_is_overwritten_and_force_replaces_a_conversion_alone(tmp_path, call):
    root = yolo(tmp_path / "yolo")
    assert convert_yolo(call, root)[0] == 0
    (root / "labels/train/a.txt").write_text("0 .5 .5 .5 .5")
    code, _, error, out = convert_yolo(call, root)
    assert (code, "already holds a data set: add --force" in error) == (2, True)
    assert boxes(out, "train") == [("dog", [30, 10, 20, 20])]
    assert convert_yolo(call, root, "--force")[0] == 0
    assert boxes(out, "train") == [("cat", [20, 10, 40, 20])]
    file = out / "annotations/instances_val2017.json"
    converted = file.read_text()
    file.write_text(json.dumps(json.loads(converted) | {"info": {"description": "COCO 2017 Dataset"}}))
    code, _, error, out = convert_yolo(call, root, "--force")
    assert (code, "holds a data set that no conversion wrote" in error) == (2, True)
    file.write_text(converted)
    (out / "thesis.tex").touch()
    code, _, error, out = convert_yolo(call, root, "--force")
    assert (code, "holds thesis.tex, which no conversion wrote" in error) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "yolo"]
    (tmp_path / "file").touch()
    code, _, error = call(command, "convert", root, "--out", tmp_path / "file", "--force")
    assert (code, "is a file" in error) == (2, True)


@pytest.mark.parametrize("name", ["train2017/notes.txt", "train2017/deeper/x.jpg", "annotations/mine.json"])
def test_force_never_deletes_what_no_conversion_wrote(tmp_path, call, name):
    root = yolo(tmp_path / "yolo")
    out = convert_yolo(call, root)[-1]
    own = out / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("precious")
    code, _, error, _ = convert_yolo(call, root, "--force")
    assert (code, f"{own} was added to an earlier conversion: move it, or choose another" in error) == (2, True), error
    assert own.read_text() == "precious"
    own.unlink()
    assert convert_yolo(call, root, "--force")[0] == 0


def test_an_empty_folder_may_be_written_to_even_the_present_one(tmp_path, call, monkeypatch):
    root = yolo(tmp_path / "yolo")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert call(command, "convert", root, "--out", ".")[0] == 0
    assert boxes(tmp_path / "empty", "train") == [("dog", [30, 10, 20, 20])]


def test_images_are_copied_where_links_are_impossible(tmp_path, call, monkeypatch):
    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(convert_module.os, "link", refuse)
    root = yolo(tmp_path / "yolo")
    *_, out = convert_yolo(call, root)
    copy, original = out / "train2017/a.jpg", root / "images/train/a.jpg"
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_ino != original.stat().st_ino


def test_a_disk_that_is_full_is_one_clear_error_and_leaves_nothing(tmp_path, call, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module.os, "link", full)
    monkeypatch.setattr(convert_module.shutil, "copyfile", full)
    code, _, error, _ = convert_yolo(call, yolo(tmp_path / "yolo"))
    assert code == 1
    assert error == f"error: {tmp_path / 'coco'} cannot be written: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_a_killed_conversion_leaves_nothing_at_its_place(tmp_path, monkeypatch):
    def killed(path, text):
        write_text(path, text)
        os.kill(os.getpid(), signal.SIGKILL)

    write_text = convert_module.write_text
    monkeypatch.setattr(convert_module, "write_text", killed)
    source = read_yolo(yolo(tmp_path / "yolo"))
    job = get_context("fork").Process(
        target=convert_module.convert, args=(source, tmp_path / "coco", False, False, Console(quiet=True))
    )
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".coco-*/new/train2017/a.jpg"))  # it was in the middle of it
    assert not (tmp_path / "coco").exists()
    assert (tmp_path / "yolo/images/train/a.jpg").is_file()


# --- what is said meanwhile


def test_long_conversions_tell_how_far_they_are_on_standard_error(tmp_path, call, monkeypatch):
    monkeypatch.setattr("dwtriton.console.progress.SECONDS_BETWEEN_LINES", 0.0)
    root = yolo(tmp_path / "yolo")
    code, printed, error, _ = convert_yolo(call, root)
    assert code == 0
    assert "reading labels of train  1/1" in error
    assert "linking images of val2017  1/1" in error
    assert "reading" not in printed
    for option in ("--quiet", "--json"):
        code, printed, error, out = convert_yolo(call, root, "--force", option)
        assert (code, error) == (0, "")
        assert printed == "" if option == "--quiet" else json.loads(printed)["out"] == str(out)


def test_help_shows_both_layouts(call):
    code, printed, _ = call(command, "convert", "--help")
    assert code == 0
    examples = printed.split("examples:")[1]
    assert "convert my-yolo-data" in examples
    assert "convert VOCdevkit" in examples


def test_options_of_the_other_layout_are_refused(tmp_path, call):
    root, out = voc(tmp_path / "voc"), tmp_path / "coco"
    (tmp_path / "names.txt").write_text("cat\n")
    code, _, error = call(command, "convert", root, "--names", tmp_path / "names.txt", "--out", out)
    assert (code, "--names is for YOLO's layout" in error) == (2, True)
    (tmp_path / "other").mkdir()
    code, _, error = call(command, "convert", tmp_path / "other", "--train", "trainval", "--out", out)
    assert (code, "holds no ImageSets" in error) == (2, True)
    assert not out.exists()
