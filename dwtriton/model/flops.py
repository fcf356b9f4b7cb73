"""Floating-point operations of a detector, counted without computing anything."""

import math

import torch
import torchvision  # noqa: F401 -- registers its operators
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dwtriton.config.schema import Config
from dwtriton.model.detector import build_detector

PARTS = ("backbone", "fpn", "head")


def _deformable_flops(_input, weight, *_others, out_shape=None, **_settings) -> int:
    """As a convolution of the same geometry; reading between cells is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _deformable_backward_flops(grad, _input, weight, *_others, out_shape=None, **_settings) -> int:
    """Once for the weights and once for the input."""
    return 2 * 2 * math.prod(grad) * math.prod(weight[1:])


FORMULAS = {  # of operators that PyTorch's counter does not know
    torch.ops.torchvision.deform_conv2d: _deformable_flops,
    torch.ops.torchvision._deform_conv2d_backward: _deformable_backward_flops,
}


def image_flops(cfg: Config, size: tuple[int, int], training: bool) -> int:
    """Operations of the network for one image of (h, w): its convolutions, forward and, in training, backward.

    Counted on fake tensors; a multiplication and an addition are two. Frozen layers have no backward pass.
    """
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        detector = build_detector(cfg).train(training)
        outputs = detector.head_outputs(torch.empty(1, 3, *size))
        if training:
            sum(level.float().sum() for kind in outputs for level in kind).backward()
    return counter.get_total_flops()


def part_flops(cfg: Config, size: tuple[int, int]) -> dict[str, int]:
    """The same of each part, forward."""
    counts = {}
    with FakeTensorMode():
        detector = build_detector(cfg).eval()
        stages = (
            ("backbone", detector.backbone),
            ("fpn", lambda maps: list(detector.fpn(maps).values())),
            ("head", detector.head),
        )
        value = torch.empty(1, 3, *size)
        for name, stage in stages:
            with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
                value = stage(value)
            counts[name] = counter.get_total_flops()
    return counts
