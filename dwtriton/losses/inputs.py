"""The arguments that all losses share: settings and inputs are checked, targets packed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dwtriton.core.head_outputs import Levels, check_levels
from dwtriton.core.targets import PackedTargets, check_packed, check_values, concatenate_targets

Targets = Sequence[Mapping[str, Tensor]] | PackedTargets


def check_inputs(
    strides: Sequence[int], cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
) -> PackedTargets:
    """Check the arguments of a loss; return the targets packed on the logits' device. Raises ValueError."""
    check_levels(strides, cls_logits, box_distances, objectness)
    batch, num_classes = cls_logits[0].shape[:2]
    device = cls_logits[0].device
    packed = targets if isinstance(targets, PackedTargets) else concatenate_targets(targets)
    check_packed(packed)
    if packed.batch_size != batch:
        raise ValueError(f"targets of {packed.batch_size} images for logits of {batch}")
    if packed.boxes.device.type == "cpu" and not torch.compiler.is_compiling():
        check_values(packed, num_classes)
    if isinstance(targets, PackedTargets) and packed.boxes.device != device:
        raise ValueError(f"packed targets lie on {packed.boxes.device}, logits on {device}: pack them on {device}")
    return packed.to(device)
