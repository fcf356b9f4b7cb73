"""The examples of docs/interop.md run and agree with this package, each where its library is installed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from dwtriton import load_detector, pack_targets
from dwtriton.evaluate.coco_metrics import evaluate
from tests.evaluate.test_tide import ground_truth

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()


def example(library, **names):
    """Run the block under a heading with the given names; return all names after it."""
    pytest.importorskip(library, reason=f"{library} is not installed: pip install {library}")
    (code,) = re.findall(rf"^## {library}\n.*?```py\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/interop.md", "exec"), names)
    return names


@pytest.fixture
def detector(finished):
    return load_detector(finished[0] / "last.pt", overrides=["inference.score_threshold=0.001"])


@pytest.fixture
def image(shapes_root, finished):
    return np.array(Image.open(sorted(shapes_root.glob("val/*.jpg"))[0]))


def test_torchmetrics_has_our_figure(detector, image):
    found = detector([image])[0]
    boxes, labels = found["boxes"][:3] + 1, found["labels"][:3]
    names = example("torchmetrics", detector=detector, images=[image], targets=[{"boxes": boxes, "labels": labels}])
    truth = ground_truth(*zip([1] * 3, (labels + 1).tolist(), box_convert(boxes, "xyxy", "xywh").tolist()), classes=9)
    results = [
        {"image_id": 1, "category_id": label + 1, "bbox": box, "score": score}
        for label, box, score in zip(
            found["labels"].tolist(), box_convert(found["boxes"], "xyxy", "xywh").tolist(), found["scores"].tolist()
        )
    ]
    assert names["average_precision"] == pytest.approx(evaluate(truth, results).metrics["AP"], abs=1e-5)
    assert names["average_precision"] > 0


def test_supervision_takes_and_draws_detections(detector, image):
    names = example("supervision", detector=detector, image=image)
    assert len(names["detections"]) == len(detector([image])[0]["boxes"]) > 0
    assert (names["drawn"] != image).any()


def test_albumentations_makes_targets_of_the_loss(image):
    width = image.shape[1]
    target = example("albumentations", image=image)["target"]
    packed = pack_targets([target], "cpu")
    torch.testing.assert_close(packed.boxes, torch.tensor([[width - 40.0, 16.0, width - 8.0, 48.0]]))
    assert packed.labels.tolist() == [2]
    assert packed.iscrowd.tolist() == [False]
