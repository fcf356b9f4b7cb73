"""The examples of docs/interop.md run and agree with this package, each where its library is installed."""

import json
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
    if library != "FiftyOne":  # whose file alone is written
        pytest.importorskip(library, reason=f"{library} is not installed: make test-interop")
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


def test_fiftyone_gets_each_box_as_a_share_of_the_upright_image(detector, shapes_root, tmp_path, monkeypatch):
    """The checks are those of its importer: a list for each absolute path, classes by name, [x, y, w, h] in 0..1."""
    (file,) = sorted(shapes_root.glob("val/*.jpg"))[:1]
    image = Image.open(file)
    turned = image.getexif()
    turned[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=turned, quality=95)
    monkeypatch.chdir(tmp_path)
    paths = [file, "turned.jpg"]
    example("FiftyOne", detector=detector, paths=paths)
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["classes"] == detector.class_names
    assert list(content["labels"]) == [str(file), str(tmp_path / "turned.jpg")]
    for found, written, size in zip(
        detector(paths), content["labels"].values(), [image.size, image.size[::-1]], strict=True
    ):
        assert len(written) > 0
        relative = torch.tensor([box["bounding_box"] for box in written])
        torch.testing.assert_close(box_convert(relative * torch.tensor(size * 2), "xywh", "xyxy"), found["boxes"])
        assert relative.min() >= 0
        assert relative.max() <= 1
        assert [box["confidence"] for box in written] == found["scores"].tolist()
        assert [box["label"] for box in written] == found["names"]
