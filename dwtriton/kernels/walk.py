"""What the dense passes share, as device functions: a program's tile, and its walk over the boxes that touch it."""

import triton
import triton.language as tl

from dwtriton.kernels import formulas

NO_SCORE = tl.constexpr(float("-inf"))  # logit of entries that a tile does not have: their score and loss are 0
BOXES_PER_LOOK = tl.constexpr(128)  # boxes that a tile looks at together, to find those that touch it
NO_LABEL = tl.constexpr(2**30)  # above all classes


@triton.jit
def pick(items, level):
    """The entry of a tuple, one for each level, at a level known only at run time."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(level >= i, items[i], item)
    return item


@triton.jit
def locate_tile(tile, heights, widths, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Level, first row and first column of a tile; tiles are numbered level by level, row by row.

    The coarsest level comes first: nearly every box touches its tiles, which therefore take longest.
    """
    level = tile * 0
    first = tile * 0
    begin = tile * 0
    for i in tl.static_range(len(heights) - 1, -1, -1):
        here = tile >= begin
        level = tl.where(here, i, level)
        first = tl.where(here, begin, first)
        begin += tl.cdiv(tl.cast(heights[i], tl.int32), TILE_H) * tl.cdiv(tl.cast(widths[i], tl.int32), TILE_W)
    columns = tl.cdiv(tl.cast(pick(widths, level), tl.int32), TILE_W)
    within = tile - first
    return level, within // columns * TILE_H, within % columns * TILE_W


@triton.jit
def open_tile(heights, widths, strides, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """The tile that a program owns, by the grid (tiles of an image, images), and its P = TILE_H * TILE_W cells.

    Returns image (int64), level, the level's number of points and stride; a tuple of what each cell has [P]: number
    among the level's points, whether it exists, x and y; and the bounds: x and y of the first cell and of the last.
    """
    image = tl.program_id(1).to(tl.int64)
    level, first_row, first_column = locate_tile(tl.program_id(0), heights, widths, TILE_H, TILE_W)
    height, width = tl.cast(pick(heights, level), tl.int32), tl.cast(pick(widths, level), tl.int32)
    stride = pick(strides, level)
    cell = tl.arange(0, TILE_H * TILE_W)
    rows, columns = first_row + cell // TILE_W, first_column + cell % TILE_W
    valid = (rows < height) & (columns < width)
    x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
    last_row = tl.minimum(first_row + TILE_H, height) - 1
    last_column = tl.minimum(first_column + TILE_W, width) - 1
    low = ((first_column + 0.5) * stride, (first_row + 0.5) * stride)
    high = ((last_column + 0.5) * stride, (last_row + 0.5) * stride)
    return image, level, height * width, stride, (rows * width + columns, valid, x, y), low + high


@triton.jit
def place(point, channel, area, CHANNELS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Where an image's level of `area` points has a channel of a point."""
    if CHANNELS_LAST:
        return point * CHANNELS + channel
    else:
        return channel * area + point


@triton.jit
def load_logits(
    z_image, point, valid, classes, area, NUM_CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, Z_LAST: tl.constexpr
):
    """Logits [P, BLOCK_C] of a tile, in their own dtype."""
    mask = valid[:, None]
    if NUM_CLASSES % BLOCK_C != 0:
        mask = mask & (classes < NUM_CLASSES)[None, :]
    places = place(point[:, None], classes[None, :], area, NUM_CLASSES, Z_LAST)
    return tl.load(z_image + places, mask=mask, other=NO_SCORE)


@triton.jit
def store_logits(
    image, values, point, valid, classes, area, NUM_CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, Z_LAST: tl.constexpr
):
    """The counterpart of `load_logits`."""
    mask = valid[:, None]
    if NUM_CLASSES % BLOCK_C != 0:
        mask = mask & (classes < NUM_CLASSES)[None, :]
    tl.store(image + place(point[:, None], classes[None, :], area, NUM_CLASSES, Z_LAST), values, mask=mask)


@triton.jit
def of_class(own, values):
    """The column of values [P, BLOCK_C] where `own` [BLOCK_C] is true, [P]."""
    return tl.sum(tl.where(own[None, :], values, 0.0), 1)


@triton.jit
def load_distances(d_image, point, area, mask, D_LAST: tl.constexpr):
    """Left, top, right and bottom of points; 0 where masked."""
    left = tl.load(d_image + place(point, 0, area, 4, D_LAST), mask=mask, other=0.0).to(tl.float32)
    top = tl.load(d_image + place(point, 1, area, 4, D_LAST), mask=mask, other=0.0).to(tl.float32)
    right = tl.load(d_image + place(point, 2, area, 4, D_LAST), mask=mask, other=0.0).to(tl.float32)
    bottom = tl.load(d_image + place(point, 3, area, 4, D_LAST), mask=mask, other=0.0).to(tl.float32)
    return left, top, right, bottom


@triton.jit
def image_rows(offsets, image, capacity):
    """First row of an image's boxes and the row after the last, never outside the packed targets."""
    first = tl.maximum(tl.load(offsets + image), 0)
    last = tl.minimum(tl.load(offsets + image + 1), capacity)
    return tl.minimum(first, last), last


@triton.jit
def load_box(ranked, row, capacity):
    """x1, y1, x2, y2 of one box of the ranked table, or of several."""
    box = ranked + row
    return tl.load(box), tl.load(box + capacity), tl.load(box + 2 * capacity), tl.load(box + 3 * capacity)


@triton.jit
def next_box(row, last, ranked, capacity, bounds):
    """The first row of the ranked table, from `row` to `last - 1`, whose box may hold points of a tile; and its label.

    The label is -1 for a region to ignore; if there is no such row, the label is NO_LABEL.
    """
    x_low, y_low, x_high, y_high = bounds
    found = last
    while row < found:
        rows = row + tl.arange(0, BOXES_PER_LOOK)
        mask = rows < last
        x1 = tl.load(ranked + rows, mask=mask, other=float("inf"))
        y1 = tl.load(ranked + capacity + rows, mask=mask, other=float("inf"))
        x2 = tl.load(ranked + 2 * capacity + rows, mask=mask, other=0.0)
        y2 = tl.load(ranked + 3 * capacity + rows, mask=mask, other=0.0)
        touches = (x1 < x_high) & (y1 < y_high) & (x2 > x_low) & (y2 > y_low)
        found = tl.min(tl.where(touches, rows, last))
        row += BOXES_PER_LOOK
    label = tl.load(ranked + 4 * capacity + found, mask=found < last, other=NO_LABEL)
    return found, label.to(tl.int32)


@triton.jit
def inside_crowd(cells, row, label, last, ranked, capacity, bounds):
    """Which points of a tile lie strictly inside a region to ignore; and row and label of the first truth."""
    _, _, x, y = cells
    ignored = x != x
    while label < 0:
        x1, y1, x2, y2 = load_box(ranked, row, capacity)
        ignored |= (x > x1) & (y > y1) & (x < x2) & (y < y2)
        row, label = next_box(row + 1, last, ranked, capacity, bounds)
    return ignored, row, label


@triton.jit
def source_row(ranked, row, capacity):
    """The row of the packed targets that a row of the ranked table holds."""
    source = tl.load(ranked + 5 * capacity + row).to(tl.int32)
    return tl.minimum(tl.maximum(source, 0), capacity - 1)  # also if the offsets of the images make no sense


@triton.jit
def load_bag(parts, row, SPLITS: tl.constexpr):
    """Denominator of the positive weights, least and greatest deficit of a box, from its parts in fixed order."""
    part = parts + row * (3 * SPLITS)
    mass, deficit_min, deficit_max = tl.load(part), tl.load(part + SPLITS), tl.load(part + 2 * SPLITS)
    for i in tl.static_range(1, SPLITS):
        mass += tl.load(part + i)
        deficit_min = tl.minimum(deficit_min, tl.load(part + SPLITS + i))
        deficit_max = tl.maximum(deficit_max, tl.load(part + 2 * SPLITS + i))
    return tl.maximum(mass, 1e-12, propagate_nan=tl.PropagateNan.ALL), deficit_min, tl.minimum(deficit_max, 1.0)


@triton.jit
def weigh_box(
    row,
    table,
    capacity,
    cells,
    area,
    stride,
    d_image,
    score,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """All about the pairs of a tile's points and one box, each [P].

    `table` are the pointers of `BoxStatistics`; `cells` as from `open_tile`; `d_image` points to the distances of the
    level; `score` is the points' joint score for the class of the box. Returns whether inside, predicted and true
    distances to the four sides, IoU, 1 - GIoU, prior, w_pos and m; what is not inside has no meaning.
    Distances are read here, since most tiles need none and registers are scarce.
    """
    ranked, parts = table
    point, valid, x, y = cells
    x1, y1, x2, y2 = load_box(ranked, row, capacity)
    inside = valid & (x > x1) & (y > y1) & (x < x2) & (y < y2)
    sides = (x - x1, y - y1, x2 - x, y2 - y)
    distances = load_distances(d_image, point, area, inside, D_LAST)
    iou, reg_loss = formulas.overlap(distances, sides)
    reg_loss = tl.where(inside, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
    prior = formulas.center_prior(x, y, x1, y1, x2, y2, stride, SOFT)
    denominator, deficit_min, deficit_max = load_bag(parts, source_row(ranked, row, capacity), SPLITS)
    pos = formulas.positive_weight(formulas.alignment(score, reg_loss), prior, denominator)
    neg = formulas.negative_weight(iou, deficit_min, deficit_max)
    return inside, distances, sides, iou, reg_loss, prior, pos, neg
