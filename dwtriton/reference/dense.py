"""Dense passes over the class logits: the negative loss, and the gradients of both kinds of logits.

They go block by block, several images or some rows of one, which bounds their temporary tensors.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dwtriton.reference import devices, formulas

ENTRIES_ON_CPU, ENTRIES_ON_GPU = 2**17, 2**23  # class logits in a block: about 5 and 350 MB of temporary tensors


def negative_loss(cls_logits: Sequence[Tensor], objectness: Sequence[Tensor], neg: Sequence[Tensor]) -> Tensor:
    """Return the sum of `neg s^2 (-ln(1 - s))`, 0-d float64. Each argument is a list over the levels."""
    total = torch.zeros((), dtype=torch.float64, device=neg[0].device)
    for level in zip(cls_logits, objectness, neg):
        for block in _blocks(level[0]):
            z, u, weight = (tensor[block].to(neg[0].dtype) for tensor in level)
            score = z.sigmoid().mul_(u.sigmoid())
            loss = formulas.neg_log_complement(score, z, u).clamp_(max=formulas.MAX_LOG)
            total += loss.mul_(score).mul_(score).mul_(weight).sum()
    return total


def logit_gradients(
    cls_logits: Sequence[Tensor],
    objectness: Sequence[Tensor],
    pos: Sequence[Tensor],
    neg: Sequence[Tensor],
    pos_factor: Tensor,
    neg_factor: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of class and objectness logits: lists over the levels, as all arguments but the factors.

    They are those of `neg_factor neg s^2 (-ln(1 - s)) + pos_factor pos (-ln s)`, summed over all entries.
    """
    dtype = neg[0].dtype
    grads = [[torch.empty_like(level) for level in kind] for kind in (cls_logits, objectness)]
    for z, u, pos_level, neg_level, grad_z, grad_u in zip(cls_logits, objectness, pos, neg, *grads):
        for block in _blocks(z):
            logits = z[block].to(dtype), u[block].to(dtype)
            weights = neg_level[block] * neg_factor, pos_level[block] * pos_factor
            grad_z[block], grad_u[block] = formulas.logit_gradients(*logits, *weights)
    return grads[0], grads[1]


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield indices that cut [B, C, H, W] logits into blocks: several images, or some rows of one."""
    batch, classes, height, width = z.shape
    entries = ENTRIES_ON_CPU if devices.on_cpu(z) else ENTRIES_ON_GPU
    rows = min(height, max(1, entries // (classes * width)))
    images = max(1, entries // (classes * width * height))
    for begin in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(begin, begin + images), slice(None), slice(top, top + rows)
