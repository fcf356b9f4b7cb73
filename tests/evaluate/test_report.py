"""The report of `python -m dwtriton.evaluate`: a self-contained page, and results that only --force replaces."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.config.load import load_config, override_config
from dwtriton.console import progress
from dwtriton.evaluate import __main__ as command
from dwtriton.evaluate import report
from dwtriton.evaluate.coco_metrics import METRICS, evaluate
from dwtriton.evaluate.report import report_html

NAMES = ("<b>&", "$x^", "_\"'é", "円")  # HTML, mathematics and other scripts
RESULTS = ("detections.json", "metrics.json", "report.html")
HEADINGS = [
    "Metrics",
    "Objects by size",
    "Classes",
    "Error types and their cost in AP50",
    "Precision and recall at an IoU of 0.5",
    "Confusions",
    "Largest missed objects",
    "Highest-scoring false positives",
]


class Page(HTMLParser):
    """The tags of a page with their attributes, the text of its cells by row, of its headings and of its captions."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.texts, self.inside = [], [], {"h2": [], "figcaption": [], "p": []}, []
        self.feed(text)
        self.close()
        for texts in self.texts.values():
            texts[:] = [" ".join(content.split()) for content in texts]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        for tag in self.inside:
            if tag in ("td", "th"):
                self.rows[-1][-1] += data
            if tag in self.texts:
                self.texts[tag][-1] += data

    def row(self, first):
        """The other cells of the rows that begin with a text."""
        return [row[1:] for row in self.rows if row and row[0] == first]

    def images(self):
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def make_coco(objects, names=NAMES, images=3):
    """A COCO of (image, category, bbox); the categories have the ids 1, 2, ..."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": bbox,
            "area": bbox[2] * bbox[3],
            "iscrowd": 0,
        }
        for number, (image, category, bbox) in enumerate(objects, 1)
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i, "width": 300, "height": 200, "file_name": f"{i}.png"} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": id_, "name": name} for id_, name in enumerate(names, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def make_report(coco, results, paths=(), notes=()):
    """(page, text)"""
    evaluation = evaluate(coco, results)
    text = report_html(evaluation, coco, results, dict(paths), "run & <data>", notes)
    return Page(text), text


def result(image, category, bbox, score):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


@pytest.fixture
def photographs(tmp_path):
    """Files of the images 1, 2 and 3; the third is broken."""
    random = np.random.default_rng(0)
    paths = {i: str(tmp_path / f"{i}.png") for i in (1, 2, 3)}
    for path in paths.values():
        Image.fromarray(random.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(path)
    (tmp_path / "3.png").write_bytes(b"no image")
    return paths


OBJECTS = [
    (1, 1, [10, 10, 60, 60]),
    (1, 2, [100, 20, 80, 90]),
    (2, 2, [50, 50, 100, 30]),
    (2, 1, [-5, 100, 20, 20]),
    (3, 3, [0, 0, 290, 190]),
]
FOUND = [
    result(1, 1, [12, 10, 60, 60], 0.9),
    result(1, 1, [100, 20, 80, 90], 0.8),
    result(2, 2, [100, 50, 100, 30], 0.7),
    result(3, 4, [200.5, 150.5, 0.25, 0.25], 0.6),
]


def test_the_page_stands_alone_and_shows_every_name_as_it_is(photographs):
    page, text = make_report(make_coco(OBJECTS), FOUND, photographs, notes=["left out: <i>3.png</i>"])
    assert page.texts["h2"] == HEADINGS
    assert page.inside == []
    assert page.images()
    assert all(re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", source) for source in page.images())
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "b"}
    assert not {name for _, attributes in page.tags for name in attributes} & {"href", "srcset", "onload", "onerror"}
    assert not re.search(r"https?:|url\(|@import", re.sub(r'src="[^"]*"', "", text))
    assert "<h1>run &amp; &lt;data&gt;</h1>" in text
    assert "left out: <i>3.png</i>" in page.texts["p"]
    for name in NAMES:
        assert len(page.row(name)) == 2, name  # of the table of classes and of the confusion matrix
    assert (
        len([tag for tag, attributes in page.tags if attributes.get("class") == "key"]) == 4
    )  # curves, and their mean


def test_metrics_classes_sizes_and_error_types_are_those_of_the_analysis(photographs):
    coco = make_coco(OBJECTS)
    evaluation = evaluate(coco, FOUND)
    page, _ = make_report(coco, FOUND, photographs)
    for name in METRICS[:3]:
        assert page.row(name)[0][0] == f"{evaluation.metrics[name]:.3f}"
    assert [cells[0] for size in ("small", "medium", "large") for cells in page.row(size)] == ["1", "3", "1"]
    objects, ap, ap50, *_ = page.row("<b>&")[0]
    assert (objects, ap50) == ("2", f"{evaluation.class_metrics['<b>&']['AP50']:.3f}")
    assert float(ap) == pytest.approx(evaluation.class_ap["<b>&"], abs=6e-4)
    assert page.row("円")[0][:6] == ["0", *["–"] * 5]
    counts = {error: page.row(error)[0][0] for error in ("classification", "localisation", "background", "missed")}
    assert counts == {"classification": "1", "localisation": "1", "background": "1", "missed": "2"}
    assert page.row("no object") == [["", "1", "", "1", ""]]
    assert page.row("$x^")[1] == ["1", "", "", "", "1"]


@pytest.mark.parametrize(("objects", "explained"), [(OBJECTS[:2], True), (OBJECTS, False)])
def test_a_value_of_minus_1_is_explained_below_cocos_table(objects, explained):
    """The first two objects are of medium size."""
    table = evaluate(make_coco(objects), FOUND).table
    assert ("area= small | maxDets=100 ] = -1.000" in table) == explained
    assert (
        table.endswith("\n -1.000: the data have no object of this size, so there is nothing to measure") == explained
    )


def test_galleries_show_the_worst_first_and_say_which_file_cannot_be_shown(photographs):
    page, text = make_report(make_coco(OBJECTS), FOUND, photographs)
    assert page.texts["figcaption"] == [
        "_\"'é, image 3: no detection comes near",
        "$x^, image 1: classification, <b>& 0.80",
        "$x^, image 2: localisation, $x^ 0.70",
        "<b>&, image 2: no detection comes near",
        "<b>& 0.80, image 1: classification, $x^",
        "$x^ 0.70, image 2: localisation, $x^",
        "円 0.60, image 3: background",
    ]
    assert text.count("no readable file") == 2
    assert len(page.images()) == 1 + 5
    page, text = make_report(make_coco(OBJECTS), FOUND, {1: photographs[1], 2: "nowhere.png"})
    assert text.count("no readable file") == 5


def test_boxes_of_any_size_and_place_and_a_file_of_another_size_can_be_shown(photographs, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "3.png")
    boxes = [[1000, 1000, 50, 50], [-500, 20, 30, 30], [100, 100, -50, 20], [100, 100, 0, 0], [-10, -10, 400, 400]]
    page, text = make_report(make_coco([(image, 1, box) for image in (1, 3) for box in boxes]), [], photographs)
    assert len(page.texts["figcaption"]) == 2 * len(boxes)
    assert len(page.images()) == 1 + len(boxes)
    assert text.count("no readable file") == len(boxes)


HOSTILE = {  # name: as it is shown, where that differs
    "<script>alert(1)</script>": None,
    "\"'><img src=x onerror=alert(1)>": None,
    "{{ 7 * 7 }} {% for x in y %} {# z #}": None,
    "</style></table></body> <!-- ]]>": None,
    "\u202eright to left\u200f \u05e9\u05dc\u05d5\u05dd": None,
    "nul\x00 escape\x1b[31m bell\x07 \x85": "nul\u2400 escape\u241b[31m bell\u2407 \ufffd",
    "half a pair \ud800": "half a pair \ufffd",
    "x" * 10_000: None,
}


@pytest.mark.parametrize("limit", [8, 1], ids=["few classes", "many classes"])
def test_hostile_names_are_shown_as_text(limit, photographs, monkeypatch):
    monkeypatch.setattr(report, "MAX_CLASSES_PER_PLOT", limit)
    monkeypatch.setattr(report, "MAX_MATRIX_CLASSES", limit)
    names = list(HOSTILE)
    objects = [(1, i, [30 * i, 10, 25, 60]) for i in range(1, len(names) + 1)]
    found = [result(1, 1 + i % len(names), objects[i - 1][2], 0.9) for i in range(1, len(names) + 1)]
    coco = make_coco(objects, names)
    text = report_html(evaluate(coco, found), coco, found, photographs, f"on {names[0]}", [*names, "file\udc80.jpg"])
    page = Page(text.encode("utf-8").decode("utf-8"))
    assert page.inside == []
    assert page.texts["h2"] == HEADINGS
    plain = Page(make_report(make_coco(objects, [f"class {i}" for i in range(8)]), found, photographs)[1])
    kinds = {tag for tag, _ in page.tags}
    assert kinds == {tag for tag, _ in plain.tags}
    assert {name for _, attributes in page.tags for name in attributes} == {
        name for _, attributes in plain.tags for name in attributes
    }
    for name, shown in HOSTILE.items():
        shown = " ".join((shown or name).split())
        assert shown in page.texts["p"]
        assert len(page.row(shown)) == 2, name
        assert sum(caption.startswith(f"{shown}, image 1: classification") for caption in page.texts["figcaption"]) == 1
        assert sum(caption.startswith(f"{shown} 0.90, image 1") for caption in page.texts["figcaption"]) == 1
    assert "file\ufffd.jpg" in page.texts["p"]
    assert text.count("<bdi>") == text.count("</bdi>") >= 6 * len(names)


def test_the_package_data_contain_every_file_that_is_not_python():
    root = Path(report.__file__).parents[1]
    patterns = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "dwtriton"
    ]
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert root / "evaluate" / "report.html.j2" in files
    assert not set(files) - {p for text in patterns for p in root.glob(text)}


def test_class_names_that_are_numbers(photographs):
    page, _ = make_report(make_coco(OBJECTS, [7, 8, 9, 10]), FOUND, photographs)
    assert [page.row(name)[0][0] for name in ("7", "8", "9", "10")] == ["2", "2", "1", "0"]


@pytest.mark.parametrize("found", [[], FOUND], ids=["no detections", "detections"])
@pytest.mark.parametrize("objects", [[], OBJECTS], ids=["no objects", "objects"])
def test_there_may_be_nothing(objects, found, photographs):
    page, text = make_report(make_coco(objects), found, photographs)
    assert page.texts["h2"] == HEADINGS
    assert page.inside == []
    assert "nan" not in re.sub(r'src="[^"]*"', "", text).lower()
    assert f"{len(objects)} objects, {len(found)} detections" in text
    assert ("–" in page.row("AP")[0]) == (not objects)
    missed = ["0", "0.0"] if not objects else ["5", "100.0"] if not found else ["2", "33.2"]
    assert page.row("missed")[0][:2] == missed


def test_many_classes_have_small_curves_and_a_list_of_confusions(monkeypatch):
    monkeypatch.setattr(report, "MAX_CLASSES_PER_PLOT", 4)
    monkeypatch.setattr(report, "MAX_CLASS_PLOTS", 3)
    monkeypatch.setattr(report, "MAX_MATRIX_CLASSES", 4)
    objects = [(1, i, [20 * i, 0, 15, 15]) for i in range(1, 6)]
    found = [result(1, i, objects[i - 1][2], 0.9) for i in (1, 2, 3)]
    found += [result(1, 5, objects[3][2], 0.8), result(1, 4, objects[4][2], 0.2)]
    page, _ = make_report(make_coco(objects, [f"class {i}" for i in range(1, 6)]), found)
    assert page.texts["figcaption"][:4] == [
        "mean of all classes, AP50 0.600",
        "class 4, AP50 0.000",
        "class 5, AP50 0.000",
        "class 1, AP50 1.000",
    ]
    assert len(page.images()) == 4
    assert [row for row in page.rows if len(row) == 3] == [
        ["object", "detected as", "times"],
        ["class 4", "class 5", "1"],
    ]


@pytest.fixture(scope="session")
def evaluated(finished, tmp_path_factory):
    """The folder of results of the tiny run."""
    return tmp_path_factory.mktemp("evaluated") / "results"


def test_the_command_writes_the_report_and_shows_its_progress(finished, evaluated, call, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    code, printed, error = call(command, "--weights", finished[0] / "last.pt", "--out", evaluated)
    assert code == 0, error
    assert re.search(r"^batches  1/\d+ .* ETA 0:00:\d\d$", printed, re.MULTILINE)
    assert str(evaluated / "report.html") in printed
    assert {path.name for path in evaluated.iterdir()} == set(RESULTS)
    page = Page((evaluated / "report.html").read_text(encoding="utf-8"))
    assert page.texts["h2"] == HEADINGS
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert page.row("AP50")[0][0] == f"{metrics['AP50']:.3f}"
    assert "8 images" in page.texts["p"][0]
    assert f"{finished[0] / 'last.pt'}: weights after iteration" in page.texts["p"][1]
    assert sum(source.startswith("data:image/jpeg") for source in page.images()) > 10


@pytest.mark.parametrize("held", RESULTS)
def test_results_are_replaced_with_force_alone(held, finished, tmp_path, call, monkeypatch):
    (tmp_path / held).write_text("earlier")
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["--weights", finished[0] / "last.pt", "--out", tmp_path, "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(command, "load_detector", None)  # nothing is even loaded
        code, printed, error = call(command, *arguments)
    assert (code, printed) == (2, "")
    assert error == f"error: {tmp_path / held} already exists: add --force to replace it, or choose another --out\n"
    assert (tmp_path / held).read_text() == "earlier"
    if held != "report.html":
        return
    code, printed, error = call(command, *arguments, "--force")
    assert code == 0, error
    assert json.loads(printed).keys() == {"out", *METRICS, "class_ap", "data"}
    assert {path.name for path in tmp_path.iterdir()} == {*RESULTS, "notes.txt"}
    assert (tmp_path / held).read_text().startswith("<!DOCTYPE html>")


def test_two_ranks_refuse_to_replace_results_with_one_error(tmp_path):
    for name in RESULTS[:2]:
        (tmp_path / name).touch()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dwtriton.evaluate"]
    arguments = ["--weights", "nowhere.pt", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, *arguments], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    held = f"{tmp_path / RESULTS[0]}, {tmp_path / RESULTS[1]}"
    assert f"error: {held} already exist: add --force to replace them" in done.stderr


def test_given_data_are_never_generated(finished, shapes_root, tmp_path, call):
    arguments = ["--weights", finished[0] / "last.pt", "--out", tmp_path / "out"]
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        code, _, error = call(command, *arguments, "--data", tmp_path / name)
        assert (code, f"the data folder {tmp_path / name} lacks val, annotations/val.json" in error) == (2, True)
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "out").exists()
    given = tmp_path / "given"  # not what the run would draw
    truth = json.loads((shapes_root / "annotations" / "val.json").read_text())
    truth["images"] = truth["images"][:3]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    truth.pop("info")
    (given / "annotations").mkdir(parents=True)
    (given / "annotations" / "val.json").write_text(json.dumps(truth))
    (given / "val").symlink_to(shapes_root / "val")
    code, _, error = call(command, *arguments, "--data", given)
    assert code == 0, error
    assert "3 images" in (tmp_path / "out" / "report.html").read_text()


def test_a_checkpoint_without_class_names_takes_those_of_the_data_and_says_so(finished, tmp_path, call):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    nameless, fewer = tmp_path / "nameless.pt", tmp_path / "fewer.pt"
    save_checkpoint(nameless, checkpoint._replace(class_names=[]))
    save_checkpoint(fewer, checkpoint._replace(class_names=[], category_ids=checkpoint.category_ids[1:]))
    code, printed, error = call(command, "--weights", nameless, "--out", tmp_path / "out")
    assert code == 0, error
    assert f"{nameless} has no class names; those of the data are shown" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["class_ap"]) == checkpoint.class_names
    code, _, error = call(command, "--weights", fewer, "--out", tmp_path / "out", "--force")
    assert (code, f"{fewer} knows {[str(id_) for id_ in checkpoint.category_ids[1:]]}" in error) == (2, True)


def test_unreadable_images_are_named_and_all_of_them_are_an_error(finished, shapes_root, tmp_path, call):
    given = tmp_path / "given"
    (given / "annotations").mkdir(parents=True)
    (given / "val").mkdir()
    truth = json.loads((shapes_root / "annotations" / "val.json").read_text())
    (given / "annotations" / "val.json").write_text(json.dumps(truth))
    first, *others = [image["file_name"] for image in truth["images"]]
    for name in others:
        (given / "val" / name).write_bytes(b"no image")
    arguments = ["--weights", finished[0] / "last.pt", "--out", tmp_path / "out", "--data", given]
    code, _, error = call(command, *arguments)
    assert code == 2
    assert error.startswith(f"error: none of the {len(others)} images can be read; the first: {given / 'val'}")
    assert not (tmp_path / "out").exists()
    shutil.copy(shapes_root / "val" / first, given / "val" / first)
    code, printed, error = call(command, *arguments)
    assert code == 0, error
    text = (tmp_path / "out" / "report.html").read_text()
    for name in others:
        assert f"left out, its objects count as missed: {given / 'val' / name}: " in printed
        assert str(given / "val" / name) in text


def test_the_data_of_the_run_are_generated_where_they_are_missing(finished, tmp_path, call):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    small = ["data.shapes={train_images=1, val_images=2, seed=0}"]
    moved = override_config(checkpoint.config, small, tmp_path / "shapes")
    assert moved.data.root != load_config("shapes").data.root
    save_checkpoint(tmp_path / "moved.pt", checkpoint._replace(config=moved))
    code, _, error = call(command, "--weights", tmp_path / "moved.pt", "--quiet")
    assert code == 0, error
    assert len(list((tmp_path / "shapes" / "val").iterdir())) == 2
    assert "2 images" in (tmp_path / "evaluation" / "report.html").read_text()
