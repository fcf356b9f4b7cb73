"""The loss of TOOD, Task-aligned One-stage Object Detection (Feng et al., ICCV 2021, arXiv 2108.07755)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwtriton.core.boxes import iou, predicted_boxes
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.point_loss import Choice, Grid, PointLoss, PointTargets, mean_over_ranks
from dwtriton.losses.selection import best_boxes, chunks, largest, rounded
from dwtriton.losses.terms import background_sum, cross_entropy, giou_loss, own_logits
from dwtriton.reference.formulas import box_sides
from dwtriton.reference.pairs import Boxes

MIN_INSIDE = 0.01  # pixels that a positive point is inside its box, at least
EPSILON = 1e-7  # added to the largest alignment of a box, which divides


class TaskAlignedLoss(PointLoss):
    """A box takes the points where score and predicted box agree best with it.

    The alignment of a point with a box is `s^alpha u^beta`: s the score of the box's class, u the IoU of the predicted
    box. The `topk` best aligned points of a box are positive if they lie inside (arXiv 2108.07755, section 3.2); of
    several boxes a point takes that of the highest IoU. Of equal alignments the lowest point counts, of equal IoUs the
    first box. TOOD has alpha 1, beta 6 and 13 points; YOLOv8 alpha 0.5, beta 6 and 10 points.
    Losses: `loss_cls`, the quality focal loss on the normalised alignment; `loss_bbox`, 1 - GIoU weighted by it, times
    `box_weight`. Objectness is not used and may be None. Details are MMDetection's: docs/assigners.md#tal.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        alpha: float = 1.0,
        beta: float = 6.0,
        topk: int = 13,
        box_weight: float = 2.0,
    ) -> None:
        super().__init__(strides)
        if not (alpha > 0 and beta > 0 and topk >= 1):
            raise ValueError(f"alpha and beta must be positive and topk at least 1, not {alpha}, {beta} and {topk}")
        self.alpha, self.beta, self.topk, self.box_weight = alpha, beta, topk, box_weight

    def extra_repr(self) -> str:
        settings = f"alpha={self.alpha}, beta={self.beta}, topk={self.topk}, box_weight={self.box_weight}"
        return f"strides={self.strides}, {settings}"

    def choose(self, outputs: HeadOutputs, targets: PackedTargets, boxes: Boxes, grid: Grid) -> Choice:
        """Take the best points of each box, then give contested points to one, and normalise what is left."""
        shape = (targets.batch_size, grid.points.shape[1])
        image = boxes.image.where(boxes.is_truth, targets.batch_size)
        point, alignment, overlap = best_aligned(
            list(outputs.cls_logits),
            list(outputs.box_distances),
            grid.points,
            boxes.corners,
            boxes.labels,
            image,
            self.alpha,
            self.beta,
            self.topk,
        )
        inside = box_sides(grid.points[:, point], boxes.corners[..., None]).amin(0) > MIN_INSIDE
        valid = inside & (alignment > 0)
        row = best_boxes(image, point, overlap, valid, shape)
        flat = boxes.image[:, None] * shape[1] + point  # over the whole batch
        kept = valid & (row.flatten()[flat] == torch.arange(len(point), device=point.device)[:, None])
        best_alignment, best_overlap = ((part * kept).amax(1, keepdim=True) for part in (alignment, overlap))
        normalised = alignment / (best_alignment + EPSILON) * best_overlap * kept
        quality = normalised.new_zeros(row.numel()).scatter_add_(0, flat.flatten(), normalised.flatten())
        return Choice(row, quality.view(shape))  # of each sum one term is not 0

    def losses(self, outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> dict[str, Tensor]:
        """Normalise by the sum of all alignments, times the weights of their boxes."""
        weight, target = targets.weight, targets.quality
        (total,) = mean_over_ranks((weight * target).sum())
        z = own_logits(outputs.cls_logits, targets, grid)
        positive = (weight * (target - z.sigmoid()).square() * cross_entropy(z, target)).sum()
        box = self.box_weight * (weight * target * giou_loss(outputs, targets)).sum()
        losses = {"loss_cls": positive + background_sum(outputs, targets, grid), "loss_bbox": box}
        return {name: loss / total.clamp(min=1) for name, loss in losses.items()}


@torch.library.custom_op("dwtriton::best_aligned", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def best_aligned(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    points: Tensor,
    corners: Tensor,
    labels: Tensor,
    image: Tensor,
    alpha: float,
    beta: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best aligned points of each box, inside or not: points, alignments and IoUs, [N, topk] each.

    An operator, which `torch.compile` keeps whole: it reads numbers of boxes on the host. `points` are [2, P],
    `corners` [4, N] float64, `labels` and `image` [N]. What is missing has alignment 0: rows of images that the batch
    does not have, and where the pyramid has fewer than `topk` points.
    """
    point = image.new_zeros(len(image), topk)
    alignment, overlap = points.new_zeros(len(image), topk), points.new_zeros(len(image), topk)
    for index in range(len(cls_logits[0])):
        z = torch.cat([level[index].flatten(1) for level in cls_logits], 1)  # [C, P]
        distances = torch.cat([level[index].double().flatten(1) for level in box_distances], 1)
        predicted = predicted_boxes(points, distances)[:, None]  # [4, 1, P]
        for rows in chunks((image == index).nonzero()[:, 0], z.shape[1]):
            score = z[labels[rows]].double().sigmoid()  # [n, P]
            u = iou(predicted, corners[:, rows, None])
            values = score.pow(alpha) * u.pow(beta)
            best = largest(rounded(values), topk)
            span = slice(best.shape[1])
            point[rows, span], alignment[rows, span], overlap[rows, span] = (
                best,
                values.gather(1, best),
                u.gather(1, best),
            )
    return point, alignment, overlap


@best_aligned.register_fake
def _(cls_logits, box_distances, points, corners, labels, image, alpha, beta, topk):
    shape = (image.shape[0], topk)
    return image.new_empty(shape), points.new_empty(shape), points.new_empty(shape)
