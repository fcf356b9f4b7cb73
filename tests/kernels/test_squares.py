"""Squares of an image: who owns which points, which boxes touch them, and how blocks of boxes are taken."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import pack_targets
from dwtriton.kernels import correction
from dwtriton.kernels import squares as module
from dwtriton.kernels import touching as touching_module
from dwtriton.kernels.bags import box_bags
from dwtriton.kernels.boxes import box_table
from dwtriton.kernels.configs import BagsConfig
from dwtriton.kernels.counts import bounds_of_squares, touch, work_of_image
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from dwtriton.kernels.launch import INTERPRETED
from dwtriton.kernels.squares import GROUP, open_square, squares_of
from dwtriton.kernels.touching import NEAR, empty_touching, find_touching
from dwtriton.kernels.walk import BITS, next_boxes, nth_bit, popcount
from tests.support.generated_cases import assert_equals_truth
from tests.support.kernel_cases import on_kernels
from tests.support.loss_cases import random_case

pytestmark = pytest.mark.usefixtures("device", "poisoned_memory")

PYRAMIDS = {
    "powers of two": (((9, 13), (5, 7), (3, 4), (2, 2), (1, 1)), (8, 16, 32, 64, 128)),
    "other strides": (((9, 13), (4, 6)), (10, 23)),
    "coarse first": (((3, 4), (9, 13)), (24, 8)),
    "seven levels": (((9, 9), (5, 5), (3, 3), (3, 3), (3, 3), (2, 2), (2, 2)), (4, 8, 16, 16, 16, 32, 32)),
}


@pytest.fixture(params=[2, 8], ids=["2 cells", "8 cells"], autouse=True)
def cells(request, monkeypatch):
    """Squares and tiles as on a GPU, and as in the interpreter."""
    monkeypatch.setattr(module, "CELLS", request.param)
    monkeypatch.setattr(correction, "INTERPRETED", request.param == 8)
    return request.param


def case_of(pyramid, counts, classes=3):
    sizes, strides = PYRAMIDS[pyramid]
    return on_kernels(random_case(5, counts, classes=classes, sizes=sizes, strides=strides))


def prepare(case):
    """Pyramid, squares, offsets and table of boxes."""
    pyramid = read_pyramid(HeadOutputs(*case.tensors()), case.strides)
    boxes = read_boxes(pack_targets(case.targets(), case.device))
    bags = box_bags(pyramid, boxes, True, BagsConfig(512, 1, 1))
    return pyramid, squares_of(pyramid), boxes.offsets, box_table(pyramid, boxes, *bags)[0]


@triton.jit
def points_kernel(owned, side, columns, heights, widths, strides, SPANS: tl.constexpr, LANES: tl.constexpr):
    """Add one to each point of a square; levels one after another."""
    lane = tl.arange(0, LANES)
    valid, level, point, _, _ = open_square(tl.program_id(0), lane, columns, side, heights, widths, strides, SPANS)
    before = level * 0
    for i in tl.static_range(len(SPANS) - 1):
        before += tl.where(level > i, tl.cast(heights[i] * widths[i], tl.int32), 0)
    tl.store(owned + before + point, tl.load(owned + before + point, mask=valid) + 1, mask=valid)


@pytest.mark.skipif(not INTERPRETED, reason="programs of a GPU would not take turns")
@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_each_point_belongs_to_one_square(pyramid):
    levels, squares, _, _ = prepare(case_of(pyramid, [1]))
    owned = torch.zeros(levels.points)
    sizes = (*levels.sizes, levels.strides)
    points_kernel[(squares.count,)](owned, squares.side, squares.columns, *sizes, squares.spans, squares.lanes)
    assert (owned == 1).all()


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_boxes_that_touch_each_square_are_counted_written_down_and_listed(pyramid, cells):
    case = case_of(pyramid, [40, 0, 5])
    levels, squares, offsets, table = prepare(case)
    touching, totals = empty_touching(levels, squares, table.device)
    find_touching(levels, offsets, table, squares, touching, totals)
    counts, near, around, lists, lengths = (part.cpu() for part in touching)
    corners = table[: 4 * 45].view(4, 45).T.cpu()
    _, *bounds = bounds_of_squares(squares, case.sizes, case.strides)
    for image, (first, last) in enumerate(((0, 40), (40, 40), (40, 45))):
        expected = touch(corners[first:last], *bounds)
        here = slice(image * squares.count, (image + 1) * squares.count)
        assert counts[here].tolist() == expected.sum(0).clamp(max=NEAR + 1).tolist()
        for square in range(squares.count):
            rows = first + expected[:, square].nonzero().flatten()
            assert near[here][square, : len(rows)].tolist()[:NEAR] == rows[:NEAR].tolist()
        low, high = (torch.stack(bounds[i : i + 2]).unflatten(1, (-1, GROUP)) for i in (0, 2))
        of_groups = touch(corners[first:last], *low.amin(2), *high.amax(2))
        for group, (found, *rows) in enumerate(around.unflatten(0, (3, -1))[image].tolist()):
            expected = (first + of_groups[:, group].nonzero().flatten()).tolist()
            assert found == len(expected)
            assert rows[:found] == expected
    few, many = lengths.tolist()
    assert lists[:few].tolist() == ((counts > 0) & (counts <= NEAR)).nonzero().flatten().tolist()
    assert lists[len(lists) - many :].flip(0).tolist() == (counts > NEAR).nonzero().flatten().tolist()
    assert few > 0
    assert cells == 2 or many > 0
    work = work_of_image(case.sizes, case.strides, torch.tensor(case.boxes[0]), cells)
    assert counts[: squares.count].tolist() == work.touching.clamp(max=NEAR + 1).tolist()


@triton.jit
def walk_kernel(table, around, rows_out, filled_out, bounds, begin, last, listed, capacity, SLOTS: tl.constexpr):
    """All blocks of boxes with numbers from begin to last."""
    low_x, low_y, high_x, high_y = bounds
    start = begin - BITS
    word = begin * 0
    block = begin * 0
    go_on = True
    while go_on:
        rows, filled, start, word = next_boxes(
            start, word, last, around, listed != 0, table, capacity, (low_x, low_y, high_x, high_y), SLOTS
        )
        tl.store(rows_out + block * SLOTS + tl.arange(0, SLOTS), rows)
        tl.store(filled_out + block, filled)
        block += 1
        go_on = filled == SLOTS


@pytest.mark.parametrize("listed", [False, True], ids=["of the image", "of a list"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4, 1.0])
@pytest.mark.parametrize("count", [1, 32, 255, 700])
def test_boxes_that_touch_come_in_full_blocks_in_their_order(device, count, share, listed):
    """Whatever lies between them; the list is of every other row of the table."""
    chosen = torch.tensor(np.random.default_rng(count).random(count) < share)
    corners = torch.where(chosen, torch.tensor([[1.0], [1], [9], [9]]), torch.tensor([[20.0], [20], [30], [30]]))
    table = torch.cat((corners.flatten(), torch.zeros(8 * count))).to(device)
    numbers = torch.arange(0, count, 2) if listed else torch.arange(count)
    around = torch.cat((torch.tensor([len(numbers)]), numbers)).to(device, torch.int32)
    blocks = count // 32 + 1
    rows, filled = (torch.zeros(size, dtype=torch.int32, device=device) for size in (32 * blocks, blocks))
    bounds = (2.0, 2.0, 4.0, 4.0)
    walk_kernel[(1,)](table, around, rows, filled, bounds, 0, len(numbers), int(listed), count, SLOTS=32)
    expected = numbers[chosen[numbers]].tolist()
    assert filled.tolist() == ([32] * (len(expected) // 32) + [len(expected) % 32] + [0] * blocks)[:blocks]
    assert rows[: len(expected)].tolist() == expected


@pytest.mark.parametrize(("classes", "count"), [(1, 70), (3, 70), (40, 40)])
def test_runs_of_a_class_may_end_in_a_later_block(classes, count):
    """Boxes over the same points, with runs of a class that are shorter and longer than a block."""
    case = random_case(7, [count, 3], classes=classes, sizes=((4, 4), (2, 2)), strides=(8, 16))
    case.boxes[0] = np.array([4.0, 4, 28, 28]) + np.random.default_rng(0).uniform(-3, 3, (count, 4)).round(1)
    case.box_weights = [np.random.default_rng(1).choice([0.0, 0.5, 1, 2], len(boxes)) for boxes in case.boxes]
    assert_equals_truth(on_kernels(case.rounded(torch.float32)), torch.float32)


def test_more_boxes_around_than_a_list_holds(monkeypatch):
    monkeypatch.setattr(touching_module, "AROUND", 16)
    monkeypatch.setattr(correction, "AROUND", 16)
    case = random_case(9, [45], sizes=((4, 4), (2, 2)), strides=(8, 16))
    assert_equals_truth(on_kernels(case.rounded(torch.float32)), torch.float32)


def test_regions_to_ignore_in_more_than_one_block():
    case = random_case(8, [75], sizes=((4, 4), (2, 2)), strides=(8, 16))
    case.iscrowd = [np.arange(75) % 2 == 0]
    assert_equals_truth(on_kernels(case.rounded(torch.float32)), torch.float32)


def test_programs_that_share_a_box_change_no_bit():
    case = case_of("powers of two", [6])
    pyramid = read_pyramid(HeadOutputs(*case.tensors()), case.strides)
    boxes = read_boxes(pack_targets(case.targets(), case.device))
    tables = [
        box_table(pyramid, boxes, *box_bags(pyramid, boxes, True, BagsConfig(16, 1, programs)))
        for programs in (6, 24, 96)
    ]
    for table, sums in tables[1:]:
        assert table.tolist() == tables[0][0].tolist()
        assert sums.tolist() == tables[0][1].tolist()


def test_gradients_of_an_image_do_not_depend_on_its_neighbours():
    """In the same place of the batch or another, with squares that few or many boxes touch."""
    crowded, other = (random_case(seed, [60], sizes=((4, 4), (2, 2)), strides=(8, 16)) for seed in (1, 2))
    grads = []
    for neighbour, first in ((other, True), (other, False), (crowded, True)):
        cases = (crowded, neighbour) if first else (neighbour, crowded)
        batch = on_kernels(
            type(crowded)(
                crowded.strides,
                crowded.sizes,
                *(np.concatenate([getattr(case, kind) for case in cases]) for kind in "zud"),
                [case.boxes[0] for case in cases],
                [case.labels[0] for case in cases],
            )
        )
        inputs = batch.tensors()
        sums, _ = batch.sums(inputs)
        of_levels = torch.autograd.grad(sums.sum(), [level for kind in inputs for level in kind])
        grads.append([level[0 if first else 1].tolist() for level in of_levels])
    assert grads[0] == grads[1] == grads[2]


@triton.jit
def bits_kernel(words, places_out, counts_out):
    """The places of all bits of a word that are set, and how many there are."""
    word = tl.load(words + tl.program_id(0))
    n = tl.arange(0, 32)
    count = popcount(word)
    tl.store(places_out + 32 * tl.program_id(0) + n, nth_bit(word, n), mask=n < count)
    tl.store(counts_out + tl.program_id(0), count)


def test_places_of_bits(device):
    random = np.random.default_rng(0).integers(0, 2**32, 40)
    words = [1, 2**31, 2**32 - 1, 0xAAAAAAAA, 0x55555555, 0x80000001, 0, 0x10000, *random, *(random & random[::-1])]
    places = torch.full((len(words), 32), -1, dtype=torch.int32, device=device)
    counts = torch.zeros(len(words), dtype=torch.int32, device=device)
    bits_kernel[(len(words),)](torch.tensor(np.array(words, np.uint32).view(np.int32)).to(device), places, counts)
    for word, found, count in zip(words, places.tolist(), counts.tolist()):
        expected = [place for place in range(32) if int(word) >> place & 1]
        assert (found[:count], count) == (expected, len(expected))
