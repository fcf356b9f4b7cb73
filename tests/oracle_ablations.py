"""Dual Weighting with parts of it changed, in NumPy float64, written to be read beside docs/assigners.md#ablations.

Dense, one image at a time. It shares only geometry with `oracle.py`: points inside boxes, prior, IoU and its slope.
"""

from dataclasses import dataclass

import numpy as np

from tests.oracle import Image, box_sides, center_prior, iou_and_reg_loss, is_inside, log_sigmoid, sigmoid, softplus


@dataclass
class Ablation:
    negative_weight: str = "iou"
    soft_prior: bool = True
    beta: float = 5.0
    mu: float = 5.0
    mu_sum: float = 3.0
    gamma_iou: float = 2.0
    gamma_score: float = 2.0


def image_losses(image: Image, ablation: Ablation, iscrowd=None):
    """Sums of the three losses, N_pos and N_neg, the gradients of each sum, and the least spread of a bag.

    Gradients: of loss_cls_pos and loss_cls_neg by z [P, C] and u [P], of loss_loc by d [P, 4].
    """
    crowd = np.zeros(len(image.boxes), bool) if iscrowd is None else np.asarray(iscrowd, bool)
    ignored = is_inside(image.points, image.boxes[crowd]).any(1)
    box_weights = (np.ones(len(crowd)) if image.weights is None else image.weights)[~crowd]
    boxes, labels = image.boxes[~crowd], image.labels[~crowd]
    points, classes = image.z.shape
    log_s = log_sigmoid(image.z) + log_sigmoid(image.u)[:, None]
    inside = is_inside(image.points, boxes)
    prior = center_prior(image.points, image.strides, boxes, ablation.soft_prior)
    iou, reg_loss, slope = iou_and_reg_loss(image.d, box_sides(image.points, boxes))

    pos, w_pos_sum = np.zeros((points, classes)), np.zeros((points, classes))
    m = np.ones((points, classes))  # of the last box
    last = np.full((points, classes), -1)
    loc, grad_d, spread = 0.0, np.zeros((points, 4)), np.inf
    for g, (label, weight) in enumerate(zip(labels, box_weights)):
        bag = inside[:, g]
        if not bag.any():
            continue
        t = np.exp(log_s[bag, label] - ablation.beta * reg_loss[bag, g])
        total = max((np.exp(ablation.mu_sum * t) * t * prior[bag, g]).sum(), 1e-12)
        w = np.exp(ablation.mu * t) * t * prior[bag, g] / total
        w_pos_sum[bag, label] += w
        pos[bag, label] += weight * w
        loc += 0.25 * (weight * w * ablation.beta * reg_loss[bag, g]).sum()
        grad_d[bag] += 0.25 * ablation.beta * (weight * w)[:, None] * slope[bag, g]
        f = (1 - iou[bag, g] ** ablation.gamma_iou) / (1 - 0.5**ablation.gamma_iou)
        low, high = f.min(), min(1, f.max())
        stretched = (f - low + 1e-12) / (high - low + 1e-12)
        m[bag, label] = np.where(iou[bag, g] < 0.5, 1, stretched)
        last[bag, label] = g
        if (iou[bag, g] >= 0.5).any():
            spread = min(spread, high - low)

    held = last >= 0
    weightless = held & (np.append(box_weights, 1)[last] == 0)
    factor = {"iou": m, "score": np.ones_like(m), "complement": np.where(held, np.maximum(1 - w_pos_sum, 0), 1)}
    neg = np.where(weightless | ignored[:, None], 0, factor[ablation.negative_weight])
    power = np.where(held & (ablation.negative_weight == "complement"), 0, ablation.gamma_score)
    n_neg = (1 - m)[~weightless & ~ignored[:, None]].sum()

    z, u, s = image.z, image.u[:, None], np.exp(log_s)
    log_complement = np.where(
        s < 0.5, np.log1p(-np.minimum(s, 0.5)), np.logaddexp(log_sigmoid(-z), log_sigmoid(z) + log_sigmoid(-u))
    )
    sums = np.array(
        [
            0.25 * (pos * np.minimum(-log_s, 100)).sum(),
            loc,
            (neg * np.exp(power * log_s) * np.minimum(-log_complement, 100)).sum(),
        ]
    )
    # d s/dz = s sigmoid(-z), and sigmoid(-z) / (1 - s) = sigmoid(softplus(u) - z); for u alike
    scale = neg * np.exp(power * log_s)
    neg_z = scale * (power * -log_complement * sigmoid(-z) + s * sigmoid(softplus(u) - z))
    neg_u = scale * (power * -log_complement * sigmoid(-u) + s * sigmoid(softplus(z) - u))
    pos_z, pos_u = -0.25 * pos * sigmoid(-z), -0.25 * pos * sigmoid(-u)
    return sums, box_weights.sum(), n_neg, (pos_z, pos_u.sum(1)), grad_d, (neg_z, neg_u.sum(1)), spread


def losses_and_gradients(images: list[Image], ablation: Ablation, iscrowd=None):
    """Losses [3], gradients of their sum by z, d and u ([B, P, K] each), and the least spread."""
    found = [image_losses(image, ablation, crowd) for image, crowd in zip(images, iscrowd or [None] * len(images))]
    n_pos = max(1.0, sum(image[1] for image in found))
    n_neg = max(1.0, sum(image[2] for image in found))
    losses = sum(image[0] for image in found) / [n_pos, n_pos, n_neg]
    grad_z = np.array([image[3][0] / n_pos + image[5][0] / n_neg for image in found])
    grad_u = np.array([image[3][1] / n_pos + image[5][1] / n_neg for image in found])[..., None]
    grad_d = np.array([image[4] / n_pos for image in found])
    return losses, [grad_z, grad_d, grad_u], min(image[6] for image in found)
