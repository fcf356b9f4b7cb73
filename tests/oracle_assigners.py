"""FCOS, ATSS, SimOTA and TAL in NumPy float64, written from the papers with the choices of docs/assigners.md.

Everything is dense, one image at a time: P points, G boxes, C classes. Assignments come first; losses take them, so
that their slopes can be measured at a fixed assignment. An assignment is (box [P], -1 for none; quality [P]).
"""

import numpy as np

from tests.oracle import Image, box_sides, sigmoid, softplus

RANGES = {8: (0, 64), 16: (64, 128), 32: (128, 256), 64: (256, 512), 128: (512, np.inf)}


def corners(image: Image):
    """[P, 4] predicted boxes."""
    return np.concatenate((image.points - image.d[:, :2], image.points + image.d[:, 2:]), 1)


def areas(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def ious(first, second):
    """Of boxes [..., 4] of shapes that broadcast."""
    size = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    inter = np.clip(size, 0, None).prod(-1)
    return inter / np.maximum(areas(first) + areas(second) - inter, 1e-6)


def gious(first, second):
    outer = np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2])
    size = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    inter = np.clip(size, 0, None).prod(-1)
    union, outer = areas(first) + areas(second) - inter, outer.prod(-1)
    return inter / np.maximum(union, 1e-6) - (outer - union) / np.maximum(outer, 1e-6)


def in_region(image, boxes, radius):
    """[P, G]: the point is less than `radius` strides from the centre of the box, in both directions."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = radius * image.strides[:, None]
    return (np.abs(image.points[:, None] - center) < reach[..., None]).all(-1)


def best(values, candidates):
    """The first of the candidate boxes of the largest value at each point, -1 without candidate; [P, G] each."""
    return np.where(candidates.any(1), np.where(candidates, values, -np.inf).argmax(1), -1)


def fcos(image: Image):
    sides = box_sides(image.points, image.boxes)  # [P, G, 4]
    low, high = np.array([RANGES[int(stride)] for stride in image.strides]).T
    size = sides.max(-1)
    inside = (sides.min(-1) > 0) & in_region(image, image.boxes, 1.5)
    box = best(
        np.broadcast_to(-areas(image.boxes), size.shape), inside & (size >= low[:, None]) & (size <= high[:, None])
    )
    return box, (box >= 0) * 1.0


def atss(image: Image):
    half = 4 * image.strides[:, None]
    overlap = ious(np.concatenate((image.points - half, image.points + half), 1)[:, None], image.boxes[None])
    center = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
    distance = np.sqrt(((image.points[:, None] - center) ** 2).sum(-1))
    positive = np.zeros(overlap.shape, bool)
    for g in range(len(image.boxes)):
        nearest = [
            np.flatnonzero(image.strides == stride)[np.argsort(distance[image.strides == stride, g], kind="stable")[:9]]
            for stride in np.unique(image.strides)
        ]
        nearest = np.concatenate(nearest)
        v = overlap[nearest, g]
        positive[nearest, g] = v >= v.mean() + np.sqrt(((v - v.mean()) ** 2).sum() / max(len(v) - 1, 1))
    positive &= box_sides(image.points, image.boxes).min(-1) > 0.01
    box = best(overlap, positive)
    return box, (box >= 0) * 1.0


def rounded(values):
    """To the precision of float32, where ties are decided."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0**24), exponent - 24)


def simota(image: Image):
    in_box = box_sides(image.points, image.boxes).min(-1) > 0
    region = in_region(image, image.boxes, 2.5)
    candidates = np.flatnonzero((in_box | region).any(1))
    box, quality = np.full(len(image.points), -1), np.zeros(len(image.points))
    if not len(candidates):
        return box, quality
    u = ious(corners(image)[candidates, None], image.boxes[None])  # [K, G]
    log_q = (-softplus(-image.z[candidates]) - softplus(-image.u[candidates, None])) / 2
    with np.errstate(divide="ignore"):
        log_complement = np.maximum(np.log(-np.expm1(log_q)), -100)
    is_class = np.arange(image.z.shape[1])[:, None] == image.labels  # [C, G]
    entropy = -np.where(is_class, np.maximum(log_q, -100)[..., None], log_complement[..., None]).sum(1)
    cost = rounded(entropy - 3 * np.log(u + 1e-7)) + 1e5 * ~(in_box & region)[candidates]
    chosen = np.zeros(cost.shape, bool)
    for g in range(len(image.boxes)):
        k = max(1, int(np.sort(u[:, g])[::-1][:10].sum()))
        chosen[np.argsort(cost[:, g], kind="stable")[:k], g] = True
    owner = np.where(chosen.sum(1) > 1, cost.argmin(1), chosen.argmax(1))
    owner = np.where(chosen.any(1), owner, -1)
    box[candidates] = owner
    quality[candidates] = np.where(owner >= 0, u[np.arange(len(u)), owner], 0)
    return box, quality


def tal(image: Image, alpha=1.0, beta=6.0, topk=13):
    u = ious(corners(image)[:, None], image.boxes[None])
    m = sigmoid(image.z)[:, image.labels] ** alpha * u**beta
    order = np.argsort(-rounded(m), axis=0, kind="stable")[:topk]
    kept = np.zeros(m.shape, bool)
    np.put_along_axis(kept, order, True, 0)
    kept &= (m > 0) & (box_sides(image.points, image.boxes).min(-1) > 0.01)
    box, quality = best(u, kept), np.zeros(len(m))
    for g in range(len(image.boxes)):
        own = box == g
        if own.any():
            quality[own] = m[own, g] / (m[own, g].max() + 1e-7) * u[own, g].max()
    return box, quality


ASSIGN = {"fcos": fcos, "atss": atss, "simota": simota, "tal": tal}


def assign(method: str, image: Image, iscrowd=None):
    """Assignment among the boxes that are not crowd; indices count all boxes of the image."""
    kept = np.flatnonzero(~np.asarray(iscrowd if iscrowd is not None else np.zeros(len(image.boxes)), bool))
    truth = Image(
        *(getattr(image, name) for name in ["points", "strides", "z", "u", "d"]), image.boxes[kept], image.labels[kept]
    )
    if not len(kept):
        return np.full(len(image.points), -1), np.zeros(len(image.points))
    box, quality = ASSIGN[method](truth)
    return np.where(box >= 0, kept[box], -1), quality


def is_ignored(image: Image, box, iscrowd=None):
    """[P]: no negative loss."""
    crowd = np.asarray(iscrowd if iscrowd is not None else np.zeros(len(image.boxes)), bool)
    in_crowd = (box_sides(image.points, image.boxes[crowd]).min(-1, initial=np.inf) > 0).any(1)
    return in_crowd | without_weight(image, box)


def without_weight(image: Image, box):
    """[P]: the box has weight 0."""
    return np.zeros(len(box), bool) if image.weights is None else (box >= 0) & (np.append(image.weights, 1)[box] == 0)


def entropy(z, y):
    return y * softplus(-z) + (1 - y) * softplus(z)


def losses(method: str, images: list[Image], assignments, iscrowd=None) -> dict[str, float]:
    """Losses of a batch at fixed assignments."""
    total = dict.fromkeys(("cls", "box", "other", "N", "images", "S", "T"), 0.0)
    for image, (box, quality), crowd in zip(images, assignments, iscrowd or [None] * len(images)):
        positive = np.flatnonzero((box >= 0) & ~without_weight(image, box))
        ignored = is_ignored(image, box, crowd)
        own = np.zeros(image.z.shape, bool)
        own[positive, image.labels[box[positive]]] = True
        w = np.ones(len(positive)) if image.weights is None else image.weights[box[positive]]
        truth, t, z = image.boxes[box[positive]], quality[positive], image.z[own]
        predicted = corners(image)[positive]
        left, top, right, bottom = np.concatenate(
            (image.points[positive] - truth[:, :2], truth[:, 2:] - image.points[positive]), 1
        ).T
        p = sigmoid(image.z)
        negative = ~own & ~ignored[:, None]
        background = (p**2 * softplus(image.z))[negative].sum()
        total["N"] += w.sum()
        total["images"] += max(w.sum(), 1)
        if method in ("fcos", "atss"):
            c = np.sqrt(
                np.minimum(left, right) / np.maximum(left, right) * np.minimum(top, bottom) / np.maximum(top, bottom)
            )
            total["S"] += (w * c).sum()
            total["cls"] += 0.25 * (w * sigmoid(-z) ** 2 * softplus(-z)).sum() + 0.75 * background
            total["box"] += (w * c * (1 - gious(predicted, truth))).sum()
            total["other"] += (w * entropy(image.u[positive], c)).sum()
        elif method == "tal":
            total["T"] += (w * t).sum()
            total["cls"] += (w * (t - sigmoid(z)) ** 2 * entropy(z, t)).sum() + background
            total["box"] += (w * t * (1 - gious(predicted, truth))).sum()
        else:
            others = (softplus(image.z) * negative)[positive].sum(1)
            total["cls"] += (w * (entropy(z, t) + others)).sum()
            total["box"] += (w * (1 - ious(predicted, truth) ** 2)).sum()
            is_background = ~ignored
            is_background[positive] = False
            total["other"] += (w * softplus(-image.u[positive])).sum() + softplus(image.u)[is_background].sum()
    n = max(total["N"], 1)
    if method == "fcos":
        norms, box_weight, other = (n, max(total["S"], 1e-6), n), 1, "loss_centerness"
    elif method == "atss":
        norms, box_weight, other = (total["images"], max(total["S"], 1), total["images"]), 2, "loss_centerness"
    elif method == "tal":
        norms, box_weight, other = (max(total["T"], 1),) * 3, 2, None
    else:
        norms, box_weight, other = (n, n, n), 5, "loss_obj"
    found = {"loss_cls": total["cls"] / norms[0], "loss_bbox": box_weight * total["box"] / norms[1]}
    return found | ({other: total["other"] / norms[2]} if other else {})
