"""The weights behind the loss, written out dense; from the same device functions as the loss."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import pyramid_points
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels import formulas, walk
from dwtriton.kernels.inputs import dense_options, read_boxes, read_pyramid
from dwtriton.kernels.ops import configs_for
from dwtriton.kernels.statistics import box_statistics
from dwtriton.reference.dense_weights import DualWeights


@triton.jit(do_not_specialize=["points", "capacity"])
def assign_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    begins,  # number of each level's first point among the `points` of an image
    offsets,  # [B + 1]
    ranked,  # [6, N] and
    parts,  # [N, 3, SPLITS], see `BoxStatistics`
    inside_out,  # out: [N, points] bool; pairs outside are left as they are, here and below
    iou_out,  # out: [N, points]
    prior_out,  # out: [N, points]
    pos_out,  # out: [N, points]
    score_out,  # out: [B, points, C]
    neg_out,  # out: [B, points, C]
    points,
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, level, area, stride, cells, bounds = walk.open_tile(heights, widths, strides, TILE_H, TILE_W)
    point, valid, _, _ = cells  # [P]
    first, last = walk.image_rows(offsets, image, capacity)
    row, label = walk.next_box(first, last, ranked, capacity, bounds)
    ignored, row, label = walk.inside_crowd(cells, row, label, last, ranked, capacity, bounds)

    z_image = walk.pick(z_levels, level) + image * area * NUM_CLASSES
    d_image = walk.pick(d_levels, level) + image * area * 4
    u = tl.load(walk.pick(u_levels, level) + image * area + point, mask=valid, other=0.0).to(tl.float32)
    su = formulas.sigmoids(u)[0]
    number = tl.cast(walk.pick(begins, level), tl.int32) + point  # among all points of the image
    out = image * points * NUM_CLASSES
    for first_class in range(0, NUM_CLASSES, BLOCK_C):
        classes = first_class + tl.arange(0, BLOCK_C)
        end_class = tl.minimum(first_class + BLOCK_C, NUM_CLASSES)
        z = walk.load_logits(z_image, point, valid, classes, area, NUM_CLASSES, BLOCK_C, Z_LAST).to(
            tl.float32
        )  # [P, BLOCK_C]
        score = formulas.sigmoids(z)[0] * su[:, None]
        neg = tl.full(z.shape, 1.0, tl.float32)
        while label < end_class:
            own = classes == label  # [BLOCK_C]
            inside, _, _, iou, _, prior, pos, stretched = walk.weigh_box(
                row,
                (ranked, parts),
                capacity,
                cells,
                area,
                stride,
                d_image,
                walk.of_class(own, score),
                D_LAST,
                SOFT,
                SPLITS,
            )
            pairs = walk.source_row(ranked, row, capacity).to(tl.int64) * points + number
            tl.store(inside_out + pairs, inside, mask=inside)
            tl.store(iou_out + pairs, iou, mask=inside)
            tl.store(prior_out + pairs, prior, mask=inside)
            tl.store(pos_out + pairs, pos, mask=inside)
            neg = tl.where(inside[:, None] & own[None, :], stretched[:, None], neg)
            row, label = walk.next_box(row + 1, last, ranked, capacity, bounds)
        neg = tl.where(ignored[:, None], 0.0, neg)
        walk.store_logits(score_out + out, score, number, valid, classes, area, NUM_CLASSES, BLOCK_C, True)
        walk.store_logits(neg_out + out, neg, number, valid, classes, area, NUM_CLASSES, BLOCK_C, True)


def dual_weights(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> list[DualWeights]:
    """The same as `dwtriton.reference.dual_weights`. Waits for the device. Raises ValueError for float64."""
    pyramid = read_pyramid(*outputs, strides)
    boxes = read_boxes(targets)
    configs = configs_for(pyramid)
    config = configs.forward
    device, capacity, points = boxes.corners.device, boxes.labels.shape[0], pyramid.points
    inside = torch.zeros(capacity, points, device=device, dtype=torch.bool)
    pairs = [torch.zeros(capacity, points, device=device) for _ in range(3)]
    entries = [torch.empty(pyramid.batch, points, pyramid.num_classes, device=device) for _ in range(2)]
    tiles = pyramid.tiles(config.tile_height, config.tile_width)
    areas = [height * width for height, width in zip(pyramid.heights, pyramid.widths)]
    with torch.cuda.device_of(boxes.corners):  # Triton launches on the current device
        assign_kernel[tiles, pyramid.batch](
            *pyramid.arguments,
            (0.0, *accumulate(map(float, areas[:-1]))),
            boxes.offsets,
            *box_statistics(pyramid, boxes, soft_prior, configs.statistics),
            inside,
            *pairs,
            *entries,
            points,
            capacity,
            **dense_options(pyramid, soft_prior, config),
        )
    all_points = pyramid_points(list(zip(pyramid.heights, pyramid.widths)), strides, device)
    image_of_row = targets.image_index()
    results = []
    for image in range(pyramid.batch):
        rows = targets.box_mask() & (image_of_row == image)
        iou, prior, pos = (pair[rows].T for pair in pairs)
        score, neg = (entry[image] for entry in entries)
        results.append(DualWeights(all_points, inside[rows].T, iou, prior, score, pos, neg))
    return results
