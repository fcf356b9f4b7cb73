"""A batch as in training, to time the kernels' configs on and to check them against the torch backend."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError
from triton.testing import do_bench_cudagraph

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES, level_points
from dwtriton.core.targets import PackedTargets, pack_targets
from dwtriton.kernels.bags import box_bags
from dwtriton.kernels.configs import Config, KernelConfigs, Key
from dwtriton.kernels.dense import dense_backward, dense_forward
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.kernels.ops import backward_pass, forward_pass
from dwtriton.reference import formulas
from dwtriton.reference import loss as reference

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
START_OF_TRAINING = -4.6  # mean of the logits
CROWD = 16  # times as many boxes: sums over bags are timed with these, too
TIMED_MS = 5  # device time of one replay; a timing is the median of ten
LOSS_LIMIT = 1e-5  # relative; of float32 arithmetic against float64
GRADIENT_LIMIT = 1e-4  # of a gradient's largest entry, besides rounding to the input's dtype


class Setting(NamedTuple):
    """Inputs to tune for."""

    dtype: torch.dtype
    layout: str
    classes: int
    size: tuple[int, int]  # height and width of the padded images
    batch: int
    boxes: int  # an image, at least 1
    strides: tuple[int, ...] = STRIDES  # of the levels

    def level_sizes(self) -> list[tuple[int, int]]:
        height, width = self.size
        return [(-(-height // stride), -(-width // stride)) for stride in self.strides]

    def key(self) -> Key:
        return Key(self.dtype, self.layout, self.classes, sum(height * width for height, width in self.level_sizes()))

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.batch} images of {height}x{width}, {self.classes} classes, {self.boxes} boxes an image"


class Case(NamedTuple):
    """Head outputs and targets of a batch."""

    outputs: HeadOutputs
    targets: PackedTargets


def make_case(setting: Setting, device: torch.device | str) -> Case:
    """A batch as in training: many small boxes, and points of which some predict a box they lie in closely.

    The values are the same on every machine. Boxes have sides of 32 to 600 pixels, log-uniform, within the image.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = setting.size
    limit = torch.tensor([width, height], dtype=torch.float32)
    targets = []
    for _ in range(setting.batch):
        side = (32 * (600 / 32) ** torch.rand(setting.boxes, 2, generator=generator)).minimum(limit)
        corner = torch.rand(setting.boxes, 2, generator=generator) * (limit - side)
        labels = torch.randint(setting.classes, (setting.boxes,), generator=generator)
        targets.append({"boxes": torch.cat((corner, corner + side), 1), "labels": labels})

    def place(level: Tensor) -> Tensor:
        return level.to(device, setting.dtype, memory_format=LAYOUTS[setting.layout])

    outputs = HeadOutputs([], [], [])
    for size, stride in zip(setting.level_sizes(), setting.strides):
        shape = (setting.batch, setting.classes, *size)
        outputs.cls_logits.append(place(torch.randn(shape, generator=generator) + START_OF_TRAINING))
        outputs.objectness.append(place(torch.randn(setting.batch, 1, *size, generator=generator)))
        distances = stride * torch.randn(setting.batch, 4, *size, generator=generator).exp()
        points = level_points(*size, stride).T  # [2, P]
        for image, target in enumerate(targets):
            chosen = torch.randint(setting.boxes, points.shape[1:], generator=generator)
            sides = formulas.box_sides(points, target["boxes"][chosen].T)  # [4, P]
            close = sides * (0.15 * torch.randn(sides.shape, generator=generator)).exp()
            flat = distances[image].flatten(1)
            distances[image] = torch.where((sides > 0).all(0), close, flat).unflatten(1, size)
        outputs.box_distances.append(place(distances))
    return Case(outputs, pack_targets(targets, device))


def kernel_calls(case: Case) -> dict[str, Callable]:
    """Each kernel that is tuned as a function of its config.

    Sums over bags run twice, with the boxes and with CROWD times as many: how many programs should share a box depends
    on the number of boxes, of which a table knows nothing.
    """
    pyramid = read_pyramid(case.outputs, STRIDES)
    boxes = read_boxes(case.targets)
    corners, labels, offsets = case.targets[:3]
    corners, labels = corners.repeat_interleave(CROWD, 0), labels.repeat_interleave(CROWD)
    crowd = read_boxes(PackedTargets(corners, labels, offsets * CROWD))
    device = boxes.corners.device
    poison, norms = torch.ones((), device=device), torch.ones(3, device=device)
    grads = [tuple(torch.empty_like(level) for level in kind) for kind in (pyramid.z, pyramid.d, pyramid.u)]
    return {
        "dense_forward": lambda config: dense_forward(pyramid, config),
        "bags": lambda config: [box_bags(pyramid, each, True, config) for each in (boxes, crowd)],
        "dense_backward": lambda config: dense_backward(pyramid, poison, norms, norms[0], grads, config),
    }


def device_time(call: Callable[[Config], object], config: Config) -> float:
    """Microseconds on the GPU of a kernel in a captured CUDA graph; inf if the config does not compile or fit."""
    try:
        return 1e3 * do_bench_cudagraph(lambda: call(config), rep=TIMED_MS, return_mode="median")
    except TritonError:
        return math.inf


def disagreement(case: Case, configs: KernelConfigs) -> str | None:
    """What differs from the torch backend in float64, element by element, by more than arithmetic explains."""
    pyramid = read_pyramid(case.outputs, STRIDES)
    boxes = read_boxes(case.targets)
    losses, counts, _, poison, table, touching = forward_pass(pyramid, boxes, True, configs)
    ones = torch.ones_like(losses)
    grads = backward_pass(pyramid, boxes.offsets, table, touching, poison, ones, ones.unbind(), True, configs)
    exact = HeadOutputs(*([level.detach().double().requires_grad_() for level in kind] for kind in case.outputs))
    true_losses, true_counts = reference.dual_weight_sums(exact, case.targets, STRIDES, soft_prior=True)
    truths = torch.autograd.grad(true_losses.sum(), exact.levels)

    names = ("sum of loss_cls_pos", "sum of loss_loc", "sum of loss_cls_neg", "sum of 1 - N")
    for name, got, truth in zip(names, (*losses, counts[2]), (*true_losses, true_counts[2])):
        error = (got.double() - truth).abs().item()
        if not error <= LOSS_LIMIT * abs(truth.item()):
            return f"{name} is {got.item():g}, not {truth.item():g}"
    for i, name in enumerate(("class logits", "distances", "objectness")):
        levels = slice(i * len(STRIDES), (i + 1) * len(STRIDES))
        got, truth = (torch.cat([grad.flatten() for grad in kind[levels]]) for kind in (grads, truths))
        largest = truth.abs().max()
        rounding = torch.finfo(got.dtype).eps / 2 * truth.abs()
        excess = ((got.double() - truth).abs() - rounding) / largest.clamp(min=torch.finfo(torch.float32).tiny)
        if not (excess <= GRADIENT_LIMIT).all():
            return f"the gradient of the {name} is off by {excess.max().item():.1e} of its largest entry"
    return None
