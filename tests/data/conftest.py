import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dwtriton.config.schema import DataConfig, InferenceConfig

CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 7, "name": "train"}, {"id": 33, "name": "kite"}]
IMAGES = [
    {"id": 11, "file_name": "wide.jpg", "width": 64, "height": 48},
    {"id": 5, "file_name": "tall.jpg", "width": 40, "height": 60},
    {"id": 8, "file_name": "square.jpg", "width": 50, "height": 50},
    {"id": 20, "file_name": "wide_two.jpg", "width": 70, "height": 36},
]
ANNOTATIONS = [
    {"id": 1, "image_id": 11, "category_id": 33, "bbox": [4, 6, 20, 30], "area": 600, "iscrowd": 0},
    {"id": 2, "image_id": 11, "category_id": 90, "bbox": [10.5, 0, 30, 20], "area": 600, "iscrowd": 0},
    {"id": 3, "image_id": 5, "category_id": 7, "bbox": [0, 0, 40, 60], "area": 2400, "iscrowd": 0},
    {"id": 4, "image_id": 8, "category_id": 90, "bbox": [25, 25, 10, 10], "area": 100, "iscrowd": 0},
    {"id": 5, "image_id": 20, "category_id": 7, "bbox": [1, 2, 30, 30], "area": 900, "iscrowd": 0},
]


class TinyCoco:
    """Hand-made COCO data: change `content`, then `write()`; both splits hold the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = copy.deepcopy({"images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES})
        self.cfg = DataConfig(root=root, short_side=(48, 48), long_side=80, workers=0, batch_size=2)
        self.inference = InferenceConfig(short_side=48, long_side=80)

    def add(self, **annotation) -> None:
        self.content["annotations"].append(
            {"id": 100 + len(self.content["annotations"]), "image_id": 11, "category_id": 7, "iscrowd": 0, **annotation}
        )

    def write(self) -> DataConfig:
        for split in ("train", "val"):
            folder = self.root / f"{split}2017"
            folder.mkdir(parents=True)
            for image in self.content["images"]:
                self.draw(folder / image["file_name"], image["width"], image["height"])
            self.write_json(split, json.dumps(self.content))
        return self.cfg

    def write_json(self, split: str, text: str) -> None:
        path = self.json_path(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def json_path(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{split}2017.json"

    def image_path(self, split: str, name: str) -> Path:
        return self.root / f"{split}2017" / name

    @staticmethod
    def draw(path: Path, width: int, height: int) -> None:
        pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "JPEG", quality=90)


@pytest.fixture
def tiny(tmp_path) -> TinyCoco:
    return TinyCoco(tmp_path / "coco")
