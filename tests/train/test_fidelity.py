"""Twenty iterations of a small R-50 detector against float64 truth: optimiser, schedule, frozen parts, normalisers."""

import io
import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch.overrides import TorchFunctionMode
from torchvision.models import resnet50
from training_oracle import NORM, Recipe, TrainingRun, backbone_weights, train

from dwtriton.config import Config, load_config
from dwtriton.data import Batch, prepare_data, train_loader
from dwtriton.model.detector import build_detector
from dwtriton.train.loop import Trainer
from dwtriton.train.reporting import read_metrics

SEED = 35  # of data and weights: one of those whose run keeps clear of the discontinuities that a test below looks for
EPOCHS, PER_EPOCH = 2, 10
RECIPE = Recipe(batch_size=2, lr=0.02, momentum=0.9, weight_decay=1e-4, warmup=5, drops=[PER_EPOCH], convs=2, groups=4)
SETTINGS = [
    "data.train_images=images",
    "data.train_annotations=boxes.json",
    "data.val_images=images",
    "data.val_annotations=boxes.json",
    "data.short_side=[64, 64]",
    "data.long_side=96",
    f"data.batch_size={RECIPE.batch_size}",
    "data.workers=0",
    "head.num_classes=3",
    "head.channels=16",
    f"head.convs={RECIPE.convs}",
    f"head.groups={RECIPE.groups}",
    f"optimizer.lr={RECIPE.lr}",
    f"schedule.epochs={EPOCHS}",
    "schedule.milestones=[1]",
    f"schedule.warmup_iterations={RECIPE.warmup}",
    "train.precision=float32",
]
POINTLESS = (5, 5, 2, 2)  # xywh of a box between the points of every level, flipped or not, in an image 64 wide
FLOAT64_ERROR = 1e-9  # relative to the largest entry of a tensor
COARSER = 2**29  # unit roundoff of float32 over that of float64


class Setup(NamedTuple):
    cfg: Config
    initial: dict[str, torch.Tensor]
    batches: list[tuple[torch.Tensor, list[dict[str, torch.Tensor]]]]


class Trained(NamedTuple):
    """What a run of the package has to show, in float64."""

    rates: list[float]
    losses: np.ndarray  # [iterations, 3]
    weights: dict[str, torch.Tensor]
    momenta: dict[str, torch.Tensor]


class Kinks(TorchFunctionMode):
    """How near a run comes to where its gradient jumps: zero in a ReLU, whole numbers in bilinear sampling."""

    def __init__(self):
        super().__init__()
        self.nearest = math.inf

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.relu, torch.Tensor.floor) and args[0].requires_grad:
            distance = args[0] if func is F.relu else args[0] - args[0].round()
            self.nearest = min(self.nearest, distance.abs().min().item())
        return func(*args, **(kwargs or {}))


def write_data(root: Path) -> None:
    """Landscape images of one to three boxes, but twelve in one; a square image whose only box holds no point."""
    random = np.random.default_rng(SEED)
    (root / "images").mkdir()
    images, annotations = [], []
    for number in range(19):
        width, height = random.integers((90, 60), (130, 80)).tolist() if number else (64, 64)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        sides = random.uniform(24, 52, (12 if number == 1 else random.integers(1, 4), 2))
        corners = random.uniform(0, 1, sides.shape) * ((width, height) - sides)
        for box in np.concatenate((corners, sides), 1).tolist() if number else [POINTLESS]:
            label = int(random.integers(1, 4))
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box})
    categories = [{"id": label, "name": str(label)} for label in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(content))


def fixed_weights(expected: dict[str, torch.Tensor], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights for the names and shapes of `expected` that keep ReLUs with a gradient clear of zero.

    Batch norms hold the statistics of `images`; norms give a small deviation around a large bias, in a quarter of the
    channels a negative one.
    """
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, tensor in expected.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 4:
            gain = 1.0 if name.startswith("fpn.") or "_tower." in name else 0.1
            weights[name] = noise * gain * math.sqrt(2 / tensor[0].numel())
        elif ".scales." in name:
            weights[name] = 1 + 0.1 * noise
        elif ".bn3." in name:
            weights[name] = 0.05 + 0.005 * noise if name.endswith("weight") else 0.3 + 0.02 * noise
        elif NORM.search(name):
            weights[name] = 0.15 + 0.015 * noise if name.endswith("weight") else (noise + 0.67).sign() + 0.02 * noise
        else:
            weights[name] = 0.2 * noise + {"head.box_conv.bias": 2.5, "head.class_conv.bias": -2.0}.get(name, 0.0)
    network = resnet50()
    network.load_state_dict({**network.state_dict(), **backbone_weights(weights)})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    with torch.no_grad():
        network(images)
    own = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    return {name: own.get(name, weights[name]) for name in expected}


def normalised(batch: Batch) -> torch.Tensor:
    """Images [B, 3, H, W] in float32 as the network gets them, zero beyond each image's own size."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    images = torch.zeros(batch.images.shape)
    for image, pixels, (height, width) in zip(images, batch.images, batch.image_sizes):
        image[:, :height, :width] = (pixels[:, :height, :width] - mean) / std
    return images


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """Data, weights, and the batches of a loader of its own, as they reach the network."""
    root = tmp_path_factory.mktemp("fidelity")
    write_data(root)
    cfg = load_config("r50_refine_1x", [*SETTINGS, f"backbone.weights={root / 'resnet50.pth'}"], root)
    loader = train_loader(prepare_data(cfg)[0], cfg)
    batches = []
    for epoch in range(EPOCHS):
        loader.batch_sampler.set_epoch(epoch)
        batches += [(normalised(batch), batch.targets) for batch in loader]
    initial = fixed_weights(build_detector(cfg).state_dict(), batches[0][0])
    torch.save(backbone_weights(initial), root / "resnet50.pth")
    return Setup(cfg, initial, batches)


@pytest.fixture(scope="module")
def kinks():
    return Kinks()


@pytest.fixture(scope="module")
def truth(setup, kinks):
    with kinks:
        return train(setup.initial, setup.batches, RECIPE)


def fit(setup: Setup, dtype: torch.dtype) -> Trained:
    """A run as a user starts it, but for its weights outside the backbone; it is not evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(setup.cfg, Path(folder), Console(file=io.StringIO()))
        trainer.start()
        rest = {name: weight for name, weight in setup.initial.items() if not name.startswith("backbone.")}
        trainer.detector.load_state_dict(rest, strict=False)
        trainer.detector.to(dtype)
        trainer.detector.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
        trainer.evaluate = lambda: None
        trainer.fit()
        rows = read_metrics(Path(folder) / "metrics.jsonl")
    state = trainer.updater.optimizer.state
    return Trained(
        [row["lr"] for row in rows],
        np.array([[row[name] for name in ("loss_cls_pos", "loss_loc", "loss_cls_neg")] for row in rows]),
        {name: tensor.double() for name, tensor in trainer.detector.state_dict().items()},
        {n: state[p]["momentum_buffer"].double() for n, p in trainer.detector.named_parameters() if p in state},
    )


@pytest.fixture(scope="module")
def in_float64(setup):
    return fit(setup, torch.float64)


def loss_errors(run: Trained, truth: TrainingRun) -> np.ndarray:
    """Relative error of every loss, [iterations, 3]; a loss that is zero must be."""
    true = np.array([iteration.result.losses for iteration in truth.iterations])
    return np.abs(run.losses - true) / np.where(true == 0, np.finfo(float).tiny, true)


def momentum_errors(run: Trained, truth: TrainingRun) -> dict[str, float]:
    """Largest error of each tensor's elements, relative to its largest element."""
    assert run.momenta.keys() == truth.momenta.keys()
    return {name: largest(run.momenta[name] - true) / largest(true) for name, true in truth.momenta.items()}


def largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item()


def test_the_run_has_what_could_go_wrong(truth):
    """Boxes in many numbers, normalisers free and clamped, boxes without a point alone in a batch and among others."""
    results = [iteration.result for iteration in truth.iterations]
    assert {2.0, 3.0, 4.0} <= {result.pos_norm for result in results}
    assert max(result.pos_norm for result in results) > 12
    assert sum(result.neg_norm > 1 for result in results) >= 10
    pointless = [i for i, result in enumerate(results) if result.losses[0] == 0]
    assert len(pointless) == EPOCHS
    for i in pointless:
        assert results[i].losses[1] == 0 < results[i].losses[2]
        assert results[i].pos_norm == 2
        assert results[i].neg_norm == 1


def test_the_run_keeps_clear_of_discontinuities(truth, kinks):
    """Where float32 is compared: nothing is as near as float32's errors of the run are large."""
    assert kinks.nearest > 2e-5
    for _, case, weighting, _ in truth.iterations:
        for image, weights in zip(case.images(), weighting):
            bags = weights.inside.sum(0)
            assert (weights.spread[bags > 1] > 1e-2).all()
            assert (np.abs(weights.iou[weights.inside] - 0.5) > 1e-4).all()
            gaps = oracle.box_sides(image.points, image.boxes) - image.d[:, None]  # to the sides of the boxes, pixels
            assert (np.abs(gaps[weights.inside]) > 1e-4).all()


def test_in_float64_every_loss_weight_and_momentum_is_the_true_one(setup, truth, in_float64):
    assert in_float64.rates == pytest.approx([iteration.rate for iteration in truth.iterations], rel=1e-14)
    assert loss_errors(in_float64, truth).max() < FLOAT64_ERROR
    assert max(momentum_errors(in_float64, truth).values()) < FLOAT64_ERROR
    for name, initial in setup.initial.items():
        if name in truth.momenta:
            change = truth.weights[name] - initial
            assert largest(in_float64.weights[name] - truth.weights[name]) < FLOAT64_ERROR * largest(change), name
        else:
            assert in_float64.weights[name].equal(initial.double()), name


def test_in_float32_rounding_is_all_that_differs(setup, truth, in_float64):
    """Away from discontinuities an error of rounding grows by the same factor in both precisions.

    The float64 run measures it; float32 may err `COARSER` times as much, and 16 times more as both are samples. Besides
    each update rounds a weight once.
    """
    run = fit(setup, torch.float32)
    assert (loss_errors(run, truth) < 16 * COARSER * loss_errors(in_float64, truth).max()).all()
    allowed = 16 * COARSER * max(momentum_errors(in_float64, truth).values())
    assert max(momentum_errors(run, truth).values()) < allowed
    for name, initial in setup.initial.items():
        if name in truth.momenta:
            rounding = len(truth.iterations) * 2**-24 * largest(truth.weights[name])
            change = truth.weights[name] - initial
            error = largest(run.weights[name] - truth.weights[name])
            assert error < rounding + allowed * largest(change), name
        else:
            assert run.weights[name].equal(initial.double()), name
