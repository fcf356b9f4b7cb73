"""From head outputs to detections: candidates of each level, boxes, non-maximum suppression per class."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from dwtriton.core.head_outputs import Levels, check_levels, check_strides
from dwtriton.core.points import STRIDES, level_points

Pairs = Sequence[tuple[float, float]] | Tensor  # one pair for each image, [B, 2]
Score = Literal["product", "root", "class"]  # of a class at a point: see `class_scores`


class Candidates(NamedTuple):
    """The K best (point, class) pairs of each image, whatever their scores."""

    boxes: Tensor  # (B, K, 4) xyxy in network pixels, not clipped
    scores: Tensor  # (B, K), before the score threshold
    labels: Tensor  # (B, K) int64


def postprocess(
    cls_logits: Levels,
    box_distances: Levels,
    objectness: Levels | None,
    image_sizes: Pairs,
    scale_factors: Pairs | None = None,
    strides: Sequence[int] = STRIDES,
    score_threshold: float = 0.05,
    candidates_per_level: int = 1000,
    nms_iou: float = 0.6,
    max_detections: int = 100,
    score: Score = "product",
) -> list[dict[str, Tensor]]:
    """Return the detections of each image, highest-scoring first (docs/recipe.md#testing).

    cls_logits[l] [B, C, H_l, W_l], box_distances[l] [B, 4, H_l, W_l] ltrb in pixels, objectness[l] [B, 1, H_l, W_l] for
    the levels of `strides`; image_sizes[b] = (height, width) of the image before padding; scale_factors[b] = (sx, sy),
    network pixels per original pixel: boxes are divided by them before NMS.
    A (point, class) pair scores the product of its two sigmoids, or as `score` says (`class_scores`). Candidates are
    the best `candidates_per_level` pairs of each level that score above `score_threshold`; their boxes are clipped to
    the image.
    Returns for each image {"boxes": [N, 4] xyxy in pixels, "scores": [N], "labels": [N] int64}, N <= max_detections;
    boxes and scores are float32, or float64 for distances in float64.
    Distances are not checked, which would wait for the device: boxes of NaN are NaN, those of negative ones may have
    their sides swapped. Raises ValueError for shapes, lengths or sizes that do not fit together, and for settings
    out of range.
    """
    candidates = best_candidates(cls_logits, box_distances, objectness, strides, candidates_per_level, score)
    height, width = cls_logits[0].shape[-2:]
    padded = (height * strides[0], width * strides[0])
    return select(candidates, padded, image_sizes, scale_factors, score_threshold, nms_iou, max_detections)


def best_candidates(
    cls_logits: Levels,
    box_distances: Levels,
    objectness: Levels | None,
    strides: Sequence[int] = STRIDES,
    candidates_per_level: int = 1000,
    score: Score = "product",
) -> Candidates:
    """Return the best `candidates_per_level` pairs of each level; inputs and errors are those of `postprocess`.

    The shapes of outputs depend on the shapes of inputs alone, so it compiles as one graph.
    """
    strides = check_strides(strides)
    check_levels(strides, cls_logits, box_distances, objectness, some_images=False)
    if score not in get_args(Score):
        raise ValueError(f"score is one of {', '.join(get_args(Score))}, not {score!r}")
    _check_count("candidates_per_level", candidates_per_level)
    factors: Sequence[Tensor | None] = objectness or [None] * len(strides)
    levels = [
        _level_candidates(logits, distances, factor, stride, candidates_per_level, score)
        for logits, distances, factor, stride in zip(cls_logits, box_distances, factors, strides)
    ]
    return Candidates(*(torch.cat(parts, 1) for parts in zip(*levels)))


def select(
    candidates: Candidates,
    padded_size: tuple[int, int],
    image_sizes: Pairs,
    scale_factors: Pairs | None = None,
    score_threshold: float = 0.05,
    nms_iou: float = 0.6,
    max_detections: int = 100,
) -> list[dict[str, Tensor]]:
    """Return the detections among the candidates of a batch of `padded_size` (h, w), as `postprocess` does."""
    boxes, scores, labels = candidates
    _check_fraction("score_threshold", score_threshold)
    _check_fraction("nms_iou", nms_iou)
    _check_count("max_detections", max_detections)
    image_sizes = _per_image("image_sizes", image_sizes, len(boxes))
    for index, (height, width) in enumerate(image_sizes):
        if height > padded_size[0] or width > padded_size[1]:
            size = f"image_sizes[{index}] = {height:g} x {width:g}"
            raise ValueError(f"{size} is larger than the padded batch, {padded_size}")
    limits = boxes.new_tensor(image_sizes).reshape(-1, 2).flip(1)  # [B, 2] width, height
    boxes = boxes.clamp(min=0).minimum(limits.repeat(1, 2)[:, None])
    if scale_factors is not None:
        factors = boxes.new_tensor(_per_image("scale_factors", scale_factors, len(boxes))).reshape(-1, 2)  # [B, 2]
        boxes = boxes / factors.repeat(1, 2)[:, None]

    detections = []
    for image in zip(boxes, scores, labels):
        above = [values[image[1] > score_threshold] for values in image]
        best = batched_nms(*above, nms_iou)[:max_detections]
        detections.append(dict(zip(("boxes", "scores", "labels"), (values[best] for values in above))))
    return detections


def class_scores(cls_logits: Tensor, objectness: Tensor | None, score: Score) -> Tensor:
    """Return the scores of classes, in the shape of their logits.

    `score`: "product" of the sigmoids of class and objectness logits, its square "root", or that of the "class" alone;
    the last also where `objectness` is None, for heads without that branch.
    """
    scores = cls_logits.sigmoid()
    if objectness is None or score == "class":
        return scores
    scores = scores * objectness.sigmoid()
    return scores.sqrt() if score == "root" else scores


def _level_candidates(
    cls_logits: Tensor, distances: Tensor, objectness: Tensor | None, stride: int, count: int, score: Score
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `count` best pairs of one level: boxes [B, K, 4] unclipped, scores [B, K], labels [B, K]."""
    height, width = cls_logits.shape[-2:]
    dtype = torch.promote_types(distances.dtype, torch.float32)
    objectness = None if objectness is None else objectness.to(dtype)
    scores = class_scores(cls_logits.to(dtype), objectness, score).flatten(1)  # [B, C*H*W]
    smaller = min if torch.compiler.is_dynamo_compiling() else torch.sym_min  # sym_min exports for any size
    scores, index = scores.topk(smaller(count, scores.shape[1]), 1)  # [B, K]
    labels, point = index // (height * width), index % (height * width)

    points = level_points(height, width, stride, distances.device, dtype)[point]  # [B, K, 2]
    distances = distances.to(dtype).flatten(2).transpose(1, 2)  # [B, H*W, 4]
    distances = distances.gather(1, point[..., None].expand(-1, -1, 4))  # [B, K, 4]
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1), scores, labels


def _per_image(name: str, pairs: Pairs, batch: int) -> list[tuple[float, float]]:
    """Return the pairs as a list of tuples. Raises ValueError unless each image has one with positive entries."""
    if not isinstance(pairs, Tensor | Sequence):
        raise ValueError(f"{name} must hold a pair for each image, not {pairs!r}")
    pairs = pairs.tolist() if isinstance(pairs, Tensor) else list(pairs)
    if len(pairs) != batch:
        raise ValueError(f"{name} has {len(pairs)} entries for a batch of {batch} images")
    try:
        numbers = [tuple(map(float, pair)) for pair in pairs]
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {pairs!r} are not pairs of numbers") from None
    for index, pair in enumerate(numbers):
        if len(pair) != 2 or not all(0 < value < math.inf for value in pair):
            raise ValueError(f"{name}[{index}] = {pairs[index]!r} is not a pair of positive numbers")
    return [(first, second) for first, second in numbers]


def _check_count(name: str, count: int) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {count!r}")


def _check_fraction(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
