"""The detectors that the benchmarks compare, made as alike as possible.

All start from the same bytes in CPU memory (pinned if there is a GPU), with the same boxes, and run under the same
autocast, in channels_last. Their networks are R-50, a pyramid of 256 channels and two towers of four convolutions;
conv1 and layer1 are frozen, batch norms of the other layers train their factors on stored statistics. All use fused
SGD with the same groups, and the same loss scale where there is one.

The remaining differences: torchvision has no factor for each level (5 numbers), normalises image by image, and computes
matching and losses of its own method, for which it waits for the device. Two habits of its `fcos_resnet50_fpn` with
pretrained weights are left out, since they would cost it time: it resizes images even to their own size, and its
FrozenBatchNorm2d, whose factors do not train, turns bfloat16 into float32.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dwtriton.config.load import load_config
from dwtriton.config.schema import Config
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
from dwtriton.core.transfer import AsyncHostCopy
from dwtriton.data.batch import Batch
from dwtriton.model.detector import DualWeightDetector, build_detector
from dwtriton.train.optimizer import build_optimizer
from dwtriton.train.step import AUTOCAST, TrainStep, choose_convolutions
from tests.support.released import released_loss

Step = Callable[[], object]

TRAIN_METHODS = {
    "compiled": "compiled, with the Triton loss (on a CPU the reference)",
    "CUDA graphs": "the same, recorded as CUDA graphs",
    "tried convolutions": "compiled, with the convolutions that are fastest in a trial",
    "triton": "eager, with the Triton loss",
    "eager": "eager, with the PyTorch reference",
    "released": "eager, with the released algorithm",
    "torchvision": "torchvision's FCOS, eager",
    "torchvision compiled": "torchvision's FCOS under torch.compile",
}
COMPILED = ("compiled", "CUDA graphs", "tried convolutions")
OUR_DETECTOR = (*COMPILED, "triton", "eager", "released")  # with the loss of each


def benchmark_config(name: str, buckets: Sequence[tuple[int, int]], images: int, precision: str, mode: str) -> Config:
    """Return a config that trains from fresh weights on images of the sizes `buckets`."""
    sizes = [list(bucket) for bucket in buckets]
    settings = {
        "backbone.weights": "none",
        "data.buckets": sizes,
        "data.batch_size": images,
        "train.precision": precision,
        "train.compile": mode,
        "schedule.warmup_iterations": 0,
    }
    return load_config(name, [f"{key}={value}" for key, value in settings.items()])


def make_batch(size: tuple[int, int], boxes: Sequence[int], classes: int, pinned: bool) -> Batch:
    """Return a batch as the loader yields it: noise of (h, w), with `boxes[i]` boxes in image i."""
    generator = torch.Generator().manual_seed(sum(boxes))
    height, width = size
    images = torch.randint(256, (len(boxes), height, width, 3), generator=generator, dtype=torch.uint8)
    batch = Batch(
        images=images.permute(0, 3, 1, 2),
        targets=[make_target(size, count, classes, generator) for count in boxes],
        image_ids=list(range(len(boxes))),
        image_sizes=[size] * len(boxes),
        scale_factors=[(1.0, 1.0)] * len(boxes),
        paths=[""] * len(boxes),
        broken=[],
    )
    return batch.pin_memory() if pinned else batch


def make_target(size: tuple[int, int], boxes: int, classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return boxes with log-uniform sides, from 10 pixels to three quarters of the image."""
    limit = torch.tensor([size[1], size[0]])
    side = 10 * (0.075 * limit) ** torch.rand(boxes, 2, generator=generator)
    corner = torch.rand(boxes, 2, generator=generator) * (limit - side)
    labels = torch.randint(classes, (boxes,), generator=generator)
    return {"boxes": torch.cat((corner, corner + side), 1), "labels": labels}


class ReleasedLoss(nn.Module):
    """The released algorithm in place of a detector's loss, in float32 as the released head computes it."""

    def forward(
        self, cls_logits: list[Tensor], box_distances: list[Tensor], objectness: list[Tensor], packed: PackedTargets
    ) -> dict[str, Tensor]:
        kinds = ([level.float() for level in kind] for kind in (cls_logits, box_distances, objectness))
        ranges = pairwise(packed.offsets.tolist())  # of the boxes of each image
        targets = [{"boxes": packed.boxes[begin:end], "labels": packed.labels[begin:end]} for begin, end in ranges]
        with torch.autocast(cls_logits[0].device.type, enabled=False):
            return released_loss(*kinds, targets, STRIDES)


def make_train_step(method: str, cfg: Config, device: torch.device, capacity: int) -> TrainStep:
    """Return the training step of a method in OUR_DETECTOR."""
    backend = "auto" if method in COMPILED else "triton" if method == "triton" else "torch"
    mode = "reduce-overhead" if method == "CUDA graphs" else cfg.train.compile if method in COMPILED else "off"
    train = {"compile": mode, "deterministic": method != "tried convolutions"}
    cfg = cfg.model_copy(
        update={
            "loss": cfg.loss.model_copy(update={"backend": backend}),
            "train": cfg.train.model_copy(update=train),
        }
    )
    torch.manual_seed(0)
    detector = build_detector(cfg).to(device, memory_format=torch.channels_last).train()
    if method == "released":
        detector.loss = ReleasedLoss()
    return TrainStep(detector, cfg, device, capacity)


class TorchvisionDetector(FCOS):
    """torchvision's FCOS with the R-50 of r50_1x, for images of one size, which are not resized."""

    def __init__(self, cfg: Config, size: tuple[int, int]) -> None:
        backbone = resnet_fpn_backbone(  # as in fcos_resnet50_fpn, except for the batch norms
            backbone_name="resnet50",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=3,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
        super().__init__(
            backbone,
            num_classes=cfg.head.num_classes,
            min_size=min(size),
            max_size=max(size),
            score_thresh=cfg.inference.score_threshold,
            nms_thresh=cfg.inference.nms_iou,
            detections_per_img=cfg.inference.max_detections,
            topk_candidates=cfg.inference.candidates_per_level,
        )
        self.transform = Unresized(min(size), max(size), self.transform.image_mean, self.transform.image_std)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; batch norms use their stored statistics in both."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class Unresized(GeneralizedRCNNTransform):
    """torchvision's preprocessing for images that have the right size already; batches are in channels_last."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        return super().batch_images(images, size_divisible).contiguous(memory_format=torch.channels_last)


def make_torchvision(cfg: Config, size: tuple[int, int], device: torch.device) -> TorchvisionDetector:
    return TorchvisionDetector(cfg, size).to(device, memory_format=torch.channels_last)


def torchvision_step(cfg: Config, batch: Batch, size: tuple[int, int], device: torch.device, compiled: bool) -> Step:
    """Return a training step of torchvision's FCOS, from the bytes of a batch to the update, like `TrainStep`."""
    torch.manual_seed(0)
    choose_convolutions(cfg.train.deterministic)
    detector = make_torchvision(cfg, size, device).train()
    forward = torch.compile(detector) if compiled else detector
    optimizer = build_optimizer(detector, cfg.optimizer, cfg.data.batch_size)
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.train.precision == "float16")
    on_host = [  # pinned, as a loader yields them
        {name: value.pin_memory() if device.type == "cuda" else value for name, value in target.items()}
        for target in batch.targets
    ]

    def step() -> AsyncHostCopy:
        optimizer.zero_grad(set_to_none=True)
        images = batch.images.to(device, non_blocking=True).float().div_(255)
        targets = [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in on_host]
        with autocast(cfg, device):
            losses = forward(list(images), targets)
        total = sum(losses.values())
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        return AsyncHostCopy(torch.stack([total, *losses.values()]))

    return step


def autocast(cfg: Config, device: torch.device) -> AbstractContextManager:
    """Return the autocast of `train.precision`."""
    dtype = AUTOCAST.get(cfg.train.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def network_parts(
    detector: DualWeightDetector, inputs: Callable[[], tuple[Tensor, PackedTargets]], compile_with: Callable
) -> dict[str, Step]:
    """Return forward passes that end after the backbone, the pyramid, the head and the loss, each compiled alone."""

    def backbone(images: Tensor, _packed: PackedTargets):
        return detector.backbone(images)

    def fpn(images: Tensor, _packed: PackedTargets):
        return detector.fpn(detector.backbone(images))

    def head(images: Tensor, _packed: PackedTargets):
        return detector.head_outputs(images)

    def loss(images: Tensor, packed: PackedTargets):
        return detector(images, packed)

    def forward(function: Callable) -> Step:
        compiled = compile_with(function)
        return lambda: compiled(*inputs())

    return {"data": inputs} | {function.__name__: forward(function) for function in (backbone, fpn, head, loss)}
