"""Small COCO data sets with the names that a stranger may choose, and settings to train on them in a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (48, 64)  # of the images, (h, w)
QUICK = (
    "data.short_side=[64, 64]",
    "data.long_side=96",
    "data.buckets=1",
    "data.batch_size=2",
    "data.workers=0",
    "inference.short_side=64",
    "inference.long_side=96",
    "inference.score_threshold=0.001",
    "backbone.depth=18",
    "backbone.weights=none",
    "head.channels=16",
    "head.convs=1",
    "head.groups=4",
    "schedule.epochs=1",
    "schedule.warmup_iterations=0",
    "train.precision=float32",
    "train.compile=off",
)


def coco_content(names: Sequence[str], files: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """A COCO file with a box of each class in turn in each image."""
    height, width = SIZE
    return {
        "images": [{"id": i, "file_name": file, "width": width, "height": height} for i, file in enumerate(files, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i % len(names) + 1, "bbox": [4, 5, 40, 30], "area": 1200}
            for i in range(1, len(files) + 1)
        ],
    }


def write_coco(root: Path, names: Sequence[str], files: Sequence[str]) -> Path:
    """Write a data set in COCO's layout whose two splits are the same; return its folder."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for number, file in enumerate(files):
            pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / file, "JPEG")
        text = json.dumps(coco_content(names, files))
        (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def settings(*pairs: str) -> list[str]:
    """Arguments of a command that set QUICK and then `pairs`."""
    return [word for pair in (*QUICK, *pairs) for word in ("--set", pair)]
