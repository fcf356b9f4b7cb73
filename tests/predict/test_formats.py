"""YOLO's text and CSV say what the COCO file says."""

import csv

import pytest

from dwtriton.predict.formats import COLUMNS, write_csv, write_yolo

CATEGORIES = [{"id": 7, "name": "red, fox"}, {"id": 33, "name": "kite"}]
RECORDS = [
    (
        {"id": 1, "file_name": "a/b.png", "height": 100, "width": 200},
        [
            {"image_id": 1, "category_id": 33, "bbox": [20.0, 10.0, 40.0, 20.0], "score": 0.75},
            {"image_id": 1, "category_id": 7, "bbox": [0.0, 0.0, 200.0, 100.0], "score": 0.5},
        ],
    ),
    ({"id": 2, "file_name": "c.png", "height": 10, "width": 10}, []),
    (
        {"id": 3, "file_name": "v.mp4", "height": 50, "width": 50, "frame_id": 12},
        [{"image_id": 3, "category_id": 7, "bbox": [25.0, 25.0, 5.0, 5.0], "score": 1.0}],
    ),
]


def test_csv_has_a_row_for_each_detection(tmp_path):
    write_csv(tmp_path / "d.csv", RECORDS, {category["id"]: category["name"] for category in CATEGORIES})
    with (tmp_path / "d.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == COLUMNS
    assert rows == [
        ["a/b.png", "", "33", "kite", "0.75", "20.0", "10.0", "60.0", "30.0"],
        ["a/b.png", "", "7", "red, fox", "0.5", "0.0", "0.0", "200.0", "100.0"],
        ["v.mp4", "12", "7", "red, fox", "1.0", "25.0", "25.0", "30.0", "30.0"],
    ]


def test_yolo_has_a_file_for_each_image_and_frame(tmp_path):
    write_yolo(tmp_path / "labels", RECORDS, CATEGORIES, {"a/b.png": "b", "c.png": "c", "v.mp4": "v-2"})
    read = {path.name: path.read_text() for path in (tmp_path / "labels").iterdir()}
    assert read.pop("classes.txt") == "red, fox\nkite\n"
    assert read == {
        "b.txt": "1 0.200000 0.200000 0.200000 0.200000 0.750000\n0 0.500000 0.500000 1.000000 1.000000 0.500000\n",
        "c.txt": "",
        "v-2_000012.txt": "0 0.550000 0.550000 0.100000 0.100000 1.000000\n",
    }
    assert [float(v) for v in read["b.txt"].split()[1:5]] == pytest.approx([40 / 200, 20 / 100, 40 / 200, 20 / 100])
