"""Floating-point operations of a detector, peak rates of GPUs, and the least time that its convolutions take."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

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

HALF_BYTES = 2  # of an entry


def peak_flops(gpu: str) -> float | None:
    """Return the peak operations a second in dense bfloat16, or None for a GPU that is not listed."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in gpu), None)


class Call(NamedTuple):
    """A convolution, forward or backward."""

    flops: int
    entries: int  # of all tensors that it reads and writes


def image_flops(cfg: Config, size: tuple[int, int], training: bool) -> int:
    """Return the operations of a detector for one image of (h, w), forward and, in training, backward."""
    return sum(call.flops for call in convolutions(cfg, size, 1, training))


def convolutions(cfg: Config, size: tuple[int, int], images: int, training: bool) -> list[Call]:
    """Return the convolutions of a batch of images of (h, w), read from fake tensors; frozen layers have none back."""
    with FakeTensorMode(), _Calls() as calls:
        detector = build_detector(cfg).train(training)
        outputs = detector.head_outputs(torch.empty(images, 3, *size))
        if training:
            sum(level.float().sum() for kind in outputs for level in kind).backward()
    return calls.found


def roofline_seconds(calls: Iterable[Call], peak: float, bytes_a_second: float) -> float:
    """Return the least time that convolutions take in half precision, one after another.

    Each takes its operations at the `peak` rate, or one trip of its tensors through memory, whichever is longer.
    """
    return sum(max(call.flops / peak, HALF_BYTES * call.entries / bytes_a_second) for call in calls)


class _Calls(TorchDispatchMode):
    """Collects the calls of operators whose operations are known: in a detector, its convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Call] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if formula := COUNTED.get(func.overloadpacket):
            flops = formula(*args, **(kwargs or {}), out_val=results)
            tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
            self.found.append(Call(flops, sum(tensor.numel() for tensor in tensors)))
        return results


def _deformable_backward_flops(grad, _input, weight, *_others, out_shape=None, **_settings) -> int:
    """Count one convolution for the gradient of the weights and one for that of the input."""
    return 2 * 2 * math.prod(grad) * math.prod(weight[1:])


DEFORMABLE = FLOP_FORMULAS | {torch.ops.torchvision._deform_conv2d_backward: _deformable_backward_flops}
COUNTED: dict[Any, Callable[..., int]] = flop_registry | {name: shape_wrapper(f) for name, f in DEFORMABLE.items()}
