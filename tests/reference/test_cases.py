"""Edge cases of docs/method.md one by one, each against the oracle or against results that must not change."""

import copy

import numpy as np
import pytest
import torch

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import pack_targets
from dwtriton.losses.dual_weight import DualWeightAssigner
from dwtriton.reference.loss import dual_weight_sums
from tests.support.loss_cases import (
    LOSSES,
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


def assert_equals_truth(case):
    truth = case.truth()
    losses, grads = run_loss(case, case.tensors(torch.float64))
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-9)
    assert_gradients(grads, truth_gradients(truth), 1e-9)
    return truth


def test_without_ground_truth_positive_losses_and_their_gradients_are_zero():
    case = random_case(1, [0, 0])
    inputs = case.tensors()
    losses = case.loss(inputs)
    assert losses["loss_cls_pos"].item() == losses["loss_loc"].item() == 0
    assert losses["loss_cls_neg"].item() > 0
    (losses["loss_cls_pos"] + losses["loss_loc"]).backward()
    for kind in inputs:
        for level in kind:
            assert level.grad is not None
            assert not level.grad.any()
    assert_equals_truth(case)


def test_box_without_a_point_counts_in_the_normaliser_only():
    case = random_case(2, [2], sizes=((6, 6),), strides=(8,))
    case.boxes[0][1] = (8.5, 8.5, 11, 11)
    with_it, _ = run_loss(case, case.tensors())
    assert case.truth().pos_norm == 2
    assert_equals_truth(case)
    case.boxes[0], case.labels[0] = case.boxes[0][:1], case.labels[0][:1]
    without, _ = run_loss(case, case.tensors())
    np.testing.assert_allclose(with_it, without * (0.5, 0.5, 1), rtol=1e-6)


def test_bag_of_one_point_has_a_negative_weight_of_one():
    case = random_case(3, [1], sizes=((6, 6),), strides=(8,))
    case.boxes[0][:] = (9, 9, 15, 15)
    case.d[0] = 3
    (weights,) = case.weights()
    assert weights.inside.sum() == 1
    assert weights.iou[weights.inside] == 1
    assert (weights.neg == 1).all()
    assert_equals_truth(case)


def test_ious_below_one_half_leave_all_negative_weights_at_one():
    case = random_case(4, [3, 2], closeness=0)
    case.d[:] = 0.5
    assert all((weights.neg == 1).all() for weights in case.weights())
    assert assert_equals_truth(case).neg_norm == 1


def test_last_box_of_a_class_wins_and_order_matters():
    case = overlapping()
    assert_equals_truth(case)
    swapped = copy.deepcopy(case)
    swapped.boxes[0] = case.boxes[0][::-1].copy()
    assert_equals_truth(swapped)
    (one,), (other,) = case.weights(), swapped.weights()
    assert not torch.equal(one.neg, other.neg)
    torch.testing.assert_close(one.pos, other.pos.flip(1))
    both = one.inside.all(1)
    only_last = copy.deepcopy(case)
    only_last.boxes[0], only_last.labels[0] = case.boxes[0][1:], case.labels[0][1:]
    assert torch.equal(one.neg[both], only_last.weights()[0].neg[both])


def test_the_same_box_twice_counts_twice():
    case = overlapping()
    case.boxes[0][1] = case.boxes[0][0]
    assert assert_equals_truth(case).pos_norm == 2


def test_changing_one_box_changes_only_its_points_and_classes():
    """With the normalisers kept equal: gradients elsewhere, and all other images, stay the same bits."""
    case = random_case(6, [5, 4], classes=6)
    case.labels[0][:] = [0, 1, 2, 3, 4]
    case.boxes[0][2] = (10, 10, 60, 70)
    before_sums, before = sums_and_gradients(case)
    (old, _) = case.weights()
    case.boxes[0][2] += 5
    after_sums, after = sums_and_gradients(case)
    (new, _) = case.weights()
    touched = (old.inside[:, 2] | new.inside[:, 2]).numpy()
    assert touched.any()
    assert not touched.all()
    assert (before_sums != after_sums).any()
    for one, other in zip(before, after):
        assert np.array_equal(one[1], other[1])
        assert np.array_equal(one[0][~touched], other[0][~touched])
    other_classes = np.arange(6) != 2
    assert np.array_equal(before[0][0][:, other_classes], after[0][0][:, other_classes])
    assert not np.array_equal(before[0][0][touched, 2], after[0][0][touched, 2])


def test_points_inside_crowd_regions_add_no_negative_loss():
    case = crowded()
    truth = assert_equals_truth(case)
    assert truth.pos_norm == 7
    weights = case.weights(torch.float64)
    assert weights[0].pos.shape[1] == 4
    for got, expected in zip(weights, case.oracle_weights()):
        np.testing.assert_allclose(got.neg.numpy(), expected.neg, atol=1e-10)
        np.testing.assert_allclose(got.pos.numpy(), expected.pos, rtol=1e-10, atol=1e-14)
        assert (got.neg.numpy()[expected.ignored] == 0).all()
    assert case.oracle_weights()[0].ignored.any()


def test_crowd_regions_alone_are_no_ground_truth():
    case = crowded()
    case.iscrowd[0][:] = case.iscrowd[1][:] = True
    assert_equals_truth(case)
    losses, _ = run_loss(case, case.tensors())
    assert losses[0] == losses[1] == 0


@pytest.mark.parametrize("capacity", [None, 9, 50])
def test_packed_targets_give_the_bits_of_a_list(capacity):
    case = crowded()
    expected = run_loss(case, case.tensors())
    packed = pack_targets(case.targets(), "cpu", capacity)
    got = run_loss(case, case.tensors(), packed)
    assert np.array_equal(got[0], expected[0])
    assert all(np.array_equal(one, other) for one, other in zip(got[1], expected[1]))


def test_packed_targets_need_no_crowd_mask():
    case = random_case(8, [3, 2])
    packed = pack_targets(case.targets(), "cpu")._replace(iscrowd=None)
    assert np.array_equal(run_loss(case, case.tensors(), packed)[0], run_loss(case, case.tensors())[0])


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_nan_inputs_make_a_loss_nan(kind):
    case = random_case(9, [2])
    case.boxes[0][0] = (-9, -9, 999, 999)
    inputs = [[level.detach() for level in levels] for levels in case.tensors()]
    inputs[kind][0][0, case.labels[0][0] if kind == 0 else 0, 3, 3] = torch.nan
    losses = case.loss(inputs)
    assert sum(losses.values()).isnan()


@pytest.mark.parametrize(
    "problem", ["label too high", "label below zero", "not finite", "inverted", "a negative weight", "a weight of NaN"]
)
def test_unchecked_invalid_targets_make_all_losses_nan_and_harm_nothing_else(problem):
    """As on a device, where values are not looked at."""
    case = random_case(10, [2, 3])
    case.box_weights = [np.ones(2), np.full(3, 0.5)]
    packed = pack_targets(case.targets(), "cpu")
    if problem == "not finite":
        packed.boxes[3, 1] = torch.inf
    elif "weight" in problem:
        packed.weights[3] = -1 if "negative" in problem else torch.nan
    elif problem == "inverted":
        packed.boxes[3, 2] = packed.boxes[3, 0] - 1
    else:
        packed.labels[3] = 3 if problem == "label too high" else -1
    inputs = case.tensors()
    sums, _ = dual_weight_sums(HeadOutputs(*inputs), packed, case.strides, True)
    assert all(value.isnan() for value in sums)
    gradients = torch.autograd.grad(sums.sum(), [level for kind in inputs for level in kind])
    assert all(gradient.isnan().all() for gradient in gradients)  # a GradScaler then leaves the step out
    packed = packed._replace(offsets=torch.tensor([0, 2, 3]).int())
    sums, _ = dual_weight_sums(HeadOutputs(*case.tensors()), packed, case.strides, True)
    assert all(value.isfinite() for value in sums)


def test_gradients_reach_a_model_through_the_losses():
    case = random_case(11, [3, 1])
    scale = torch.ones((), requires_grad=True)
    inputs = [[level.detach() * scale for level in kind] for kind in case.tensors()]
    sum(case.loss(inputs)[name] for name in LOSSES).backward()
    truth = case.truth()
    expected = sum(
        (grad * np.reshape(value, grad.shape)).sum()
        for grad, value in zip(truth_gradients(truth), (case.z, case.d, case.u))
    )
    assert scale.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_without_objectness_the_score_is_that_of_the_class_alone(dtype, tolerance):
    check_without_objectness(random_case(31, [4, 0, 3]), tolerance, dtype)


def test_without_objectness_the_weights_are_those_of_a_certain_one():
    case = random_case(32, [3, 2])
    z, d, u = case.tensors()
    certain = [torch.full_like(level, 1000.0) for level in u]
    assigner = DualWeightAssigner(case.strides)
    pairs = zip(assigner(z, d, None, case.targets()), assigner(z, d, certain, case.targets()), strict=True)
    for image, (ours, other) in enumerate(pairs):
        assert torch.equal(ours.score, torch.cat([level[image].flatten(1).T for level in z]).sigmoid())
        assert all(torch.equal(one, two) for one, two in zip(ours, other))


@pytest.mark.parametrize("make", [weighted, all_without_weight, last_without_weight], ids=lambda make: make.__name__)
def test_weights_of_boxes(make):
    assert_equals_truth(make())


def test_weights_of_one_change_no_bit():
    case = crowded()
    expected = run_loss(case, case.tensors())
    case.box_weights = [np.ones(len(boxes)) for boxes in case.boxes]
    got = run_loss(case, case.tensors())
    assert np.array_equal(got[0], expected[0])
    assert all(np.array_equal(one, other) for one, other in zip(got[1], expected[1]))


def test_a_box_without_weight_has_no_loss_where_it_decides():
    """Neither of its class at its points, nor in a normaliser."""
    case = overlapping()
    case.box_weights = [np.array([1.0, 0.0])]
    (weights,) = case.oracle_weights()
    assert (weights.neg[weights.inside[:, 1], 1] == 0).all()
    assert weights.uncounted.sum() == weights.inside[:, 1].sum()
    assert case.truth().pos_norm == 1
