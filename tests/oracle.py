"""The Dual Weighting loss in NumPy float64, written to be read beside docs/method.md.

Everything is dense, one image at a time: P points of all levels, G boxes, C classes. `weights` computes the weights,
which are constants for autograd; `losses_and_gradients` takes them, so that tests can replace them in between.
"""

from dataclasses import dataclass

import numpy as np

SIGMA = float(np.float32(1.11))


@dataclass
class Image:
    """Inputs of one image, as float64 (labels int64, iscrowd bool)."""

    points: np.ndarray  # [P, 2]
    strides: np.ndarray  # [P]
    z: np.ndarray  # [P, C] classification logits
    u: np.ndarray  # [P] objectness logits
    d: np.ndarray  # [P, 4] left, top, right, bottom, pixels
    boxes: np.ndarray  # [G, 4] xyxy, pixels
    labels: np.ndarray  # [G]
    weights: np.ndarray | None = None  # [G] of the boxes; None: 1


@dataclass
class Weights:
    """Weights of one image and their ingredients, [P, G] unless noted."""

    inside: np.ndarray
    prior: np.ndarray
    iou: np.ndarray
    reg_loss: np.ndarray  # 1 - GIoU, outside the box too
    pos: np.ndarray
    neg: np.ndarray  # [P, C]
    spread: np.ndarray  # [G] f_max - f_min; infinite where no point has an IoU of one half
    ignored: np.ndarray  # [P] points strictly inside a crowd region
    uncounted: np.ndarray  # [P, C] entries whose deciding box has no weight: N is 0, and nothing in the normaliser


@dataclass
class Result:
    """Losses of a batch and their gradients."""

    losses: np.ndarray  # [3] loss_cls_pos, loss_loc, loss_cls_neg
    pos_norm: float
    neg_norm: float
    image_sums: np.ndarray  # [B, 3] before the normalisers
    image_neg_counts: np.ndarray  # [B]
    grad_z: list[np.ndarray]  # of the weighted sum of the losses, [P, C] for each image
    grad_u: list[np.ndarray]
    grad_d: list[np.ndarray]


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def sigmoid(x):
    return np.exp(log_sigmoid(x))


def softplus(x):
    return np.logaddexp(0, x)


def is_inside(points, boxes):
    """[P, G]: all four distances from the point to the sides of the box are strictly positive."""
    return box_sides(points, boxes).min(-1, initial=np.inf) > 0


def box_sides(points, boxes):
    """Distances left, top, right, bottom from every point to the sides of every box, [P, G, 4]."""
    return np.concatenate((points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]), -1)


def center_prior(points, strides, boxes, soft):
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (points[:, None] - center[None]) / strides[:, None, None]
    prior = np.exp(-(offset**2).sum(-1) / (2 * SIGMA**2))
    return prior if soft else (prior > 0.3).astype(float)


def iou_and_reg_loss(d, sides):
    """IoU, 1 - GIoU and d(1 - GIoU)/dd, [P, G] twice and [P, G, 4].

    Both boxes as seen from the point: distances to the predicted sides [P, 4], `box_sides` of the others [P, G, 4].
    Extended precision (on x86): terms cancel where boxes are nearly equal, or tiny beside their predictions.
    """
    pred, box = d[:, None].astype(np.longdouble), sides.astype(np.longdouble)
    pred_size, box_size = pred[..., :2] + pred[..., 2:], box[..., :2] + box[..., 2:]  # width, height
    nearer, farther = np.minimum(pred, box), np.maximum(pred, box)
    overlap, outer_size = nearer[..., :2] + nearer[..., 2:], farther[..., :2] + farther[..., 2:]
    inter_size = np.clip(overlap, 0, None)
    inter = inter_size.prod(-1)
    raw_union, raw_outer = pred_size.prod(-1) + box_size.prod(-1) - inter, outer_size.prod(-1)
    union, outer = np.maximum(raw_union, 1e-6), np.maximum(raw_outer, 1e-6)
    reg_loss = 2 - inter / union - union / outer

    # Growth outwards of each predicted side: inside the box it grows the intersection, outside the enclosing box.
    beyond = (np.sign(pred - box) + 1) / 2  # 1 outside, 0 inside, one half at a tie
    across = [1, 0, 1, 0]  # moving left or right sweeps along the height, top or bottom along the width
    d_inter = (1 - beyond) * inter_size[..., across] * (overlap >= 0)[..., [0, 1, 0, 1]]  # of no width: as it grows
    d_outer = beyond * outer_size[..., across] * (raw_outer > 1e-6)[..., None]
    d_union = (pred_size[..., across] - d_inter) * (raw_union > 1e-6)[..., None]
    inter, union, outer = inter[..., None], union[..., None], outer[..., None]
    gradient = -(d_inter * union - inter * d_union) / union**2 - (d_union * outer - union * d_outer) / outer**2
    return tuple(part.astype(np.float64) for part in ((inter / union)[..., 0], reg_loss, gradient))


def positive_weights(score, reg_loss, prior):
    """w_pos, [P, G], from the score of each box's class."""
    t = score * np.exp(-5 * reg_loss)
    denominator = np.maximum((np.exp(3 * t) * t * prior).sum(0), 1e-12)
    return np.exp(5 * t) * t * prior / denominator


def weights(image: Image, soft_prior=True, iscrowd=None) -> Weights:
    """All weights of an image. Columns are the boxes that are not crowd, in order."""
    crowd = np.zeros(len(image.boxes), bool) if iscrowd is None else np.asarray(iscrowd, bool)
    ignored = is_inside(image.points, image.boxes[crowd]).any(1)
    boxes, labels = image.boxes[~crowd], image.labels[~crowd]
    box_weights = np.ones(len(crowd)) if image.weights is None else image.weights
    box_weights = box_weights[~crowd]

    inside = is_inside(image.points, boxes)
    prior = np.where(inside, center_prior(image.points, image.strides, boxes, soft_prior), 0)
    iou, reg_loss, _ = iou_and_reg_loss(image.d, box_sides(image.points, boxes))
    iou = np.where(inside, iou, 0)

    score = np.exp(log_sigmoid(image.z) + log_sigmoid(image.u)[:, None])
    pos = box_weights * positive_weights(score[:, labels], reg_loss, prior)

    neg = np.ones_like(score)
    uncounted = np.zeros(score.shape, bool)
    spread = np.full(len(boxes), np.inf)
    for g, label in enumerate(labels):  # in order: the last box of a class wins
        bag = inside[:, g]
        if not bag.any():
            continue
        v = iou[bag, g]
        f = (1 - v**2) / 0.75
        f_min, f_max = f.min(), min(1, f.max())
        m = (f - f_min + 1e-12) / (f_max - f_min + 1e-12)
        m[v < 0.5] = 1
        neg[bag, label] = m if box_weights[g] > 0 else 0
        uncounted[bag, label] = box_weights[g] == 0
        if (v >= 0.5).any():
            spread[g] = f_max - f_min
    neg[ignored] = 0
    return Weights(inside, prior, iou, reg_loss, pos, neg, spread, ignored, uncounted)


def losses_and_gradients(
    images: list[Image], all_weights: list[Weights], loc_gradients=None, factors=(1, 1, 1), iscrowd=None
) -> Result:
    """Losses, normalisers and the gradient of `factors . losses`, all weights being constants.

    `loc_gradients`: d(1 - GIoU)/dd of each image, [P, G, 4], for tests that choose other slopes at ties.
    """
    crowds = iscrowd or [None] * len(images)
    kept = [np.ones(len(i.boxes), bool) if c is None else ~np.asarray(c, bool) for i, c in zip(images, crowds)]
    neg_counts = np.array([((1 - w.neg) * ~w.uncounted)[~w.ignored].sum() for w in all_weights])
    given = [np.ones(len(keep)) if image.weights is None else image.weights for image, keep in zip(images, kept)]
    pos_norm = max(1.0, float(sum(weights[keep].sum() for weights, keep in zip(given, kept))))
    neg_norm = max(1.0, float(neg_counts.sum()))
    scale_pos, scale_loc, scale_neg = factors[0] / pos_norm, factors[1] / pos_norm, factors[2] / neg_norm

    sums, grad_z, grad_u, grad_d = [], [], [], []
    for number, (image, weight, keep) in enumerate(zip(images, all_weights, kept)):
        labels = image.labels[keep]
        z, u = image.z, image.u[:, None]
        log_q = log_sigmoid(z) + log_sigmoid(u)
        q = np.exp(log_q)
        log_complement = np.where(
            q < 0.5, np.log1p(-np.minimum(q, 0.5)), np.logaddexp(log_sigmoid(-z), log_sigmoid(z) + log_sigmoid(-u))
        )
        sums.append(
            [
                0.25 * (weight.pos * np.minimum(-log_q[:, labels], 100)).sum(),
                0.25 * (weight.pos * np.minimum(5 * weight.reg_loss, 100)).sum(),
                (weight.neg * q**2 * np.minimum(-log_complement, 100)).sum(),
            ]
        )

        # dq/dz = q * (1 - sz), and (1 - sz) / (1 - q) = sigmoid(softplus(u) - z); for u alike.
        not_z, not_u = sigmoid(-z), sigmoid(-u)
        dz = weight.neg * q**2 * (2 * -log_complement * not_z + q * sigmoid(softplus(u) - z)) * scale_neg
        du = weight.neg * q**2 * (2 * -log_complement * not_u + q * sigmoid(softplus(z) - u)) * scale_neg
        class_pos = np.zeros_like(z)
        np.add.at(class_pos.T, labels, weight.pos.T)
        dz -= 0.25 * class_pos * not_z * scale_pos
        du -= 0.25 * class_pos * not_u * scale_pos
        if loc_gradients is None:
            slope = iou_and_reg_loss(image.d, box_sides(image.points, image.boxes[keep]))[2]
        else:
            slope = loc_gradients[number]
        grad_z.append(dz)
        grad_u.append(du.sum(1))
        grad_d.append((0.25 * weight.pos[..., None] * 5 * slope).sum(1) * scale_loc)

    sums = np.array(sums)
    losses = sums.sum(0) / [pos_norm, pos_norm, neg_norm]
    return Result(losses, pos_norm, neg_norm, sums, neg_counts, grad_z, grad_u, grad_d)
