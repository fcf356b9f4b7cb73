"""Names of the detector's tensors in MMDetection's checkpoints of Dual Weighting, in both directions."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dwtriton.core.errors import UserError
from dwtriton.model.state_dict import check_tensors
from dwtriton.reference.formulas import SIGMA

CENTER_PRIOR = ("bbox_head.center_prior.mean", "bbox_head.center_prior.sigma")  # parameters there, constants here
RENAMED = {
    r"backbone\.(.+)": r"backbone.\1",
    r"fpn\.inner_blocks\.(\d)\.0\.(\w+)": r"neck.lateral_convs.\1.conv.\2",
    r"fpn\.layer_blocks\.(\d)\.0\.(\w+)": r"neck.fpn_convs.\1.conv.\2",
    r"fpn\.extra_blocks\.p6\.(\w+)": r"neck.fpn_convs.3.conv.\1",
    r"fpn\.extra_blocks\.p7\.(\w+)": r"neck.fpn_convs.4.conv.\1",
    r"head\.class_tower\.(\d+)\.0\.([\w.]+)": r"bbox_head.cls_convs.\1.conv.\2",
    r"head\.class_tower\.(\d+)\.1\.(\w+)": r"bbox_head.cls_convs.\1.gn.\2",
    r"head\.box_tower\.(\d+)\.0\.([\w.]+)": r"bbox_head.reg_convs.\1.conv.\2",
    r"head\.box_tower\.(\d+)\.1\.(\w+)": r"bbox_head.reg_convs.\1.gn.\2",
    r"head\.class_conv\.(\w+)": r"bbox_head.conv_cls.\1",
    r"head\.box_conv\.(\w+)": r"bbox_head.conv_reg.\1",
    r"head\.objectness_conv\.(\w+)": r"bbox_head.conv_centerness.\1",
    r"head\.offset_conv\.(\w+)": r"bbox_head.reg_offset.\1",
    r"head\.scales\.(\d)": r"bbox_head.scales.\1.scale",
}


def mmdet_name(name: str) -> str:
    """Return MMDetection's name of the detector's tensor `name`. Raises KeyError if it has none."""
    for pattern, replacement in RENAMED.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    raise KeyError(f"tensor {name} has no name in MMDetection's checkpoints")


def to_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a detector's state dict under MMDetection's names, with the two constants of its centre prior.

    Raises UserError for a detector with the level P2, which no release has.
    """
    if "fpn.inner_blocks.3.0.weight" in state:
        raise UserError(
            "head.finest_stride = 4 has no names in MMDetection's checkpoints: its levels begin at stride 8"
        )
    renamed = {mmdet_name(name): tensor for name, tensor in state.items()}
    return renamed | _center_prior(num_classes=len(state["head.class_conv.bias"]))


def from_mmdet(given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors `given` under MMDetection's names as a detector's state dict, with the names of `state`.

    The constants of the centre prior may be absent: FCOS heads of MMDetection that are trained by our loss have none.
    Raises UserError that lists every missing, unexpected or mis-shaped tensor, or names another centre prior.
    """
    constants = _center_prior(num_classes=len(state["head.class_conv.bias"]))
    absent = constants if not constants.keys() & given.keys() else {}
    check_tensors(to_mmdet(state), {**given, **absent}, "the MMDetection state dict")
    for name, constant in constants.items():
        if name in given and not torch.equal(given[name].cpu(), constant):
            reason = "the centre prior is a constant here, so a checkpoint with another one cannot be converted"
            raise UserError(f"{name} is not {constant[0, 0]:.8g} everywhere: {reason}")
    return {name: given[mmdet_name(name)] for name in state}


def _center_prior(num_classes: int) -> dict[str, Tensor]:
    """Return the constants of the released head's centre prior (docs/method.md#centre-prior)."""
    return dict(zip(CENTER_PRIOR, (torch.zeros(num_classes, 2), torch.full((num_classes, 2), SIGMA))))
