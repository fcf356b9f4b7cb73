"""The methods that are compared: backends of this package, the released algorithm, the loss of torchvision's FCOS."""

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOS, FCOSHead

from benchmarks.cases import Case, Size
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES, pyramid_points
from dwtriton.losses.dual_weight import DualWeightLoss
from dwtriton.reference import loss as reference
from tests.support.released import released_loss

LOSSES = ("loss_cls_pos", "loss_loc", "loss_cls_neg")
Step = Callable[[], tuple[dict[str, Tensor], tuple[Tensor, ...]]]

METHODS = {  # the first two are ours, the others baselines
    "triton": "our Triton kernels",
    "eager": "our PyTorch reference",
    "fcos": "torchvision FCOS's own loss",
    "released": "the released algorithm",
    "compiled": "our PyTorch reference under torch.compile",
}


def make_step(method: str, case: Case) -> Step:
    """Return a function that computes the losses of a case and the gradients of their sum."""
    if method == "fcos":
        return _fcos_step(case)
    if method == "released":
        return _released_step(case)
    if method == "compiled":
        return _compiled_step(case)
    loss = _loss("torch" if method == "eager" else method, case.strides)
    return lambda: _with_gradients(loss(*case.inputs, case.packed), case.leaves())


@lru_cache
def _loss(backend: str, strides: tuple[int, ...]) -> DualWeightLoss:
    return DualWeightLoss(strides, backend=backend)


@lru_cache
def _compiled_passes() -> tuple[Callable, Callable]:
    """Compile both passes of the reference. They break into several graphs: numbers of pairs are read on the host."""
    torch._logging.set_logs(all=logging.ERROR)  # graph breaks are counted, not logged
    return torch.compile(reference.forward_pass), torch.compile(reference.backward_pass)


def _compiled_step(case: Case) -> Step:
    """Call the passes directly: in the loss they are operators, into which torch.compile does not look."""
    forward_pass, backward_pass = _compiled_passes()

    def step():
        with torch.no_grad():
            sums, counts, saved = forward_pass(HeadOutputs(*case.inputs), case.packed, STRIDES, True, True)
            norms = counts.clamp(min=1)
            losses = dict(zip(LOSSES, (sums / norms).unbind()))
            return losses, tuple(backward_pass(1 / norms, HeadOutputs(*case.inputs), saved))

    return step


def forget_compiled() -> None:
    """Reset torch.compile, so that the next case is compiled for its own shapes alone."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def graph_breaks() -> int:
    """Return the number of graph breaks since `forget_compiled`."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def released_bytes(size: Size, batch: int, boxes: int) -> int:
    """Estimate the peak memory of the released algorithm: float32 numbers for each logit, and for each pair."""
    return 4 * batch * size.points() * (9 * size.classes + 24 * boxes)


def free_bytes(device: torch.device) -> int:
    """Return the memory that a step may take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # the other half is for other processes


def _released_step(case: Case) -> Step:
    """Compute in float32 whatever the dtype of the inputs, as the released head does under mixed precision."""

    def step():
        inputs = ([level.float() for level in kind] for kind in case.inputs)
        return _with_gradients(released_loss(*inputs, case.targets, STRIDES), case.leaves())

    return step


def _fcos_step(case: Case) -> Step:
    """Match, and compute three losses and their gradients, by torchvision's own code on the same logits and boxes.

    Its regression is in units of the anchor, so distances are divided by the stride before the step; anchors are made
    before it too. The step concatenates the levels, as torchvision's head does. Half logits run under autocast.
    """
    classes = case.inputs[0][0].shape[1]
    dtype, device = case.inputs[0][0].dtype, case.inputs[0][0].device
    half = dtype != torch.float32
    sizes = [tuple(level.shape[2:]) for level in case.inputs[0]]
    head = FCOSHead(in_channels=32, num_anchors=1, num_classes=classes, num_convs=0)  # for its compute_loss only
    detector = SimpleNamespace(center_sampling_radius=1.5, head=head)  # what FCOS.compute_loss reads
    points = pyramid_points(sizes, device=device)
    strides = torch.cat([points.new_full((h * w, 1), stride) for (h, w), stride in zip(sizes, STRIDES)])
    anchors = [torch.cat((points - strides / 2, points + strides / 2), 1)] * len(case.targets)
    counts = [height * width for height, width in sizes]
    scaled = [(level.detach() / stride).requires_grad_() for level, stride in zip(case.inputs[1], STRIDES)]
    named = {"cls_logits": case.inputs[0], "bbox_regression": scaled, "bbox_ctrness": case.inputs[2]}
    leaves = [level for kind in named.values() for level in kind]

    def step():
        with torch.autocast(device.type, dtype if half else None, enabled=half):
            outputs = {
                name: torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in kind], 1)  # [B, P, channels]
                for name, kind in named.items()
            }
            losses = FCOS.compute_loss(detector, case.targets, outputs, anchors, counts)
        return _with_gradients(losses, leaves)

    return step


def _with_gradients(losses: dict[str, Tensor], leaves: list[Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    return losses, torch.autograd.grad(sum(losses.values()), leaves)
