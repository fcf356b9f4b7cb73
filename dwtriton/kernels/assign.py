"""The weights behind the loss, written out dense; from the same device functions as the loss."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import pyramid_points
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels import formulas
from dwtriton.kernels.bags import box_bags, image_of_rows
from dwtriton.kernels.boxes import (
    DEFICIT_MAX,
    DEFICIT_MIN,
    LABEL,
    MASS,
    ROW,
    WEIGHT,
    box_table,
    details_of,
    load_corners,
)
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import load_distances, pick, pick_memory, place
from dwtriton.kernels.ops import configs_for
from dwtriton.kernels.tiles import is_inside, sides_of
from dwtriton.reference.dense_weights import DualWeights, negative_weights

POINTS_AT_ONCE = 256
MAX_REGISTERS = 64  # of a thread; without a limit ptxas takes 48 on sm_120, with seven levels, and spills


@triton.jit(do_not_specialize=["points", "batch", "capacity", "num_classes"])
def assign_kernel(
    z_levels,
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,
    table,
    inside_out,
    iou_out,
    prior_out,
    pos_out,
    neg_out,
    points,
    batch,
    capacity,
    num_classes,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights of all pairs of points and boxes.

    Grid (N, blocks): program (i, j) owns the pairs of the box in row i of the table and the j-th block of BLOCK points.

    z_levels, d_levels, u_levels: of each level logits [B, C, H, W], distances [B, 4, H, W] and objectness logits
    [B, 1, H, W]; channels_last where Z_LAST and D_LAST say so, else contiguous. heights, widths, strides: of levels.
    offsets: [B + 1] int32. table: [FIELDS * N], see `boxes_kernel`.
    inside_out, iou_out, prior_out, pos_out, neg_out: out, [N, points], the first bool, the last m; others are left.
    points: of an image. batch: B. capacity: N. num_classes: C. SOFT: the centre prior is not thresholded.
    """
    row = tl.program_id(0)
    image = tl.sum(image_of_rows(row + tl.arange(0, 1), offsets, batch))
    if image < batch:
        details = details_of(table, row, capacity)
        label = tl.load(details + LABEL).to(tl.int32)
        number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        level = number * 0
        begin = number * 0
        end = row * 0
        for i in tl.static_range(len(heights)):
            level = tl.where(number >= end, i, level)
            begin = tl.where(number >= end, end, begin)
            end += tl.cast(heights[i], tl.int32) * tl.cast(widths[i], tl.int32)
        width, stride = tl.cast(pick(widths, level), tl.int32), pick(strides, level)
        area = tl.cast(pick(heights, level), tl.int32) * width
        point = number - begin
        x, y = (point % width + 0.5) * stride, (point // width + 0.5) * stride
        corners = load_corners(table, row, capacity)
        inside = is_inside(number < points, x, y, corners) & (label >= 0) & (label < num_classes)

        before = image.to(tl.int64) * area
        z_points = pick_memory(z_levels, level) + before * num_classes
        z = tl.load(z_points + place(point, label, area, num_classes, Z_LAST), mask=inside, other=0.0).to(tl.float32)
        u = tl.load(pick_memory(u_levels, level) + before + point, mask=inside, other=0.0).to(tl.float32)
        d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
        distances = load_distances(d_points, place(0, 1, area, 4, D_LAST), inside)
        iou, iou_loss, reg_loss = formulas.overlap(distances, sides_of(x, y, corners))
        prior = formulas.center_prior(x, y, corners, stride, SOFT)
        score = formulas.sigmoids(z)[0] * formulas.sigmoids(u)[0]
        t = formulas.alignment(score, tl.where(inside, reg_loss, 0.0))
        pos = formulas.positive_share(t, prior) / tl.load(details + MASS) * tl.load(details + WEIGHT)
        deficit_min = tl.load(details + DEFICIT_MIN)
        neg = formulas.p_neg(iou, iou_loss, deficit_min, tl.load(details + DEFICIT_MAX))
        source = tl.load(details + ROW).to(tl.int64)
        pairs = tl.minimum(tl.maximum(source, 0), capacity - 1) * points + number
        tl.store(inside_out + pairs, inside, mask=inside)
        tl.store(iou_out + pairs, iou, mask=inside)
        tl.store(prior_out + pairs, prior, mask=inside)
        tl.store(pos_out + pairs, pos, mask=inside)
        tl.store(neg_out + pairs, neg, mask=inside)


def dual_weights(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> list[DualWeights]:
    """The same as `dwtriton.reference.dual_weights`. Waits for the device. Raises ValueError for float64."""
    pyramid = read_pyramid(outputs, strides)
    boxes = read_boxes(targets)
    device, rows, points = boxes.corners.device, boxes.labels.shape[0], pyramid.points
    inside = torch.zeros(rows, points, device=device, dtype=torch.bool)
    pairs = [torch.zeros(rows, points, device=device) for _ in range(4)]
    if rows:
        with torch.cuda.device_of(boxes.corners):
            table, _ = box_table(pyramid, boxes, *box_bags(pyramid, boxes, soft_prior, configs_for(pyramid).bags))
            launch(
                assign_kernel,
                (rows, triton.cdiv(points, POINTS_AT_ONCE)),
                *pyramid.arguments,
                boxes.offsets,
                table,
                inside,
                *pairs,
                points,
                pyramid.batch,
                rows,
                pyramid.num_classes,
                Z_LAST=pyramid.z_last,
                D_LAST=pyramid.d_last,
                SOFT=soft_prior,
                BLOCK=POINTS_AT_ONCE,
                num_warps=4,
                maxnreg=MAX_REGISTERS,
            )
    centres = pyramid_points(list(zip(pyramid.heights, pyramid.widths)), strides, device)
    image_of_row = targets.image_index()
    truths, crowds = targets.box_mask(), targets.crowd_mask()
    results = []
    for image in range(pyramid.batch):
        truth, crowd = truths & (image_of_row == image), crowds & (image_of_row == image)
        iou, prior, pos, p_neg = (pair[truth].T for pair in pairs)
        z, u = (torch.cat([level[image].flatten(1).T for level in kind]).float() for kind in (pyramid.z, pyramid.u))
        labels = targets.labels[truth].clamp(0, pyramid.num_classes - 1)
        weights = None if targets.weights is None else targets.weights[truth]
        neg = negative_weights(inside[truth].T, labels, p_neg, pyramid.num_classes, weights)
        corners = boxes.corners[crowd]
        ignored = ((centres[:, None] > corners[:, :2]) & (centres[:, None] < corners[:, 2:])).all(2).any(1)
        neg = neg.masked_fill_(ignored[:, None], 0)
        results.append(DualWeights(centres, inside[truth].T, iou, prior, z.sigmoid() * u.sigmoid(), pos, neg))
    return results
