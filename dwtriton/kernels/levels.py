"""Where the numbers of a point lie, as device functions: every level is read in its own memory."""

import triton
import triton.language as tl


@triton.jit
def pick(items, level):
    """The entry of a tuple, one for each level, at a level, or numbers at many, known only at run time."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(level >= i, items[i], item)
    return item


@triton.jit
def pick_memory(pointers, levels):
    """The pointers of many levels; as numbers, since compilers for AMD cannot choose among tensors of pointers."""
    memory = pointers[0].to(tl.int64)
    for i in tl.static_range(1, len(pointers)):
        memory = tl.where(levels >= i, pointers[i].to(tl.int64), memory)
    return memory.to(pointers[0].dtype)


@triton.jit
def place(point, channel, area, channels, CHANNELS_LAST: tl.constexpr):
    """Where an image's level of `area` points has a channel of a point."""
    if CHANNELS_LAST:
        return point * channels + channel
    else:
        return channel * area + point


@triton.jit
def points_before(level, heights, widths, batch):
    """Points of all images on the levels before one, int64."""
    total = level.to(tl.int64) * 0
    for i in tl.static_range(len(heights) - 1):
        area = tl.cast(heights[i], tl.int32) * tl.cast(widths[i], tl.int32)
        total += tl.where(level > i, area * batch, 0)
    return total


@triton.jit
def first_cell(edge, stride, count, INCLUSIVE: tl.constexpr):
    """First of `count` cells in a row whose centre is > edge, or >= edge if INCLUSIVE; `count` if there is none."""
    cell = tl.floor(edge / stride - 0.5)
    cell = tl.minimum(tl.maximum(cell, -2.0), count)  # no overflow of integers
    for _ in tl.static_range(2):  # the division is at most two cells too low; only the comparison itself decides
        centre = (cell + 0.5) * stride
        if INCLUSIVE:
            cell += (centre < edge).to(tl.float32)
        else:
            cell += (centre <= edge).to(tl.float32)
    return tl.minimum(tl.maximum(cell, 0.0), count).to(tl.int32)


@triton.jit
def load_distances(d_points, step, mask):
    """Left, top, right and bottom of points; 0 where masked. `step` is from one to the next."""
    left = tl.load(d_points, mask=mask, other=0.0).to(tl.float32)
    top = tl.load(d_points + step, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(d_points + 2 * step, mask=mask, other=0.0).to(tl.float32)
    bottom = tl.load(d_points + 3 * step, mask=mask, other=0.0).to(tl.float32)
    return left, top, right, bottom


@triton.jit
def image_rows(offsets, image, capacity):
    """First row of an image's boxes and the row after the last, never outside the packed targets."""
    first = tl.maximum(tl.load(offsets + image), 0)
    last = tl.maximum(tl.minimum(tl.load(offsets + image + 1), capacity), 0)
    return tl.minimum(first, last), last
