"""The table of boxes: sorted, with all that the pairs of points and boxes need to know of each.

Boxes are sorted image by image: regions to ignore, then ground truth by class, in their order within a class. Whoever
goes through them in this order meets each class once, and the last box of a class that holds a point decides its N.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels.bags import GROUP, IMAGES_PER_LOOK, PARTS, SUMS, image_of_rows, load_class
from dwtriton.kernels.inputs import Boxes, Pyramid
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import image_rows

ROWS_EACH = 16  # rows of the targets that a program sorts
FIELDS = 12  # numbers of a box in the table: x1, y1, x2 and y2 of all boxes first, then what else each has
DETAILS = tl.constexpr(8)
LABEL, WEIGHT = tl.constexpr(0), tl.constexpr(1)  # class (-1: region to ignore) and weight
MASS = tl.constexpr(2)  # denominator of its positive weights
DEFICIT_MIN, DEFICIT_MAX = tl.constexpr(3), tl.constexpr(4)
ROW = tl.constexpr(5)  # of the packed targets
BOX_SUMS = tl.constexpr(4)  # both positive losses, weights of boxes, what is invalid
COMPARED = tl.constexpr(128)  # boxes that others are compared with at once, to sort them


@triton.jit
def load_corners(table, row, capacity):
    """x1, y1, x2, y2 of a box of the table."""
    box = table + row
    return tl.load(box), tl.load(box + capacity), tl.load(box + 2 * capacity), tl.load(box + 3 * capacity)


@triton.jit
def details_of(table, row, capacity):
    """Where the table has the other numbers of a box."""
    return table + 4 * capacity + row * DETAILS


@triton.jit
def wrong_offsets(offsets, batch, capacity):
    """How many images have offsets that fall, or lie outside of the packed targets."""
    wrong = batch * 0
    for start in range(0, batch, IMAGES_PER_LOOK):
        images = start + tl.arange(0, IMAGES_PER_LOOK)
        begins = tl.load(offsets + images, mask=images < batch, other=0)
        ends = tl.load(offsets + 1 + images, mask=images < batch, other=0)
        wrong += tl.sum(((begins < 0) | (ends < begins) | (ends > capacity)).to(tl.int32))
    return wrong


@triton.jit(do_not_specialize=["batch", "capacity", "num_classes"])
def boxes_kernel(
    boxes,
    labels,
    iscrowd,
    weights,
    offsets,
    bags,
    extremes,
    table,
    sums,
    batch,
    capacity,
    num_classes,
    WEIGHTED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sort the boxes of each image by class, write down what pairs need of each, and add up the positive losses.

    Grid (programs,): program i owns BLOCK rows of the targets, and sums[i]. It finds where each row is in the table.

    boxes: [N, 4] float32. labels: [N] int64. iscrowd: [N] uint8. weights: [N] float32, unused unless WEIGHTED.
    offsets: [B + 1] int32. bags: [N, S, SUMS] float64 and extremes: [N, S, 2] float32, see `bags_kernel`.
    table: out, [FIELDS * N] float32, corners [4, N], then [N, DETAILS]; rows of padding are left.
    sums: out, [programs, BOX_SUMS] float64.
    batch: B. capacity: N. num_classes: C. SPLITS: S.
    """
    wrong_numbers = batch * 0
    if tl.program_id(0) == 0:
        wrong_numbers = wrong_offsets(offsets, batch, capacity)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = image_of_rows(rows, offsets, batch)
    used = (rows < capacity) & (image < batch)
    first, last = image_rows(offsets, tl.minimum(image, batch - 1), capacity)
    label = load_class(labels, iscrowd, rows, used, num_classes)
    position = first
    start = tl.min(tl.where(used, first, capacity))
    end = tl.max(tl.where(used, last, 0))
    while start < end:
        others = start + tl.arange(0, COMPARED)
        other_label = load_class(labels, iscrowd, others, others < end, num_classes)[None, :]
        others = others[None, :]
        same_image = (others >= first[:, None]) & (others < last[:, None])
        earlier = (other_label < label[:, None]) | ((other_label == label[:, None]) & (others < rows[:, None]))
        position += tl.sum((same_image & earlier).to(tl.int32), 1)
        start += COMPARED

    corner = boxes + 4 * rows.to(tl.int64)
    x1 = tl.load(corner, mask=used, other=0.0)
    y1 = tl.load(corner + 1, mask=used, other=0.0)
    x2 = tl.load(corner + 2, mask=used, other=0.0)
    y2 = tl.load(corner + 3, mask=used, other=0.0)
    weight = tl.full((BLOCK,), 1.0, tl.float32)
    if WEIGHTED:
        weight = tl.load(weights + rows, mask=used, other=1.0)
    truth = used & (label >= 0) & (label < num_classes)
    mass = tl.zeros((BLOCK,), tl.float64)
    cls_loss = tl.zeros((BLOCK,), tl.float64)
    loc_loss = tl.zeros((BLOCK,), tl.float64)
    deficit_min = tl.full((BLOCK,), float("inf"), tl.float32)
    deficit_max = tl.full((BLOCK,), float("-inf"), tl.float32)
    PER_GROUP: tl.constexpr = GROUP if SPLITS == PARTS else 1
    part_of_row = rows.to(tl.int64) * SPLITS
    for group in tl.static_range(SPLITS // PER_GROUP):
        mass_of_group = tl.zeros((BLOCK,), tl.float64)
        cls_of_group = tl.zeros((BLOCK,), tl.float64)
        loc_of_group = tl.zeros((BLOCK,), tl.float64)
        for i in tl.static_range(PER_GROUP):
            part = bags + (part_of_row + group * PER_GROUP + i) * SUMS
            extreme = extremes + (part_of_row + group * PER_GROUP + i) * 2
            mass_of_group += tl.load(part, mask=truth, other=0.0)
            cls_of_group += tl.load(part + 1, mask=truth, other=0.0)
            loc_of_group += tl.load(part + 2, mask=truth, other=0.0)
            deficit_min = tl.minimum(deficit_min, tl.load(extreme, mask=truth, other=0.0))
            deficit_max = tl.maximum(deficit_max, tl.load(extreme + 1, mask=truth, other=0.0))
        mass += mass_of_group
        cls_loss += cls_of_group
        loc_loss += loc_of_group
    mass = mass.to(tl.float32).to(tl.float64)
    mass = tl.where(mass < 1e-12, 1e-12, mass)  # NaN stays NaN

    stored = used & (rows >= first) & (rows < last)
    row_of = table + tl.where(stored, position, 0)
    somewhere = label < num_classes  # a box of no class holds no point
    tl.store(row_of, tl.where(somewhere, x1, float("inf")), mask=stored)
    tl.store(row_of + capacity, y1, mask=stored)
    tl.store(row_of + 2 * capacity, x2, mask=stored)
    tl.store(row_of + 3 * capacity, y2, mask=stored)
    details = table + 4 * capacity + tl.where(stored, position, 0) * DETAILS
    tl.store(details + LABEL, label.to(tl.float32), mask=stored)
    tl.store(details + WEIGHT, weight, mask=stored)
    tl.store(details + MASS, mass.to(tl.float32), mask=stored)
    tl.store(details + DEFICIT_MIN, deficit_min, mask=stored)
    tl.store(details + DEFICIT_MAX, tl.minimum(deficit_max, 1.0), mask=stored)
    tl.store(details + ROW, rows.to(tl.float32), mask=stored)
    for unused in tl.static_range(ROW + 1, DETAILS):  # that fill up a sector
        tl.store(details + unused, rows * 0.0, mask=stored)

    given = tl.load(labels + rows, mask=used, other=0)  # that of a region to ignore has to be right, too
    right = (x1 <= x2) & (y1 <= y2) & (x1 > float("-inf")) & (y1 > float("-inf")) & (x2 < float("inf"))
    right = right & (y2 < float("inf")) & (given >= 0) & (given < num_classes)
    right = right & (weight >= 0) & (weight < float("inf"))
    wrong = used & ((right == 0) | (stored == 0))  # not stored: it lies between images
    wrong_numbers += tl.sum(wrong.to(tl.int32))
    share = tl.where(truth, weight, 0.0).to(tl.float64)
    out = sums + tl.program_id(0) * BOX_SUMS
    tl.store(out, 0.25 * tl.sum(share * (cls_loss / mass)))
    tl.store(out + 1, 0.25 * tl.sum(share * (loc_loss / mass)))
    tl.store(out + 2, tl.sum(share))
    tl.store(out + 3, wrong_numbers.to(tl.float64))


def box_table(pyramid: Pyramid, boxes: Boxes, bags: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
    """The table [FIELDS * N] and partial sums over boxes [programs, BOX_SUMS], see `boxes_kernel`."""
    rows, splits, _ = bags.shape
    programs = -(-rows // ROWS_EACH)
    table = torch.empty(FIELDS * rows, device=bags.device)
    sums = torch.empty(programs, BOX_SUMS.value, device=bags.device, dtype=torch.float64)
    if rows:
        launch(
            boxes_kernel,
            (programs,),
            boxes.corners,
            boxes.labels,
            boxes.iscrowd,
            boxes.corners if boxes.weights is None else boxes.weights,
            boxes.offsets,
            bags,
            extremes,
            table,
            sums,
            pyramid.batch,
            rows,
            pyramid.num_classes,
            WEIGHTED=boxes.weights is not None,
            SPLITS=splits,
            BLOCK=ROWS_EACH,
            num_warps=4,
            maxnreg=128,
        )
    return table, sums
