"""`predictions.png`: ground truth above, detections below."""

import numpy as np
import pytest
from PIL import Image, ImageColor
from pycocotools.coco import COCO

from dwtriton.console.drawing import COLOURS
from dwtriton.train.plots import draw_predictions

BOX = [40, 40, 60, 80]


@pytest.fixture
def truth():
    coco = COCO()
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": BOX, "area": 4800, "iscrowd": 0}
    coco.dataset = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [annotation],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }
    coco.createIndex()
    return coco


def drawn(truth, tmp_path, results):
    """Which of the halves of the picture, (above, below), show the colours of the two classes."""
    Image.new("RGB", (160, 200), (128, 128, 128)).save(tmp_path / "1.png")
    draw_predictions(truth, results, [(1, tmp_path / "1.png"), (2, tmp_path / "missing.png")], tmp_path / "out.png")
    pixels = np.array(Image.open(tmp_path / "out.png").convert("RGB")).astype(int)
    halves = np.array_split(pixels, 2)
    return [
        tuple((abs(half - ImageColor.getrgb(colour)).max(2) < 20).sum() > 100 for half in halves)
        for colour in COLOURS[:2]
    ]


def test_boxes_have_the_colours_of_their_classes(truth, tmp_path):
    found = [{"image_id": 1, "category_id": 3, "bbox": BOX, "score": 0.9}]
    assert drawn(truth, tmp_path, found) == [(False, True), (True, False)]


def test_low_scores_and_other_images_are_left_out(truth, tmp_path):
    found = [
        {"image_id": image, "category_id": 3, "bbox": BOX, "score": score} for image, score in [(1, 0.3), (2, 0.9)]
    ]
    assert drawn(truth, tmp_path, found) == [(False, False), (True, False)]


def test_a_crowd_is_labelled(truth, tmp_path):
    drawn(truth, tmp_path, [])
    before = (tmp_path / "out.png").read_bytes()
    truth.anns[1]["iscrowd"] = 1
    drawn(truth, tmp_path, [])
    assert (tmp_path / "out.png").read_bytes() != before
