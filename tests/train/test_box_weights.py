"""Weights of boxes in training: what they make of the losses of a step (docs/method.md#weights-of-boxes)."""

import json
import shutil

import numpy as np
import pytest
import torch

from dwtriton import DualWeightAssigner, build_detector
from dwtriton.config.load import override_config
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.model.pixels import PixelDetector
from dwtriton.train.step import TrainStep

WEIGHTS = {"oval": 0.5, "ring": 3.0, "rectangle": 0.25, "star": 0.0, "cross": 1.5}


@pytest.fixture
def first_step(tiny):
    """first_step(class weights, data): losses of the first step of a run and the batch, with the same images always."""

    def run(class_weights, data_root=None):
        cfg = tiny("backbone.frozen_statistics=true", "data.batch_size=8", "loss.weight_cls_neg=1.0")
        settings = [f"data.class_weights.{name}={weight}" for name, weight in class_weights.items()]
        cfg = override_config(cfg, settings, data_root)
        torch.manual_seed(0)
        detector = build_detector(cfg).train()
        batch = next(iter(train_loader(prepare_data(cfg)[0], cfg)))
        outputs = detector.head_outputs(PixelDetector(detector, cfg.data).normalise(batch.images, batch.image_sizes))
        _, losses = TrainStep(detector, cfg, torch.device("cpu"))([batch], 1.0)
        return dict(zip(losses.names, losses.mean.read().tolist())), batch, outputs

    return run


def test_the_losses_of_a_step_are_weighted_means(first_step, tiny):
    """A class at a time gives its share of the positive losses; the weights of the classes mix these shares."""
    names = prepare_data(tiny())[0].class_names
    plain, batch, outputs = first_step({})
    labels = torch.cat([target["labels"] for target in batch.targets])
    counts = labels.bincount(minlength=len(names)).numpy()
    assert (counts > 0).sum() > 4
    alone = [first_step({other: float(other == name) for other in names})[0] for name in names]
    weighted = first_step(WEIGHTS)[0]
    factors = np.array([WEIGHTS.get(name, 1.0) for name in names])
    for loss in ("loss_cls_pos", "loss_loc"):
        sums = np.array([max(1, count) * losses[loss] for count, losses in zip(counts, alone)])
        assert plain[loss] == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
        assert weighted[loss] == pytest.approx(factors @ sums / (factors @ counts), rel=1e-5)
        assert abs(weighted[loss] - plain[loss]) > 0.01 * plain[loss]

    star = names.index("star")
    assert counts[star] > 0
    loss, count = 0.0, 0.0
    for image, target in zip(DualWeightAssigner()(*outputs, batch.targets), batch.targets):
        counted = torch.ones_like(image.neg)
        counted[:, star] -= image.inside[:, target["labels"] == star].any(1).float()
        loss -= (counted * image.neg * image.score**2 * (1 - image.score).log()).sum().item()
        count += (counted * (1 - image.neg)).sum().item()
    assert count > 1
    assert weighted["loss_cls_neg"] == pytest.approx(loss / count, rel=1e-5)
    assert weighted["loss_cls_neg"] != pytest.approx(plain["loss_cls_neg"], rel=1e-4)
    without_zero = {name: weight or 2.0 for name, weight in WEIGHTS.items()}
    assert first_step(without_zero)[0]["loss_cls_neg"] == plain["loss_cls_neg"]


def test_weights_of_annotations_and_of_classes_are_the_same_to_a_step(first_step, shapes_root, tmp_path):
    expected, *_ = first_step(WEIGHTS)
    shutil.copytree(shapes_root, tmp_path / "shapes")
    path = tmp_path / "shapes" / "annotations" / "train.json"
    content = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["weight"] = 4 * WEIGHTS.get(names[annotation["category_id"]], 1)
    path.write_text(json.dumps(content))
    assert first_step(dict.fromkeys(names.values(), 0.25), tmp_path / "shapes")[0] == expected
