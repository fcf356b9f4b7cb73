"""Single situations: edge cases of the specification, sizes that no generated batch has, and unchecked input."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets, pack_targets
from dwtriton.kernels.boxes import box_table
from dwtriton.kernels.configs import BagsConfig, DenseConfig, KernelConfigs
from dwtriton.kernels.finish import ADDED_TOGETHER, finish
from dwtriton.kernels.inputs import read_boxes, read_pyramid
from tests.support.generated_cases import (
    assert_equals_truth,
    assert_finite_and_exact,
    at_used_weights,
    extreme_logits,
    nearly_equal_ious,
    tied_sides,
)
from tests.support.kernel_cases import on_kernels, using
from tests.support.loss_cases import (
    all_without_weight,
    assert_gradients,
    check_without_objectness,
    crowded,
    last_without_weight,
    overlapping,
    random_case,
    run_loss,
    sums_and_gradients,
    truth_gradients,
    weighted,
)

pytestmark = [
    pytest.mark.usefixtures("device", "poisoned_memory"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NumPy's, in the interpreter
]

SMALL = {"sizes": ((6, 6),), "strides": (8,)}


def without_ground_truth():
    return random_case(1, [0, 0], sizes=((5, 7), (3, 4)), strides=(8, 16))


def one_image_without():
    return random_case(1, [0, 2, 0], **SMALL)


def box_without_a_point():
    case = random_case(2, [2], **SMALL)
    case.boxes[0][1] = (8.5, 8.5, 11, 11)
    return case


def bag_of_one_point():
    case = random_case(3, [1], **SMALL)
    case.boxes[0][:] = (9, 9, 15, 15)
    case.d[0] = 3
    return case


def ious_below_one_half():
    case = random_case(4, [3, 2], closeness=0, **SMALL)
    case.d[:] = 0.5
    return case


def order_reversed():
    case = overlapping()
    case.boxes[0] = case.boxes[0][::-1].copy()
    return case


def same_box_twice():
    case = overlapping()
    case.boxes[0][1] = case.boxes[0][0]
    return case


def perfect_predictions():
    """IoU 1 everywhere: every deficit is 0, and so is the gradient of the distances."""
    case = tied_sides()
    points, _ = case.points()
    case.d[0] = np.concatenate((points - (3, 5), (29, 31) - points), 1).clip(0)
    return case


def zero_predictions():
    """Boxes of no area, predicted and true: unions and enclosing boxes are guarded."""
    case = random_case(5, [2], **SMALL)
    case.d[:] = 0
    case.boxes[0][0] = (12 - 2**-12, 12 - 2**-12, 12 + 2**-12, 12 + 2**-12)
    return case


def far_outside():
    case = random_case(6, [3], **SMALL)
    case.boxes[0][:] = [(-5e5, -5e5, -4e5, -4e5), (1e30, 1e30, 2e30, 2e30), (1000, -50, 1e9, 20)]
    return case


def crowd_alone():
    case = crowded()
    case.iscrowd = [np.ones(6, bool), np.ones(3, bool)]
    return case


EDGE_CASES = [
    without_ground_truth,
    one_image_without,
    box_without_a_point,
    bag_of_one_point,
    ious_below_one_half,
    overlapping,
    order_reversed,
    same_box_twice,
    perfect_predictions,
    zero_predictions,
    far_outside,
    crowded,
    crowd_alone,
    weighted,
    all_without_weight,
    last_without_weight,
]


@pytest.mark.parametrize("make", EDGE_CASES, ids=lambda make: make.__name__)
def test_edge_cases_of_the_specification(make):
    assert_equals_truth(on_kernels(make().rounded(torch.float32)), torch.float32)


@pytest.mark.parametrize("loss", [0, 1])
def test_without_ground_truth_positive_losses_and_their_gradients_are_zero(loss):
    case = on_kernels(without_ground_truth())
    factors = [0, 0, 0]
    factors[loss] = 1
    losses, grads = run_loss(case, case.tensors(), factors=factors)
    assert losses[0] == losses[1] == 0
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-4])
def test_nearly_equal_ious_amplify_rounding_of_n_only_within_the_bound(offset):
    case = on_kernels(nearly_equal_ious(offset).rounded(torch.float32))
    _, spread = at_used_weights(case, torch.float32)
    assert spread < 1e-2
    assert_equals_truth(case, torch.float32)


def test_ties_take_the_mean_of_both_slopes():
    case = on_kernels(tied_sides())
    _, grads = run_loss(case, case.tensors())
    expected = truth_gradients(case.truth(at_used_weights(case, torch.float32)[0]))
    assert np.abs(expected[1]).max() > 0
    assert_gradients(grads, expected, 1e-4)


@pytest.mark.parametrize("value", [-100.0, -30.0, 30.0, 100.0])
@pytest.mark.parametrize("other", [-100.0, 0.0, 100.0])
def test_extreme_logits_keep_finite_losses_and_exact_gradients(value, other):
    assert_finite_and_exact(on_kernels(extreme_logits(value, other, **SMALL)))


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_every_pair_of_logits_beside_each_other(scale):
    """From -100 to 100, within -10 to 10, and within -1 to 1; at each tile's edge, too."""
    case = random_case(7, [1], classes=5, sizes=((9, 20),), strides=(8,))
    logits = np.linspace(-10, 10, 180) * scale
    case.u[0] = logits
    case.z[0] = np.stack([np.roll(logits, shift) for shift in (0, 36, 72, 108, 144)], 1)
    assert_finite_and_exact(on_kernels(case.rounded(torch.float32)))


@pytest.mark.parametrize("score", [0.124, 0.126, 0.249, 0.2501, 0.49, 0.51])
def test_scores_about_where_formulas_change(score):
    case = random_case(8, [1], **SMALL)
    case.u[:] = 2
    share = score * (1 + np.exp(-2)) * np.random.default_rng(0).uniform(0.99, 1, case.z.shape)
    case.z[:] = np.log(share / (1 - share))
    assert_finite_and_exact(on_kernels(case.rounded(torch.float32)))


BAGS = BagsConfig(64, 1, 16)
DENSE = DenseConfig(128, 4, 4, 1, 1)
CONFIGS = {
    "class blocks of 4": KernelConfigs(DENSE, BAGS, DENSE),
    "class blocks of 8": KernelConfigs(DENSE._replace(classes=8), BAGS, DENSE._replace(classes=8)),
    "tiles of one point": KernelConfigs(DenseConfig(1, 8, 1, 1, 1), BAGS, DenseConfig(1, 8, 1, 1, 1)),
    "several tiles": KernelConfigs(DenseConfig(4, 2, 1, 4, 1), BAGS, DenseConfig(2, 1, 1, 8, 2)),
    "bags of many blocks": KernelConfigs(DENSE, BagsConfig(1, 1, 1), DENSE),
    "bags of many programs": KernelConfigs(DENSE, BagsConfig(4, 1, 64), DENSE),
}


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_block_sizes_that_fit_nothing(name, classes):
    """Blocks beyond the tuned ones: no size of the input is a multiple of them."""
    with using(CONFIGS[name]):
        case = random_case(9, [2], classes, sizes=((3, 7), (2, 3)), strides=(8, 16))
        assert_equals_truth(on_kernels(case), torch.float32)


def test_a_bag_of_more_points_than_a_programs_block():
    """2304 points in the whole image, of which each of four parts takes 512 at a time."""
    case = random_case(10, [1], classes=1, sizes=((48, 48),), strides=(8,))
    case.boxes[0][:] = (-10, -10, 1000, 1000)
    assert_equals_truth(on_kernels(case), torch.float32)


def test_hundreds_of_boxes_in_an_image():
    """More than a tile looks at together, over the same few points, of four classes, regions to ignore among them."""
    case = random_case(11, [0, 300], classes=4, sizes=((2, 3),), strides=(8,))
    random = np.random.default_rng(0)
    case.iscrowd = [np.zeros(0, bool), random.random(300) < 0.01]
    assert_equals_truth(on_kernels(case), torch.float32)


def test_hundreds_of_boxes_of_one_class():
    case = random_case(12, [140], classes=1, sizes=((2, 2),), strides=(8,))
    assert_equals_truth(on_kernels(case), torch.float32)


def test_more_images_than_are_searched_together():
    case = random_case(
        13, [1 if image in (0, 63, 64, 65, 129) else 0 for image in range(130)], sizes=((2, 2),), strides=(8,)
    )
    assert_equals_truth(on_kernels(case), torch.float32)


@pytest.mark.parametrize("capacity", [0, 5])
@pytest.mark.parametrize("crowd", [True, False])
def test_rows_of_padding_and_a_missing_crowd_mask_change_nothing(capacity, crowd, device):
    case = on_kernels(random_case(14, [0, 2 if capacity else 0], **SMALL))
    packed = pack_targets(case.targets(), device, capacity)
    packed.boxes[2:], packed.labels[2:] = torch.nan, -7
    got = sums_and_gradients(case, packed if crowd else packed._replace(iscrowd=None))
    expected = sums_and_gradients(case)
    assert np.array_equal(got[0], expected[0])
    assert all(np.array_equal(one, other) for one, other in zip(got[1], expected[1]))


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_inputs_make_a_loss_nan_and_infinite_ones_end(kind, value):
    case = on_kernels(random_case(15, [2], **SMALL))
    case.boxes[0][0] = (-9, -9, 999, 999)
    inputs = case.tensors()
    with torch.no_grad():
        inputs[kind][0][0, case.labels[0][0] if kind == 0 else 0, 3, 3] = value
    losses = case.loss(inputs)
    gradients = torch.autograd.grad(sum(losses.values()), [level for levels in inputs for level in levels])
    if value is torch.nan:
        assert sum(losses.values()).isnan()
        assert any(gradient.isnan().any() for gradient in gradients)


PROBLEMS = {
    "label too high": ("labels", 3),
    "label below zero": ("labels", -1),
    "label beyond 32 bits": ("labels", 2**32),
    "label far below zero": ("labels", -(2**62)),
    "inverted": ("boxes", (50.0, 3.0, 10.0, 30.0)),
    "one NaN": ("boxes", (torch.nan, 3.0, 10.0, 30.0)),
    "another NaN": ("boxes", (1.0, 3.0, 10.0, torch.nan)),
    "all NaN": ("boxes", (torch.nan,) * 4),
    "one infinity": ("boxes", (1.0, 3.0, torch.inf, 30.0)),
    "all infinite": ("boxes", (-torch.inf, -torch.inf, torch.inf, torch.inf)),
    "a negative weight": ("weights", -1.0),
    "a weight of NaN": ("weights", torch.nan),
    "an infinite weight": ("weights", torch.inf),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("crowd", [False, True])
def test_unchecked_invalid_targets_make_all_losses_and_gradients_nan_and_touch_no_other_memory(problem, crowd, device):
    """As on a device, where values are not looked at. The interpreter refuses access to other memory."""
    case = on_kernels(random_case(16, [2, 3], **SMALL))
    case.box_weights = [np.ones(2), np.full(3, 0.5)]
    packed = pack_targets(case.targets(), device)
    part, value = PROBLEMS[problem]
    getattr(packed, part)[3] = torch.tensor(value, device=device)
    packed.iscrowd[3] = crowd
    sums, grads = sums_and_gradients(case, packed)
    assert np.isnan(sums[:3]).all()
    assert all(np.isnan(grad).all() for grad in grads)  # a GradScaler then leaves the step out

    packed = packed._replace(offsets=torch.tensor([0, 2, 3], dtype=torch.int32, device=device))  # now it is padding
    sums, grads = sums_and_gradients(case, packed)
    assert np.isfinite(sums).all()
    assert all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    "offsets",
    [
        (0, 2, 1000),
        (0, 1000, 1000),
        (-5, 2, 4),
        (2, 0, 4),
        (0, 4, 2),
        (4, 4, 4),
        (9, 9, 9),
        (0, 4, -5),
        (0, 4, -(2**31)),
    ],
)
def test_unchecked_offsets_out_of_order_or_range_make_all_nan_and_touch_no_other_memory(offsets, device):
    case = on_kernels(random_case(17, [2, 2], **SMALL))
    boxes, labels, _, iscrowd, _ = pack_targets(case.targets(), device)
    offsets = torch.tensor(offsets, dtype=torch.int32, device=device)
    sums, grads = sums_and_gradients(case, PackedTargets(boxes, labels, offsets, iscrowd))
    assert np.isnan(sums[:3]).all()
    assert all(np.isnan(grad).all() for grad in grads)


def test_thousands_of_partial_sums(device):
    pyramid = read_pyramid(HeadOutputs(*on_kernels(random_case(18, [1], **SMALL)).tensors()), SMALL["strides"])
    random = torch.Generator().manual_seed(0)
    shapes = (2 * ADDED_TOGETHER + 77, 2), (ADDED_TOGETHER + 5, 2), (3, 4)
    dense, pairs, boxes = (torch.rand(shape, generator=random, dtype=torch.float64) for shape in shapes)
    boxes[:, 3] = 0
    for wrong in (0, 1):
        boxes[1, 3] = wrong
        sums, counts, normalised, poison = finish(pyramid, *(part.to(device) for part in (dense, pairs, boxes)))
        factor = torch.nan if wrong else 1.0
        weight, missing = boxes[:, 2].sum(), pairs[:, 1].sum()
        expected = torch.stack((boxes[:, 0].sum(), boxes[:, 1].sum(), dense[:, 0].sum() + pairs[:, 0].sum())) * factor
        norms = torch.stack((weight, weight, missing)).clamp(min=1)
        close = {"rtol": 1e-6, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(sums.double().cpu(), expected, **close)
        torch.testing.assert_close(counts.double().cpu(), torch.stack((weight, weight, missing)), **close)
        torch.testing.assert_close(normalised[0].double().cpu(), norms, **close)
        torch.testing.assert_close(torch.stack(normalised[1:]).double().cpu(), expected / norms, **close)
        torch.testing.assert_close(poison.double().cpu(), torch.tensor(factor).double(), **close)


def test_where_everything_is_ignored_the_negative_loss_is_zero():
    for scale in (0.1, 1.0, 10.0):
        case = random_case(18, [1, 1], classes=7, sizes=((9, 11), (4, 5)), strides=(8, 16), logit_scale=scale)
        case.boxes, case.iscrowd = [np.array([[-100, -100, 500, 500.0]])] * 2, [np.array([True])] * 2
        sums, grads = sums_and_gradients(on_kernels(case))
        assert sums[2] == 0
        assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("wrong", [None, 5, 100])
def test_many_boxes_are_counted_and_an_invalid_one_is_found(wrong, device):
    random = np.random.default_rng(0)
    case = on_kernels(random_case(19, [0], **SMALL))
    capacity, used = 150, 120
    boxes = torch.tensor(np.sort(random.random((capacity, 4)))).float()
    iscrowd = torch.tensor(random.random(capacity) < 0.2)
    boxes[used:] = torch.nan
    if wrong is not None:
        boxes[wrong, 2] = -1
    offsets = torch.tensor([0, used], dtype=torch.int32)
    targets = PackedTargets(boxes, torch.zeros(capacity, dtype=torch.int64), offsets, iscrowd)
    pyramid = read_pyramid(HeadOutputs(*case.tensors()), case.strides)
    bags = torch.zeros(capacity, 1, 3, dtype=torch.float64, device=device)
    extremes = torch.zeros(capacity, 1, 2, device=device)
    _, sums = box_table(pyramid, read_boxes(targets.to(device)), bags, extremes)
    assert sums[:, 2].sum().item() == (~iscrowd[:used]).sum().item()
    assert sums[:, 3].sum().item() == (wrong is not None)


def test_same_bits_from_the_same_input():
    case = on_kernels(replace(random_case(18, [7, 5], classes=20, sizes=((6, 8), (3, 4)), strides=(8, 16))))
    first, second = (run_loss(case, case.tensors()) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert all(np.array_equal(one, other) for one, other in zip(first[1], second[1]))


def test_without_objectness_the_score_is_that_of_the_class_alone(device):
    check_without_objectness(on_kernels(random_case(31, [4, 0, 3])), 1e-4, torch.float32)
