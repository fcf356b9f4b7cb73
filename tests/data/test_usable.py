"""One judgement of what is usable: `check`, training and evaluation count the same boxes and images."""

import json

import numpy as np
import pytest

from dwtriton.config.load import load_config
from dwtriton.data import annotations
from dwtriton.data.annotations import read_valid_records
from dwtriton.data.coco import CocoDataset
from dwtriton.data.formats.check import check_split
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.prepare import prepare_data
from dwtriton.data.problems import DataProblems
from dwtriton.data.usable import choose_usable
from dwtriton.data.usable_images import MissingImagesError


def damage(tiny, rng):
    """Annotations with values that exporters write, right or wrong, at random."""
    boxes = [[1, 1, 9, 9], [1, 1, 0.5, 9], [1, 1, 0, 0], [1, 1, -9, 9], [-5, -5, 9, 9], [900, 1, 9, 9], [1, 1, 9], None]
    for _ in range(60):
        annotation = {
            "bbox": boxes[rng.integers(len(boxes))],
            "area": [81, 0, -1, None, "81"][rng.integers(5)],
            "iscrowd": [0, 0, 1][rng.integers(3)],
            "image_id": [11, 5, 8, 20, 404][rng.integers(5)],
            "category_id": [7, 33, 90, 1][rng.integers(4)],
        }
        tiny.add(
            **{key: value for key, value in annotation.items() if key in ("bbox", "image_id") or rng.random() < 0.9}
        )


@pytest.mark.parametrize("seed", range(5))
def test_check_and_data_sets_count_the_same_boxes(tiny, console, seed):
    damage(tiny, np.random.default_rng(seed))
    cfg = tiny.write().model_copy(update={"crowd": "ignore"})
    for path in (tiny.image_path("train", "tall.jpg"), tiny.image_path("val", "tall.jpg")):
        path.unlink()
    train, val = (CocoDataset(cfg, split) for split in ("train", "val"))
    found = check_split(find_splits(tiny.root)[0][0], console, cfg=cfg)
    assert found.fatal == []
    assert train.problems.counts.items() <= found.problems.counts.items()
    for dataset in (train, val):
        assert {id_: dataset.box_count(index) for index, id_ in enumerate(dataset.image_ids)} == {
            id_: len(found.boxes[id_]) for id_ in dataset.image_ids
        }
    assert found.figures["boxes"] == sum(map(len, found.boxes.values())) >= sum(map(val.box_count, range(len(val))))


def test_nothing_is_left_out_without_a_reason(tiny):
    damage(tiny, np.random.default_rng(0))
    tiny.write()
    records, problems = read_valid_records(tiny.json_path("val")), DataProblems()
    usable = choose_usable(records, tiny.root / "val2017", False, problems)
    kept = sum(map(len, usable.boxes.values()))
    assert kept + problems.left_out == len(json.loads(tiny.json_path("val").read_text())["annotations"])


def test_no_image_file_at_all_is_an_error_of_its_own(tiny):
    tiny.write()
    with pytest.raises(MissingImagesError, match=r"none of the images of .*instances_val2017.json is in .*nowhere"):
        choose_usable(read_valid_records(tiny.json_path("val")), tiny.root / "nowhere", False, DataProblems())


def test_a_run_reads_each_annotation_file_once(tiny, monkeypatch):
    tiny.write()
    parse, read = annotations._parse, []
    monkeypatch.setattr(annotations, "_parse", lambda path: read.append(path) or parse(path))
    prepare_data(load_config("r50_1x", ["head.num_classes=3"], tiny.root))
    assert read == [tiny.json_path("train"), tiny.json_path("val")]
