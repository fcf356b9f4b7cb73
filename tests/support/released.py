"""The Dual Weighting loss as the released code computes it, the baseline of every benchmark.

A literal eager form, written from the specification: levels concatenated, [points x boxes] tensors, a loop over images
and boxes, losses by `binary_cross_entropy`, gradients by autograd. Not conditioned for large logits, as released.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from dwtriton.core.points import pyramid_points

SIGMA = 1.1100000143051147


def released_loss(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    strides: Sequence[int],
    soft_prior: bool = True,
) -> dict[str, Tensor]:
    """The same three losses as `DualWeightLoss`, from the same inputs (targets as a list, without crowd regions)."""
    sizes = [tuple(level.shape[2:]) for level in cls_logits]
    z, d, u = (
        torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in kind], 1)  # [B, P, channels]
        for kind in (cls_logits, box_distances, objectness)
    )
    points = pyramid_points(sizes, strides, z.device, z.dtype)
    point_strides = torch.cat([points.new_full((h * w,), s) for (h, w), s in zip(sizes, strides)])
    cls_pos, loc, cls_neg, neg_count = zip(
        *(
            image_sums(
                points, point_strides, z[b], d[b], u[b], target["boxes"].to(z.dtype), target["labels"], soft_prior
            )
            for b, target in enumerate(targets)
        )
    )
    pos_norm = max(1, sum(len(target["labels"]) for target in targets))
    neg_norm = torch.stack(neg_count).sum().clamp(min=1)
    return {
        "loss_cls_pos": torch.stack(cls_pos).sum() / pos_norm,
        "loss_loc": torch.stack(loc).sum() / pos_norm,
        "loss_cls_neg": torch.stack(cls_neg).sum() / neg_norm,
    }


def image_sums(
    points: Tensor,  # [P, 2]
    strides: Tensor,  # [P]
    z: Tensor,  # [P, C]
    d: Tensor,  # [P, 4]
    u: Tensor,  # [P, 1]
    boxes: Tensor,  # [G, 4]
    labels: Tensor,  # [G]
    soft_prior: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over one image of the three losses and of 1 - N."""
    joint = z.sigmoid() * u.sigmoid()  # [P, C]
    sides = torch.cat((points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]), -1)  # [P, G, 4]
    inside = sides.amin(-1) > 0

    offset = (points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2) / strides[:, None, None]
    prior = (-(offset**2).sum(-1) / (2 * SIGMA**2)).exp()
    prior = (prior if soft_prior else (prior > 0.3).to(prior.dtype)) * inside

    iou, reg_loss = overlaps(torch.cat((points - d[:, :2], points + d[:, 2:]), 1), boxes)
    p_loc = (-5 * reg_loss).exp()
    p_cls = joint[:, labels]
    p = p_cls * p_loc
    pos = (5 * p).exp() * p * prior / ((3 * p).exp() * p * prior).sum(0).clamp(min=1e-12)
    pos = pos.detach()
    cls_pos = 0.25 * (binary_cross_entropy(p_cls, torch.ones_like(p_cls), reduction="none") * pos).sum()
    loc = 0.25 * (binary_cross_entropy(p_loc, torch.ones_like(p_loc), reduction="none") * pos).sum()

    neg = torch.ones_like(joint)
    iou = iou.detach()
    for box, label in enumerate(labels):
        bag = inside[:, box].nonzero()[:, 0]
        if len(bag) == 0:
            continue
        v = iou[bag, box]
        f = (1 - v**2) / 0.75
        low, high = f.min(), f.max().clamp(max=1)
        neg[bag, label] = torch.where(v < 0.5, 1.0, (f - low + 1e-12) / (high - low + 1e-12))
    background = binary_cross_entropy(joint, torch.zeros_like(joint), reduction="none")
    return cls_pos, loc, (neg * joint**2 * background).sum(), (1 - neg).sum()


def overlaps(predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and 1 - GIoU of every predicted box with every ground truth, [P, G]."""
    a, b = predicted[:, None], boxes[None]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1).clamp(min=1e-6)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    union = union.clamp(min=1e-6)
    iou = inner / union
    return iou, 1 - (iou - (outer - union) / outer)
