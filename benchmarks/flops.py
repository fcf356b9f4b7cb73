"""Floating-point operations of a detector, and peak rates of GPUs."""

import math

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dwtriton.config.schema import Config
from dwtriton.model.detector import build_detector
from dwtriton.summary import FLOP_FORMULAS

PEAK_TFLOPS = {  # dense bfloat16 with tensor cores, by NVIDIA's data sheets; the first that is in a GPU's name
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def peak_flops(gpu: str) -> float | None:
    """Return the peak operations a second in dense bfloat16, or None for a GPU that is not listed."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def image_flops(cfg: Config, size: tuple[int, int], training: bool) -> int:
    """Return the operations of a detector for one image of (h, w), forward and, in training, backward.

    Convolutions are counted on fake tensors; frozen layers have no backward pass.
    """
    formulas = FLOP_FORMULAS | {torch.ops.torchvision._deform_conv2d_backward: _deformable_backward_flops}
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        detector = build_detector(cfg).train(training)
        outputs = detector.head_outputs(torch.empty(1, 3, *size))
        if training:
            sum(level.float().sum() for kind in outputs for level in kind).backward()
    return counter.get_total_flops()


def _deformable_backward_flops(grad, _input, weight, *_others, out_shape=None, **_settings) -> int:
    """Count one convolution for the gradient of the weights and one for that of the input."""
    return 2 * 2 * math.prod(grad) * math.prod(weight[1:])
