"""The contestants: this project's backends, the released algorithm, and the loss of torchvision's FCOS."""

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

METHODS = {
    "triton": "our Triton kernels",
    "eager": "our PyTorch reference",
    "fcos": "torchvision FCOS's own loss",
    "released": "the released algorithm",
    "compiled": "our PyTorch reference under torch.compile",
}


def make_step(method: str, case: Case) -> Step:
    """Losses and the gradients of their sum, as one call that can be repeated."""
    if method == "fcos":
        return _fcos_step(case)
    if method == "released":
        return _released_step(case)
    if method == "compiled":
        return _compiled_step(case)
    loss = _loss("torch" if method == "eager" else method)
    return lambda: _with_gradients(loss(*case.inputs, case.packed), case.leaves())


@lru_cache
def _loss(backend: str) -> DualWeightLoss:
    return DualWeightLoss(STRIDES, backend=backend)


@lru_cache
def _compiled_passes() -> tuple[Callable, Callable]:
    """Both passes of the reference under torch.compile. Not as one graph: it reads numbers of pairs on the host."""
    torch._logging.set_logs(all=logging.ERROR)  # the breaks are counted, not told
    return torch.compile(reference.forward_pass), torch.compile(reference.backward_pass)


def _compiled_step(case: Case) -> Step:
    """The passes by hand: in the loss they are operators, which torch.compile leaves as they are."""
    forward_pass, backward_pass = _compiled_passes()

    def step():
        with torch.no_grad():
            sums, counts, saved = forward_pass(HeadOutputs(*case.inputs), case.packed, STRIDES, True, True)
            norms = counts.clamp(min=1)
            losses = dict(zip(LOSSES, (sums / norms).unbind()))
            return losses, tuple(backward_pass(1 / norms, HeadOutputs(*case.inputs), saved))

    return step


def forget_compiled() -> None:
    """So that what is compiled next is compiled for its own shapes alone."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def graph_breaks() -> int:
    """Times that torch.compile has split the loss since `forget_compiled`."""
    return sum(torch._dynamo.utils.counters["graph_break"].values())


def released_bytes(size: Size, batch: int, boxes: int) -> int:
    """About what the released algorithm holds at its peak: float32 numbers for each logit, and for each pair."""
    return 4 * batch * size.points() * (9 * size.classes + 24 * boxes)


def free_bytes(device: torch.device) -> int:
    """Memory that a step may take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # leaves the rest to everyone else


def _released_step(case: Case) -> Step:
    """In float32 whatever the inputs are, as the released head does under mixed precision."""

    def step():
        inputs = ([level.float() for level in kind] for kind in case.inputs)
        return _with_gradients(released_loss(*inputs, case.targets, STRIDES), case.leaves())

    return step


def _fcos_step(case: Case) -> Step:
    """Matching, the three losses and their gradients by torchvision's own code, on the same logits and boxes.

    Its regression is in units of the anchor, so the distances are divided by the stride beforehand; anchors are made
    beforehand too. Levels are concatenated within the step, as torchvision's head does. Half logits run under autocast.
    """
    classes = case.inputs[0][0].shape[1]
    dtype, device = case.inputs[0][0].dtype, case.inputs[0][0].device
    half = dtype != torch.float32
    sizes = [tuple(level.shape[2:]) for level in case.inputs[0]]
    head = FCOSHead(in_channels=32, num_anchors=1, num_classes=classes, num_convs=0)  # only for its compute_loss
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
