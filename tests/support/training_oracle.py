"""A training run in float64 that takes nothing from the package: network, loss, optimiser and schedule.

torchvision's ResNet-50 on its running statistics, pyramid and head as functions of a flat dict of weights, the NumPy
oracle for the loss and its gradient, SGD by hand (docs/recipe.md#optimiser). The weights have the
package's names, which are mere labels here.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torchvision.models import resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from tests import oracle
from tests.support.loss_cases import Case, join, truth_gradients

STRIDES = (8, 16, 32, 64, 128)
FIXED = re.compile(r"backbone\.(conv1|bn1|layer1)\.|running_(mean|var)|num_batches_tracked")
NORM = re.compile(r"\.bn\d\.|\.downsample\.1\.|_tower\.\d\.1\.")

Weights = dict[str, Tensor]
Levels = list[Tensor]


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; iterations count from 0."""

    batch_size: int
    lr: float  # for 16 images
    momentum: float
    weight_decay: float
    warmup: int  # iterations
    drops: list[int]  # iterations before which the rate falls to a tenth
    convs: int  # of each tower
    groups: int  # of the group norms


class Iteration(NamedTuple):
    """Learning rate, inputs of the loss and its result."""

    rate: float  # learning rate
    case: Case  # the head's outputs and the boxes
    weighting: list[oracle.Weights]  # of each image
    result: oracle.Result


class TrainingRun(NamedTuple):
    """Every iteration and the final state of a run."""

    iterations: list[Iteration]
    weights: Weights  # after the last iteration
    momenta: Weights  # of those that train


def train(initial: Weights, batches: list[tuple[Tensor, list[dict[str, Tensor]]]], recipe: Recipe) -> TrainingRun:
    """One iteration for each batch: images [B, 3, H, W] and, for each image, boxes [G, 4] xyxy and labels [G]."""
    backbone = create_feature_extractor(resnet50().eval(), {f"layer{n}": f"c{n + 1}" for n in (2, 3, 4)})
    weights = {name: value.to(torch.float64, copy=True) for name, value in initial.items()}
    trained = {name: weight.requires_grad_() for name, weight in weights.items() if not FIXED.search(name)}
    momenta = {name: torch.zeros_like(weight) for name, weight in trained.items()}
    iterations = []
    for number, (images, targets) in enumerate(batches):
        features = functional_call(backbone, backbone_weights(weights), images.double())
        outputs = head(weights, pyramid(weights, list(features.values())), recipe)
        case = Case(
            strides=STRIDES,
            sizes=[tuple(level.shape[2:]) for level in outputs[0]],
            z=join(outputs[0]),
            d=join(outputs[1]),
            u=join(outputs[2])[..., 0],
            boxes=[target["boxes"].double().numpy() for target in targets],
            labels=[target["labels"].numpy() for target in targets],
        )
        weighting = case.oracle_weights()
        result = case.truth(weighting)
        slopes = [level for array in truth_gradients(result) for level in case.split(array, torch.float64)]
        torch.autograd.backward([level for kind in outputs for level in kind], slopes)

        rate = learning_rate(number, recipe)
        with torch.no_grad():
            for name, weight in trained.items():
                decay = 0.0 if NORM.search(name) else recipe.weight_decay
                momenta[name].mul_(recipe.momentum).add_(weight.grad).add_(weight, alpha=decay)
                weight.sub_(momenta[name], alpha=rate)
                weight.grad = None
        iterations.append(Iteration(rate, case, weighting, result))
    return TrainingRun(iterations, {name: weight.detach() for name, weight in weights.items()}, momenta)


def learning_rate(iteration: int, recipe: Recipe) -> float:
    rate = recipe.lr * recipe.batch_size / 16
    for drop in recipe.drops:
        if iteration >= drop:
            rate *= 0.1
    if iteration < recipe.warmup:
        rate *= 1 - (1 - iteration / recipe.warmup) * 0.999
    return rate


def backbone_weights(w: Weights) -> Weights:
    return {name.removeprefix("backbone."): value for name, value in w.items() if name.startswith("backbone.")}


def conv(w: Weights, name: str, x: Tensor, **options) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def pyramid(w: Weights, features: Levels) -> Levels:
    """P3 to P7 from C3, C4, C5."""
    merged = None
    levels = []
    for i in (2, 1, 0):
        lateral = conv(w, f"fpn.inner_blocks.{i}.0", features[i])
        merged = lateral if merged is None else lateral + merged.repeat_interleave(2, 2).repeat_interleave(2, 3)
        levels.insert(0, conv(w, f"fpn.layer_blocks.{i}.0", merged, padding=1))
    p6 = conv(w, "fpn.extra_blocks.p6", levels[-1], stride=2, padding=1)
    p7 = conv(w, "fpn.extra_blocks.p7", F.relu(p6), stride=2, padding=1)
    return [*levels, p6, p7]


def head(w: Weights, features: Levels, recipe: Recipe) -> tuple[Levels, Levels, Levels]:
    """Class logits [B, C, H, W], refined distances [B, 4, H, W] in pixels and objectness [B, 1, H, W] of each level."""
    logits, distances, objectness = [], [], []
    for level, (feature, stride) in enumerate(zip(features, STRIDES)):
        on_class, on_box = tower(w, "head.class_tower", feature, recipe), tower(w, "head.box_tower", feature, recipe)
        logits.append(conv(w, "head.class_conv", on_class, padding=1))
        objectness.append(conv(w, "head.objectness_conv", on_box, padding=1))
        cells = F.relu(w[f"head.scales.{level}"] * conv(w, "head.box_conv", on_box, padding=1))
        distances.append(stride * refined(cells, conv(w, "head.offset_conv", on_box, padding=1)))
    return logits, distances, objectness


def tower(w: Weights, name: str, x: Tensor, recipe: Recipe) -> Tensor:
    for i in range(recipe.convs):
        x = conv(w, f"{name}.{i}.0", x, padding=1)
        x = F.relu(F.group_norm(x, recipe.groups, w[f"{name}.{i}.1.weight"], w[f"{name}.{i}.1.bias"]))
    return x


def refined(cells: Tensor, offsets: Tensor) -> Tensor:
    """Box refinement: distances [B, 4, H, W] and offsets [B, 8, H, W], all in cells, to distances [B, 4, H, W].

    Sides are counted from the map's edge, where the zeros outside lie; samples from the first cell's centre.
    """
    left, top, right, bottom = cells.unbind(1)  # [B, H, W]
    row = torch.arange(cells.shape[2], dtype=cells.dtype)[:, None].expand_as(left)
    column = torch.arange(cells.shape[3], dtype=cells.dtype).expand_as(left)
    x, y = column + 0.5, row + 0.5
    o = offsets.unbind(1)
    x1 = sampled(x - left, row + o[0], column - left + o[1])
    y1 = sampled(y - top, row - top + o[2], column + o[3])
    x2 = sampled(x + right, row + o[4], column + right + o[5])
    y2 = sampled(y + bottom, row + bottom + o[6], column + o[7])
    return F.relu(torch.stack([x - x1, y - y1, x2 - x, y2 - y], 1))


def sampled(values: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`values` [B, H, W] at fractional rows and columns [B, H, W], bilinearly, with zeros outside the map."""
    height, width = values.shape[1:]
    image = torch.arange(len(values))[:, None, None]
    result = torch.zeros_like(values)
    for i in (row.floor(), row.floor() + 1):
        for j in (column.floor(), column.floor() + 1):
            share = (1 - (row - i).abs()) * (1 - (column - j).abs())
            within = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            corner = values[image, i.clamp(0, height - 1).long(), j.clamp(0, width - 1).long()]
            result = result + torch.where(within, share * corner, 0.0)
    return result
