"""What a backend makes of a batch, against the oracle at the choices that the backend came to.

The method jumps where the IoUs of a bag hardly differ or its best one is one half, where a hard prior is about its
threshold, and where a predicted side coincides with the box's. So each weight is compared with the oracle's by a bound
that knows these places; then losses and gradients, with no such allowance, with the truth at these very weights.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets, pack_targets
from dwtriton.losses.dual_weight import DualWeightAssigner
from dwtriton.reference.dense_weights import DualWeights
from tests import oracle
from tests.support.generated_cases import LIMITS
from tests.support.loss_cases import LAYOUTS, UNDERFLOW, Case, run_loss, truth_gradients

NEAR_THRESHOLD = 100  # eps between an IoU and one half, or a prior and 0.3


@dataclass
class Batch:
    """A case, whose values these dtypes hold, and the form in which PyTorch gets it."""

    case: Case
    dtypes: tuple[torch.dtype, ...] = (torch.float32,) * 3  # of class logits, distances and objectness
    layout: str = "contiguous"
    padding: int = 0  # rows of rubbish behind the boxes

    def inputs(self) -> list[list[torch.Tensor]]:
        """Leaf tensors: class logits, distances and objectness, each over levels."""
        change = LAYOUTS[self.layout]
        return [
            [change(level.detach().to(dtype)).requires_grad_() for level in kind]
            for kind, dtype in zip(self.case.tensors(), self.dtypes)
        ]

    def targets(self) -> PackedTargets:
        rows = sum(map(len, self.case.boxes))
        packed = pack_targets(self.case.targets(), self.case.device, rows + self.padding)
        for part, rubbish in zip(packed._replace(offsets=None), (torch.nan, -7, None, True, -torch.nan)):
            if part is not None:
                part[rows:] = rubbish
        return packed


def assert_exact(batch: Batch) -> None:
    """Every weight, the losses, and the gradients entry by entry."""
    case, inputs, targets = batch.case, batch.inputs(), batch.targets()
    dtype = HeadOutputs(*inputs).arithmetic
    weights = case.oracle_weights()
    used = DualWeightAssigner(case.strides, case.soft_prior, case.backend)(*inputs, targets)
    slopes = take_choices(case, weights, used, dtype)
    expected = case.truth(weights, loc_gradients=slopes)
    losses, grads = run_loss(case, inputs, targets)

    limit_loss, limit_grad = LIMITS[dtype]
    floor = underflow(case)
    # Nearly perfect predictions: 1 - GIoU is known to about 2 eps, however small the loss.
    rounding = 0.25 * 5 * sum(truth.pos.sum() for truth in weights) * 2 * torch.finfo(dtype).eps / expected.pos_norm
    allowed = limit_loss * np.abs(expected.losses) + (floor, floor + rounding, UNDERFLOW + cancelled(case, expected))
    assert (np.abs(losses - expected.losses) <= allowed).all(), (losses, expected.losses)
    names = ("class logits", "distances", "objectness")
    for name, got, truth, own in zip(names, grads, truth_gradients(expected), batch.dtypes, strict=True):
        assert got.shape == truth.shape
        largest = np.abs(truth).max((1, 2), keepdims=True)  # of each image
        allowed = limit_grad * largest + half_rounding(truth, own) + floor
        worst = np.unravel_index((np.abs(got - truth) - allowed).argmax(), truth.shape)
        assert (np.abs(got - truth) <= allowed).all(), (name, worst, got[worst], truth[worst], largest[worst[0]])


def underflow(case: Case) -> float:
    """Absolute error of weights, positive losses and gradients where the numbers of float32 end.

    The last of them, 1e-45, over the least denominator, 1e-12, times -ln s, boxes of a class, and their weights.
    """
    largest = max([1, *(weights.max(initial=1) for weights in case.box_weights or ())])
    return max(case.weight_underflow, 1e-28) * largest


def cancelled(case: Case, expected: oracle.Result) -> float:
    """Rounding of float64 where the kernels take back from the negative loss with N = 1 what N is not."""
    if case.backend == "torch":
        return 0
    weights = case.oracle_weights()
    for image in weights:
        image.neg[:] = 1
    return 1e-14 * case.truth(weights).image_sums[:, 2].sum() / expected.neg_norm


def half_rounding(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """By how much a gradient of these values may differ because its dtype has 16 bits."""
    info = torch.finfo(dtype)
    return (info.eps * np.abs(values) + info.smallest_normal * info.eps) * (info.bits == 16)


def take_choices(
    case: Case, weights: list[oracle.Weights], used: list[DualWeights], dtype: torch.dtype
) -> list[np.ndarray]:
    """Check the weights that were used, and put those that may differ into the oracle's.

    Returns the slopes of 1 - GIoU, [P, G, 4] for each image, where the same sides tie as in that dtype.
    """
    narrow = np.dtype(str(dtype).removeprefix("torch."))
    slopes = []
    for number, (image, truth, got) in enumerate(zip(case.images(), weights, used, strict=True)):
        keep = ~case.iscrowd[number] if case.iscrowd else np.ones(len(image.boxes), bool)
        factor = np.ones(len(image.boxes)) if image.weights is None else image.weights
        image = replace(image, boxes=image.boxes[keep], labels=image.labels[keep], weights=factor[keep])
        check_weights(case, image, truth, got, torch.finfo(dtype).eps)
        sides = oracle.box_sides(image.points.astype(narrow), image.boxes.astype(narrow))
        slopes.append(oracle.iou_and_reg_loss(image.d, sides)[2])
    return slopes


def check_weights(case: Case, image: oracle.Image, truth: oracle.Weights, got: DualWeights, eps: float) -> None:
    """Check the weights of an image without regions to ignore; put prior, w_pos and N that were used into `truth`."""
    np.testing.assert_array_equal(got.inside.cpu().numpy(), truth.inside)
    iou, prior, pos, neg = (part.cpu().double().numpy() for part in (got.iou, got.prior, got.pos, got.neg))
    np.testing.assert_allclose(iou, truth.iou, rtol=0, atol=16 * eps, err_msg="iou")

    soft = oracle.center_prior(image.points, image.strides, image.boxes, soft=True) * truth.inside
    jumps = (np.abs(soft - 0.3) < NEAR_THRESHOLD * eps) & (not case.soft_prior)
    assert np.isin(prior[jumps], (0, 1)).all()
    np.testing.assert_allclose(prior[~jumps], truth.prior[~jumps], rtol=0, atol=16 * eps, err_msg="prior")
    truth.prior = prior

    score = np.exp(oracle.log_sigmoid(image.z) + oracle.log_sigmoid(image.u)[:, None])
    truth.pos = image.weights * oracle.positive_weights(score[:, image.labels], truth.reg_loss, prior)
    floor = max(512 * eps * truth.pos.max(initial=0), underflow(case))
    np.testing.assert_allclose(pos, truth.pos, rtol=512 * eps, atol=floor, err_msg="w_pos")

    bound = n_bound(image, truth, eps)
    assert neg.shape == bound.shape
    worst = np.unravel_index((np.abs(neg - truth.neg) - bound).argmax(), bound.shape)
    assert (np.abs(neg - truth.neg) <= bound).all(), ("N", worst, neg[worst], truth.neg[worst], bound[worst])
    assert (neg >= 0).all()
    assert (neg <= 1).all()
    truth.neg = neg


def n_bound(image: oracle.Image, truth: oracle.Weights, eps: float) -> np.ndarray:
    """By how much N may differ from the oracle's, [P, C]: 8 eps over the spread of the box that decides, else 0."""
    bound = np.zeros(truth.neg.shape)
    for box, (label, spread) in enumerate(zip(image.labels, truth.spread)):
        bag = truth.inside[:, box]
        if bag.any() and abs(truth.iou[bag, box].max() - 0.5) < NEAR_THRESHOLD * eps:
            spread = 0
        bound[bag, label] = 8 * eps / (spread + 1e-12)
    return bound.clip(max=1) * (truth.neg != 0)
