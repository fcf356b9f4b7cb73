"""Floating-point operations: of a detector, and those that a GPU can do in a second."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dwtriton.config.schema import Config
from dwtriton.model.detector import build_detector
from dwtriton.summary import FLOP_FORMULAS

PEAK_TFLOPS = {  # dense bfloat16 with tensor cores, by NVIDIA's data sheets; the first name found in the GPU's counts
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
    """Operations a second of dense bfloat16; None for a GPU that is not listed."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


def image_flops(cfg: Config, size: tuple[int, int], training: bool) -> int:
    """Return the operations of a detector for one image of (h, w), forward and, in training, backward.

    Convolutions are counted on fake tensors; frozen layers have no backward pass.
    """
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        detector = build_detector(cfg).train(training)
        outputs = detector.head_outputs(torch.empty(1, 3, *size))
        if training:
            sum(level.float().sum() for kind in outputs for level in kind).backward()
    return counter.get_total_flops()
