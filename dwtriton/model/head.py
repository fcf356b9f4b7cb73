"""The dense head: class logits, box distances and objectness at every point of the pyramid."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from dwtriton.config.schema import HeadConfig
from dwtriton.core.errors import UserError
from dwtriton.core.points import STRIDES, level_points
from dwtriton.model.activation_checkpointing import run
from dwtriton.model.deformable import DeformableConv2d
from dwtriton.model.group_norm import GroupNormReLU

INITIAL_STD = 0.01  # of weights
INITIAL_BOX_BIAS = 4.0  # strides, before the ReLU
INITIAL_CLASS_PROBABILITY = 0.02  # of every class at every point


class DenseHead(nn.Module):
    """The head of Dual Weighting (Li et al., arXiv 2203.09730), shared by all levels (docs/recipe.md#model).

    Two towers of 3x3 convolutions with group norm: the class tower predicts class logits, the box tower distances,
    objectness and, with `cfg.refine`, offsets of the box refinement. With `cfg.deformable` the last convolution of both
    towers is deformable. With `checkpointing` only the inputs of the towers are kept for the backward pass.
    Raises UserError if `cfg.groups` does not divide `cfg.channels`, or if there is no convolution to be deformable.
    """

    def __init__(self, cfg: HeadConfig, strides: tuple[int, ...] = STRIDES, checkpointing: bool = False) -> None:
        super().__init__()
        if cfg.channels % cfg.groups:
            raise UserError(
                f"head.groups = {cfg.groups} does not divide head.channels = {cfg.channels}: set it to a divisor"
            )
        if cfg.deformable and cfg.convs == 0:
            raise UserError("head.deformable = true needs a convolution in the towers: set head.convs to 1 or more")
        self.strides, self.checkpointing = strides, checkpointing
        self.class_tower = _tower(cfg)
        self.box_tower = _tower(cfg)
        conv = partial(nn.Conv2d, cfg.channels, kernel_size=3, padding=1)
        self.class_conv = conv(cfg.num_classes)
        self.box_conv = conv(4)
        self.objectness_conv = conv(1)
        self.offset_conv = conv(8) if cfg.refine else None
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in strides)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: weights normal with deviation 0.01, box bias 4, class bias for probability 0.02.

        Deformable convolutions have an initialisation of their own.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.reset_parameters()
        assert self.class_conv.bias is not None
        assert self.box_conv.bias is not None
        nn.init.constant_(self.class_conv.bias, -math.log(1 / INITIAL_CLASS_PROBABILITY - 1))
        nn.init.constant_(self.box_conv.bias, INITIAL_BOX_BIAS)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Map features[l] [B, channels, H_l, W_l] to (cls_logits, box_distances, objectness), lists over levels.

        cls_logits[l] [B, C, H_l, W_l] and objectness[l] [B, 1, H_l, W_l] are logits. box_distances[l] [B, 4, H_l, W_l]
        are left, top, right, bottom from the point in pixels, >= 0, and float32 even under autocast: bfloat16 would
        round 700.3 to 700.
        """
        checkpointing = self.checkpointing and self.training
        cls_logits, box_distances, objectness = [], [], []
        for feature, scale, stride in zip(features, self.scales, self.strides, strict=True):
            class_feature = run(self.class_tower, feature, checkpointing)
            box_feature = run(self.box_tower, feature, checkpointing)
            cls_logits.append(self.class_conv(class_feature))
            objectness.append(self.objectness_conv(box_feature))
            distances = F.relu(scale * _at_least_float32(self.box_conv(box_feature))) * stride
            if self.offset_conv is not None:
                distances = refine(distances, _at_least_float32(self.offset_conv(box_feature)), stride)
            box_distances.append(distances)
        return cls_logits, box_distances, objectness


def refine(distances: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """Refine the boxes of one level: each side is sampled from the box map at that side (docs/recipe.md#model).

    distances [B, 4, H, W] ltrb in pixels; offsets [B, 8, H, W] in cells, (row, column) for each of x1, y1, x2, y2.
    x1 and x2 are sampled in the row of the point, y1 and y2 in its column, each moved by its offset; bilinearly, with
    zeros outside the map. Returns the distances [B, 4, H, W] from the point to the sampled sides, >= 0. All inputs get
    gradients.
    """
    height, width = distances.shape[-2:]
    points = level_points(height, width, stride, distances.device, distances.dtype)  # [H*W, 2]
    x, y = points.T.reshape(2, height, width)
    left, top, right, bottom = distances.unbind(1)  # [B, H, W]
    x1, y1, x2, y2 = x - left, y - top, x + right, y + bottom
    x, y = x.expand_as(x1), y.expand_as(y1)
    row_offset, column_offset = offsets.unflatten(1, (4, 2)).unbind(2)  # [B, 4, H, W]
    column = torch.stack([x1, x, x2, x], 1) + column_offset * stride  # pixels
    row = torch.stack([y, y1, y, y2], 1) + row_offset * stride

    sides = torch.stack([x1, y1, x2, y2], 1).flatten(0, 1).unsqueeze(1)  # [B*4, 1, H, W]
    grid = torch.stack([column * (2 / (width * stride)) - 1, row * (2 / (height * stride)) - 1], -1)  # [B, 4, H, W, 2]
    sampled = F.grid_sample(sides, grid.flatten(0, 1), padding_mode="zeros", align_corners=False)
    x1, y1, x2, y2 = sampled.view_as(distances).unbind(1)
    return F.relu(torch.stack([x - x1, y - y1, x2 - x, y2 - y], 1))


def _tower(cfg: HeadConfig) -> nn.Sequential:
    conv = partial(
        Conv2dNormActivation, norm_layer=partial(GroupNormReLU, cfg.groups), activation_layer=None, bias=True
    )
    tower = nn.Sequential(*(conv(cfg.channels, cfg.channels) for _ in range(cfg.convs)))
    if cfg.deformable:
        last: Any = tower[-1]
        last[0] = DeformableConv2d.like(last[0])
    return tower


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
